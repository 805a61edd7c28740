"""`uad export`: a checkpoint or a float ONNX file to an ONNX file of the asked precision."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import onnx

from engines.errors import RuntimeNotInstalled, UserError
from engines.files import make_folder, replacing
from engines.graph import info_of, load_model, save_model
from engines.metadata import ModelInfo
from export import explain
from export.calibrate import PERCENTILE, Calibrator, Histogram, calibrator
from export.check import check_model
from export.equalize import equalize
from export.errors import ExportError
from export.float16 import to_float16
from export.quantize import QuantizationReport, collect_histograms, ranged_tensors, with_ranges
from export.sensitivity import quantizable_layers, sensitivity
from uad.calibration_images import CalibrationImages, calibration_images
from uad.data.folder import Sample, test_samples
from uad.mixed_precision import (
    Choice,
    Comparison,
    check_labelled,
    choose_float_layers,
    good_for_agreement,
    most_trials,
)
from uad.progress import progress
from uad.tables import layer_table

if TYPE_CHECKING:
    from uad.checkpoint import Quantization

CALIBRATOR = "percentile"  # by default
MAX_DROP = 0.2  # by default, in points of 0.01


def export(options: Any) -> str:
    """Do what `uad export` was asked; returns a summary of a line or two.

    Raises:
        UserError: the model, the calibration data or the output cannot serve.
    """
    _check_options(options)
    model, info, quantization = _load(options.model)
    summary = ""
    if quantization is not None:
        model, info, summary = _with_learned_ranges(model, info, quantization, options)
    elif options.precision == "fp16":
        model, info = to_float16(model), dataclasses.replace(info, precision="fp16")
    elif options.precision in ("int8", "auto"):
        model, info, summary = _quantize(model, info, options)
    info = dataclasses.replace(info, versions={**info.versions, **_versions()})
    problems = check_model(model, options.target)
    if problems:
        raise ExportError(f"{options.target} would refuse the result: {'; '.join(problems)}")
    save_model(model, info, options.out)
    return f"{options.out}: {info.precision}, {options.out.stat().st_size / 1e6:.1f} MB{summary}"


def _check_options(options: Any) -> None:
    """What can be said without the model, before the long work."""
    if options.out.suffix != ".onnx":
        raise ExportError(f"--out {options.out}: give a file that ends in .onnx")
    if options.out.resolve() == options.model.resolve():
        raise ExportError(f"--out {options.out} is the model itself: give another file")
    for flag in ("max_drop", "validation_data"):
        if getattr(options, flag) is not None and options.precision != "auto":
            raise ExportError(f"--{flag.replace('_', '-')} is for --precision auto, not {options.precision}")
    _rule(options)
    if options.explain is not None:
        if options.precision not in ("int8", "auto"):
            raise ExportError(f"--explain is for --precision int8 or auto, not {options.precision}")
        explain.require_matplotlib()
        make_folder(options.explain, flag="--explain")


def _load(path: Path) -> Tuple[onnx.ModelProto, ModelInfo, "Optional[Quantization]"]:
    """The float32 graph of a checkpoint or an ONNX file, and the ranges it was trained with, if it was."""
    if path.suffix == ".onnx":
        model = load_model(path)
        info = info_of(model, path)
        if info.precision != "fp32":
            raise ExportError(f"{path} is {info.precision} already: export from the checkpoint or its fp32 file")
        return model, info, None
    try:
        from export.onnx import export_network
        from uad.checkpoint import load_checkpoint
        from uad.fold import fold
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    checkpoint = load_checkpoint(path)
    network = checkpoint.network if checkpoint.quantization else fold(checkpoint.network)
    return export_network(network, checkpoint.info.size), checkpoint.info, checkpoint.quantization


def _with_learned_ranges(
    model: onnx.ModelProto, info: ModelInfo, quantization: "Quantization", options: Any
) -> Tuple[onnx.ModelProto, ModelInfo, str]:
    """The INT8 graph of a checkpoint that was trained under fake quantization."""
    if options.precision != "int8":
        raise ExportError(f"{options.model} was trained for int{quantization.bits}: export it with --precision int8")
    if quantization.bits != 8:
        raise ExportError(f"{options.model} was trained for a simulation of int{quantization.bits}: only int8 runs")
    for flag in ("calibration_data", "calibrator", "percentile", "explain"):
        if getattr(options, flag) is not None:
            raise ExportError(f"{options.model} brings its own ranges: leave out --{flag.replace('_', '-')}")
    missing = sorted(set(ranged_tensors(model)) - set(quantization.amax))
    if missing:
        raise ExportError(f"{options.model} has no range of {missing[0]}: train it again")
    quantized, info, report = with_ranges(model, info, quantization.amax)
    return quantized, info, _report_summary(report, [])


def _quantize(model: onnx.ModelProto, info: ModelInfo, options: Any) -> Tuple[onnx.ModelProto, ModelInfo, str]:
    """The INT8 or mixed graph, its description, and what to say of it; writes the files of --explain."""
    images = calibration_images(info, options)
    is_auto = options.precision == "auto"
    good, labelled = _images_to_compare(images, options) if is_auto else ([], [])
    fp32 = model
    if images.source == "images":  # noise says nothing of where the values of a channel end
        with progress("Equalising", images.count) as step:
            model = equalize(fp32, _counted(images, step))
    histograms, amax = _calibrate(model, images, options)
    damage, judged_on = _damage(model, info, amax, images, options) if is_auto or options.explain else ({}, "")
    choice = _choose(fp32, model, info, amax, list(damage), good, labelled, options) if is_auto else None
    float_layers = choice.float_layers if choice else []
    if options.explain:
        _explain(explain.layer_reports(model, histograms, amax, damage, float_layers), judged_on, options.explain)
    told = _choice_summary(choice, len(damage), len(good), len(labelled)) if choice else ""
    if choice and len(float_layers) == len(damage):
        return fp32, info, told  # nothing is quantized: it stays the fp32 model
    quantized, described, report = with_ranges(model, info, amax, float_layers)
    if float_layers:
        described = dataclasses.replace(described, precision="mixed", float_layers=float_layers)
    described = dataclasses.replace(described, calibration=_description(images, report, choice, options))
    return quantized, described, _report_summary(report, float_layers) + told


def _images_to_compare(images: CalibrationImages, options: Any) -> Tuple[List[Sample], List[Sample]]:
    """For auto: good images, and labelled images if there are any."""
    folder = options.validation_data
    return good_for_agreement(images.spare), check_labelled(test_samples(folder), folder) if folder else []


def _calibrate(
    model: onnx.ModelProto, images: CalibrationImages, options: Any
) -> Tuple[Dict[str, Histogram], Dict[str, float]]:
    """Histograms, and the ranges made of them."""
    rule = _rule(options)
    ranged = ranged_tensors(model)
    names = explain.observed_tensors(model) if options.explain else ranged
    with progress("Calibrating", images.count) as step:
        histograms = collect_histograms(model, names, _counted(images, step))
    return histograms, {name: rule(histograms[name]) for name in ranged}


def _rule(options: Any) -> Calibrator:
    name = options.calibrator or CALIBRATOR
    if options.percentile is not None and name != "percentile":
        raise ExportError(f"--percentile is for --calibrator percentile, not {name}")
    return calibrator(name, percentile=_percentile(options))


def _percentile(options: Any) -> float:
    return PERCENTILE if options.percentile is None else float(options.percentile)


def _damage(
    model: onnx.ModelProto, info: ModelInfo, amax: Dict[str, float], images: CalibrationImages, options: Any
) -> Tuple[Dict[str, float], str]:
    """Layer -> dB, the worst first, and in words on which images."""
    pixels, classes, judged_on = images.to_judge_layers()
    with progress("Judging layers", len(quantizable_layers(model))) as step:
        return sensitivity(model, info, amax, pixels, classes, options.runtime, step), judged_on


def _choose(
    fp32: onnx.ModelProto,
    model: onnx.ModelProto,
    info: ModelInfo,
    amax: Dict[str, float],
    order: List[str],
    good: List[Sample],
    labelled: List[Sample],
    options: Any,
) -> Choice:
    comparison = Comparison(fp32, info, good, labelled, options.runtime)
    with progress("Choosing layers", most_trials(len(order))) as step:
        return choose_float_layers(model, info, amax, order, comparison, _max_drop(options), step)


def _explain(reports: List[explain.LayerReport], judged_on: str, folder: Path) -> None:
    explain.write_csv(folder / "layers.csv", reports)
    explain.plot(folder / "layers.png", reports)
    with replacing(folder / "layers.md") as temporary:
        temporary.write_text(layer_table(reports, judged_on) + "\n", encoding="utf-8")


def _max_drop(options: Any) -> float:
    return MAX_DROP if options.max_drop is None else float(options.max_drop)


def _description(
    images: CalibrationImages, report: QuantizationReport, choice: Optional[Choice], options: Any
) -> Dict[str, Any]:
    """How the ranges and the float layers were found; it travels in the file."""
    name = options.calibrator or CALIBRATOR
    description = {
        "calibrator": name,
        "percentile": _percentile(options) if name == "percentile" else None,
        "data": images.source,
        "images": images.count,
        "classes": sorted({sample.class_name for sample in images.samples}),
        "seed": options.seed,
        "dead": len(report.dead),
    }
    if choice:
        description["max_drop"] = _max_drop(options)
        description["agreement"] = dataclasses.asdict(choice.agreement)
    return description


def _report_summary(report: QuantizationReport, chosen: List[str]) -> str:
    summary = f"; {report.tensors} activations and {report.weights} weights in int8"
    if report.dead:
        summary += f" ({len(report.dead)} with dead channels)"
    impossible = [name for name in report.float_nodes if name not in chosen]
    if impossible:
        summary += f"; left in float: {', '.join(impossible)}"
    return summary


def _choice_summary(choice: Choice, layers: int, good: int, labelled: int) -> str:
    """Which layers auto left in float, and the agreement reached."""
    left = f"\n{len(choice.float_layers)} of {layers} layers left in float"
    if choice.float_layers:
        left += f": {', '.join(choice.float_layers)}"
    plain = f" (plain int8: {choice.int8.spearman:.4f})"
    left += f"\nSpearman with fp32 {choice.agreement.spearman:.4f}{plain}, on {good} good images not used to calibrate"
    if choice.agreement.auroc_drop is not None:
        plain = f" (plain int8: {100 * choice.int8.auroc_drop:.2f})" if choice.int8.auroc_drop is not None else ""
        drop = f"{100 * choice.agreement.auroc_drop:.2f} points{plain}"
        left += f"\nmean image AUROC falls by {drop}, on {labelled} labelled images"
    return left


def _counted(images: Iterable[np.ndarray], step: Callable[[], object]) -> Iterator[np.ndarray]:
    for image in images:
        yield image
        step()


def _versions() -> "dict[str, str]":
    found = {}
    for name in ("uad", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise UserError(f"{name} is not installed: pip install {name}") from error
    return found
