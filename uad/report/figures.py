"""Figures of a report as SVG that stands in the page: its text takes the page's colour, in the dark as in the light."""

import io
import re
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from uad.report.collect import Judged

# Okabe and Ito, 'Color Universal Design', 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")
GOOD, DEFECT = COLOURS[0], COLOURS[1]
TEXT = "#123456"  # becomes currentColor
LEGEND: Any = {"fontsize": "small", "frameon": False, "labelcolor": TEXT}
MAX_FPR = 0.3  # to which AUPRO goes
BARS = 40  # of a histogram
LEFT, RIGHT, BOTTOM, TOP = 0.12, 0.97, 0.2, 0.96  # of the axes of a histogram, parts of the figure
LONG_TAIL = 8  # times the threshold: a histogram with scores beyond it has a logarithmic axis


def roc(judged: Judged) -> Optional[str]:
    """Share of found defects against false alarms, a line for each class; None without defects or good images."""
    from sklearn.metrics import roc_curve

    figure, axes = _figure("false alarms", "defects found")
    for colour, (name, images) in zip(_colours(), by_class(judged).items()):
        truth = np.array([image.sample.is_defect for image in images])
        if truth.any() and not truth.all():
            false, recalled, _ = roc_curve(truth, np.array([image.score for image in images]))
            axes.plot(false, recalled, color=colour, label=_plain(name))
    if not axes.lines:
        return None
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", **LEGEND)
    return _svg(figure)


def pro(judged: Judged) -> Optional[str]:
    """Overlap with the regions of the masks against false pixels, a line for each class; None without masks."""
    curves = {name: curve.overlap_curve() for name, curve in judged.evaluation.curves.items()}
    known = {name: curve for name, curve in curves.items() if curve is not None}
    if not known:
        return None
    figure, axes = _figure("good pixels above the threshold", "overlap with regions")
    for colour, (name, (false, overlap)) in zip(_colours(), known.items()):
        inside = np.unique(np.searchsorted(false, np.linspace(0, MAX_FPR, 200)).clip(0, len(false) - 1))
        axes.plot(false[inside], overlap[inside], color=colour, label=_plain(name))
    axes.set(xlim=(0, MAX_FPR), ylim=(0, 1.01))
    axes.legend(loc="lower right", **LEGEND)
    return _svg(figure)


def scatter(judged: Judged, reference: str) -> str:
    """Each image's score beside that of the reference, a colour for each class."""
    figure, axes = _figure(f"score of {reference}", f"score of {judged.name}")
    for colour, (name, images) in zip(_colours(), by_class(judged).items()):
        scores = [(image.reference_score, image.score) for image in images]
        axes.scatter(*zip(*scores), s=9, alpha=0.6, color=colour, label=_plain(name), linewidths=0)
    ends = [end(axes.get_xlim() + axes.get_ylim()) for end in (min, max)]
    axes.plot(ends, ends, color=TEXT, linewidth=0.6)
    axes.legend(**LEGEND)
    return _svg(figure)


def bars(models: Sequence[Judged]) -> str:
    """Latency and memory of each model."""
    figure, (upper, lower) = _axes(2, 1, (5.0, 1.2 + 0.6 * len(models)))
    names = [f"{model.name} ({model.info.precision})" for model in models]
    timings = [model.timing or {} for model in models]
    upper.barh(names, [timing["latency_ms"]["p50"] for timing in timings], color=COLOURS[0])
    upper.set(xlabel="ms an image, median")
    lower.barh(names, [timing["ram_mb"] or 0 for timing in timings], color=COLOURS[2])
    lower.set(xlabel="RAM, MB")
    for axes in (upper, lower):
        axes.invert_yaxis()
    return _svg(figure)


def histogram(images: Sequence[Any]) -> Tuple[str, Dict[str, Any]]:
    """Scores of good images and of defects of a class; and what a slider needs to know of it.

    Returns:
        The SVG, and `left`, `right` (of the axes, parts of the width), `low`, `high` (scores there), `is_log` (whether
        the axis between them is logarithmic), `good`, `defect` (the scores).
    """
    good = [image.score for image in images if not image.sample.is_defect]
    defect = [image.score for image in images if image.sample.is_defect]
    scores = good + defect + [images[0].threshold]
    is_log = min(scores) > 0 and max(scores) > LONG_TAIL * images[0].threshold
    onto: Any = np.log if is_log else np.positive
    back: Any = np.exp if is_log else np.positive
    low, high = onto(min(scores)), onto(max(scores))
    room = (high - low or 1.0) * 0.02
    edges = back(np.linspace(low - room, high + room, BARS + 1))
    low, high = float(edges[0]), float(edges[-1])
    figure, axes = _axes(1, 1, (5.0, 2.2), layout=None)
    axes.hist([good, defect], edges, stacked=True, color=[GOOD, DEFECT], label=["good", "defects"])
    axes.set(xlim=(low, high), xscale="log" if is_log else "linear", xlabel="score", ylabel="images")
    axes.legend(**LEGEND)
    figure.subplots_adjust(left=LEFT, right=RIGHT, bottom=BOTTOM, top=TOP)
    scale = {"left": LEFT, "right": RIGHT, "low": low, "high": high, "is_log": is_log, "good": good, "defect": defect}
    return _svg(figure), scale


def by_class(judged: Judged) -> Dict[str, List[Any]]:
    classes: Dict[str, List[Any]] = {}
    for image in judged.evaluation.images:
        classes.setdefault(image.sample.class_name, []).append(image)
    return classes


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _figure(x: str, y: str) -> Tuple[Any, Any]:
    figure, axes = _axes(1, 1, (4.6, 3.6))
    axes.set(xlabel=_plain(x), ylabel=_plain(y))
    axes.grid(alpha=0.25)
    return figure, axes


def _axes(rows: int, columns: int, size: Tuple[float, float], layout: Any = "constrained") -> Tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT
    )
    settings["axes.facecolor"] = "none"
    with rc_context(settings):
        figure = Figure(figsize=size, layout=layout)
        figure.patch.set_alpha(0)
        return figure, figure.subplots(rows, columns)


def _svg(figure: Any) -> str:
    """The picture as an element of a page, which scales with it."""
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "uad"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r'\1\2 role="img"', text, count=1)


def with_ids(svg: str, number: int) -> str:
    """The same picture, whose ids no other picture of the page has."""
    return re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>picture{number}-", svg)


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar begins a formula, and a legend leaves out what begins with _."""
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")
