"""Post-training quantization, step by step: calibrate, judge layers, choose, quantize, correct biases, fit again."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence, Tuple

import onnx

from engines.errors import UadWarning
from engines.files import make_folder, write_text
from engines.metadata import ModelInfo
from engines.qdq import for_tensorrt
from export.bias import CORRECTION_IMAGES, BiasCorrection, by_depth
from export.calibrate import Histogram, calibrator, merged
from export.equalize import equalizable, equalize
from export.errors import CalibrationError
from export.explain import layer_reports, observed_tensors, plot, require_matplotlib, write_reports
from export.pixels import PIXELS, RANGE, on_pixels
from export.placement import Placement, place
from export.quantize import QuantizationReport, collect_histograms, ranges, with_ranges, with_seven_bits
from export.sensitivity import sensitivity
from export.tensorrt import PlanSettings, calibrate
from uad.data.folder import draw, test_samples, with_depths
from uad.data.reading import load_images
from uad.exporting.float_layers import (
    Comparison,
    check_labelled,
    choose_float_layers,
    good_for_agreement,
    most_trials,
)
from uad.exporting.images import CalibrationImages
from uad.exporting.refit import FEWEST_IMAGES, Refit, fit_again
from uad.exporting.settings import TENSORRT_ENTROPY, Calibration, Choice
from uad.exporting.source import Graph, Source
from uad.progress import phases, progress, with_steps
from uad.tables import layer_table


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float32 graph, equalised, and what its tensors were seen to hold."""

    model: onnx.ModelProto
    placement: Placement  # places of Q/DQ with no layer kept in float
    histograms: Dict[str, Histogram]
    amax: Dict[str, float]


@dataclasses.dataclass(frozen=True)
class Damage:
    """What quantizing one layer at a time does."""

    decibels: Dict[str, float]  # layer -> signal to noise of the map, the layer that hurts most first
    judged_on: str  # the images, in words


def quantize(source: Source, is_auto: bool, calibration: Calibration, choice: Choice, builder: PlanSettings) -> Graph:
    """The INT8 graph, or with `is_auto` one that leaves some layers in float; writes the files of `choice.explain`.

    Args:
        source: a float32 graph.
        is_auto: whether layers are chosen.
        calibration: which images, and how.
        choice: what is asked of the layers.
        builder: of TensorRT, for its own calibrator.

    Raises:
        UserError: the images cannot serve, or TensorRT gives no range.
    """
    if calibration.data is None:
        precision, wanted = ("auto", "") if is_auto else ("int8", ", or random-normal")
        raise CalibrationError(f"{precision} needs --calibration-data: a folder of good images{wanted}")
    images = source.images(calibration, spare_half=is_auto)
    good = good_for_agreement(images.spare) if is_auto else []
    folder = choice.validation_data
    labelled = [] if folder is None else check_labelled(with_depths(test_samples(folder), source.info.depth_of), folder)
    refit = Refit(source.model, images)
    calibrated = _calibrate(source, images, calibration, choice.explain is not None, builder)
    # Noise says nothing of the mean of a channel.
    corrected = draw(images.samples, CORRECTION_IMAGES, images.seed) if images.source == "images" else []
    some = list(load_images(corrected, source.info.size))
    correction = BiasCorrection(calibrated.model, some) if some else None
    damage = None
    if is_auto or choice.explain is not None:
        damage = _damage(source, calibrated, correction, images, choice.runtime)
    layers = None
    if is_auto:
        assert damage is not None
        comparison = Comparison(source.model, source.info, good, labelled, choice.runtime)

        def as_written(names: Collection[str]) -> Tuple[onnx.ModelProto, ModelInfo]:
            quantized, info, _ = _quantized(source, calibrated, names, calibration, correction)
            return refit.readout(quantized), info

        order = list(damage.decibels)
        with progress("Choosing layers", most_trials(len(order))) as step:
            layers = choose_float_layers(as_written, order, comparison, choice.least, step)
    float_layers = layers.names if layers else []
    if choice.explain is not None:
        assert damage is not None
        _explain(calibrated, damage, float_layers, choice.explain)
    if layers and len(float_layers) == layers.of:
        return Graph(source.model, source.info, choice=layers)  # nothing is quantized: it stays the fp32 model
    with progress("Correcting biases", len(by_depth(source.model)) if correction else 0) as step:
        quantized, info, report = _quantized(source, calibrated, float_layers, calibration, correction, step)
    fitted, info, fit = fit_again(quantized, info, refit, images)
    described = _description(calibration, images, len(report.dead))
    if layers:
        layers = dataclasses.replace(layers, agreement=comparison.agreement(fitted, info))  # of what is written
        described.update(min_agreement=choice.least, agreement=dataclasses.asdict(layers.agreement))
        if not layers.agreement.holds(choice.least):
            warnings.warn(f"the agreement of {choice.least:g} that was asked for is missed", UadWarning, stacklevel=2)
    info = dataclasses.replace(info, calibration=described)
    return Graph(fitted, info, report, layers, fit)


