"""Logical defects: what EfficientAD's autoencoder finds that a comparison of patches cannot.

    uad distill --images ANYTHING --out teacher.pth
    python benchmarks/logical.py --teacher teacher.pth --work FOLDER --out benchmarks/results/logical.json

The images are drawn (`uad.data.synthetic`, the tray): a good tray has one plug in one of two pockets that lie further
apart than a patch is wide, and a bad one has none, or two. So each patch of a bad tray is that of some good one. A
model is trained on good trays, and each of its two branches judges alone, by the highest pixel of its map on the scale
of good images. A run that is in FOLDER is not trained again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import footer, machine

from engines.files import write_json, write_text
from uad import cli
from uad.data.folder import test_samples
from uad.data.reading import load_images
from uad.data.synthetic import GOOD, PRODUCTS, draw_dataset
from uad.evaluation.metrics import image_auroc
from uad.models.patch_networks import pooled
from uad.models.readout import nearest_class
from uad.tables import markdown
from uad.training.checkpoint import load_checkpoint

CLASS, SIZE = "tray", 128
COLUMNS = {"local": "student and teacher", "whole": "student and autoencoder", "both": "both, as deployed"}


def main() -> None:
    """Draw, train, judge, and write JSON and the page made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    images, run = options.work / "images", options.work / "run"
    draw_dataset(images, classes=[CLASS], size=SIZE, n_train=120, n_test_good=60, n_test_defect=120)
    if not (run / "metrics.json").exists():
        fit = ["fit", "--config", "configs/efficient_ad.yaml", "--model.weights", str(options.teacher)]
        fit += ["--data.root", str(images), "--data.image_size", str(SIZE), "--out", str(run)]
        if cli.main([*fit, "--trainer.max_epochs", str(options.epochs)]):
            raise SystemExit(1)
    steps = int((run / "train.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")[1])
    result = {"machine": machine(), "steps": steps, "image_auroc": judged(run / "model.ckpt", images)}
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


@torch.no_grad()
def judged(checkpoint: Path, root: Path) -> "dict[str, dict[str, float]]":
    """Image AUROC of each kind of defect against the good images, by each branch."""
    network = load_checkpoint(checkpoint).network.eval()
    samples = test_samples(root)
    scores: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for part in torch.from_numpy(load_images(samples, (SIZE, SIZE))).split(8):
        features = network.features(part)
        readout, maps = network.head.readout, network.head.distances(*features)
        nearest = nearest_class(pooled(features[0]), readout.spread, readout.centroids)
        for name, level, values in zip(("local", "whole"), readout.levels, maps, strict=True):
            scores[name].append(level(values, nearest).flatten(1).amax(dim=1))
        scores["both"].append(network(part)[0])
    kinds = np.array([sample.kind for sample in samples])
    found = {}
    for kind in PRODUCTS[CLASS].defects:
        of_both = np.isin(kinds, (kind, GOOD))
        truth = kinds[of_both] == kind
        found[kind] = {name: image_auroc(torch.cat(each).numpy()[of_both], truth) for name, each in scores.items()}
    return found


def page(result: "dict[str, Any]") -> str:
    """Markdown, from what JSON holds."""
    rows = [[kind, *(f"{row[name]:.3f}" for name in COLUMNS)] for kind, row in result["image_auroc"].items()]
    table = markdown(["defect", *(f"{name}" for name in COLUMNS.values())], rows)
    title = f"## A plug missing or doubled: EfficientAD, {result['steps']} steps, image AUROC by branch"
    return f"{title}\n\n{table}\n\n{footer(result['machine'])}"


if __name__ == "__main__":
    main()
