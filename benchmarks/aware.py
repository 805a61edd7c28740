"""What quantization-aware training can win: one model trained under fake quantization in several ways.

    python benchmarks/aware.py --ckpt RUN/model.ckpt --data.root IMAGES --variants map --out FILE.json

All start from the same post-training ranges and biases. Judged are held-out good images and copies of them with faint
and with plain drawn defects, by the fake-quantized network, whose read-out is fitted again. The error of a map is that
of error.py; it stands beside the error before training. No test image is seen. Rows that the file holds stay.
"""

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from error import compared, judged, of_class, prepared, rooted
from machine import commit, footer, machine
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from engines.files import write_json, write_text
from export.pixels import RANGE
from uad.data.batches import Batch, GoodImages
from uad.data.defects import with_defects, with_faint_defects
from uad.data.module import AnomalyData
from uad.tables import markdown
from uad.training.fake_quant import TensorQuantizer
from uad.training.qat import QuantizationAware

RANGES = 100.0  # how many times faster learned ranges change than weights
OF_READOUT = 64  # images of a class


class Way(NamedTuple):
    """How it trains."""

    steps: int = 100
    lr: float = 1e-4
    losses: "tuple[str, ...]" = ()  # each counts beside its value before training; none: that of `uad fit`
    teacher: bool = True  # trained, too
    apart: bool = False  # distances teach what was trained in float alone
    drawn: bool = False  # every second image has a drawn defect
    learned: bool = False  # ranges are trained, too, as in LSQ (Esser et al., ICLR 2020)


VARIANTS = {
    "no training": Way(steps=0),
    "uad fit": Way(),
    "uad fit, 300 steps": Way(steps=300),
    "uad fit, lr 3e-4": Way(lr=3e-4),
    "uad fit, learned ranges": Way(learned=True),
    "uad fit, drawn defects": Way(drawn=True),
    "map": Way(losses=("map",), teacher=False),
    "map, drawn defects": Way(losses=("map",), teacher=False, drawn=True),
    "map, learned ranges": Way(losses=("map",), teacher=False, learned=True),
    "map, teacher too": Way(losses=("map",)),
    "distances": Way(losses=("distances",), teacher=False),
    "features, teacher too": Way(losses=("features",)),
    "features, teacher too, lr 3e-4": Way(losses=("features",), lr=3e-4),
    "distances without the teacher, features": Way(losses=("distances", "features"), apart=True),
    "distances and features": Way(losses=("distances", "features")),
}


