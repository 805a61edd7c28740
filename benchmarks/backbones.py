"""One recipe on several backbones: what their students see, how INT8 judges beside FP32, and what they cost.

    python benchmarks/backbones.py --results agreement.json agreement-efficientnet_lite0.json --works DIR DIR --out DIR

Each pair is what `benchmarks/agreement.py` wrote and the --work that it was given; a root counts where all have it.
The default backbone of `uad fit` is chosen by the criterion alone: the image AUROC of held-out good images against
copies of them with faint defects, see `benchmarks/steps.py`. The test chooses nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import footer, machine
from steps import judged

from engines.files import write_json, write_text
from uad.tables import markdown

COLUMNS = ("held-out", "FP32", "INT8", "Spearman")


def main() -> None:
    """Judge the runs, put the figures side by side, and write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, nargs="+")
    parser.add_argument("--works", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    agreements = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    roots = [root for root in agreements[0]["reports"] if all(root in each["reports"] for each in agreements)]
    backbones = {}
    for agreement, work in zip(agreements, options.works, strict=True):
        classes: dict[str, dict[str, float]] = {}
        for root in roots:
            criterion = judged(work / root / "run")["criterion"]
            for name, held_out in criterion.items():
                float_, int8 = (
                    agreement["reports"][root][variant]["classes"][name] for variant in ("fp32", "int8 percentile")
                )
                figures = (held_out, float_["image_auroc"], int8["image_auroc"], int8["agreement"]["spearman"])
                classes[name] = dict(zip(COLUMNS, figures, strict=True))
        speed = {each["model"]: each for each in agreement["speed"]}
        cost = {
            name: {"ms": speed[variant]["latency_ms"]["p50"], "MB": speed[variant]["file_mb"]}
            for name, variant in (("FP32", "fp32"), ("INT8", "int8 percentile"))
        }
        backbones[agreement["backbone"]] = {"classes": classes, "cost": cost, "runtime": agreement["runtime"]}
    result = {"machine": machine(), "backbones": backbones}
    write_json(options.out / "backbones.json", result)
    write_text(options.out / "backbones.md", page(result))


def page(result: "dict[str, Any]") -> str:
    """A row for each class and backbone, and what each backbone costs."""
    rows, costs = [], []
    backbones = result["backbones"]
    for name in next(iter(backbones.values()))["classes"]:
        rows += [_row(name, backbone, found["classes"][name]) for backbone, found in backbones.items()]
    for backbone, found in backbones.items():
        figures = found["classes"].values()
        means = {column: float(np.mean([each[column] for each in figures])) for column in COLUMNS}
        rows.append(_row("mean", backbone, means))
        cost = [f"{found['cost'][precision]['ms']:.1f}" for precision in ("FP32", "INT8")]
        cost += [f"{found['cost'][precision]['MB']:.1f}" for precision in ("FP32", "INT8")]
        costs.append([backbone, found["runtime"], *cost])
    text = [
        "## One recipe on several backbones, one unified STFPM for each root, one seed",
        "",
        "Held-out: image AUROC of held-out good images against copies with faint drawn defects; the default is chosen",
        "by it. FP32 and INT8: image AUROC of the test. Spearman: rank correlation of INT8's scores with FP32's.",
        "",
        markdown(["class", "backbone", *COLUMNS], rows),
        "",
        markdown(["backbone", "runtime", "FP32 ms", "INT8 ms", "FP32 MB", "INT8 MB"], costs),
        "",
    ]
    return "\n".join([*text, footer(result["machine"])])


def _row(name: str, backbone: str, figures: "dict[str, float]") -> "list[str]":
    return [name, backbone, *(f"{figures[column]:.3f}" for column in COLUMNS)]


if __name__ == "__main__":
    main()
