"""What layers left in float bring, and what they cost: `uad export --precision auto` at some agreements.

    UAD_DATA=... python benchmarks/mixed.py FP32.onnx INT8.onnx --work DIR --out benchmarks/results/mixed.json

Layers are chosen on good training images; accuracy and agreement are those of the test images. Latency is measured in
turns. Files that are in --work already are not made again.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from commands import command, tested
from machine import footer, machine

from engines.benchmark import ROUNDS, benchmark, worker_command
from engines.model_file import read_info
from uad.progress import progress
from uad.tables import markdown

THREADS = 2
SECONDS = 5.0


def main() -> None:
    """Export, test, measure; write JSON and the table made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--agreements", type=float, nargs="+", default=[0.99, 0.998])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = os.environ["UAD_DATA"]
    files = {"fp32": options.fp32, "int8": options.int8}
    for least in options.agreements:
        file = options.work / f"auto-{least:g}.onnx"
        if not file.exists():
            flags = ["--precision", "auto", "--min-agreement", str(least), "--target", "cpu"]
            flags += ["--calibration-data", data]
            command(["export", str(options.fp32), *flags, "--out", str(file)])
        files[f"auto, {least:g}"] = file
    reports = {
        name: tested(file, options.work / f"{file.stem}.json", options.fp32, data) for name, file in files.items()
    }
    paths = [str(file) for file in files.values()]
    commands = [worker_command(path, "openvino", 1, THREADS) for path in paths]
    with progress("Measuring in turns", ROUNDS) as step:
        timings = benchmark(paths, commands, SECONDS, step)
    for timing, (name, file) in zip(timings, files.items(), strict=True):
        del timing["model"]
        reports[name] = {**reports[name], "timing": timing, "float_layers": read_info(file).float_layers}
    result = {"machine": machine(), "reports": reports}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(result))


def page(result: "dict[str, Any]") -> str:
    """A row for each file."""
    rows = []
    for name, report in result["reports"].items():
        spearmans = [figures["agreement"]["spearman"] for figures in report["classes"].values()]
        row = [name, str(len(report["float_layers"])), f"{report['image_auroc']:.4f}", f"{min(spearmans):.4f}"]
        row += [f"{report['agreement']['spearman']:.4f}", f"{report['agreement']['flipped']:.3f}"]
        row += [f"{report['timing']['latency_ms']['p50']:.2f}", f"{report['timing']['ratio_to_first']:.3f}"]
        rows.append([*row, f"{report['timing']['file_mb']:.1f}"])
    header = ["model", "layers in float", "image AUROC", "lowest Spearman", "mean Spearman", "flipped"]
    table = markdown([*header, "p50 ms", "of FP32", "file MB"], rows)
    return f"# Layers left in float, MobileNetV2, one seed, OpenVINO\n\n{table}\n\n{footer(result['machine'])}"


if __name__ == "__main__":
    main()
