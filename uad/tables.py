"""Reports as tables that a person reads in a terminal or a Markdown page."""

import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from engines.errors import printable

if TYPE_CHECKING:
    from export.explain import LayerReport
    from uad.evaluation.strictness import Cost, Rate


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first to the right. Whatever a cell holds stays in it."""
    table = [list(header), *[[_cell(text) for text in row] for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))
        ]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if not i else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])


def _cell(text: str) -> str:
    """Text that neither ends its cell, nor is HTML, nor moves the cursor of a terminal."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def accuracy_table(report: Dict[str, Any]) -> str:
    """A row for each class, one for the worst figures among them, and one for the mean, from a report of `uad test`.

    Classes that the model does not know come last, and count in neither.

    Beside a reference there are two columns of flipped decisions: had the model kept the reference's thresholds, and at
    its own.
    """
    agreement = "agreement" in report
    header = ["class", "good", "defect", "image AUROC", "pixel AUROC", "AUPRO", "best F1"]
    header += ["Spearman", "flipped before", "flipped"] if agreement else []
    classes = report["classes"]
    rows = [
        [name, str(figures["n_good"]), str(figures["n_bad"]), *_accuracy(figures)] for name, figures in classes.items()
    ]
    if len(classes) > 1:
        rows.append(["worst class", "", "", *_accuracy(_worst(list(classes.values())))])
    rows.append(["mean", "", "", *_accuracy(report)])
    for name, figures in report["unknown_classes"].items():
        rows.append([f"{name}, not known", str(figures["n_good"]), str(figures["n_bad"]), *_accuracy(figures)])
    return markdown(header, rows)


def class_lines(report: Dict[str, Any]) -> List[str]:
    """How often the class was told wrongly, and which parts are of none, from a report of `uad test`."""
    lines = []
    classes = report["classes"].values()
    images = sum(figures["n_good"] + figures["n_bad"] for figures in classes)
    if classes and all(figures["n_of_other_class"] is not None for figures in classes):
        others = sum(figures["n_of_other_class"] for figures in classes)
        lines.append(f"seen as another class than their folder's: {others} of {images} images")
    for name, figures in (("known classes", _summed(list(classes))), *report["unknown_classes"].items()):
        if figures.get("n_good_unknown") is not None:
            of_good = f"{figures['n_good_unknown']} of {figures['n_good']} good images"
            of_bad = f"{figures['n_bad_unknown']} of {figures['n_bad']} defects"
            lines.append(f"of {name}, called unknown: {of_good}, {of_bad}")
    return lines


