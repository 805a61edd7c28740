"""Write the table of README.md, between `<!-- summary -->` and `<!-- end -->`, from the figures in results.

python benchmarks/readme.py

Accuracy and agreement are those of agreement.json, latency and size those of its model in speed.json.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from uad.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- summary -->\n).*?(<!-- end -->)", re.DOTALL)
# Variant of agreement.json -> its name, and the precision that it is timed as.
ROWS = {
    "fp32": ("FP32", "fp32"),
    "fp16": ("FP16", "fp16"),
    "int8 percentile": ("INT8", "int8"),
    "qat": ("INT8, trained (QAT)", "int8"),
    "int8 random-normal": ("INT8, calibrated on noise", "int8"),
}
RUNTIME = "openvino"


def filled(text: str) -> str:
    """The text with its table made anew."""
    agreement, speed = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("agreement", "speed"))
    return BLOCK.sub(lambda match: match.group(1) + table(agreement, speed) + "\n" + match.group(2), text)


def table(agreement: "dict[str, Any]", speed: "dict[str, Any]") -> str:
    """A row for each precision that every root has, over the classes of all roots, and where it was measured."""
    model = f"{agreement.get('model', 'stfpm')}-{agreement['backbone']}"
    reports = [each for each in speed["reports"] if (each["model"], each["runtime"]) == (model, RUNTIME)]
    timed = {each["precision"]: each for each in reports}
    rows = []
    roots = agreement["reports"].values()
    for variant, (name, precision) in ROWS.items():
        if not all(variant in root for root in roots):
            continue
        classes = [figures for root in roots for figures in root[variant]["classes"].values()]
        aurocs, agreements = [each["image_auroc"] for each in classes], [each["agreement"] for each in classes]
        row = [name, f"{np.mean(aurocs):.3f}", f"{min(aurocs):.3f}"]
        row += [f"{min(each['spearman'] for each in agreements):.3f}"]
        row += [f"{100 * np.mean([each['flipped'] for each in agreements]):.1f}"]
        rows.append([*row, f"{timed[precision]['latency_ms']['p50']:.1f}", f"{timed[precision]['file_mb']:.1f}"])
    header = ["precision", "image AUROC", "lowest class", "lowest Spearman", "flipped, %", "ms", "MB"]
    measured = [
        f"{what}: {where['machine']['processor']}, {runtime}, commit {where['machine']['commit']}"
        for what, where, runtime in (("Accuracy", agreement, agreement["runtime"]), ("ms and MB", speed, RUNTIME))
    ]
    return f"{markdown(header, rows)}\n\n{'; '.join(measured)}."


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