def _quantized(
    source: Source,
    calibrated: Calibrated,
    float_layers: Collection[str],
    calibration: Calibration,
    correction: Optional[BiasCorrection],
    step: Callable[[], object] = lambda: None,
) -> Tuple[onnx.ModelProto, ModelInfo, QuantizationReport]:
    """The graph with Q/DQ but where layers stay in float, its biases corrected where there are images for it."""
    placement = place(calibrated.model, float_layers) if float_layers else calibrated.placement
    quantized, info, report = with_ranges(calibrated.model, source.info, calibrated.amax, placement)
    if calibration.weight_bits == 7:
        quantized, info = with_seven_bits(calibrated.model, quantized), dataclasses.replace(info, weight_bits=7)
    if float_layers:
        info = dataclasses.replace(info, precision="mixed", float_layers=list(float_layers))
    if correction is not None:
        quantized = correction.correct(quantized, step)
    return quantized, info, report


def _description(calibration: Calibration, images: CalibrationImages, dead: int) -> Dict[str, Any]:
    """What the file says of its calibration."""
    return {
        "calibrator": calibration.rule,
        "percentile": calibration.percent if calibration.rule == "percentile" else None,
        "data": images.source,
        "images": images.count,
        "classes": sorted({sample.class_name for sample in images.samples}),
        "seed": images.seed,
        "dead": dead,
    }


def _calibrate(
    source: Source, images: CalibrationImages, calibration: Calibration, is_explained: bool, builder: PlanSettings
) -> Calibrated:
    """Equalise the graph, and find the ranges of its tensors, with histograms of more where they are explained."""
    model = on_pixels(source.model, source.info)
    # Noise says nothing of where the values of a channel end.
    if images.source == "images" and equalizable(model):
        with progress("Equalising", images.count) as step:
            model = equalize(model, with_steps(images, step))
    placement = place(model)
    ranged = placement.ranged()
    by_tensorrt = calibration.calibrator == TENSORRT_ENTROPY
    if by_tensorrt:
        amax = _ranges_of_tensorrt(model, source.info, images, ranged, builder)
    wanted = observed_tensors(placement) if is_explained else [] if by_tensorrt else ranged
    by_class = []
    if wanted:
        with progress("Calibrating", images.count) as step:
            by_class = [collect_histograms(model, wanted, with_steps(group, step)) for group in images.by_class()]
    if not by_tensorrt:
        amax = ranges(by_class, ranged, calibrator(calibration.rule, percentile=calibration.percent))
    if PIXELS in amax:
        amax[PIXELS] = RANGE  # known without looking
    histograms = {name: merged([of_class[name] for of_class in by_class]) for name in wanted}
    return Calibrated(model, placement, histograms, amax)


def _ranges_of_tensorrt(
    model: onnx.ModelProto, info: ModelInfo, images: CalibrationImages, names: Sequence[str], builder: PlanSettings
) -> Dict[str, float]:
    """Tensor -> amax, of those named, as TensorRT's entropy calibrator has it."""
    with phases("Calibrating with TensorRT") as watch:
        amax = calibrate(for_tensorrt(model), info, images, builder, watch)
    missing = [name for name in names if name not in amax]
    if missing:
        raise CalibrationError(f"TensorRT's calibrator gives no range for {missing[0]}: take another --calibrator")
    return {name: amax[name] for name in names}


def _damage(
    source: Source,
    calibrated: Calibrated,
    correction: Optional[BiasCorrection],
    images: CalibrationImages,
    runtime: Optional[str],
) -> Damage:
    refit = Refit(source.model, images, FEWEST_IMAGES)  # each layer is fitted to: more images would take long
    pixels, classes, judged_on = images.to_judge_layers()
    layers = calibrated.placement.layers

    def as_written(quantized: onnx.ModelProto) -> onnx.ModelProto:
        return refit.readout(quantized if correction is None else correction.correct(quantized))

    with progress("Judging layers", len(layers)) as step:
        decibels = sensitivity(
            calibrated.model, source.info, calibrated.amax, layers, pixels, classes, runtime, step, as_written
        )
    return Damage(decibels, judged_on)


def prepare_to_explain(folder: Path) -> None:
    """Ask, before the work, for what the files of `Choice.explain` need.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written to.
    """
    require_matplotlib()
    make_folder(folder, flag="--explain")


def _explain(calibrated: Calibrated, damage: Damage, float_layers: List[str], folder: Path) -> None:
    reports = layer_reports(
        calibrated.model, calibrated.placement, calibrated.histograms, calibrated.amax, damage.decibels, float_layers
    )
    write_reports(folder / "layers.csv", reports)
    plot(folder / "layers.png", reports)
    write_text(folder / "layers.md", layer_table(reports, damage.judged_on) + "\n")
