"""Accuracy and agreement of one unified STFPM at every precision and calibration, on real images, over seeds.

    UAD_DATA=... UAD_WEIGHTS=... python benchmarks/accuracy.py --work DIR --out benchmarks/results/accuracy.json

UAD_DATA is a folder of classes in the layout of MVTec AD, UAD_WEIGHTS one that holds mobilenet_v2-imagenet.pth. What is
in --work is not made again, so the script goes on where it was stopped: empty it when the code has changed. Everything
is run through the command line, on the config as it stands; nothing here chooses anything.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from machine import footer, machine

from uad import cli
from uad.tables import markdown

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "stfpm.yaml"
CALIBRATORS = ("entropy", "percentile", "minmax")
SOURCES = ("images", "random-normal")
IMAGES = 128


def main() -> None:
    """Train, export and test for each seed; write JSON and the tables made from it after each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = os.environ["UAD_DATA"]
    weights = str(Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth")
    works = {seed: options.work / f"seed{seed}" for seed in options.seeds}
    for seed, work in works.items():
        if not (work / "run" / "model.ckpt").exists():
            fit = ["fit", "--config", str(CONFIG), "--data.root", data, "--out", str(work / "run")]
            backbone = ["--model.backbone", "mobilenet_v2", "--model.weights", weights]
            _command([*fit, *backbone, "--seed_everything", str(seed)])
    reports: dict[str, dict[str, object]] = {}
    for name, flags in _variants(data).items():
        for seed, work in works.items():
            file = work / f"{name.replace(' ', '-')}.onnx"
            if not file.exists():
                _command(["export", str(work / "run" / "model.ckpt"), *flags, "--out", str(file)])
            # The float32 file answers to the checkpoint, the others to the float32 file.
            reference = work / ("run/model.ckpt" if name == "fp32" else "fp32.onnx")
            reports.setdefault(name, {})[str(seed)] = _test(file, file.with_suffix(".json"), reference, data)
            result = {"machine": machine(), "config": CONFIG.read_text(), "reports": reports}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(page(result))


def _variants(data: str) -> "dict[str, list[str]]":
    """Name -> flags of `uad export`."""
    variants = {"fp32": ["--precision", "fp32"], "fp16": ["--precision", "fp16"]}
    for source in SOURCES:
        for calibrator in CALIBRATORS:
            place = data if source == "images" else source
            calibration = ["--calibrator", calibrator, "--calibration-data", place, "--calibration-images", str(IMAGES)]
            variants[f"int8 {calibrator} {source}"] = ["--precision", "int8", *calibration]
    return variants


def _test(model: Path, report: Path, reference: Path, data: str) -> "dict[str, object]":
    if not report.exists():
        flags = ["--reference", str(reference), "--batch", "8", "--json", str(report)]
        _command(["test", str(model), "--data.root", data, *flags])
    content = json.loads(report.read_text())
    del content["model"]
    return dict(content)


def _command(arguments: "list[str]") -> None:
    if cli.main(arguments):
        sys.exit(f"uad {' '.join(arguments)} failed")


def page(result: "dict[str, object]") -> str:
    """The tables, in Markdown: mean over seeds, and the half width of their range."""
    reports = result["reports"]
    runs = list(reports["fp32"].values())
    classes = list(runs[0]["classes"])
    lines = [f"# One unified STFPM on MobileNetV2, {len(classes)} classes, {len(runs)} seeds", ""]
    lines += ["Means over the seeds, ± half of their range. All on OpenVINO.", "", "## FP32", ""]
    rows = []
    for name in [*classes, "mean"]:
        figures = [run if name == "mean" else run["classes"][name] for run in runs]
        keys = ("image_auroc", "pixel_auroc", "aupro", "image_f1")
        rows.append([name, *(_spread([figure[key] for figure in figures]) for key in keys)])
    lines += [markdown(["class", "image AUROC", "pixel AUROC", "AUPRO", "best F1"], rows), ""]
    lines += ["## Every precision", ""]
    lines += [
        "Spearman: rank correlation of image scores with FP32's (of FP32 itself: with the torch checkpoint's).",
        "Flipped: part of the decisions at the threshold that differ. Max score diff: the greatest, relative.",
        "",
    ]
    rows = []
    for variant, seeds in reports.items():
        runs = list(seeds.values())
        row = [
            variant,
            str(len(runs)),
            *(_spread([run[key] for run in runs]) for key in ("image_auroc", "pixel_auroc")),
        ]
        for name in classes:
            row.append(_spread([run["classes"][name]["agreement"]["spearman"] for run in runs], 4))
        row.append(_spread([run["agreement"]["flipped"] for run in runs]))
        row.append(f"{max(run['agreement']['max_relative_score_diff'] for run in runs):.1g}")
        rows.append(row)
    header = [
        "model",
        "seeds",
        "image AUROC",
        "pixel AUROC",
        *(f"Spearman {name}" for name in classes),
        "flipped",
        "max score diff",
    ]
    lines += [markdown(header, rows), ""]
    return "\n".join([*lines, footer(result["machine"])])


def _spread(values: "list[float | None]", digits: int = 3) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    half = (max(present) - min(present)) / 2
    return f"{statistics.mean(present):.{digits}f}" + (f" ±{half:.{digits}f}" if len(present) > 1 else "")


if __name__ == "__main__":
    main()
