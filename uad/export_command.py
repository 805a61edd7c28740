"""`uad export`: a checkpoint or a float ONNX file to an ONNX file of the asked precision."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Iterator, Tuple

import numpy as np
import onnx

from engines.errors import RuntimeNotInstalled, UserError
from engines.graph import info_of, load_model, save_model
from engines.metadata import ModelInfo
from export.calibrate import calibrator
from export.check import check_model
from export.errors import CalibrationError, ExportError
from export.float16 import to_float16
from export.quantize import quantize, random_normal_images
from uad.data.folder import draw, load_images, train_samples
from uad.progress import progress

CALIBRATION_IMAGES = 128  # by default, or all that there are


def export(options: Any) -> str:
    """Do what `uad export` was asked; returns a summary of a line or two.

    Raises:
        UserError: the model, the calibration data or the output cannot serve.
    """
    if options.out.suffix != ".onnx":
        raise ExportError(f"--out {options.out}: give a file that ends in .onnx")
    model, info = _load(options.model)
    summary = ""
    if options.precision == "fp16":
        model, info = to_float16(model), dataclasses.replace(info, precision="fp16")
    elif options.precision == "int8":
        model, info, summary = _quantize(model, info, options)
    info = dataclasses.replace(info, versions={**info.versions, **_versions()})
    problems = check_model(model, options.target)
    if problems:
        raise ExportError(f"{options.target} would refuse the result: {'; '.join(problems)}")
    save_model(model, info, options.out)
    return f"{options.out}: {info.precision}, {options.out.stat().st_size / 1e6:.1f} MB{summary}"


def _load(path: Path) -> Tuple[onnx.ModelProto, ModelInfo]:
    """The float32 graph of a checkpoint or an ONNX file."""
    if path.suffix == ".onnx":
        model = load_model(path)
        info = info_of(model, path)
        if info.precision != "fp32":
            raise ExportError(f"{path} is {info.precision} already: export from the checkpoint or its fp32 file")
        return model, info
    try:
        from export.onnx import export_network
        from uad.checkpoint import load_checkpoint
        from uad.fold import fold
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    network, info = load_checkpoint(path)
    return export_network(fold(network), info.size), info


def _quantize(model: onnx.ModelProto, info: ModelInfo, options: Any) -> Tuple[onnx.ModelProto, ModelInfo, str]:
    if options.calibration_data is None:
        raise CalibrationError("int8 needs --calibration-data: a folder of good images, or random-normal")
    images, count, source = _calibration_images(info, options)
    rule = calibrator(options.calibrator, percentile=options.percentile)
    with progress("Calibrating", count) as step:
        quantized, info, report = quantize(model, info, _counted(images, step), rule)
    calibration = {
        "calibrator": options.calibrator,
        "percentile": options.percentile if options.calibrator == "percentile" else None,
        "data": source,
        "images": count,
        "seed": options.seed,
        "dead": len(report.dead),
    }
    summary = f"; {report.tensors} activations and {report.weights} weights in int8"
    if report.dead:
        summary += f" ({len(report.dead)} with dead channels)"
    if report.float_nodes:
        summary += f"; left in float: {', '.join(report.float_nodes)}"
    return quantized, dataclasses.replace(info, calibration=calibration), summary


def _calibration_images(info: ModelInfo, options: Any) -> Tuple[Iterator[np.ndarray], int, str]:
    """The images, how many they are, and what they are in a word; of the model's classes where they are there."""
    if options.calibration_data == "random-normal":
        count = options.calibration_images or CALIBRATION_IMAGES
        return iter(random_normal_images(info, count, options.seed)), count, "random-normal"
    available = train_samples(Path(options.calibration_data))
    known = [sample for sample in available if sample.class_name in info.classes] or available
    count = options.calibration_images or min(len(known), CALIBRATION_IMAGES)
    if len(known) < count:
        raise CalibrationError(
            f"{options.calibration_data} holds {len(known)} good images, {count} were asked: lower --calibration-images"
        )
    chosen = draw(known, count, options.seed)
    return (load_images([sample], info.size)[0] for sample in chosen), len(chosen), "images"


def _counted(images: Iterator[np.ndarray], step: Any) -> Iterator[np.ndarray]:
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
