"""The mark that a unified model is held to: nearest neighbours, one class at a time, in the same teacher's features.

    python benchmarks/neighbours.py --backbone mobilenet_v2 --weights mobilenet_v2-imagenet.pth \
        --data IMAGES [IMAGES ...] --models MODEL [MODEL ...] --work DIR \
        --out benchmarks/results

As PatchCore does (Roth et al., CVPR 2022): a place is described by `Backbone.bank_layers`, averaged over 3x3 places and
projected (`uad.models.bank`) by what is seen of the class; a bank holds `PATCHES` places of all good training images,
chosen by k-centre; the score of an image is the greatest distance of its places from the bank. Each class has its own
bank, and is told which it is: a unified model is not.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from commands import command
from machine import footer, machine
from torch import Tensor

from engines.files import write_json, write_text
from uad.data.batches import BATCH
from uad.data.folder import Sample, find_classes, test_samples, train_samples, with_depths
from uad.data.reading import depths_of, load_images
from uad.evaluation.metrics import image_auroc
from uad.models.backbones import FeaturePyramid, backbone_of
from uad.models.bank import Bank, choose_patches, squared_distances
from uad.models.layers import Normalize
from uad.tables import markdown

PATCHES = 4000  # of a class
SIZE = (256, 256)


def main() -> None:
    """Measure class by class, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+")
    parser.add_argument("--models", type=Path, required=True, nargs="+", help="a unified model of each root")
    parser.add_argument("--work", type=Path, required=True, help="for the figures of the models, which are kept")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    result: dict[str, object] = {"machine": machine(), "rows": rows}
    for root, model in zip(options.data, options.models, strict=True):
        figures = options.work / f"{root.name}.json"
        if not figures.exists():
            command(["test", str(model), "--data.root", str(root), "--batch", str(BATCH), "--json", str(figures)])
        report = json.loads(figures.read_text(encoding="utf-8"))
        for name in find_classes(root):
            row: dict[str, object] = {"class": name, "unified": report["classes"][name]["image_auroc"]}
            row["neighbours"] = neighbours(root, name, options.backbone, options.weights)
            rows.append(row)
            print(row, flush=True)
            write_json(options.out / "neighbours.json", result)
            write_text(options.out / "neighbours.md", page(result))


@torch.inference_mode()
def neighbours(root: Path, name: str, backbone: str, weights: str) -> float:
    """The image AUROC of one class."""
    source = backbone_of(backbone)
    normalize, bank = Normalize(source.mean, source.std), Bank(source)
    teacher = FeaturePyramid(backbone, weights, source.bank_layers).eval()
    good = train_samples(root, [name])
    depths = depths_of(good)

    def levels(samples: "list[Sample]") -> "list[list[Tensor]]":
        """The teacher's levels, batch by batch."""
        known = with_depths(samples, lambda each: depths.get(each, 16))
        return [teacher(normalize(batch)) for batch in torch.from_numpy(load_images(known, SIZE)).split(BATCH)]

    known = levels(good)
    bank.fit_projection(known)
    patches, _ = choose_patches(torch.cat([bank.described(each) for each in known]), PATCHES)
    columns, squares = patches.T[None], patches.square().sum(dim=1)[None, None]
    samples = test_samples(root, [name])
    distances = [squared_distances(bank.described(each), columns, squares) for each in levels(samples)]
    scores = torch.cat(distances).flatten(1).amax(dim=1)
    auroc = image_auroc(scores.numpy(), np.array([sample.is_defect for sample in samples]))
    assert auroc is not None
    return auroc


def page(result: "dict[str, object]") -> str:
    rows: list[dict[str, float]] = result["rows"]  # type: ignore[assignment]
    table = [[str(r["class"]), f"{r['neighbours']:.3f}", f"{r['unified']:.3f}"] for r in rows]
    table.append(["mean", *(f"{np.mean([row[key] for row in rows]):.3f}" for key in ("neighbours", "unified"))])
    text = "## Image AUROC of nearest neighbours, one class at a time, and of unified models that are told no class\n\n"
    where: dict[str, object] = result["machine"]  # type: ignore[assignment]
    return f"{text}{markdown(['class', 'neighbours', 'unified'], table)}\n\n{footer(where)}"


if __name__ == "__main__":
    main()
