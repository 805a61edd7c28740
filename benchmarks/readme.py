"""Write the table of README.md, between `<!-- summary -->` and `<!-- end -->`, from the figures in results.

python benchmarks/readme.py

All figures are those of agreement.json; latency and size are those of the files of its first root, which took turns.
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
ROWS = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8 percentile": "INT8",
    "qat": "INT8, trained (QAT)",
    "auto": "INT8 but the layers that it hurts",
    "int8 random-normal": "INT8, calibrated on noise",
}


def filled(text: str) -> str:
    """The text with its table made anew."""
    agreement = json.loads((RESULTS / "agreement.json").read_text())
    return BLOCK.sub(lambda match: match.group(1) + table(agreement) + "\n" + match.group(2), text)


def table(agreement: "dict[str, Any]") -> str:
    """A row for each precision, over the classes of all roots, and where it was measured."""
    timed = {each["model"]: each for each in agreement["speed"]}
    rows = []
    for variant, name in ROWS.items():
        classes = [figures for root in agreement["reports"].values() for figures in root[variant]["classes"].values()]
        aurocs, agreements = [each["image_auroc"] for each in classes], [each["agreement"] for each in classes]
        row = [name, f"{np.mean(aurocs):.3f}", f"{min(aurocs):.3f}"]
        row += [f"{min(each['spearman'] for each in agreements):.3f}"]
        row += [f"{100 * np.mean([each['flipped'] for each in agreements]):.1f}"]
        rows.append([*row, f"{timed[variant]['latency_ms']['p50']:.1f}", f"{timed[variant]['file_mb']:.1f}"])
    header = ["precision", "image AUROC", "lowest class", "lowest Spearman", "flipped, %", "ms", "MB"]
    where = agreement["machine"]
    return f"{markdown(header, rows)}\n\n{where['processor']}, {agreement['runtime']}, commit {where['commit']}."


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
