"""How INT8 judges beside FP32, class by class, on eight classes: one unified model for each of two roots.

    UAD_DATA=... UAD_MVTEC=... UAD_WEIGHTS=... python benchmarks/agreement.py --work DIR --out FILE.json

UAD_DATA and UAD_MVTEC are folders of classes in the layout of MVTec AD, UAD_WEIGHTS one that holds
mobilenet_v2-imagenet.pth; other backbones take their ImageNet weights from where `uad fit` finds them. Models of a
patch network (--backbone pdn_s) take the teacher that `uad distill` made, by --weights. --image-size is for what is
slow without a GPU; the figures of two sizes cannot be compared. What is in --work is not made again, so the script goes
on where it was stopped: empty it when the code has changed. Everything is run through the command line; nothing here
chooses anything. One seed. `held_out` is the criterion that settings are chosen by, see `benchmarks/steps.py`.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import yaml
from commands import command, tested, with_network
from machine import footer, machine
from steps import NAMES, criterion

from engines.cpu import cpu_flags, saturates
from engines.files import write_json, write_text
from uad.tables import benchmark_table, markdown

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROOTS = {"data": "UAD_DATA", "mvtec": "UAD_MVTEC"}
VARIANTS = {
    "fp32": ["--precision", "fp32"],
    "fp16": ["--precision", "fp16", "--calibration-data", "IMAGES"],
    "int8 percentile": ["--precision", "int8", "--calibration-data", "IMAGES"],
    "int8 entropy": ["--precision", "int8", "--calibrator", "entropy", "--calibration-data", "IMAGES"],
    "int8 random-normal": ["--precision", "int8", "--calibration-data", "random-normal"],
    "qat": ["--precision", "int8"],
    "auto": ["--precision", "auto", "--calibration-data", "IMAGES"],
}
KEYS = ("image_auroc", "pixel_auroc", "spearman", "flipped")


def main() -> None:
    """Train, export and test on each root; write JSON and the table made from it after each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="stfpm", choices=list(NAMES))
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, help="of the teacher, in place of those of UAD_WEIGHTS")
    parser.add_argument("--epochs", type=int, help="in place of the model's own length")
    parser.add_argument("--bank", type=int, help="patches of a class beside the student, in place of the config's")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--roots", nargs="+", default=list(ROOTS), choices=list(ROOTS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--precision", default="bf16-mixed", help="of training: 32-true is faster without bf16 units")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runtime = "openvino" if saturates(platform.machine(), cpu_flags()) is False else "onnxruntime"
    settings = {"model": options.model, "backbone": options.backbone, "precision": options.precision}
    reports: dict[str, dict[str, Any]] = {}
    settings.update(image_size=options.image_size, bank=options.bank)
    result: dict[str, Any] = {"machine": machine(), **settings, "runtime": runtime, "held_out": {}, "reports": reports}
    for root in options.roots:
        work, data = options.work / root, os.environ[ROOTS[root]]
        flags = with_network(options.backbone, options.weights or weights_of(options.backbone))
        flags += ["--data.image_size", str(options.image_size)]
        flags += ["--trainer.max_epochs", str(options.epochs)] if options.epochs else []
        flags += ["--model.bank", str(options.bank)] if options.bank is not None else []
        trained(work / "run", [f"{options.model}.yaml", data, options.precision, *flags])
        result["held_out"][root] = held_out(work / "run")
        for variant in options.variants:
            reports.setdefault(root, {})[variant] = report(work, data, variant, options, runtime)
            _write(result, options.out)


def _write(result: "dict[str, Any]", out: Path) -> None:
    write_json(out, result)
    write_text(out.with_suffix(".md"), page(result))


def file_of(work: Path, variant: str) -> Path:
    """The exported file of a variant."""
    return work / f"{variant.replace(' ', '-')}.onnx"


def weights_of(backbone: str) -> "Path | str":
    """Where its weights are."""
    file = Path(os.environ["UAD_WEIGHTS"]) / f"{backbone}-imagenet.pth"
    return file if file.exists() else "imagenet"


def held_out(run: Path) -> "dict[str, float]":
    """The criterion by class, which is kept beside the run."""
    kept = run.with_name("held_out.json")
    if not kept.exists():
        write_json(kept, criterion(run, yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]))
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def report(work: Path, data: str, variant: str, options: argparse.Namespace, runtime: str) -> "dict[str, Any]":
    """Make a variant and test it beside the FP32 file."""
    file, checkpoint = file_of(work, variant), work / "run" / "model.ckpt"
    if variant == "qat":
        run = file.with_suffix("")
        flags = ["--ckpt", str(checkpoint), "--data.image_size", str(options.image_size)]
        trained(run, ["stfpm_qat.yaml", data, options.precision, *flags])
        checkpoint = run / "model.ckpt"
    if not file.exists():
        flags = [data if flag == "IMAGES" else flag for flag in VARIANTS[variant]]
        command(["export", str(checkpoint), *flags, "--target", "cpu", "--out", str(file)])
    reference = checkpoint if variant == "fp32" else file_of(work, "fp32")
    return tested(file, file.with_suffix(".json"), reference, data, runtime)


def trained(run: Path, flags: "list[str]") -> None:
    """Train into a folder, unless that was done."""
    config, data, precision, *rest = flags
    if not (run / "model.ckpt").exists():
        settings = ["--config", str(CONFIGS / config), "--data.root", data, "--trainer.precision", precision]
        command(["fit", *settings, *rest, "--out", str(run)])


def page(result: "dict[str, Any]") -> str:
    """A row for each class and variant."""
    title = f"one unified {NAMES[result.get('model', 'stfpm')]} on {result['backbone']} for each root, one seed"
    lines = [f"# How INT8 judges beside FP32, {title}", ""]
    if result.get("image_size", 256) != 256:
        lines += [f"Images of {result['image_size']} by {result['image_size']} pixels."]
    if result.get("bank") is not None:
        lines += [f"Patches of a class in the bank beside the student: {result['bank']}."]
    lines += [f"Spearman: rank correlation of image scores with FP32's. Runtime: {result['runtime']}."]
    lines += ["Flipped: part of the decisions that differ, each model at its own thresholds."]
    header = ["class", "model", "image AUROC", "pixel AUROC", "Spearman", "flipped"]
    rows = []
    reports = [report for variants in result["reports"].values() for report in variants.values()]
    commits = [report["commit"] for report in reports if "commit" in report]
    for root, variants in result["reports"].items():
        for name in [*variants["fp32"]["classes"], f"mean of {root}"]:
            for variant, report in variants.items():
                figures = report["classes"].get(name, report)
                found = {**figures, **figures["agreement"]}
                rows.append([name, variant, *("-" if found[key] is None else f"{found[key]:.3f}" for key in KEYS)])
    lines += ["", markdown(header, rows), ""]
    if "speed" in result:  # older results; speed.py measures it now
        lines += ["Speed and size, in turns on the same machine:", "", benchmark_table(result["speed"]), ""]
    return "\n".join([*lines, footer(result["machine"], commits)])


if __name__ == "__main__":
    main()
