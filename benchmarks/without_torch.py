"""Whether an export without torch, by a Jetson's Python and packages, gives the read-out that one with torch gives.

    python benchmarks/without_torch.py --ckpt RUN/model.ckpt --images ROOT --python .venv-jetson/bin/python \
        --work DIR --out benchmarks/results/without_torch.json

This Python writes model.onnx and, from the checkpoint, an INT8 file. The other Python, which `make jetson` sets up and
which has no torch, makes an INT8 file of model.onnx on the same images. A difference is the largest of a group of
values, divided by the largest value of the group.
"""

import argparse
import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from commands import command
from machine import footer, machine

from engines.files import write_json, write_text
from engines.graph import constants
from engines.model_file import load_model, read_info
from export.readout import read_statistics
from uad.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
RUN = "import sys; from uad.cli import main; sys.exit(main(sys.argv[1:]))"
ASKED = (
    "import platform, importlib.util, numpy, onnx, onnxruntime; assert importlib.util.find_spec('torch') is None; "
    "print(f'Python {platform.python_version()}, numpy {numpy.__version__}, onnx {onnx.__version__}, '"
    "f'onnxruntime {onnxruntime.__version__}')"
)


def main() -> None:
    """Export by both, compare, and write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    there = subprocess.run([options.python, "-c", ASKED], check=True, capture_output=True, text=True).stdout.strip()
    float_file, here, bare = (options.work / f"{name}.onnx" for name in ("model", "torch", "bare"))
    flags = ["--precision", "int8", "--calibration-data", str(options.images)]
    command(["export", str(options.ckpt), "--precision", "fp32", "--out", str(float_file)])
    command(["export", str(options.ckpt), *flags, "--out", str(here)])
    subprocess.run(
        [options.python, "-c", RUN, "export", float_file, *flags, "--out", bare],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    result = {"machine": machine(), "there": there, "differences": differences(here, bare)}
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


def differences(one: Path, other: Path) -> "dict[str, float]":
    """The largest difference in each group of values of two INT8 files."""
    groups: dict[str, list[np.ndarray]] = {}
    for path in (one, other):
        model, info = load_model(path), read_info(path)
        statistics = read_statistics(model)
        assert statistics is not None
        for field in dataclasses.fields(statistics):
            groups.setdefault(f"read-out, {field.name}", []).append(getattr(statistics, field.name))
        groups.setdefault("thresholds", []).append(
            np.array([info.thresholds[name] for name in sorted(info.thresholds)])
        )
        scales = {name: value for name, value in constants(model).items() if name.endswith("scale")}
        groups.setdefault("scales of Q/DQ", []).append(
            np.concatenate([scales[name].ravel() for name in sorted(scales)])
        )
    return {name: float(np.abs(a - b).max() / np.abs(a).max()) for name, (a, b) in groups.items()}


def page(result: "dict[str, Any]") -> str:
    """A row for each group of values."""
    lines = ["# An INT8 export with torch beside one without, on a Jetson's versions", ""]
    lines += [f"Without torch: {result['there']}.", ""]
    rows = [[name, f"{value:.1e}"] for name, value in result["differences"].items()]
    lines += [markdown(["values", "largest difference, of the largest value"], rows), ""]
    return "\n".join([*lines, footer(result["machine"])])


if __name__ == "__main__":
    main()
