"""Where the features of a backbone look: how far down and right of a place the cells lie that see it.

    python benchmarks/offsets.py --weights mobilenet_v2=mobilenet_v2-imagenet.pth --out benchmarks/results

A bright or dark square is drawn on noise. What it changes in a level has a centre; its distance from that of the square
is the offset, in pixels of the image, if a cell of stride s stands for the middle of its s by s pixels. Convolutions of
odd kernels that halve the image and pad both sides alike have an offset of (s - 1) / 2 by construction. Trained weights
add to it. `uad.models.backbones.Backbone.offsets` holds what is found here.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import footer, machine

from engines.files import write_json, write_text
from uad.models.backbones import FeaturePyramid, backbone_of
from uad.models.layers import Normalize
from uad.tables import markdown

BACKBONES = ("mobilenet_v2", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SQUARES, SIDE = 48, 256
LEAST = 0.05  # of the greatest change: smaller ones, which reach far, do not count


def main() -> None:
    """Measure the backbones one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="*", default=[], help="NAME=FILE where a backbone's are not installed")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = dict(each.split("=", 1) for each in options.weights)
    result: dict[str, Any] = {"machine": machine(), "offsets": {}}
    for name in BACKBONES:
        for kind, weights in (("random", "none"), ("ImageNet", files.get(name, "imagenet"))):
            result["offsets"][f"{name}, {kind}"] = offsets(name, weights)
            print(name, kind, result["offsets"][f"{name}, {kind}"], flush=True)
    write_json(options.out / "offsets.json", result)
    write_text(options.out / "offsets.md", page(result))


@torch.inference_mode()
def offsets(backbone: str, weights: str) -> "list[float]":
    """Of each level, pixels; the mean of down and right."""
    torch.manual_seed(0)
    source, random = backbone_of(backbone), np.random.default_rng(0)
    pyramid, normalize = FeaturePyramid(backbone, weights).eval(), Normalize(source.mean, source.std)
    found: list[list[float]] = [[] for _ in source.strides]
    for number in range(SQUARES):
        side, grain = int(random.choice([4, 8, 16])), int(random.choice([1, 4, 16]))
        coarse = random.normal(110, 25, (SIDE // grain, SIDE // grain, 3)).clip(0, 255)
        image = np.kron(coarse, np.ones((grain, grain, 1))).astype(np.uint8)
        y, x = random.integers(SIDE // 3, 2 * SIDE // 3, 2)
        changed = image.copy()
        changed[y : y + side, x : x + side] = (20, 230)[number % 2]
        before, after = (pyramid(normalize(torch.from_numpy(each)[None])) for each in (image, changed))
        for level, (one, other) in enumerate(zip(before, after, strict=True)):
            change = (one - other).square().sum(dim=1)[0]
            change = change * (change > LEAST * change.max())
            middles = (torch.arange(len(change)) + 0.5) * source.strides[level]
            for axis, start in ((1, y), (0, x)):
                centre = float((change.sum(dim=axis) * middles).sum() / change.sum())
                found[level].append(centre - (start + side / 2))
    return [round(float(np.mean(level)), 2) for level in found]


def page(result: "dict[str, Any]") -> str:
    """A row for each backbone and kind of weights."""
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in result["offsets"].items()]
    text = f"## How far down and right of a place the cells lie that see it, pixels, at {SIDE} by {SIDE}\n"
    return "\n".join([text, markdown(["backbone, weights", "1/4", "1/8", "1/16"], rows), "", footer(result["machine"])])


if __name__ == "__main__":
    main()
