"""What an export found, in words."""

from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

from export.quantize import QuantizationReport
from uad.evaluation.thresholds import rates_of_few
from uad.exporting.float_layers import FloatLayers
from uad.exporting.refit import FEWEST_IMAGES, Fit
from uad.exporting.source import Graph

if TYPE_CHECKING:
    from engines.plan_file import PlanInfo


def summary(path: Path, graph: Graph, plan: "Optional[PlanInfo]", repository: Optional[Path]) -> str:
    """A line on the file, and one on each thing that was found.

    Args:
        path: of the file.
        graph: what is in it.
        plan: how TensorRT built it, of a plan.
        repository: where Triton finds it.
    """
    first = f"{path}: {graph.info.precision}, {path.stat().st_size / 1e6:.1f} MB"
    if plan is not None:
        first += _built(path, plan)
    if repository is not None:
        first += f", in {repository}"
    if graph.quantized is not None:
        first += _quantized(graph.quantized, graph.info.float_layers)
    lines = [first]
    if graph.info.precision == "fp16":
        if graph.info.float_layers:
            lines[0] += f"; left in float32, beyond the range of float16: {', '.join(graph.info.float_layers)}"
        if graph.fit is None:
            lines.append("no images given: read-out and thresholds stay those of fp32")
    if graph.choice is not None:
        lines += _chosen(graph.choice)
    if graph.fit is not None:
        lines += _fitted(graph.fit, graph.info.classes, graph.info.precision, graph.info.false_positive_rate)
    return "\n".join(lines)


def _built(path: Path, plan: "PlanInfo") -> str:
    text = f" by TensorRT {plan.tensorrt} for {plan.device}"
    if plan.ranges:
        text += f", {plan.ranges} tensors with a range"
    if plan.dla_core is not None:
        text += f", {plan.dla_layers} layers on DLA {plan.dla_core}"
    return text + (f"; what it warns of is in {path}.json" if plan.warnings else "")


def _quantized(report: QuantizationReport, float_layers: Sequence[str]) -> str:
    text = f"; {report.tensors} activations and {report.weights} weights in int8"
    if report.dead:
        text += f" ({len(report.dead)} with dead channels)"
    impossible = [name for name in report.float_nodes if name not in float_layers]
    return text + (f"; left in float: {', '.join(impossible)}" if impossible else "")


def _chosen(layers: FloatLayers) -> List[str]:
    """Which layers auto left in float, and the agreement reached."""
    left = f"{len(layers.names)} of {layers.of} layers left in float"
    if layers.names:
        left += f": {', '.join(layers.names)}"
    reached = f"Spearman with fp32 {layers.agreement.spearman:.4f} (plain int8: {layers.int8.spearman:.4f})"
    on = f"in the lowest class, on {layers.good} good images not used to calibrate, as they are and with drawn defects"
    lines = [left, f"{reached} {on}"]
    if layers.agreement.auroc_drop is not None:
        plain = f" (plain int8: {100 * layers.int8.auroc_drop:.2f})" if layers.int8.auroc_drop is not None else ""
        drop = f"{100 * layers.agreement.auroc_drop:.2f} points{plain}"
        lines.append(f"mean image AUROC falls by {drop}, on {layers.labelled} labelled images")
    return lines


def _fitted(fit: Fit, classes: Sequence[str], precision: str, false_positive_rate: float) -> List[str]:
    """What the read-out and the thresholds rest on, and which classes keep those of the float model."""
    if not fit.has_statistics:
        first = "the read-out rests on no statistics"
    elif fit.images:
        first = f"read-out fitted again on {sum(fit.images.values())} good images"
        first += _but([name for name in classes if name not in fit.images])
    else:
        why = f"fewer than {FEWEST_IMAGES} images of a class" if fit.is_known else "no class is known"
        first = f"{why}: the read-out keeps its statistics, with deviations of at least the noise of {precision}"
    if fit.thresholds:
        first += f"; thresholds chosen again on {sum(fit.held_out.values())} of {fit.recorded} held-out images"
        first += _but([name for name in classes if name not in fit.thresholds])
    else:
        first += "; thresholds stay those of fp32, for none of the images was held out in training"
    asked = f"{100 * false_positive_rate:g}% was asked for"
    lines = [first, *_above(fit.above, asked)]
    rates = rates_of_few(fit.held_out, false_positive_rate)
    return [*lines, rates] if rates else lines


def _above(shares: Dict[str, float], asked: str) -> List[str]:
    return [
        f"{name}: {100 * share:.0f}% of the good images given lie above its threshold, {asked}"
        for name, share in shares.items()
    ]


def _but(names: Sequence[str]) -> str:
    return f", but not for {', '.join(names)}" if names else ""
