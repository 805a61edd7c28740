"""Accuracy and agreement of one unified STFPM at every precision and calibration, on real images, over seeds.

    UAD_DATA=... UAD_WEIGHTS=... python benchmarks/accuracy.py --work DIR --out benchmarks/results/accuracy.json

UAD_DATA holds classes in the layout of MVTec AD, UAD_WEIGHTS the file mobilenet_v2-imagenet.pth. What is in --work is
not made again, so the script goes on where it was stopped. Everything is run through the command line, on the config
as it stands; nothing here chooses anything.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from machine import machine

from uad import cli
from uad.tables import markdown

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "stfpm.yaml"
CALIBRATORS = ("entropy", "percentile", "minmax")
SOURCES = ("images", "random-normal")
IMAGES = 128


def main() -> None:
    """Train, export and test for each seed; write JSON and the tables made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = os.environ["UAD_DATA"]
    weights = str(Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth")
    runs = {}
    for seed in options.seeds:
        runs[str(seed)] = _run_seed(options.work / f"seed{seed}", seed, data, weights)
        result = {"machine": machine(), "config": CONFIG.read_text(), "runs": runs}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(result))


def _run_seed(work: Path, seed: int, data: str, weights: str) -> "dict[str, object]":
    checkpoint = work / "run" / "model.ckpt"
    if not checkpoint.exists():
        fit = ["fit", "--config", str(CONFIG), "--data.root", data, "--out", str(checkpoint.parent)]
        _command([*fit, "--model.backbone", "mobilenet_v2", "--model.weights", weights, "--seed_everything", str(seed)])
    variants = {"fp32": ["--precision", "fp32"], "fp16": ["--precision", "fp16"]}
    for calibrator in CALIBRATORS:
        for source in SOURCES:
            place = data if source == "images" else source
            calibration = ["--calibrator", calibrator, "--calibration-data", place, "--calibration-images", str(IMAGES)]
            variants[f"int8 {calibrator} {source}"] = ["--precision", "int8", *calibration]
    reports = {"checkpoint": _test(checkpoint, work / "checkpoint.json", checkpoint, data)}
    for name, flags in variants.items():
        file = work / f"{name.replace(' ', '-')}.onnx"
        if not file.exists():
            _command(["export", str(checkpoint), *flags, "--out", str(file)])
        reports[name] = _test(file, file.with_suffix(".json"), checkpoint, data)
    return reports


def _test(model: Path, report: Path, checkpoint: Path, data: str) -> "dict[str, object]":
    if not report.exists():
        reference = [] if model == checkpoint else ["--reference", str(checkpoint)]
        _command(["test", str(model), "--data.root", data, *reference, "--batch", "8", "--json", str(report)])
    content = json.loads(report.read_text())
    del content["model"]
    return dict(content)


def _command(arguments: "list[str]") -> None:
    if cli.main(arguments):
        sys.exit(f"uad {' '.join(arguments)} failed")


def page(result: "dict[str, object]") -> str:
    """The tables, in Markdown: mean over seeds, and the half width of their range."""
    runs = list(result["runs"].values())
    classes = list(runs[0]["checkpoint"]["classes"])
    lines = [f"# One unified STFPM on MobileNetV2, {len(classes)} classes, {len(runs)} seeds", ""]
    lines += ["Means over the seeds, with the half width of their range. Engine: OpenVINO.", "", "## FP32", ""]
    rows = []
    for name in [*classes, "mean"]:
        figures = [run["checkpoint"] if name == "mean" else run["checkpoint"]["classes"][name] for run in runs]
        keys = ("image_auroc", "pixel_auroc", "aupro", "image_f1")
        rows.append([name, *(_spread([figure[key] for figure in figures]) for key in keys)])
    lines += [markdown(["class", "image AUROC", "pixel AUROC", "AUPRO", "best F1"], rows), ""]
    lines += ["## Every precision: mean AUROCs, and Spearman correlation of image scores with the checkpoint's", ""]
    rows = []
    for variant in list(runs[0])[1:]:
        reports = [run[variant] for run in runs]
        row = [variant, *(_spread([report[key] for report in reports]) for key in ("image_auroc", "pixel_auroc"))]
        for name in classes:
            row.append(_spread([report["classes"][name]["agreement"]["spearman"] for report in reports], 4))
        row.append(_spread([report["agreement"]["flipped"] for report in reports]))
        rows.append(row)
    header = ["model", "image AUROC", "pixel AUROC", *(f"Spearman {name}" for name in classes), "flipped"]
    where = result["machine"]
    lines += [markdown(header, rows), ""]
    lines += [f"{where['processor']}; {where['versions']}; commit {where['commit']}; `{where['command']}`", ""]
    return "\n".join(lines)


def _spread(values: "list[float | None]", digits: int = 3) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    half = (max(present) - min(present)) / 2
    return f"{statistics.mean(present):.{digits}f}" + (f" ±{half:.{digits}f}" if len(present) > 1 else "")


if __name__ == "__main__":
    main()
