"""What more images to distil from bring: EfficientAD's accuracy with teachers that saw few, more and many.

    uad distill --images FEW --out few.pth   # and MANY, with the same settings
    python benchmarks/distilled.py --teachers few.pth many.pth --root IMAGES --work DIR \
        --out benchmarks/results/distilled.json

Each model is trained for the same steps on the same images, and judged by the criterion of `benchmarks/steps.py` and by
the test. What is in --work is not made again. What --out holds of other teachers stays.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from commands import command, with_network
from machine import commit, footer, machine
from steps import criterion

from engines.files import write_json, write_text
from uad.models.backbones import load_safely
from uad.tables import markdown

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "efficient_ad.yaml"


def main() -> None:
    """Train and judge with one teacher after another; JSON and page are written after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", type=Path, required=True, nargs="+")
    parser.add_argument("--root", required=True, help="of the images that the models are trained on")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8"))["teachers"] if options.out.exists() else []
    for teacher in options.teachers:
        found = judged(teacher, options)
        rows = sorted(
            [row for row in rows if row["images"] != found["images"]] + [found], key=lambda row: row["images"]
        )
        result = {"machine": machine(), "teachers": rows}
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))


def judged(teacher: Path, options: argparse.Namespace) -> "dict[str, Any]":
    """Train a model with a teacher, unless that was done, and judge it."""
    run, content = options.work / teacher.stem, load_safely(teacher)
    distilled = content["distilled"]
    if not (run / "metrics.json").exists():
        fit = [
            "fit",
            "--config",
            str(CONFIG),
            *with_network(distilled["network"], teacher),
            "--data.root",
            options.root,
        ]
        fit += ["--data.image_size", str(distilled["size"]), "--trainer.max_epochs", str(options.epochs)]
        command([*fit, "--out", str(run)])
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    tested = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["classes"]
    steps = int((run / "train.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")[1])
    return {
        **{name: distilled[name] for name in ("images", "steps", "network", "backbone", "size")},
        "said": 1 - content["error"],
        "trained_steps": steps,
        "root": Path(options.root).name,
        "criterion": criterion(run, settings),
        "test": {name: figures["image_auroc"] for name, figures in tested.items()},
        "commit": commit(),
    }


def page(result: "dict[str, Any]") -> str:
    """A row for each teacher."""
    first = result["teachers"][0]
    lines = [f"# EfficientAD with teachers distilled from few and many images, {first['root']}, one seed", ""]
    lines += [f"{first['network']} from {first['backbone']}, {first['steps']:,} steps of distillation each, images of"]
    lines += [f"{first['size']} by {first['size']} pixels; then {first['trained_steps']:,} steps of EfficientAD. Image"]
    lines += ["AUROC, FP32. Said: part of the variance of the backbone's features that the teacher says, on the images"]
    lines += ["that it was distilled from.", ""]
    rows = []
    for row in result["teachers"]:
        means = [sum(row[key].values()) / len(row[key]) for key in ("criterion", "test")]
        figures = (f"{value:.3f}" for value in (*means, *row["test"].values()))
        rows.append([f"{row['images']:,}", f"{100 * row['said']:.0f}%", *figures])
    header = ["images to distil from", "said", "held-out", "test", *(f"test, {name}" for name in first["test"])]
    return "\n".join(
        [*lines, markdown(header, rows), "", footer(result["machine"], {r["commit"] for r in result["teachers"]})]
    )


if __name__ == "__main__":
    main()
