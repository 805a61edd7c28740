"""Which layers INT8 hurts, and why: for every reader of a quantized tensor, what is clipped, and what noise is added.

The figures of activations come from the histograms that calibration collected: the images are not read again. A bin is
1/4096 of a histogram's limit, mostly a small part of a step of INT8. Values are taken to lie evenly within their bin.
Values in the first bin are taken to be 0, as most are after a ReLU. Calibrators put amax on a border between bins, so
the part that is clipped is exact to a bin.
"""

import dataclasses
from pathlib import Path
from typing import Collection, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx

from engines.errors import RuntimeNotInstalled
from engines.files import replacing, write_csv
from engines.graph import constants
from export.calibrate import Histogram, scale_from_amax
from export.pixels import PIXELS
from export.placement import Placement
from export.quantize import insert_qdq
from export.sensitivity import power_ratio_db, sqnr_db

MOST_BARS = 40  # more labels than that cannot be read
INCHES_PER_BAR = 0.22
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # of the parts; Okabe and Ito, safe for the colour-blind


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """A node that reads a quantized tensor: a convolution, or a residual Add or MaxPool, which have no weights.

    A layer that the file keeps in float32 is reported as it would be in INT8.
    """

    layer: str  # the node's name
    precision: str  # int8, or fp32 where the file keeps it in float
    map_sqnr_db: Optional[float]  # the damage: of the anomaly map with only this layer quantized; lower is worse
    weight_sqnr_db: Optional[float]
    dead_channels: Optional[int]  # output channels whose weights are all 0
    tensor: str  # the activation that it reads
    amax: float  # its INT8 range is [-amax, amax]
    largest: float  # the largest magnitude over the calibration images
    clipped_percent: float  # percent of its values that are clipped, over the calibration images
    activation_sqnr_db: float  # signal to noise of its own Q/DQ

    @property
    def part(self) -> str:
        """The network that it belongs to, teacher or student: the first segment of its name."""
        return self.layer.strip("/").split("/")[0]


def observed_tensors(placement: Placement) -> List[str]:
    """The tensors whose histograms `layer_reports` wants: more than must be ranged, where one lends its range."""
    return sorted({*placement.ranged(), *(tensor.name for tensor in placement.activations)})


def layer_reports(
    model: onnx.ModelProto,
    placement: Placement,
    histograms: Dict[str, Histogram],
    amax: Dict[str, float],
    damage: Dict[str, float],
    float_layers: Collection[str] = (),
) -> List[LayerReport]:
    """A report for every reader of a quantized tensor, the worst damage first, those without weights last.

    Args:
        model: the float32 graph.
        placement: of it, with no layer kept in float.
        histograms: of `observed_tensors`.
        amax: tensor name -> range.
        damage: layer -> dB; see `export.sensitivity.sensitivity`.
        float_layers: convolutions that the file keeps in float.
    """
    figures = _weight_figures(model, amax, placement)
    reports = []
    for tensor in placement.activations:
        histogram, limit = histograms[tensor.name], amax[tensor.range_of]
        clipped, noise = clipped_percent(histogram, limit), activation_sqnr_db(histogram, limit)
        if tensor.name == PIXELS:  # nothing is rounded, and -128 is an integer of INT8, too
            clipped, noise = 0.0, np.inf
        for layer in tensor.readers:
            weight, dead = figures.get(layer, (None, None))
            precision = "fp32" if layer in float_layers else "int8"
            activation = (tensor.name, limit, histogram.amax, clipped, noise)
            reports.append(LayerReport(layer, precision, damage.get(layer), weight, dead, *activation))
    return sorted(reports, key=lambda report: np.inf if report.map_sqnr_db is None else report.map_sqnr_db)


def clipped_percent(histogram: Histogram, amax: float) -> float:
    """How many percent of the values counted have a magnitude above `amax`."""
    lower, upper = histogram.edges[:-1], np.minimum(histogram.edges[1:], histogram.amax)
    width = np.where(upper > lower, upper - lower, 1.0)  # beyond the largest value nothing is counted
    above = np.clip((upper - amax) / width, 0.0, 1.0)
    return float(100.0 * (histogram.counts * above).sum() / max(histogram.counts.sum(), 1))


