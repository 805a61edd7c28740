"""Where half precision breaks a model that compares features: in the cosine, operation by operation.

    UAD_MVTEC=... python benchmarks/half.py RUN/model.ckpt RUN2/model.ckpt --out benchmarks/results/half.json

The paths are of trained models of `PyramidNetwork`. Their networks run in float32; only the cosine between the features
of teacher and student is then computed again, each result rounded to float16: as torch's exporter writes it, which
multiplies the squared norms before it takes the root, and with the roots first. Both on the features as the papers
compare them, and standardised as this project does. The score is RD's: the greatest pixel of the sum of the maps.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import footer, machine
from steps import NAMES
from torch import Tensor

from engines.files import write_json, write_text
from uad.data.folder import draw, test_samples
from uad.data.reading import load_images
from uad.evaluation.metrics import spearman
from uad.tables import markdown
from uad.training.checkpoint import load_checkpoint

IMAGES = 160
ROOTS_FIRST = {"root of the product of squared norms": False, "product of roots": True}


def main() -> None:
    """Measure, write JSON and the page made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = [row for checkpoint in options.checkpoints for row in judged(checkpoint)]
    result = {"machine": machine(), "images": IMAGES, "rows": found}
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


@torch.no_grad()
def judged(path: Path) -> "list[dict[str, Any]]":
    """A row for each way to compute the cosine."""
    checkpoint = load_checkpoint(path)
    network, info = checkpoint.network.eval(), checkpoint.info
    images = load_images(draw(test_samples(Path(os.environ["UAD_MVTEC"])), IMAGES, 0), info.size)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"raw": [], "standardised": []}
    levels = [network.features(part) for part in torch.from_numpy(images).split(8)]
    for level, standardize in enumerate(network.head.standardize):
        teacher, student = (torch.cat([each[side][level] for each in levels]) for side in (0, 1))
        pairs["standardised"].append((standardize(teacher), student))
        pairs["raw"].append((teacher, student * standardize.std + standardize.mean))
    rows = []
    for features, each in pairs.items():
        expected, _ = scores(each, torch.float32, roots_first=False)
        for name, roots_first in ROOTS_FIRST.items():
            score, lost = scores(each, torch.float16, roots_first)
            known = np.isfinite(score)
            rows.append(
                {
                    "model": f"{NAMES[info.model]} on {info.backbone}",
                    "features": features,
                    "norm": name,
                    "greatest squared norm": max(float(t.square().sum(dim=1).max()) for t, _ in each),
                    "lost": lost,
                    "spearman": spearman(expected, score) if known.all() else None,
                }
            )
    return rows


def scores(pairs: "list[tuple[Tensor, Tensor]]", dtype: torch.dtype, roots_first: bool) -> "tuple[np.ndarray, float]":
    """Scores (N,), and the share of positions at which a result is infinite or not a number."""
    maps, lost = [], []
    for teacher, student in pairs:
        t, s = teacher.to(dtype), student.to(dtype)
        dot, t_square, s_square = ((one * other).sum(dim=1) for one, other in ((t, s), (t, t), (s, s)))
        norm = t_square.sqrt() * s_square.sqrt() if roots_first else (t_square * s_square).sqrt()
        distance = 1 - dot / norm.clamp_min(1e-8)  # the bound of torch's cosine, 0 in float16
        lost.append(~(dot.isfinite() & norm.isfinite() & distance.isfinite()))
        maps.append(F.interpolate(distance[:, None].float(), pairs[0][0].shape[2:], mode="bilinear"))
    share = float(torch.cat([each.flatten().float() for each in lost]).mean())
    return torch.stack(maps).sum(dim=0).flatten(1).amax(dim=1).numpy(), share


def page(result: "dict[str, Any]") -> str:
    """A row for each model, kind of features and way to compute the norm."""
    rows = []
    for row in result["rows"]:
        told = "none" if row["spearman"] is None else f"{row['spearman']:.4f}"
        figures = [f"{row['greatest squared norm']:,.0f}", f"{100 * row['lost']:.2f}", told]
        rows.append([row["model"], row["features"], row["norm"], *figures])
    header = ["model", "features", "norm", "greatest squared norm", "positions lost, %", "Spearman with float32"]
    lines = [
        "# The cosine of two features, each result rounded to float16",
        "",
        f"{result['images']} test images of MVTec AD. Lost: a result is infinite or not a number.",
        "float16 ends at 65,504.",
    ]
    return "\n".join([*lines, "", markdown(header, rows), "", footer(result["machine"])])


if __name__ == "__main__":
    main()
