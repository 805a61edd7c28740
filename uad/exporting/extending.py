"""The INT8 file of a model whose classes were changed, made from the INT8 file of before: without the old images.

`uad fit --add-class` changes the head alone. So the backbone of the new file is that of the old one, with its weights,
biases and ranges, and so are the read-out and the thresholds of the classes that stay: their scores are the same, to
the last bit. Only the classes that came are fitted to the quantized network, as `uad.exporting.refit` does it.
"""

import dataclasses
import warnings
from typing import Dict, List, Sequence, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.errors import UadWarning
from engines.graph import constants, copy_of
from engines.metadata import ModelInfo
from export.calibrate import amax_percentile
from export.classes import BANK, Arrays, rows, together
from export.errors import ExportError
from export.explain import clipped_percent
from export.implicit import STEPS, activation_ranges
from export.pixels import PIXELS
from export.quantize import collect_histograms
from export.readout import read_statistics, with_statistics
from uad.data.reading import each_image
from uad.exporting.images import CalibrationImages, calibration_images
from uad.exporting.refit import Fit, Refit, choose_thresholds, share_above
from uad.exporting.settings import Calibration
from uad.exporting.source import Graph, Source, load_source
from uad.progress import progress, with_steps

LEFT = 0.1  # percent of the values of a tensor beyond its range from which that is told; the calibrator clips 0.01


def extended(source: Source, calibration: Calibration) -> Graph:
    """The INT8 graph of a model from that of the model which it was made from, `calibration.like`.

    Args:
        source: the float32 graph of the model whose classes were changed.
        calibration: with a folder of good images of the classes that came.

    Raises:
        UserError: the file is of another model, or there are no images of a class that came.
    """
    assert calibration.like is not None
    before = load_source(calibration.like)
    _check(source, before)
    stay, came = _classes(source, before)
    grafted = copy_of(before.model)
    _set(grafted, _joined(source, before, stay, came))
    info = _described(source.info, before.info, stay)
    if not came:
        return Graph(grafted, info)
    if calibration.data is None:
        raise ExportError(f"--like needs --calibration-data: a folder with good images of {', '.join(came)}")
    images = calibration_images(source.info, calibration.data)  # none of the others is needed
    missing = [name for name in came if name not in {sample.class_name for sample in images.readout}]
    if missing:
        raise ExportError(f"{calibration.data} holds no good images of {', '.join(missing)}, which came: give some")
    grafted, info = _ranges(grafted, info, images, came, calibration)
    refit = Refit(source.model, images)
    with progress("Fitting the read-out again", refit.passes) as step:
        fitted = refit.readout(grafted, step)
    fitted = _with_old_rows(fitted, grafted, [info.classes.index(name) for name in stay])
    held_out = [sample for sample in images.held_out if sample.class_name in came]
    with progress("Choosing thresholds", 2 * len(held_out)) as step:
        info, chosen = choose_thresholds(fitted, info, source.model, held_out, step)
    counts = {name: count for name, count in refit.counts.items() if name in came}
    info = dataclasses.replace(info, refitted={"images": counts, "thresholds": chosen})
    good = [sample for sample in images.readout if sample.class_name in came and sample.class_name not in chosen]
    above = share_above(fitted, info, good)
    of_each = {name: sum(sample.class_name == name for sample in held_out) for name in came}
    return Graph(fitted, info, fit=Fit(True, True, counts, chosen, of_each, sum(of_each.values()), above))


def _check(source: Source, before: Source) -> None:
    if before.info.precision not in ("int8", "mixed"):
        raise ExportError(f"--like {before.path} is {before.info.precision}: give an int8 file")
    if (before.info.made_from or before.info.checkpoint_sha256) != source.info.made_from:
        raise ExportError(
            f"--like {before.path} is not of the model that {source.path} was made from: uad fit --add-class says which"
        )
    if before.info.outputs != source.info.outputs:
        raise ExportError(f"--like {before.path} tells no class: it is of an earlier commit, export it again")


def _classes(source: Source, before: Source) -> Tuple[List[str], List[str]]:
    """The classes that stay, and those that came: one that was removed and added again has other patches."""
    old, new = constants(before.model), constants(source.model)

    def is_same(name: str) -> bool:
        if name not in before.info.classes:
            return False
        places = before.info.classes.index(name), source.info.classes.index(name)
        return BANK not in new or _is_equal(old[BANK][places[0]], new[BANK][places[1]])

    stay = [name for name in source.info.classes if is_same(name)]
    return stay, [name for name in source.info.classes if name not in stay]