def _summed(classes: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """Counts of images over all classes that tell them."""
    names = ("n_good", "n_bad", "n_good_unknown", "n_bad_unknown")
    told = [each for each in classes if each["n_good_unknown"] is not None]
    return {name: sum(each[name] for each in told) for name in names} if told else {}


def _accuracy(figures: Dict[str, Any]) -> List[str]:
    row = [_fraction(figures[key]) for key in ("image_auroc", "pixel_auroc", "aupro", "image_f1")]
    if "agreement" in figures:
        agrees = figures["agreement"]
        row += [_fraction(agrees["spearman"], 4), _fraction(agrees["flipped_before"]), _fraction(agrees["flipped"])]
    return row


def _worst(classes: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """The worst of each figure over the classes that have it."""

    def worst(rows: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
        worst: Dict[str, Any] = {}
        for key in rows[0]:
            if key != "agreement":
                values = [row[key] for row in rows if row[key] is not None]
                choose = max if key.startswith("flipped") else min
                worst[key] = choose(values) if values else None
        return worst

    figures = worst(classes)
    if "agreement" in classes[0]:
        figures["agreement"] = worst([each["agreement"] for each in classes])
    return figures


def benchmark_table(reports: Sequence[Dict[str, Any]]) -> str:
    """A row for each model, from the reports of `uad bench`; with the figures of a GPU where a model ran on one."""
    header = ["model", "runtime", "precision", "p50 ms", "p90 ms", "p99 ms", "images/s", "of first"]
    header += ["RAM MB", "peak MB", "file MB", "load s"]
    on_gpu = any(report["device_mem_mb"] is not None for report in reports)
    parts = next((list(report["parts_ms"]) for report in reports if on_gpu and report["parts_ms"]), [])
    header += [*(f"{name.replace('_', ' ')} ms" for name in parts), "GPU MB"] if on_gpu else []
    shared = any(report.get("unified_mb") is not None for report in reports)
    header += ["shared MB"] if shared else []
    judged = any(report.get("photograph_ms") for report in reports)
    header += ["photograph p50 ms", "photograph p99 ms"] if judged else []
    rows = []
    for report in reports:
        latency = report["latency_ms"]
        row = [report["model"], report["runtime"], report["precision"]]
        row += [f"{latency[key]:.2f}" for key in ("p50", "p90", "p99")]
        row += [f"{report['images_per_second']:.1f}", f"{report['ratio_to_first']:.3f}"]
        row += [_fraction(report[key], 0) for key in ("ram_mb", "ram_peak_mb")]
        row += [f"{report['file_mb']:.1f}", f"{report['load_s']:.2f}"]
        if on_gpu:
            of_parts = report["parts_ms"] or {}
            row += [_fraction(of_parts[name]["p50"] if name in of_parts else None) for name in parts]
            row.append(_fraction(report["device_mem_mb"], 0))
        row += [_fraction(report["unified_mb"], 0)] if shared else []
        row += [f"{report['photograph_ms'][key]:.2f}" for key in ("p50", "p99")] if judged else []
        rows.append(row)
    table = markdown(header, rows)
    if reports[0].get("together"):
        rate = sum(report["images_per_second"] for report in reports)
        table += f"\n\ntogether, at the same time: {rate:.1f} images/s"
    return table


def jetson_lines(seen: Dict[str, Any]) -> str:
    """What a Jetson said of itself (`engines.jetson.Watch.report`), and each doubt as a line of its own."""
    clocks = [f"{name} at {_span(seen[key])} MHz" for name, key in (("GPU", "gpu_mhz_range"), ("CPU", "cpu_mhz_range"))]
    module = [seen["module"] or "Jetson", seen["release"] or "release unknown"]
    lines = [", ".join([*module, f"power mode {seen['power_mode'] or 'unknown'}", *clocks])]
    watts = [f"{rail} {mw['mean'] / 1e3:.1f} W (most {mw['max'] / 1e3:.1f})" for rail, mw in seen["power_mw"].items()]
    heat = [f"{zone} {degrees['max']:.0f} °C" for zone, degrees in seen["celsius"].items()]
    lines += [f"{name}: {', '.join(values)}" for name, values in (("power", watts), ("hottest", heat)) if values]
    return "\n".join([*lines, *(f"doubt: {doubt}" for doubt in seen["doubts"])])


def _span(values: Optional[Sequence[float]]) -> str:
    return "an unknown number of" if not values else " to ".join(f"{value:.0f}" for value in dict.fromkeys(values))


def layer_table(reports: Sequence["LayerReport"], judged_on: str) -> str:
    """What INT8 does to each layer, a row for each reader of a quantized tensor; see `export.explain`.

    Args:
        reports: in the order of the rows.
        judged_on: on which images the damage was measured, in words.
    """
    header = ["layer", "precision", "map SQNR dB", "weight SQNR dB", "dead channels", "reads", "amax", "largest"]
    header += ["clipped %", "activation SQNR dB"]
    rows = []
    for report in reports:
        row = [report.layer, report.precision, _fraction(report.map_sqnr_db, 1), _fraction(report.weight_sqnr_db, 1)]
        row += [_whole(report.dead_channels), report.tensor, f"{report.amax:.4g}", f"{report.largest:.4g}"]
        rows.append([*row, f"{report.clipped_percent:.4f}", f"{report.activation_sqnr_db:.1f}"])
    text = [
        "# What INT8 does to each layer",
        "",
        "The worst layer is first. Map SQNR: signal-to-quantization-noise ratio of the anomaly map with only this",
        f"layer in INT8; the lower, the greater the damage. On {judged_on}; mean over the classes.",
        "",
        "Amax is the end of the INT8 range of the tensor that the layer reads, largest its largest magnitude over the",
        "calibration images. A residual Add and a MaxPool have no weights: they stand last.",
        "",
    ]
    return "\n".join([*text, markdown(header, rows)])


def cost_table(costs: "Sequence[Cost]") -> str:
    """A row for each class: its threshold before and now, and what that costs; see `uad.evaluation.strictness`."""
    header = ["class", "threshold before", "now", "false alarms", "95%", "defects found", "95%"]
    rows = []
    for cost in costs:
        rates = [text for rate in (cost.false_alarms, cost.found) for text in _rate_cells(rate)]
        rows.append([cost.class_name, f"{cost.before:.4g}", f"{cost.threshold:.4g}", *rates])
    return markdown(header, rows)


def limit_table(costs: "Sequence[Cost]") -> str:
    """A row for each class: its limit before and now, and which of the images that are seen as it are unknown."""
    header = ["seen as", "limit before", "now", "good, unknown", "95%", "defects, unknown", "95%"]
    rows = []
    for cost in costs:
        rates = [text for rate in (cost.false_alarms, cost.found) for text in _rate_cells(rate)]
        before = "" if math.isnan(cost.before) else f"{cost.before:.4g}"  # all classes have none in common
        rows.append([cost.class_name, before, f"{cost.threshold:.4g}", *rates])
    return markdown(header, rows)


def _rate_cells(rate: "Optional[Rate]") -> List[str]:
    if rate is None:
        return ["-", "-"]
    return [f"{rate.hits} of {rate.of}", f"{100 * rate.low:.1f} to {100 * rate.high:.1f}%"]


def _fraction(value: Optional[float], digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _whole(value: Optional[int]) -> str:
    return "" if value is None else str(value)
