"""What was tried so that Reverse Distillation restores good images alone, on held-out images with faint drawn defects.

    UAD_MVTEC=... UAD_WEIGHTS=... python benchmarks/restoring.py --work DIR --out FILE.json

One decoder on MobileNetV2 learns the four classes of UAD_MVTEC, once for each variant, from one seed, without a bank.
The criterion is that of steps.py. The test's image AUROC stands beside it and chooses nothing. What is in --work is not
made again, so a run may also be made by hand, with `uad fit` and the flags of `VARIANTS`.
"""

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from commands import command
from machine import commit, footer, machine
from steps import criterion

from engines.files import write_json, write_text
from uad.tables import markdown

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "reverse_distillation.yaml"
VARIANTS = {
    "as it was": ["--model.mining", "false"],
    "hard mining": ["--model.mining", "true"],
    "dropout .2": ["--model.mining", "false", "--model.dropout", "0.2"],
    "hard mining, dropout .2": ["--model.mining", "true", "--model.dropout", "0.2"],
}
LENGTHS = (9, 18)  # epochs; the greater for the first two variants alone


def main() -> None:
    """Train each variant, and write JSON and the page made from it after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    result = {"machine": machine(), "rows": rows}
    for epochs, variants in zip(LENGTHS, (list(VARIANTS), list(VARIANTS)[:2]), strict=True):
        for variant in variants:
            run = options.work / f"{variant.replace(', ', '-').replace(' ', '-')}-{epochs}"
            rows.append({"variant": variant, **judged(run, epochs, VARIANTS[variant]), "commit": commit()})
            write_json(options.out, result)
            write_text(options.out.with_suffix(".md"), page(result))
            print(rows[-1], flush=True)


def judged(run: Path, epochs: int, flags: "list[str]") -> "dict[str, Any]":
    """Train a variant, and judge held-out images."""
    if not (run / "model.ckpt").exists():
        weights = Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth"
        model = ["--config", str(CONFIG), "--model.bank", "0", "--model.weights", str(weights)]
        trainer = ["--trainer.precision", "32-true", "--trainer.max_epochs", str(epochs)]
        command(["fit", *model, "--data.root", os.environ["UAD_MVTEC"], *trainer, *flags, "--out", str(run)])
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    tested = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["classes"]
    return {
        "steps": int(last["step"]),
        "criterion": criterion(run, settings),
        "test": {name: figures["image_auroc"] for name, figures in tested.items()},
    }


def page(result: "dict[str, Any]") -> str:
    """A row for each variant."""
    classes = list(result["rows"][0]["criterion"])
    header = ["variant", "steps", "held-out", *(f"held-out, {name}" for name in classes)]
    header += ["test", *(f"test, {name}" for name in classes)]
    rows = []
    for row in result["rows"]:
        figures = [_mean(row["criterion"]), *row["criterion"].values(), _mean(row["test"]), *row["test"].values()]
        rows.append([row["variant"], f"{row['steps']:,}", *(f"{value:.3f}" for value in figures)])
    lines = [
        "# What was tried so that Reverse Distillation restores good images alone",
        "",
        "MobileNetV2, four classes of MVTec AD, one seed, no bank. Held-out: image AUROC of held-out good images",
        "against copies of them with faint drawn defects, which chooses. Test: image AUROC, which chooses nothing.",
        "",
        markdown(header, rows),
        "",
    ]
    return "\n".join([*lines, footer(result["machine"], [row["commit"] for row in result["rows"]])])


def _mean(figures: "dict[str, float]") -> float:
    return float(np.mean(list(figures.values())))


if __name__ == "__main__":
    main()
