"""What rules for TensorRT's builder change in how INT8 judges: the same models, exported by two commits.

    UAD_MVTEC=... UAD_WEIGHTS=... python benchmarks/tensorrt_rules.py --before CHECKOUT --work DIR --out FILE.json

CHECKOUT is a clone at the commit before. Reverse Distillation has transposed convolutions, EfficientNet-Lite0 channels
that are dead but for a rest, EfficientAD average pooling. Its teacher is distilled from UAD_DATA. Models are trained
once, by this commit; what is in --work is not made again, so the script goes on where it was stopped. Everything is run
through the command line. Beside the table stands what a plan judges in which the builder may compute in float16 what is
not INT8: by the stand-in for TensorRT of the tests, which rounds what a builder may round.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import command, tested
from machine import footer, machine

from engines.files import write_json, write_text
from uad.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("image_auroc", "pixel_auroc", "spearman", "flipped")
FIT = {
    "reverse_distillation": ["--model.bank", "0"],
    "stfpm on efficientnet_lite0": [
        *("--model.bank", "0", "--model.backbone", "efficientnet_lite0", "--trainer.max_steps", "400"),
    ],
    "efficient_ad": ["--data.image_size", "128", "--trainer.max_steps", "200"],
}
DISTILL = ["--image-size", "128", "--steps", "300", "--precision", "32-true"]


def main() -> None:
    """Train, export by both commits, test; write JSON and the page made from it after each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(FIT), choices=list(FIT))
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    before = subprocess.run(
        ["git", "-C", str(options.before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    reports: dict[str, dict[str, Any]] = {}
    result = {"machine": machine(), "before": before, "runtime": options.runtime, "reports": reports}
    data = os.environ["UAD_MVTEC"]
    for model in options.models:
        work = (options.work / model.replace(" ", "-")).resolve()
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = trained(model, work, data)
        float_file = exported(checkpoint, work / "fp32.onnx", ["--precision", "fp32"])
        int8 = ["--precision", "int8", "--calibration-data", data]
        files = {
            "fp32": float_file,
            "int8 before": exported(checkpoint, work / "before.onnx", int8, options.before),
            "int8 now": exported(checkpoint, work / "now.onnx", int8),
        }
        reports[model] = {
            name: tested(file, file.with_suffix(".json"), float_file, data, options.runtime)
            for name, file in files.items()
        }
        reports[model]["int8 now, fp16 beside"] = of_plan(files["int8 now"], float_file, work, data)
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))
    print(page(result))


def trained(model: str, work: Path, data: str) -> Path:
    """The checkpoint of a model, which is not made again."""
    checkpoint = work / "run" / "model.ckpt"
    if not checkpoint.exists():
        weights = Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth"
        flags = [] if "efficientnet_lite0" in model else ["--model.weights", str(weights)]
        if model == "efficient_ad":
            teacher = work / "teacher.pth"
            if not teacher.exists():
                command(["distill", "--images", os.environ["UAD_DATA"], "--out", str(teacher), *DISTILL])
            flags = ["--model.weights", str(teacher)]
        config = ROOT / "configs" / f"{model.split()[0]}.yaml"
        settings = ["--config", str(config), "--data.root", data, "--trainer.precision", "32-true"]
        command(["fit", *settings, *flags, *FIT[model], "--out", str(checkpoint.parent)])
    return checkpoint


def exported(checkpoint: Path, file: Path, flags: "list[str]", checkout: Path = ROOT) -> Path:
    """The file that the code of a checkout writes, which is not made again."""
    if not file.exists():
        words = ["export", str(checkpoint), *flags, "--target", "jetson-xavier-nx", "--out", str(file)]
        around = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        subprocess.run([sys.executable, "-m", "uad.cli", *words], check=True, env=around, cwd=file.parent)
    return file


def of_plan(file: Path, reference: Path, work: Path, data: str) -> "dict[str, Any]":
    """The figures of a plan of the stand-in for TensorRT 8.5, in a process that finds it."""
    report = work / "plan.json"
    if not report.exists():
        tests = ROOT / "tests"
        paths = [tests / "fakes" / "site", tests, ROOT, ROOT / "benchmarks"]
        around = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "XDG_CACHE_HOME": str(work / "cache")}
        around.update(FAKE_TENSORRT="8.5.2", FAKE_GPU="Xavier")
        plan = work / "now.plan"
        code = (
            "import sys; from pathlib import Path; from commands import command, tested; "
            "file, plan, report, reference = map(Path, sys.argv[1:5]); "
            "command(['export', str(file), '--max-batch', '8', '--out', str(plan)]); "
            "tested(plan, report, reference, sys.argv[5])"
        )
        words = [str(file), str(plan), str(report), str(reference), data]
        subprocess.run([sys.executable, "-c", code, *words], check=True, env=around, cwd=work)
    return tested(file, report, reference, data)


def page(result: "dict[str, Any]") -> str:
    """A row for each class of each model and file."""
    lines = [
        "# What rules for TensorRT's builder change in how INT8 judges",
        "",
        "One unified model of four classes of MVTec AD each, one seed. EfficientAD: 128 by 128 pixels, 200 steps;",
        "STFPM: 400 steps. These are too few to judge well, and enough to see what INT8 changes.",
        f"Before: commit {result['before']}. Spearman: rank correlation of image scores with FP32's. Flipped: part of",
        f"the decisions that differ, each model at its own thresholds. Runtime: {result['runtime']}.",
        "FP16 beside: the tests' stand-in for TensorRT 8.5, which rounds to float16 what a builder may.",
    ]
    commits = [report["commit"] for reports in result["reports"].values() for report in reports.values()]
    for model, reports in result["reports"].items():
        rows = []
        for name in [*reports["fp32"]["classes"], "mean"]:
            for file, report in reports.items():
                figures = report["classes"].get(name, report)
                found = {**figures, **figures["agreement"]}
                rows.append([name, file, *("-" if found[key] is None else f"{found[key]:.4f}" for key in KEYS)])
        header = ["class", "file", "image AUROC", "pixel AUROC", "Spearman", "flipped"]
        lines += ["", f"## {model}", "", markdown(header, rows)]
    return "\n".join([*lines, "", footer(result["machine"], commits)])


if __name__ == "__main__":
    main()
