"""What is exported: a checkpoint, traced to a float32 graph, or an ONNX file; and what becomes of it."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from engines.errors import RuntimeNotInstalled, UadWarning
from engines.metadata import ModelInfo
from engines.model_file import info_of, load_model
from engines.plan_file import SUFFIX
from export.errors import ExportError
from export.pixels import PIXELS, on_pixels
from export.placement import place
from export.quantize import QuantizationReport, with_ranges
from uad.exporting.doubts import calibration_doubts
from uad.exporting.float_layers import FloatLayers
from uad.exporting.images import CalibrationImages, calibration_images
from uad.exporting.refit import Fit
from uad.exporting.settings import Calibration

if TYPE_CHECKING:
    import onnx

    from uad.training.checkpoint import Quantization


@dataclass(frozen=True)
class Source:
    """The graph to start from: float32, or an ONNX file of another precision, which only changes its form."""

    path: Path
    model: "onnx.ModelProto"
    info: ModelInfo
    quantization: "Optional[Quantization]" = None  # the ranges it was trained with, if it was

    def images(self, calibration: Calibration, spare_half: bool = False) -> CalibrationImages:
        """The images that calibrate it; what makes them doubtful is a warning. See `calibration_images`.

        Raises:
            UserError: there are too few, or they cannot be read.
        """
        assert calibration.data is not None
        images = calibration_images(
            self.info, calibration.data, calibration.images, calibration.classes, calibration.seed, spare_half
        )
        for doubt in calibration_doubts(self.model, images):
            warnings.warn(f"{calibration.data}: {doubt}", UadWarning, stacklevel=2)
        return images


@dataclass(frozen=True)
class Graph:
    """The graph to write, and what was found on the way to it."""

    model: "onnx.ModelProto"
    info: ModelInfo
    quantized: Optional[QuantizationReport] = None  # None where nothing became INT8 here
    choice: Optional[FloatLayers] = None  # layers that --precision auto left in float
    fit: Optional[Fit] = None  # None where read-out and thresholds stay as they were


def load_source(path: Path) -> Source:
    """Read a checkpoint or an ONNX file.

    Raises:
        RuntimeNotInstalled: a checkpoint, and no torch.
        UserError: it cannot serve.
    """
    if path.suffix in (".onnx", SUFFIX):
        model = load_model(path)
        return Source(path, model, info_of(model, path))
    try:
        from export.onnx import export_network
        from uad.training.checkpoint import load_checkpoint
        from uad.training.fold import fold
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    checkpoint = load_checkpoint(path)
    network = checkpoint.network
    folded = network if checkpoint.quantization else fold(network)
    model = export_network(folded, checkpoint.info.size, beside=network)
    info = dataclasses.replace(checkpoint.info, outputs=[value.name for value in model.graph.output])
    return Source(path, model, info, checkpoint.quantization)


def with_learned_ranges(source: Source) -> Graph:
    """The INT8 graph of a checkpoint that was trained under fake quantization.

    Raises:
        ExportError: it was trained for other integers than INT8, or lacks a range.
    """
    assert source.quantization is not None
    bits, amax = source.quantization.bits, source.quantization.amax
    if bits != 8:
        raise ExportError(f"{source.path} was trained for a simulation of int{bits}: only int8 runs")
    model = on_pixels(source.model, source.info) if PIXELS in amax else source.model
    placement = place(model)
    missing = sorted(set(placement.ranged()) - set(amax))
    if missing:
        raise ExportError(f"{source.path} has no range of {missing[0]}: train it again")
    quantized, info, report = with_ranges(model, source.info, amax, placement)
    return Graph(quantized, info, report)
