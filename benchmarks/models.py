"""Models and backbones side by side: what they see, how INT8 judges beside FP32, and what they cost.

    python benchmarks/models.py --results agreement-A.json agreement-B.json --works DIR DIR --out benchmarks/results

Each pair is what `benchmarks/agreement.py` wrote and the --work that it was given, whose exported files are timed here,
all in turns. Defaults are chosen by `held_out` alone: the image AUROC of held-out good images against copies of them
with faint defects, see `benchmarks/steps.py`. The test chooses nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from agreement import NAMES, file_of
from commands import command
from machine import footer, machine

from engines.files import write_json, write_text
from uad.tables import markdown

PRECISIONS = {"fp32": "FP32", "fp16": "FP16", "int8 percentile": "INT8", "qat": "INT8, QAT", "auto": "auto"}


def main() -> None:
    """Put the figures side by side, time the files, and write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, nargs="+")
    parser.add_argument("--works", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    models, files = [], {}
    for path, work in zip(options.results, options.works, strict=True):
        found = json.loads(path.read_text(encoding="utf-8"))
        models.append({key: found[key] for key in ("model", "backbone", "held_out", "reports")})
        root = next(iter(found["reports"]))
        files.update({(path, variant): file_of(work / root, variant) for variant in found["reports"][root]})
    bench = options.out / "bench.json"
    command(["bench", *map(str, files.values()), "--runtime", found["runtime"], "--json", str(bench)])
    timed = {each["model"]: each for each in json.loads(bench.read_text(encoding="utf-8"))}
    bench.unlink()
    for path, model in zip(options.results, models, strict=True):
        model["speed"] = {variant: timed[str(file)] for (of, variant), file in files.items() if of == path}
    result = {"machine": machine(), "runtime": found["runtime"], "models": models}
    write_json(options.out / "models.json", result)
    write_text(options.out / "models.md", page(result))


def page(result: "dict[str, Any]") -> str:
    """For each root the means of each model and precision, and a row for each class."""
    lines = [
        "# Models and backbones side by side, one model for all classes of a root, one seed",
        "",
        "Held-out: image AUROC of held-out good images against copies with faint drawn defects; defaults are chosen by",
        "it. The other figures are of the test. Spearman: rank correlation of image scores with FP32's, of the class",
        f"where it is lowest. ms and RAM: {result['runtime']}, one image, all files in turns.",
    ]
    commits = []
    for root in dict.fromkeys(root for model in result["models"] for root in model["reports"]):
        models = [model for model in result["models"] if root in model["reports"]]
        means, classes = [], []
        for model in models:
            for variant, report in model["reports"][root].items():
                if variant in PRECISIONS:
                    means.append([*_names(model), PRECISIONS[variant], *_means(model, root, variant)])
                commits += [report["commit"]]
        for name in models[0]["reports"][root]["fp32"]["classes"]:
            classes += [[name, *_names(model), *_of_class(model, root, name)] for model in models]
        header = ["model", "backbone", "precision", "held-out", "image AUROC", "pixel AUROC", "AUPRO"]
        lines += ["", f"## {root}: means", ""]
        lines += [markdown([*header, "lowest Spearman", "flipped, %", "ms", "RAM, MB", "file, MB"], means)]
        header = ["class", "model", "backbone", "held-out", "image AUROC", "pixel AUROC", "AUPRO", "INT8 image AUROC"]
        lines += ["", f"## {root}: classes", "", markdown([*header, "INT8 Spearman", "QAT Spearman"], classes)]
    return "\n".join([*lines, "", footer(result["machine"], commits)])


def _names(model: "dict[str, Any]") -> "list[str]":
    return [NAMES[model["model"]], model["backbone"]]


def _means(model: "dict[str, Any]", root: str, variant: str) -> "list[str]":
    report, speed = model["reports"][root][variant], model["speed"][variant]
    classes = report["classes"].values()
    figures = [np.mean(list(model["held_out"][root].values())) if variant == "fp32" else None]
    figures += [report[key] for key in ("image_auroc", "pixel_auroc", "aupro")]
    figures += [min(each["agreement"]["spearman"] for each in classes)]
    cost = [100 * report["agreement"]["flipped"], speed["latency_ms"]["p50"], speed["ram_mb"], speed["file_mb"]]
    return [*map(_told, figures), *(f"{value:.1f}" for value in cost)]


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
