"""The page of a report: one file that needs nothing else."""

import itertools
from typing import Any, Dict, List, Sequence

from uad.report import figures
from uad.report.collect import Judged
from uad.tables import benchmark_table

TEMPLATE = "page.html.j2"


def render(models: Sequence[Judged], facts: Dict[str, str]) -> str:
    """The HTML. Whatever a class, a file or a folder is called, it is text in it.

    Args:
        models: as `uad.report.collect.judge` found them; the last is the one whose mistakes are shown.
        facts: what to say of where it was made, in order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    numbers = itertools.count()

    def inlined(svg: str) -> str:
        return figures.with_ids(svg, next(numbers))

    environment = Environment(loader=PackageLoader("uad.report", ""), autoescape=True, undefined=StrictUndefined)
    shown = models[-1]
    classes = []
    data = []
    for name, images in figures.by_class(shown).items():
        picture, scale = figures.histogram(images)
        classes.append({"name": name, "svg": inlined(picture), "threshold": images[0].threshold, **scale})
        data.append({"threshold": images[0].threshold, **scale})
    return environment.get_template(TEMPLATE).render(
        models=models,
        shown=shown,
        counts=_counts(shown),
        tables=[_accuracy(model) for model in models],
        roc=inlined(figures.roc(shown) or ""),
        pro=inlined(figures.pro(shown) or ""),
        scatters=[inlined(figures.scatter(model, models[0].name)) for model in models[1:]],
        bars=inlined(figures.bars(models)) if all(model.timing for model in models) else None,
        bench=benchmark_table([model.timing for model in models if model.timing]) if models[0].timing else "",
        classes=classes,
        data=data,
        facts=facts,
    )


def _counts(model: Judged) -> Dict[str, int]:
    """How many images of known classes there are, how many are called what they are not, and what class is seen."""
    images = [image for image in model.evaluation.images if image.sample.class_name in model.info.classes]
    others = [
        image for image in images if not image.is_unknown and image.seen_as not in (None, image.sample.class_name)
    ]
    defects = [image.is_called for image in images if image.sample.is_defect]
    good = [image.is_called for image in images if not image.sample.is_defect]
    counts = {"defects": len(defects), "misses": defects.count(False), "good": len(good), "alarms": good.count(True)}
    counts.update(others=len(others), unknown=sum(image.is_unknown for image in model.evaluation.images))
    return counts


def _accuracy(model: Judged) -> List[Dict[str, Any]]:
    """A row for each class, the mean, and rows of classes that the model does not know."""
    report = model.evaluation.report
    rows = [{"name": name, **figures_} for name, figures_ in report["classes"].items()]
    rows.append({"name": "mean", "n_good": "", "n_bad": "", **{k: v for k, v in report.items() if "classes" not in k}})
    return rows + [{"name": f"{name}, not known", **figures_} for name, figures_ in report["unknown_classes"].items()]
