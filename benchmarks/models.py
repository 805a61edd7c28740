"""Models and backbones side by side: what they see, how INT8 judges beside FP32, and what they cost.

    python benchmarks/models.py agreement-A.json agreement-B.json --out benchmarks/results

The files are what `benchmarks/agreement.py` wrote; latency, memory and size come from speed.json in --out, or, of a
model that it does not have, from a speed-*.json there. Defaults are chosen by `held_out` alone: the image AUROC of
held-out good images against copies of them with faint defects, see `benchmarks/steps.py`. The test chooses nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import footer, machine
from steps import NAMES

from engines.files import write_json, write_text
from uad.tables import markdown

# Variant of agreement.py -> its name, and the precision that it is timed as.
PRECISIONS = {
    "fp32": ("FP32", "fp32"),
    "fp16": ("FP16", "fp16"),
    "int8 percentile": ("INT8", "int8"),
    "qat": ("INT8, QAT", "int8"),
}
RUNTIME = "openvino"
SIZE = 256  # side of an image, pixels, unless a backbone's name says otherwise


def main() -> None:
    """Put the figures side by side; write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.out.glob("speed*.json"))]
    timed = [report for each in pages for report in each["reports"]]  # speed.json comes last, and counts
    speed = {(each["model"], each["precision"]): each for each in timed if each["runtime"] == RUNTIME}
    models = []
    for path in options.results:
        found = {"model": "stfpm", **json.loads(path.read_text(encoding="utf-8"))}
        network = f"{found['model'].replace('dcam', 'stfpm')}-{found['backbone']}"  # DCAM's is STFPM's
        size = found.get("image_size", SIZE)
        cost = {name: speed.get((network, name)) if size == SIZE else None for _, name in PRECISIONS.values()}
        found.setdefault("held_out", of_steps(options.out / "steps.json"))
        kept = {key: found[key] for key in ("model", "backbone", "held_out", "reports")}
        models.append({**kept, "image_size": size, "speed": cost})
    result = {"machine": machine(), "models": models}
    write_json(options.out / "models.json", result)
    write_text(options.out / "models.md", page(result))


def of_steps(path: Path) -> "dict[str, dict[str, float]]":
    """The criterion of the runs of agreement.json, which did not keep it itself then."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {run["root"]: run["criterion"] for run in runs if run["with"] == "drawn defects"}


def page(result: "dict[str, Any]") -> str:
    """For each root the means of each model and precision, and a row for each class."""
    lines = [
        "# Models and backbones side by side, one model for all classes of a root, one seed",
        "",
        "Held-out: image AUROC of held-out good images against copies with faint drawn defects; defaults are chosen by",
        "it. The other figures are of the test. Spearman: rank correlation of image scores with FP32's, of the class",
        f"where it is lowest. ms and RAM: {RUNTIME}, one image, of [speed.md](speed.md). Images have {SIZE} by {SIZE}",
        "pixels, unless the backbone says otherwise: models of two sizes cannot be compared.",
    ]
    commits = []
    for root in dict.fromkeys(root for model in result["models"] for root in model["reports"]):
        models = [model for model in result["models"] if root in model["reports"]]
        means, classes = [], []
        for model in models:
            for variant, report in model["reports"][root].items():
                if variant in PRECISIONS:
                    means.append([*_names(model), *_means(model, root, variant)])
                commits.append(report["commit"])
        for name in models[0]["reports"][root]["fp32"]["classes"]:
            classes += [[name, *_names(model), *_of_class(model, root, name)] for model in models]
        header = ["model", "backbone", "precision", "held-out", "image AUROC", "pixel AUROC", "AUPRO"]
        lines += ["", f"## {root}: means", ""]
        lines += [markdown([*header, "lowest Spearman", "flipped, %", "ms", "RAM, MB", "file, MB"], means)]
        header = ["class", "model", "backbone", "held-out", "image AUROC", "pixel AUROC", "AUPRO", "INT8 image AUROC"]
        lines += ["", f"## {root}: classes", "", markdown([*header, "INT8 Spearman", "QAT Spearman"], classes)]
    return "\n".join([*lines, "", footer(result["machine"], commits)])


def _names(model: "dict[str, Any]") -> "list[str]":
    size = model.get("image_size", SIZE)
    return [NAMES[model["model"]], model["backbone"] + (f", {size} pixels" if size != SIZE else "")]


def _means(model: "dict[str, Any]", root: str, variant: str) -> "list[str]":
    report, (name, precision) = model["reports"][root][variant], PRECISIONS[variant]
    figures = [np.mean(list(model["held_out"][root].values())) if variant == "fp32" else None]
    figures += [report[key] for key in ("image_auroc", "pixel_auroc", "aupro")]
    figures += [min(each["agreement"]["spearman"] for each in report["classes"].values())]
    speed, cost = model["speed"][precision], [100 * report["agreement"]["flipped"]]
    cost += [speed["latency_ms"]["p50"], speed["ram_mb"], speed["file_mb"]] if speed else [None] * 3
    return [name, *map(_told, figures), *("" if value is None else f"{value:.1f}" for value in cost)]


def _of_class(model: "dict[str, Any]", root: str, name: str) -> "list[str]":
    reports = {variant: report["classes"][name] for variant, report in model["reports"][root].items()}
    figures = [model["held_out"][root][name]]
    figures += [reports["fp32"][key] for key in ("image_auroc", "pixel_auroc", "aupro")]
    int8, qat = (reports.get(variant) for variant in ("int8 percentile", "qat"))
    figures += [int8 and int8["image_auroc"], int8 and int8["agreement"]["spearman"]]
    return [*map(_told, figures), _told(qat and qat["agreement"]["spearman"])]


def _told(figure: "float | None") -> str:
    return "" if figure is None else f"{figure:.3f}"


if __name__ == "__main__":
    main()