def _is_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two banks (D, K) are the same; one may repeat its patches more often."""
    least = min(one.shape[1], other.shape[1])
    return np.array_equal(one[:, :least], other[:, :least])


def _joined(source: Source, before: Source, stay: Sequence[str], came: Sequence[str]) -> Arrays:
    """Rows of those that stay from the file, of those that came from the model, in the order of its classes."""
    old, new = constants(before.model), constants(source.model)
    kept = rows(old, [before.info.classes.index(name) for name in stay])
    fresh = rows(new, [source.info.classes.index(name) for name in came])
    joined = together({**old, **kept}, {**new, **fresh})
    order = [[*stay, *came].index(name) for name in source.info.classes]
    return {name: np.ascontiguousarray(value[order]) for name, value in joined.items()}


def _set(model: onnx.ModelProto, values: Arrays) -> None:
    """Give initializers other values."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))


def _described(info: ModelInfo, before: ModelInfo, stay: Sequence[str]) -> ModelInfo:
    """The description: of the classes that stay it says what the file of before says."""

    def kept(new: Dict[str, float], old: Dict[str, float]) -> Dict[str, float]:
        return {**new, **{name: old[name] for name in stay if name in old}}

    return dataclasses.replace(
        info,
        thresholds=kept(info.thresholds, before.thresholds),
        limits=kept(info.limits, before.limits),
        threshold=before.threshold,
        precision=before.precision,
        float_layers=before.float_layers,
        residual_scales=before.residual_scales,
        weight_bits=before.weight_bits,
        calibration=before.calibration,
    )


def _with_old_rows(fitted: onnx.ModelProto, grafted: onnx.ModelProto, places: Sequence[int]) -> onnx.ModelProto:
    """The read-out that was fitted, but with the rows of some classes as they were."""
    new, old = read_statistics(fitted), read_statistics(grafted)
    if new is None or old is None:
        return fitted
    values = {name: np.copy(getattr(new, name)) for name in ("mean", "std", "centroids")}
    for name, value in values.items():
        value[list(places)] = getattr(old, name)[list(places)]
    return with_statistics(fitted, dataclasses.replace(new, **values))


def _ranges(
    model: onnx.ModelProto, info: ModelInfo, images: CalibrationImages, came: Sequence[str], calibration: Calibration
) -> Tuple[onnx.ModelProto, ModelInfo]:
    """Tell which INT8 ranges the images of the classes that came leave, or with `calibration.widen` widen them."""
    values = constants(model)
    scale_of = {
        node.input[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }
    ends = {**activation_ranges(model), **{name: STEPS * scale for name, scale in info.residual_scales.items()}}
    ends.pop(PIXELS, None)  # no photograph leaves it: -128 is an integer of INT8, too
    samples = [sample for sample in images.readout if sample.class_name in came]
    with progress("Looking at ranges", len(samples)) as step:
        seen = collect_histograms(model, [*ends], with_steps(each_image(samples, info.size), step))
    beyond = {name: clipped_percent(seen[name], end) for name, end in ends.items()}
    left = {name: percent for name, percent in beyond.items() if percent > LEFT}
    if not left:
        return model, info
    worst = max(left, key=left.__getitem__)
    names = ", ".join(came)
    text = f"{len(left)} of {len(ends)} INT8 ranges are left by {names}, that of {worst} by {left[worst]:.3g}%"
    if not calibration.widen:
        how = "--widen widens them, and changes the scores of every class a little"
        warnings.warn(f"{text}: {how}", UadWarning, stacklevel=2)
        return model, info
    print(f"{text}: they are widened")
    wider = {name: np.float32(max(ends[name], amax_percentile(seen[name])) / STEPS) for name in left}
    changed = copy_of(model)
    _set(changed, {scale_of[name]: np.array(scale) for name, scale in wider.items() if name in scale_of})
    residual = {name: float(wider.get(name, scale)) for name, scale in info.residual_scales.items()}
    return changed, dataclasses.replace(info, residual_scales=residual)
