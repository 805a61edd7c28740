"""Peak memory of calibrating on 500 images of 256x256, and of a process that only loads an engine and scores.

python benchmarks/memory.py FP32.onnx INT8.onnx --out benchmarks/results/memory.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import footer, machine

from uad.tables import markdown

SCORE = """
import sys
import numpy as np
import engines
engine = engines.load(sys.argv[1], sys.argv[2], threads=2)
engine.infer(np.zeros((20, *engine.info.size, 3), np.uint8))
assert "torch" not in sys.modules
"""

MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(bool(status))
"""


def main() -> None:
    """Measure, write JSON and the table made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        calibrate = ["-m", "uad.cli", "export", str(options.fp32), "--precision", "int8", "--calibration-images", "500"]
        calibrate += ["--calibration-data", "random-normal", "--out", f"{folder}/int8.onnx"]
        peaks["calibration on 500 images, ONNX Runtime"] = peak_mb(calibrate)
    for runtime in ("openvino", "onnxruntime"):
        for path in (options.fp32, options.int8):
            peaks[f"scoring, {runtime}, {path.name}"] = peak_mb(["-c", SCORE, str(path), runtime])
    result = {"machine": machine(), "peak_mb": peaks}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(result))
    print(page(result))


def page(result: "dict[str, Any]") -> str:
    """A row for each process."""
    rows = [[name, f"{peak:.0f}"] for name, peak in result["peak_mb"].items()]
    table = markdown(["fresh process, no torch", "peak MB"], rows)
    return f"# Memory\n\n{table}\n\n{footer(result['machine'])}"


def peak_mb(arguments: "list[str]") -> float:
    """Greatest resident set of a fresh Python process, in 10^6 bytes, as the system counts it."""
    measure = [sys.executable, "-c", MEASURE, sys.executable, *arguments]  # a process counts that of its parent, too
    ended = subprocess.run(measure, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        sys.exit(f"python {' '.join(arguments[:4])} failed")
    return int(ended.stdout) * 1024 / 1e6


if __name__ == "__main__":
    main()
