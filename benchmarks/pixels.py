"""What it brings that INT8 reads pixels as they are (`export.pixels`): accuracy, agreement with FP32, and latency.

    python benchmarks/pixels.py --runs RUN [RUN ...] --runtime onnxruntime --work DIR --out FILE.json

RUN is a folder of `uad fit`. Its model is exported with that rewriting and without, and all files are tested on the
test images of the run and timed in turns. What is in --work is not made again.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from commands import command, tested
from machine import footer, machine
from steps import NAMES

from engines.benchmark import ROUNDS, benchmark, worker_command
from engines.files import write_json, write_text
from uad.exporting import post_training
from uad.progress import progress
from uad.tables import benchmark_table, markdown

RUNTIMES = ("openvino", "onnxruntime")
KEYS = ("image_auroc", "spearman", "flipped")
VARIANTS = ("fp32", "int8, normalised pixels", "int8, pixels as they are")


def main() -> None:
    """Export, test, time; write JSON and the page after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--runtime", default="openvino", help="of the tests; both are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="for which each file is timed, at least")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    models: list[dict[str, Any]] = []
    result = {"machine": machine(), "runtime": options.runtime, "threads": options.threads, "models": models}
    for run in options.runs:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        data, work = settings["data"]["root"], options.work / run.name
        files = {variant: exported(run / "model.ckpt", variant, work, data) for variant in VARIANTS}
        reports = {
            variant: tested(file, file.with_suffix(".json"), files["fp32"], data, options.runtime)
            for variant, file in files.items()
        }
        name = f"{NAMES[settings['model']['name']]}, {Path(data).name}"
        models.append({"name": name, "reports": reports, "speed": timed(files, options.threads, options.seconds)})
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))
    print(page(result))


def exported(checkpoint: Path, variant: str, work: Path, data: str) -> Path:
    """The file of a variant."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{variant.replace(', ', '-').replace(' ', '-')}.onnx"
    as_before = patch.object(post_training, "on_pixels", lambda model, info: model)
    flags = ["--precision", "fp32"] if variant == "fp32" else ["--precision", "int8", "--calibration-data", data]
    if not file.exists():
        with as_before if variant == VARIANTS[1] else contextlib.nullcontext():
            command(["export", str(checkpoint), *flags, "--target", "cpu", "--out", str(file)])
    return file


def timed(files: "dict[str, Path]", threads: int, seconds: float) -> "list[dict[str, Any]]":
    """All files on both runtimes, in turns."""
    turns = [(variant, str(file), runtime) for runtime in RUNTIMES for variant, file in files.items()]
    commands = [worker_command(file, runtime, 1, threads) for _, file, runtime in turns]
    with progress("Measuring in turns", ROUNDS) as step:
        reports = benchmark([file for _, file, _ in turns], commands, seconds, step)
    return [{**report, "model": variant} for report, (variant, _, _) in zip(reports, turns, strict=True)]


def page(result: "dict[str, Any]") -> str:
    """Two tables for each run."""
    lines = [
        "# What it brings that INT8 reads pixels as they are",
        "",
        "Spearman: rank correlation of image scores with FP32's. Flipped: part of the decisions that differ, each",
        f"model at its own thresholds. Runtime: {result['runtime']}. Latency: batch 1, {result['threads']} threads.",
    ]
    commits = [report["commit"] for model in result["models"] for report in model["reports"].values()]
    for model in result["models"]:
        rows = []
        reports = model["reports"]
        for name in [*reports["fp32"]["classes"], "mean"]:
            for variant, report in reports.items():
                figures = report["classes"].get(name, report)
                found = {**figures, **figures["agreement"]}
                rows.append([name, variant, *("-" if found[key] is None else f"{found[key]:.4f}" for key in KEYS)])
        lines += [
            "",
            f"## {model['name']}",
            "",
            markdown(["class", "file", "image AUROC", "Spearman", "flipped"], rows),
        ]
        lines += ["", benchmark_table(model["speed"])]
    return "\n".join([*lines, "", footer(result["machine"], commits)])


if __name__ == "__main__":
    main()
