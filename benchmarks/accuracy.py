"""Accuracy and agreement of one unified STFPM, post-training and quantization-aware, on real images, over seeds.

    UAD_DATA=... UAD_WEIGHTS=... python benchmarks/accuracy.py --backbone mobilenet_v2 --work DIR --out DIR

UAD_DATA is a folder of classes in the layout of MVTec AD, UAD_WEIGHTS one that holds mobilenet_v2-imagenet.pth; any
other backbone starts from random weights, and then only the agreement means something. What is in --work is not made
again, so the script goes on where it was stopped: empty it when the code has changed. Everything is run through the
command line, on the configs as they stand; nothing here chooses anything.
"""

import argparse
import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

from commands import command, tested
from machine import footer, machine

from uad.tables import markdown

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
IMAGES = 128  # that calibrate
PER_CLASS = ("fp32", "int8 percentile images", "qat percentile")  # whose accuracy is shown for each class


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to make a model, from the run of a seed."""

    export: "list[str]"  # flags of `uad export`; none where the model is a simulation that stays a checkpoint
    fit: "list[str] | None" = None  # flags of `uad fit --ckpt`, for quantization-aware training
    first_seed_only: bool = False


def variants(data: str) -> "dict[str, Variant]":
    """Name -> variant, in the order in which they are made."""

    def post_training(calibrator: str, source: str) -> Variant:
        place = data if source == "images" else source
        flags = ["--calibrator", calibrator, "--calibration-data", place, "--calibration-images", str(IMAGES)]
        return Variant(["--precision", "int8", *flags])

    def aware(calibrator: str, *flags: str, **settings: Any) -> Variant:
        export = [] if "--model.bits" in flags else ["--precision", "int8"]
        return Variant(export, ["--model.calibrator", calibrator, *flags], **settings)

    made = {
        "fp32": Variant(["--precision", "fp32"]),
        "int8 percentile images": post_training("percentile", "images"),
        "qat percentile": aware("percentile"),
        "fp16": Variant(["--precision", "fp16"]),
        "int8 entropy images": post_training("entropy", "images"),
        "int8 minmax images": post_training("minmax", "images"),
        "int8 entropy random-normal": post_training("entropy", "random-normal"),
        "int8 percentile random-normal": post_training("percentile", "random-normal"),
        "int8 minmax random-normal": post_training("minmax", "random-normal"),
        "qat entropy": aware("entropy"),
        "qat percentile float teacher": aware("percentile", "--model.quantized_teacher", "false"),
    }
    for bits in ("6", "4"):
        width = ["--model.bits", bits]
        untrained = ["--trainer.max_epochs", "0"]
        made[f"int{bits} percentile simulated"] = aware("percentile", *width, *untrained, first_seed_only=True)
        made[f"int{bits} qat percentile simulated"] = aware("percentile", *width, first_seed_only=True)
    return made


def main() -> None:
    """Train, export and test for each seed; write JSON and the tables made from it after each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=None, help="only those")
    parser.add_argument("--epochs", default=None, help="of the float training; by default the config's")
    parser.add_argument("--only-made", action="store_true", help="make nothing: tables of what is in --work")
    parser.add_argument("--out", type=Path, required=True, help="folder for accuracy-BACKBONE.json and .md")
    options = parser.parse_args()
    data = os.environ["UAD_DATA"]
    good_only = _good_only(Path(data), options.work / "good")
    works = {seed: options.work / f"{options.backbone}-seed{seed}" for seed in options.seeds}
    if not options.only_made:
        for seed, work in works.items():
            _fit(work / "run", _float_flags(options, data, seed))
    chosen = {name: made for name, made in variants(data).items() if not options.variants or name in options.variants}
    out = options.out / f"accuracy-{options.backbone}.json"
    reports: dict[str, dict[str, Any]] = {}
    for name, variant in chosen.items():
        for seed, work in works.items():
            if variant.first_seed_only and seed != options.seeds[0]:
                continue
            if options.only_made and not (work / f"{name.replace(' ', '-')}.json").exists():
                continue
            report = _report(name, variant, work, data, good_only)
            if name == "qat percentile" and seed == options.seeds[0]:
                report["own"] = _own(work / "qat-percentile", data)
            reports.setdefault(name, {})[str(seed)] = report
            result = {
                "machine": machine(),
                "backbone": options.backbone,
                "epochs": options.epochs,
                "configs": [(CONFIGS / file).read_text() for file in ("stfpm.yaml", "stfpm_qat.yaml")],
                "reports": reports,
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1) + "\n")
            out.with_suffix(".md").write_text(page(result))


def _float_flags(options: argparse.Namespace, data: str, seed: int) -> "list[str]":
    flags = ["--config", str(CONFIGS / "stfpm.yaml"), "--data.root", data, "--seed", str(seed)]
    weights = Path(os.environ["UAD_WEIGHTS"]) / "mobilenet_v2-imagenet.pth"
    flags += ["--model.backbone", options.backbone]
    flags += ["--model.weights", str(weights) if options.backbone == "mobilenet_v2" else "none"]
    return flags + (["--trainer.max_epochs", options.epochs] if options.epochs else [])