def main() -> None:
    """Train in each way and compare; write JSON and the page after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--data.root", dest="root", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names of a row of VARIANTS")
    parser.add_argument("--images", type=int, default=24, help="held-out images of each class, at most")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    start, data = prepared(options.ckpt, options.root, corrected=True)
    good = data.held_out_good("").first_of_each_class(options.images)
    drawn = [
        draw(images, seed=label) for draw in (with_faint_defects, with_defects) for label, images in of_class(good)
    ]
    images = torch.cat([good.image, *map(torch.from_numpy, drawn)])
    labels = torch.cat([good.label, *2 * [torch.sort(good.label).values]])
    expected = judged(start.reference, images)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for variant in options.variants:
        model = copy.deepcopy(start)
        begun = time.perf_counter()
        trained(model, VARIANTS[variant], data)
        minutes = (time.perf_counter() - begun) / 60
        fitted(model, data, good)
        row = compared(variant, judged(model.network, images), expected, labels, data.class_names)
        row.update(minutes=minutes, steps=VARIANTS[variant].steps, commit=commit())
        rows = [each for each in rows if each["part"] != variant] + [row]
        result = {"machine": machine(), "model": start.start.model, "drawn": "faint and with plain", "rows": rows}
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))
        print(row, flush=True)


def fitted(model: QuantizationAware, data: AnomalyData, good: GoodImages) -> None:
    """Fit the read-out to the quantized network."""
    some = data.some_for_training(model.images_of_each_class, "Fitting the read-out").first_of_each_class(OF_READOUT)
    model.eval().fit_readout(some, good)


def trained(model: QuantizationAware, way: Way, data: AnomalyData) -> None:
    """Train in place."""
    if not way.steps:
        return
    model.network.teacher.requires_grad_(way.teacher)
    weights = [each for each in model.network.parameters() if each.requires_grad]
    groups = [{"params": weights}, {"params": learn_ranges(model.network) if way.learned else []}]
    optimizer = torch.optim.AdamW(groups, way.lr, weight_decay=0.0)
    cycle = OneCycleLR(optimizer, [way.lr, RANGES * way.lr], total_steps=way.steps, pct_start=0.15)
    first: dict[str, float] = {}
    for step, batch in enumerate(itertools.islice(batches(data, way.drawn), way.steps)):
        image = batch.image if batch.drawn is None else torch.cat([batch.image[::2], batch.drawn[1::2]])
        optimizer.zero_grad()
        parts = errors(model, way, Batch(image, batch.label))
        for name, part in parts.items():
            first.setdefault(name, float(part.detach()))
        shares = {name: part / first[name] for name, part in parts.items()}
        if way.apart:
            students = [parameter for name in model.trained for parameter in getattr(model.network, name).parameters()]
            of_distances = torch.autograd.grad(shares.pop("distances"), students, retain_graph=True)
            for parameter, gradient in zip(students, of_distances, strict=True):
                parameter.grad = gradient
        torch.stack(list(shares.values())).sum().backward()
        optimizer.step()
        cycle.step()
        if step % 20 == 0:
            print(step, {name: float(part.detach()) / first[name] for name, part in parts.items()}, flush=True)


def errors(model: QuantizationAware, way: Way, batch: Batch) -> "dict[str, Tensor]":
    """What is to become less, by name."""
    if not way.losses:
        return {"uad fit": model.loss(batch)}
    network, reference = model.network, model.reference
    with torch.no_grad():
        wanted = reference.features(batch.image)
        expected = reference.head(*wanted)[1]
    found = network.features(batch.image)
    if way.losses == ("map",):
        return {"map": (rooted(network.head(*found)[1]) - rooted(expected)).square().mean()}
    levels = [pair for side in zip(found, wanted, strict=True) for pair in zip(*side, strict=True)]
    distances = zip(network.head.distances(*found), reference.head.distances(*wanted), strict=True)
    pairs = {"features": levels, "distances": list(distances)}
    return {name: torch.stack([(f - w).square().mean() / w.var() for f, w in pairs[name]]).sum() for name in way.losses}


def batches(data: AnomalyData, drawn: bool) -> "Iterator[Batch]":
    """Of training images, without an end."""
    data.draws = drawn
    while True:
        yield from data.train_dataloader()


class LearnedQuantizer(nn.Module):
    """Fake quantization whose range is trained, too: LSQ (Esser et al., ICLR 2020)."""

    def __init__(self, amax: float) -> None:
        super().__init__()
        self.log_amax = nn.Parameter(torch.tensor(math.log(amax)))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        scale = self.log_amax.exp() / RANGE
        part = (x.numel() * RANGE) ** -0.5
        scale = scale * part + (scale * (1.0 - part)).detach()
        steps = (x / scale).clamp(-RANGE, RANGE)
        return (steps + (steps.round() - steps).detach()) * scale


def learn_ranges(network: nn.Module) -> "list[nn.Parameter]":
    """Put a learned quantizer where one of an activation is, but for the pixels'."""
    learned: dict[int, LearnedQuantizer] = {}
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, TensorQuantizer) and name != "_weight_quantizer" and float(child.amax) != RANGE:
                setattr(module, name, learned.setdefault(id(child), LearnedQuantizer(float(child.amax))))
    return [each.log_amax for each in learned.values()]


def page(result: "dict[str, Any]") -> str:
    """A row for each way."""
    rows = result["rows"]
    before = next(row for row in rows if row["part"] == "no training")
    classes = list(before["spearman"])
    table = []
    for row in rows:
        left = [row["error"][name] / before["error"][name] for name in classes]
        correlations = [row["spearman"][name] for name in classes]
        figures = [np.mean(left), np.mean(correlations), np.min(correlations), *correlations]
        table.append([row["part"], str(row["steps"]), f"{row['minutes']:.1f}", *(f"{value:.4f}" for value in figures)])
    header = ["trained", "steps", "minutes", "error left", "Spearman, mean", "lowest", *classes]
    lines = [
        f"# What quantization-aware training can win: {result['model']}",
        "",
        f"Judged on held-out good images and copies of them with {result['drawn']} drawn defects, under fake",
        "quantization, beside the float network. Error left: of the maps, beside no training; mean of the classes.",
        "Spearman: rank correlation of scores. `uad fit`: the teacher learns its own float features, the student its",
        "distances. Map: the student learns the anomaly map. One seed; minutes beside other busy processes.",
        "",
        markdown(header, table),
        "",
    ]
    return "\n".join([*lines, footer(result["machine"], [row["commit"] for row in rows])])


if __name__ == "__main__":
    main()
