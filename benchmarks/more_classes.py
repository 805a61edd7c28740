"""How long a training must be as classes are added, on held-out good images with faint drawn defects; no test image.

    UAD_DATA=... UAD_MVTEC=... UAD_WEIGHTS=... python benchmarks/more_classes.py --work DIR --out FILE.json

STFPM on MobileNetV2 learns the four classes of UAD_MVTEC, then those of UAD_DATA with them, then three drawn products,
too. Each time it is trained for the steps that four classes get, and for as many a class. The criterion is that of
steps.py. What is in --work is not made again, and rows that the file holds stay. One seed; --steps is less than the
2,000 of `uad fit`, for want of time.
"""

import argparse
import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from commands import command
from machine import commit, footer, machine
from steps import criterion

from engines.files import write_json, write_text
from uad.data.folder import find_classes
from uad.data.synthetic import draw_dataset
from uad.tables import markdown

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "stfpm.yaml"
DRAWN = ("gear", "fabric", "gasket")
COUNTS = (4, 8, 11)
BATCH = 8


def main() -> None:
    """Train each, and write JSON and the page made from it after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500, help="for four classes")
    parser.add_argument("--classes", type=int, nargs="+", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--growing", action="store_true", help="only as many more steps as there are more classes")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    root = options.work / "images"
    names = gather(root)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    result: dict[str, Any] = {"machine": machine(), "steps": options.steps, "rows": rows}
    for count in options.classes:
        grown = options.steps * count // 4
        for steps in [grown] if options.growing else dict.fromkeys((options.steps, grown)):
            run = options.work / f"{count}-classes-{steps}-steps"
            row = {"classes": names[:count], **trained(run, root, names[:count], steps)}
            rows.append({**row, "commit": commit(), "processor": result["machine"]["processor"]})
            write_json(options.out, result)
            write_text(options.out.with_suffix(".md"), page(result))
            print(rows[-1], flush=True)


def gather(root: Path) -> "list[str]":
    """One folder of eleven classes: those of MVTec AD first, the drawn ones last."""
    names: list[str] = []
    for variable in ("UAD_MVTEC", "UAD_DATA"):
        for name, folder in find_classes(Path(os.environ[variable])).items():
            if not (root / name).exists():
                shutil.copytree(folder, root / name)
            names.append(name)
    draw_dataset(root, classes=DRAWN, size=256, n_train=200)
    return [*names, *DRAWN]


def trained(run: Path, root: Path, classes: "list[str]", steps: int) -> "dict[str, Any]":
    """Train for so many steps, to the end of an epoch, and judge held-out images."""
    if not (run / "model.ckpt").exists():
        weights = Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth"
        model = ["--config", str(CONFIG), "--model.bank", "0", "--model.weights", str(weights)]
        data = ["--data.root", str(root), "--data.classes", f"[{','.join(classes)}]", "--data.batch_size", str(BATCH)]
        images = sum(len(list((root / name / "train" / "good").iterdir())) for name in classes)
        epochs = max(round(steps / (0.9 * images / BATCH)), 1)
        trainer = ["--trainer.precision", "32-true", "--trainer.max_epochs", str(epochs)]
        command(["fit", *model, *data, *trainer, "--out", str(run)])
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    return {"steps": int(last["step"]), "criterion": criterion(run, settings)}


def page(result: "dict[str, Any]") -> str:
    """A row for each training: the criterion of the four first classes, and of all."""
    first = result["rows"][0]["classes"]
    header = ["classes", "steps", *first, f"mean of these {len(first)}", "mean of all", "lowest"]
    rows = []
    for row in result["rows"]:
        figures = row["criterion"]
        values = [*(figures[name] for name in first), np.mean([figures[name] for name in first])]
        values += [np.mean(list(figures.values())), min(figures.values())]
        length = (len(row["classes"]), row["steps"])
        rows.append([*(f"{each:,.0f}" for each in length), *(f"{value:.3f}" for value in values)])
    lines = [
        "# How long a training must be as classes are added",
        "",
        "STFPM on MobileNetV2, one seed, without a bank: image AUROC of held-out good images against copies of them",
        "with faint drawn defects. 4 classes are of MVTec AD, 8 with those of UAD_DATA, 11 with three drawn products.",
        f"{result['steps']:,} steps for 4 classes stand for the 2,000 of `uad fit`.",
        "",
        markdown(header, rows),
        "",
    ]
    others = sorted({row["processor"] for row in result["rows"]} - {result["machine"]["processor"]})
    lines += [f"Some rows were measured on: {'; '.join(others)}.", ""] if others else []
    return "\n".join([*lines, footer(result["machine"], [row["commit"] for row in result["rows"]])])


if __name__ == "__main__":
    main()
