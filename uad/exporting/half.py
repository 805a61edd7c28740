"""The FP16 graph: what passes the range of float16 stays in float32."""

import dataclasses
import warnings
from typing import List, Optional

from engines.errors import UadWarning
from export.errors import CalibrationError
from export.float16 import beyond_float16, to_float16, vanishing_weights
from uad.exporting.images import RANDOM_NORMAL, CalibrationImages
from uad.exporting.refit import Refit, fit_again
from uad.exporting.settings import Calibration
from uad.exporting.source import Graph, Source
from uad.progress import progress, with_steps


def to_half(source: Source, calibration: Calibration) -> Graph:
    """The graph; where images are given, ranges are looked at on them, and read-out and thresholds are fitted to them.

    Raises:
        UserError: the images cannot serve.
    """
    if calibration.data == RANDOM_NORMAL:
        raise CalibrationError("fp16 needs no ranges, and random-normal images show no class: give a folder, or none")
    images = None if calibration.data is None else source.images(calibration)
    kept = _beyond_float16(source, images)
    info = dataclasses.replace(source.info, precision="fp16", float_layers=kept)
    half = to_float16(source.model, kept)
    vanished = vanishing_weights(source.model, kept)
    if vanished:
        warnings.warn(f"{vanished} weights are too small for float16 and are 0 in the file", UadWarning, stacklevel=2)
    if images is None:
        return Graph(half, info)
    model, info, fit = fit_again(half, info, Refit(source.model, images), images)
    return Graph(model, info, fit=fit)


def _beyond_float16(source: Source, images: Optional[CalibrationImages]) -> List[str]:
    if images is None:
        return beyond_float16(source.model)
    with progress("Looking for what float16 cannot hold", images.count) as step:
        return beyond_float16(source.model, with_steps(images, step))