def _report(name: str, variant: Variant, work: Path, data: str, good_only: Path) -> "dict[str, Any]":
    """Make the variant of one seed and test it beside the FP32 file."""
    stem = work / name.replace(" ", "-")
    checkpoint = work / "run" / "model.ckpt"
    if variant.fit is not None:
        start = ["--config", str(CONFIGS / "stfpm_qat.yaml"), "--ckpt", str(checkpoint), "--data.root", str(good_only)]
        _fit(stem, [*start, *variant.fit])
        checkpoint = stem / "model.ckpt"
    file = stem.with_suffix(".onnx") if variant.export else checkpoint
    if not file.exists():
        command(["export", str(checkpoint), *variant.export, "--out", str(file)])
    # The float32 file answers to the checkpoint, the others to the float32 file.
    reference = checkpoint if name == "fp32" else work / "fp32.onnx"
    return tested(file, stem.with_suffix(".json"), reference, data)


def _own(stem: Path, data: str) -> "dict[str, float]":
    """Class -> rank correlation of the deployed file's scores with those of the fake-quantized model it came from."""
    report = tested(stem.with_suffix(".onnx"), stem.with_suffix(".own.json"), stem / "model.ckpt", data)
    return {name: figures["agreement"]["spearman"] for name, figures in report["classes"].items()}


def _good_only(data: Path, folder: Path) -> Path:
    """The training images alone, so that `uad fit` does not test what is tested here."""
    for good in sorted(data.glob("*/train/good")):
        link = folder / good.parents[1].name / "train" / "good"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(good.resolve())
    return folder


def _fit(run: Path, flags: "list[str]") -> None:
    if not (run / "model.ckpt").exists():
        command(["fit", *flags, "--out", str(run)])


def page(result: "dict[str, Any]") -> str:
    """The tables, in Markdown: mean over seeds, and the half width of their range."""
    reports = result["reports"]
    runs = list(reports["fp32"].values())
    classes = list(runs[0]["classes"])
    random = result["backbone"] != "mobilenet_v2"
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    lines = [f"# One unified STFPM on {result['backbone']}, {len(classes)} classes, {seeds}", ""]
    lines += ["Means over the seeds, ± half of their range; all but simulations on OpenVINO."]
    if random:
        lines += ["The teacher's weights are random: only the agreement means something."]
    if result["epochs"]:
        lines += [f"Float training: {result['epochs']} epoch{'s' * (result['epochs'] != '1')}."]
    shown = [] if random else [name for name in PER_CLASS if name in reports]
    for name in shown:
        lines += ["", f"## {name}", "", _accuracy(reports[name], classes)]
    lines += ["", "## Every precision", ""]
    lines += [
        "Gain: of image AUROC over FP32 of the same seed, in points of 0.01.",
        "Spearman: rank correlation of image scores with FP32's (of FP32 itself: with the torch checkpoint's).",
        "Flipped: part of the decisions at the threshold that differ. Own: the lowest rank correlation of a class",
        "between the deployed file of a quantization-aware model and the fake-quantized model it came from (one seed).",
        "",
        _agreement(reports, classes),
        "",
    ]
    return "\n".join([*lines, footer(result["machine"])])


def _accuracy(seeds: "dict[str, Any]", classes: "list[str]") -> str:
    rows = []
    for name in [*classes, "mean"]:
        figures = [run if name == "mean" else run["classes"][name] for run in seeds.values()]
        keys = ("image_auroc", "pixel_auroc", "aupro", "image_f1")
        rows.append([name, *(_spread([figure[key] for figure in figures]) for key in keys)])
    return markdown(["class", "image AUROC", "pixel AUROC", "AUPRO", "best F1"], rows)


def _agreement(reports: "dict[str, Any]", classes: "list[str]") -> str:
    rows = []
    for variant, seeds in reports.items():
        runs = list(seeds.values())
        gains = [100 * (run["image_auroc"] - reports["fp32"][seed]["image_auroc"]) for seed, run in seeds.items()]
        row = [variant, str(len(runs)), _spread([run["image_auroc"] for run in runs], 4), _spread(gains, 2)]
        row += [_spread([run[key] for run in runs], 4) for key in ("pixel_auroc", "aupro")]
        for name in classes:
            row.append(_spread([run["classes"][name]["agreement"]["spearman"] for run in runs], 4))
        row.append(_spread([run["agreement"]["flipped"] for run in runs]))
        own = [min(run["own"].values()) for run in runs if "own" in run]
        row.append(f"{min(own):.4f}" if own else "")
        rows.append(row)
    header = ["model", "seeds", "image AUROC", "gain", "pixel AUROC", "AUPRO"]
    return markdown([*header, *(f"Spearman {name}" for name in classes), "flipped", "own"], rows)


def _spread(values: "list[float | None]", digits: int = 3) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    half = (max(present) - min(present)) / 2
    return f"{statistics.mean(present):.{digits}f}" + (f" ±{half:.{digits}f}" if len(present) > 1 else "")


if __name__ == "__main__":
    main()