def activation_sqnr_db(histogram: Histogram, amax: float) -> float:
    """Signal-to-quantization-noise ratio of the values counted, rounded to steps of amax / 127 and clipped at `amax`.

    INT8 reaches one step further down than up, to -128; that step, which helps clipped negative values, is left out.
    """
    edges = histogram.edges
    if not edges[1]:
        return power_ratio_db(0.0, 0.0)  # nothing but zeros
    step = float(scale_from_amax(np.array(amax)))
    counts = histogram.counts[1:]
    signal = np.diff(edges**3)[1:] / (3 * edges[1])  # the mean of x^2 over each bin
    noise = np.diff(_squared_error_integral(edges, step))[1:] / edges[1]
    return power_ratio_db(float((counts * signal).sum()), float((counts * noise).sum()))


def _squared_error_integral(x: np.ndarray, step: float) -> np.ndarray:
    """The integral from 0 to x >= 0 of (t - q(t))^2, where q rounds to `step` and clips at 127 steps.

    A whole step holds step^3 / 12; what is r beyond a level adds r^3 / 3, also where r is negative.
    """
    inside = np.minimum(x, 127 * step)
    level = np.rint(inside / step)
    integral: np.ndarray = level * step**3 / 12 + ((inside - level * step) ** 3 + (x - inside) ** 3) / 3
    return integral


def _weight_figures(
    model: onnx.ModelProto, amax: Dict[str, float], placement: Placement
) -> Dict[str, Tuple[float, int]]:
    """Layer -> SQNR in dB of its INT8 weights, and its dead channels."""
    floats, stored = constants(model), constants(insert_qdq(model, amax, placement)[0])
    by_name = {}
    for weight in placement.weights:
        channels = _by_channel(floats[weight.name], weight.axis)
        scale = stored[f"{weight.name}_scale"].reshape(-1, 1)
        dequantized = _by_channel(stored[f"{weight.name}_int8"], weight.axis) * scale
        by_name[weight.name] = sqnr_db(channels, dequantized), int((~channels.any(axis=1)).sum())
    layers = set(placement.layers)
    return {node.name: by_name[node.input[1]] for node in model.graph.node if node.name in layers}


def _by_channel(weight: np.ndarray, axis: Optional[int]) -> np.ndarray:
    """(channels, values) of a weight whose output channels lie on `axis`; (1, values) of one with one scale."""
    return weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def write_reports(path: Path, reports: Sequence[LayerReport]) -> None:
    """Write every report as a row; a figure that a node does not have is left empty."""
    rows = [dataclasses.astuple(report) for report in reports]
    write_csv(path, [field.name for field in dataclasses.fields(LayerReport)], rows)


def require_matplotlib() -> None:
    """Ask for what `plot` needs, before the long work.

    Raises:
        RuntimeNotInstalled: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"--explain needs matplotlib ({error}): pip install '.[plots]' in the folder of uad"
        ) from error


def plot(path: Path, reports: Sequence[LayerReport]) -> None:
    """Draw the damage of the worst layers as horizontal bars, the worst on top, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    judged = [report for report in reports if report.map_sqnr_db is not None]
    shown = judged[:MOST_BARS]
    parts = sorted({report.part for report in judged})
    colour = {part: COLOURS[index % len(COLOURS)] for index, part in enumerate(parts)}
    figure = Figure(figsize=(9.0, 1.6 + INCHES_PER_BAR * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        [_label(report) for report in shown],
        [max(report.map_sqnr_db or 0.0, 0.0) for report in shown],
        color=[colour[report.part] for report in shown],
    )
    axes.bar_label(bars, [f"{report.map_sqnr_db:.1f}" for report in shown], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("SQNR of the anomaly map with only this layer in INT8 (dB)\na short bar is a layer that hurts")
    axes.set_ylabel("convolution")
    some = f"The {len(shown)} worst of {len(judged)}" if len(shown) < len(judged) else f"All {len(judged)}"
    axes.set_title(f"{some} layers, the worst on top", loc="left", fontsize=11)
    handles = [Patch(color=colour[part], label=part) for part in parts]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncol=len(parts), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _label(report: LayerReport) -> str:
    """The node's name without its operator, and whether the file keeps it in float."""
    name = report.layer.strip("/").rpartition("/")[0] or report.layer
    return f"{name} (in float)" if report.precision == "fp32" else name
