"""Banks of patches, alone and beside a student: how right they are, in FP32 and INT8, how fast and how large.

    python benchmarks/bank.py --weights mobilenet_v2-imagenet.pth --students RUN/model.ckpt [RUN/model.ckpt ...] \
        --data IMAGES [IMAGES ...] --work DIR --out benchmarks/results/bank

A student is what `uad fit --model stfpm` made of the root at the same place. Training does not look at a bank, so each
is trained once and given banks of several sizes: what `uad fit --model.bank K` does after training. Backbone
MobileNetV2, 256x256, one seed. What is in --work is not made again, so the script goes on where it was stopped.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from commands import command, exported, tested
from machine import commit, footer, machine
from onnx import numpy_helper

from engines.files import write_json, write_text
from engines.model_file import load_model, read_info, save_model
from uad.data.module import AnomalyData
from uad.models import model_class
from uad.models.backbones import load_safely
from uad.tables import markdown
from uad.training.fit import finish


class Variant(NamedTuple):
    """What is made of each root."""

    name: str
    patches: int  # of each class
    has_student: bool = True

    @property
    def folder(self) -> str:
        """Of its files, below that of the root."""
        return f"{'student' if self.has_student else 'bank'}-{self.patches}"


BOTH = Variant("both, 4,000", 4000)
VARIANTS = (
    Variant("student", 0),
    BOTH,
    Variant("bank, 4,000", 4000, has_student=False),
    Variant("both, 1,000", 1000),
)
CLASSES, SIZES = (4, 30, 100), (4000, 1000, 250)  # of the files whose cost is measured
FALSE_POSITIVES = 0.05
THREADS = 2


def main() -> None:
    """Make, test and time; write JSON and the page made from it after each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--students", type=Path, required=True, nargs="+")
    parser.add_argument("--data", type=Path, required=True, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--int8-runtime", default="openvino", help="onnxruntime on a CPU without VNNI")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="which to make; others are shown")
    parser.add_argument("--no-times", action="store_true", help="where other work runs on the same cores")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix")
    options = parser.parse_args()
    roots: dict[str, Any] = {root.name: {} for root in options.data}
    result: dict[str, Any] = {"machine": machine(), "int8_runtime": options.int8_runtime, "roots": roots}
    for variant in VARIANTS:
        for student, root in zip(options.students, options.data, strict=True):
            is_there = (options.work / root.name / variant.folder / "int8.json").exists()
            if variant.name not in options.variants and not is_there:
                continue
            roots[root.name][variant.name] = made(options, student, root, variant)
            write_json(options.out.with_suffix(".json"), result)
            write_text(options.out.with_suffix(".md"), page(result))
    if not options.no_times:
        result["latency"] = timed(options, options.data[-1])
        result["costs"] = costs(options, options.work / options.data[-1].name / BOTH.folder / "int8.onnx")
        write_json(options.out.with_suffix(".json"), result)
        write_text(options.out.with_suffix(".md"), page(result))


def made(options: argparse.Namespace, student: Path, root: Path, variant: Variant) -> "dict[str, Any]":
    """One model and its figures."""
    run = options.work / root.name / variant.folder
    checkpoint = run / "model.ckpt" if variant.patches else student
    if not variant.has_student and not checkpoint.exists():
        fit = ["fit", "--model", "patchcore", "--model.bank", str(variant.patches)]
        command([*fit, "--model.weights", str(options.weights), "--data.root", str(root), "--out", str(run)])
    elif not checkpoint.exists():
        give_bank(student, root, variant.patches, run)
    fp32, int8 = exported(checkpoint, root, run)
    classes = read_info(fp32).classes
    trust = load_safely(checkpoint)["state_dict"].get("head.readout.trust")
    return {
        "trust": {} if trust is None else dict(zip(classes, trust.flatten().tolist(), strict=True)),
        "fp32": tested(fp32, run / "fp32.json", fp32, str(root)),
        "int8": tested(int8, run / "int8.json", fp32, str(root), options.int8_runtime),
    }


def give_bank(student: Path, root: Path, patches: int, run: Path) -> None:
    """Give a trained student a bank, and finish the model as `uad fit` does."""
    run.mkdir(parents=True, exist_ok=True)
    content = load_safely(student)
    model = model_class(content["model"]).from_config({**content["config"], "bank": patches})
    learned = {name: value for name, value in content["state_dict"].items() if not name.startswith("head.readout.")}
    model.network.load_state_dict(learned, strict=False)
    data = AnomalyData(root)
    data.check()
    model.prepare(data.some_for_training(model.images_of_each_class, "Preparing"))  # what describes a place
    finish(model, data, FALSE_POSITIVES, run)


def timed(options: argparse.Namespace, root: Path) -> "list[dict[str, Any]]":
    """The models of one root, measured in turns: FP32 on OpenVINO, INT8 where it was tested."""
    variants = [each for each in VARIANTS if (options.work / root.name / each.folder / "int8.json").exists()]
    reports: list[dict[str, Any]] = []
    for precision, runtime in (("fp32", "openvino"), ("int8", options.int8_runtime)):
        report = options.work / f"bench-{precision}.json"
        if not report.exists():
            models = [str(options.work / root.name / each.folder / f"{precision}.onnx") for each in variants]
            flags = ["--runtime", runtime, "--threads", str(THREADS), "--seconds", "5", "--json", str(report)]
            command(["bench", *models, *flags])
        found = json.loads(report.read_text(encoding="utf-8"))
        reports += [{**each, "model": variant.name} for variant, each in zip(variants, found, strict=True)]
    return reports


def costs(options: argparse.Namespace, path: Path) -> "list[dict[str, Any]]":
    """What an INT8 file of so many classes and patches costs: its constants repeated, which changes no cost."""
    report = options.work / "costs.json"
    if not report.exists():
        plan = [(classes, size) for classes in CLASSES for size in SIZES]
        files = [resized(path, options.work / f"{classes}-{size}.onnx", classes, size) for classes, size in plan]
        flags = ["--runtime", options.int8_runtime, "--threads", str(THREADS), "--seconds", "3", "--json", str(report)]
        command(["bench", *map(str, files), *flags])
        measured = zip(plan, json.loads(report.read_text(encoding="utf-8")), strict=True)
        write_json(
            report,
            [
                {"classes": classes, "patches": size, "commit": commit(), **each, "model": ""}
                for (classes, size), each in measured
            ],
        )
    found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))
    return found


