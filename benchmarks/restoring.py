"""What was tried so that a student learns good images alone, on held-out images with faint drawn defects.

    UAD_DATA=... UAD_MVTEC=... UAD_WEIGHTS=... python benchmarks/restoring.py --root mvtec \
        --model reverse_distillation --variants "hard mining" --epochs 9 --seeds 0 --work DIR --out FILE.json

One model on MobileNetV2 learns the four classes of a root, without a bank, once for each variant and seed. The
criterion is that of steps.py. The test's image AUROC stands beside it and chooses nothing. What is in --work is not
made again, and rows of other runs that the file holds stay. Variants that `uad fit` has no option for are in trials.py.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trials
import yaml
from commands import command
from machine import commit, footer, machine
from steps import NAMES, criterion

from engines.files import write_json, write_text
from uad.models.backbones import load_safely
from uad.tables import markdown
from uad.training.callbacks import OF_CLASS
from uad.training.run import LAST

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROOTS = {"data": "UAD_DATA", "mvtec": "UAD_MVTEC"}
MINING, PLAIN = ["--model.mining", "true"], ["--model.mining", "false"]
# Of each model: variant -> flags of `uad fit`, and what it does beside.
VARIANTS: "dict[str, dict[str, tuple[list[str], Callable[[], contextlib.AbstractContextManager[None]]]]]" = {
    "reverse_distillation": {
        "as it was": (PLAIN, contextlib.nullcontext),
        "hard mining": (MINING, contextlib.nullcontext),
        "dropout .2": ([*PLAIN, "--model.dropout", "0.2"], contextlib.nullcontext),
        "hard mining, dropout .2": ([*MINING, "--model.dropout", "0.2"], contextlib.nullcontext),
        "hard mining, dropout .4": ([*MINING, "--model.dropout", "0.4"], contextlib.nullcontext),
        "hard mining, 320 pixels": ([*MINING, "--data.image_size", "320"], contextlib.nullcontext),
        "hard mining by image": (MINING, trials.mined_by_image),
        "loose loss": (MINING, trials.loose),
        "hard mining, drawn defects": (MINING, trials.drawn_defects),
        "hard mining, averaged weights": (MINING, trials.averaged_weights),
        "hard mining, frozen statistics": (MINING, trials.frozen_statistics),
        "hard mining, embedding of 80": (MINING, functools.partial(trials.embedded_in, 80)),
        "hard mining, embedding of 320": (MINING, functools.partial(trials.embedded_in, 320)),
    },
    "stfpm": {
        "as it was": ([], contextlib.nullcontext),
        "hard mining": ([], trials.mined_student),
    },
}
KEY = ("root", "model", "variant", "epochs", "seed")


def main() -> None:
    """Train each, and write JSON and the page made from it after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="mvtec", choices=list(ROOTS))
    parser.add_argument("--model", default="reverse_distillation", choices=list(VARIANTS))
    parser.add_argument("--variants", nargs="+", default=["hard mining"], help="names of a row of VARIANTS")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for variant in options.variants:
        for seed in options.seeds:
            values = (options.root, options.model, variant, options.epochs, seed)
            row = {**dict(zip(KEY, values, strict=True)), **judged(options.work, *values)}
            where = machine()
            row.update(commit=commit(), processor=where["processor"])
            rows = [each for each in rows if any(each[name] != row[name] for name in KEY)] + [row]
            result = {"machine": where, "rows": rows}
            write_json(options.out, result)
            write_text(options.out.with_suffix(".md"), page(result))
            print(row, flush=True)


def judged(work: Path, root: str, model: str, variant: str, epochs: int, seed: int) -> "dict[str, Any]":
    """Train a variant, and judge held-out images."""
    run = work / "-".join([root, model, variant.replace(", ", "-").replace(" ", "-"), str(epochs), str(seed)])
    of_variant, trial = VARIANTS[model][variant]
    with trial():
        if not (run / "model.ckpt").exists():
            weights = Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth"
            flags = ["--config", str(CONFIGS / f"{model}.yaml"), "--model.bank", "0", "--model.weights", str(weights)]
            flags += ["--data.root", os.environ[ROOTS[root]], "--trainer.precision", "32-true", "--seed", str(seed)]
            flags += ["--trainer.max_epochs", str(epochs), *of_variant]
            command(["fit", *flags, "--out", str(run)])
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
        found = criterion(run, settings)
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        epoch_rows = list(csv.DictReader(file))
    tested = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["classes"]
    return {
        "steps": int(epoch_rows[-1]["step"]),
        "fall": max(fall(epoch_rows, name) for name in epoch_rows[0] if name.startswith(OF_CLASS)),
        "least_variance": least_variance(run / LAST),
        "criterion": found,
        "test": {name: figures["image_auroc"] for name, figures in tested.items()},
    }


def fall(epoch_rows: "list[dict[str, str]]", column: str) -> float:
    """How far the last epoch lies below the best of a class, by the criterion that train.csv has of it."""
    figures = [float(row[column]) for row in epoch_rows]
    return max(figures) - figures[-1]


def least_variance(checkpoint: Path) -> float:
    """The least running variance of a channel of the student, of an epoch's end."""
    state = load_safely(checkpoint)["state_dict"]
    names = [name for name in state if name.startswith("network.student.") and name.endswith("running_var")]
    return min(float(state[name].min()) for name in names)


def page(result: "dict[str, Any]") -> str:
    """A table for each root and model, with a row for each variant and seed."""
    lines = [
        "# What was tried so that a student learns good images alone",
        "",
        "MobileNetV2, four classes of a root, no bank. Held-out: image AUROC of held-out good images against copies of",
        "them with faint drawn defects, which chooses. Test: image AUROC, which chooses nothing. Fall: how far the",
        "last epoch lies below the best one, of the class where that is most, by the few images of train.csv.",
        "Least variance: of a channel that BatchNorm normalises in the student.",
        "",
    ]
    rows = result["rows"]
    for root, model in dict.fromkeys((row["root"], row["model"]) for row in rows):
        some = [row for row in rows if (row["root"], row["model"]) == (root, model)]
        classes = list(some[0]["criterion"])
        header = ["variant", "steps", "seed", "fall", "least variance"]
        header += ["held-out", *(f"held-out, {name}" for name in classes)]
        header += ["test", *(f"test, {name}" for name in classes)]
        table = []
        for row in some:
            figures = [_mean(row["criterion"]), *row["criterion"].values(), _mean(row["test"]), *row["test"].values()]
            names = [row["variant"], f"{row['steps']:,}", str(row["seed"])]
            names += [f"{row['fall']:.3f}", f"{row['least_variance']:.1e}"] if "fall" in row else ["-", "-"]
            table.append([*names, *(f"{value:.3f}" for value in figures)])
        lines += [f"{NAMES[model]}, {root}:", "", markdown(header, table), ""]
    others = sorted({row["processor"] for row in rows} - {result["machine"]["processor"]})
    lines += [f"Some rows were measured on: {'; '.join(others)}.", ""] if others else []
    return "\n".join([*lines, footer(result["machine"], [row["commit"] for row in rows])])


def _mean(figures: "dict[str, float]") -> float:
    return float(np.mean(list(figures.values())))


if __name__ == "__main__":
    main()