def resized(path: Path, out: Path, classes: int, size: int) -> Path:
    """A file whose banks and statistics are repeated, or cut, to so many classes and patches."""
    model, info = load_model(path), read_info(path)
    places = np.arange(classes) % len(info.classes)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name in ("head.bank.patches", "head.bank.squares"):
            value = value[places][:, :, np.arange(size) % value.shape[2]]
        elif tensor.name.startswith("head.readout.") and value.ndim > 1 and len(value) == len(info.classes):
            value = value[places]
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    names = [f"class {index}" for index in range(classes)]
    described = dataclasses.replace(
        info, classes=names, thresholds=dict.fromkeys(names, 1.0), held_out={}, depths={}, refitted=None
    )
    save_model(model, described, out)
    return out


def page(result: "dict[str, Any]") -> str:
    """For each root its classes; where defects lie, and INT8 beside FP32; and what it costs."""
    lines = ["# A bank of patches, alone and beside a student", ""]
    lines += [
        "STFPM and PatchCore on MobileNetV2. Image AUROC, FP32 and INT8; *trust* in the bank, where there are both:",
        "",
    ]
    summary, commits = [], []
    for root, models in result["roots"].items():
        rows = []
        for name in next(iter(models.values()), {"fp32": {"classes": {}}})["fp32"]["classes"]:
            pairs = [_pair(*(model[p]["classes"][name] for p in ("fp32", "int8"))) for model in models.values()]
            trust = [f"{model['trust'][name]:.1f}" for model in models.values() if model["trust"]]
            rows.append([name, *pairs, " ".join(trust)])
        rows.append(["mean", *(_pair(model["fp32"], model["int8"]) for model in models.values()), ""])
        lines += [f"## {root}", "", markdown(["class", *models, "trust"], rows), ""]
        for name, model in models.items():
            lowest = min(each["agreement"]["spearman"] for each in model["int8"]["classes"].values())
            figures = [_pair(model["fp32"], model["int8"], key) for key in ("pixel_auroc", "aupro")]
            flipped = f"{100 * model['int8']['agreement']['flipped']:.1f}"
            summary.append([root, name, *figures, f"{lowest:.3f}", flipped])
            commits += [model[precision]["commit"] for precision in ("fp32", "int8")]
    head = ["root", "model", "pixel AUROC", "AUPRO", "lowest Spearman, INT8 with FP32", "flipped, %"]
    lines += ["## Where, and INT8 beside FP32", "", markdown(head, summary), ""]
    if "latency" in result:
        head = ["model", "precision", "runtime", "median, ms", "to the first", "memory, MB", "file, MB"]
        rows = [
            [each["model"], each["precision"], each["runtime"], f"{each['latency_ms']['p50']:.2f}"]
            + [f"{each['ratio_to_first']:.2f}", f"{each['ram_mb']:.0f}", f"{each['file_mb']:.1f}"]
            for each in result["latency"]
        ]
        lines += [
            f"## One image on {THREADS} threads, in turns",
            "",
            f"Models of {root}.",
            "",
            markdown(head, rows),
            "",
        ]
        rows = [
            [str(each["classes"]), f"{each['patches']:,}", f"{each['latency_ms']['p50']:.2f}", f"{each['ram_mb']:.0f}"]
            + [f"{each['file_mb']:.1f}"]
            for each in result["costs"]
        ]
        head = ["classes", "patches of each", "median, ms", "memory, MB", "file, MB"]
        lines += ["INT8 files with both, their constants repeated to other numbers of classes and patches:", ""]
        lines += [markdown(head, rows), ""]
        commits += [each["commit"] for each in result["costs"]]
    return "\n".join([*lines, footer(result["machine"], commits)])


def _pair(fp32: "dict[str, Any]", int8: "dict[str, Any]", key: str = "image_auroc") -> str:
    return f"{fp32[key]:.3f} {int8[key]:.3f}"


if __name__ == "__main__":
    main()
