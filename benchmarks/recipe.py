"""What was tried for the recipe of STFPM, on held-out good images with drawn defects. No test image is seen.

    python benchmarks/recipe.py --weights mobilenet_v2-imagenet.pth --data IMAGES [IMAGES ...] --work DIR \
        --out benchmarks/results

One model is trained on the classes of all the roots, once for each variant, from the same seed. The criterion is the
image AUROC, mean over the classes, of held-out good images against copies of them with faint defects
(`uad.data.defects.with_faint_defects`); that of plain ones stands beside it. Variants of the read-out are fitted to the
first variant of the training. What is in --work is not made again.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import commit, footer, machine
from torch import Tensor

import export.readout
import uad.models.readout
from engines.files import write_json, write_text
from uad.data.batches import BATCH, Batch, GoodImages
from uad.data.defects import with_defects, with_defects_to_restore, with_faint_defects
from uad.data.folder import find_classes
from uad.data.module import AnomalyData
from uad.evaluation.metrics import image_auroc
from uad.models.backbones import backbone_of
from uad.models.base import cycle_of
from uad.models.head import pooled
from uad.models.readout import RegionalReadOut, Seen
from uad.models.stfpm import STFPM
from uad.tables import markdown

BACKBONE = "mobilenet_v2"
FITTED = 64  # images of a class that the read-out is fitted to


@dataclasses.dataclass(frozen=True)
class Training:
    """How a student is trained; every variant sees as many images."""

    batch: int = 8
    lr: float = 3e-3
    noise: float = 0.0  # standard deviation of Gaussian noise on the student's normalised pixels
    dropout: float = 0.0  # part of the student's normalised pixels that are zero, all three colours of a pixel
    brightness: float = 0.0  # an image is up to this part darker or brighter, for teacher and student
    drawn: bool = False  # the student's images have a drawn defect to restore, those of the teacher have none
    hardest: float = 0.0  # the mean error of this part of an image's positions, the worst, is added to that of all
    finest: float = 1.0  # weight of the finest level in the loss
    size: int = 256  # side of the images, pixels


TRAININGS = {
    "as it was": Training(batch=16),
    "batch 8": Training(),
    "batch 8, learning rate 0.006": Training(lr=6e-3),
    "batch 4": Training(batch=4),
    "batch 8, hardest 10% of positions again": Training(hardest=0.1),
    "batch 8, noise 0.1 on the student's pixels": Training(noise=0.1),
    "batch 8, 5% of the student's pixels dropped": Training(dropout=0.05),
    "batch 8, brightness up to 10% other": Training(brightness=0.1),
    "batch 8, finest level counts a quarter": Training(finest=0.25),
    "batch 8, 320 pixels": Training(size=320),
    "batch 8, learning rate 0.0015": Training(lr=1.5e-3),
    "batch 8, the student restores drawn defects": Training(drawn=True),
}
# Share of the region in its statistics, smoothing of the map, part of the pixels that make a score.
READOUTS = {
    "as it was: regional, smoothing 1, top 0.3%": (1.0, 1.0, 0.003),
    "global": (0.0, 1.0, 0.003),
    "half regional": (0.5, 1.0, 0.003),
    "three quarters regional": (0.75, 1.0, 0.003),
    "three quarters regional, smoothing 1.5": (0.75, 1.5, 0.003),
    "three quarters regional, smoothing 2": (0.75, 2.0, 0.003),
    "three quarters regional, top 0.1%": (0.75, 1.0, 0.001),
    "three quarters regional, top 1%": (0.75, 1.0, 0.01),
    "three quarters regional, top 3%": (0.75, 1.0, 0.03),
}


def main() -> None:
    """Train and judge each variant; JSON and the page are written after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+")
    parser.add_argument("--images", type=int, default=2400, help="that each training sees")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    good = functools.lru_cache(maxsize=1)(functools.partial(Good, options.data, options.weights))
    classes = [name for root in options.data for name in find_classes(root)]
    result: dict[str, Any] = {"machine": machine(), "images": options.images, "trainings": {}, "readouts": {}}
    for index, (name, training) in enumerate(TRAININGS.items()):
        file = options.work / f"{index}.pt"
        if not file.exists():
            torch.save(good(training.size).judged_after(training, options.images), file)
        seen = torch.load(file, weights_only=True)
        told = {key: seen.get(key) for key in ("seconds", "loss", "commit")}
        result["trainings"][name] = {**told, **aurocs(seen, classes)}
        if index == 0:
            for readout, settings in READOUTS.items():
                result["readouts"][readout] = aurocs(seen, classes, *settings)
        write_json(options.out / "recipe.json", result)
        write_text(options.out / "recipe.md", page(result))
        print(name, result["trainings"][name], flush=True)


class Good:
    """Good images of all the roots."""

    def __init__(self, roots: "list[Path]", weights: str, size: int) -> None:
        self.classes: list[str] = []
        training, held_out = [], []
        for root in roots:
            data = AnomalyData(root, image_size=size)
            data.setup("fit")
            for parts, each in ((training, data.some_for_training(10**9, "")), (held_out, data.held_out_good(""))):
                parts.append(Batch(each.image, each.label + len(self.classes)))
            self.classes += data.class_names
        self.training, self.held_out = (
            GoodImages(torch.cat([p.image for p in parts]), torch.cat([p.label for p in parts]), self.classes, title)
            for parts, title in ((training, "Preparing"), (held_out, "Judging"))
        )
        self.weights = weights
        self.fitted = torch.cat([(self.training.label == k).nonzero()[:FITTED, 0] for k in range(len(self.classes))])
        self.start = self.model()
        self.start.prepare(self._some(self.fitted))

    def model(self) -> STFPM:
        torch.manual_seed(0)
        return STFPM(BACKBONE, self.weights)

    def _some(self, index: Tensor) -> GoodImages:
        return GoodImages(self.training.image[index], self.training.label[index], self.classes, "Preparing")

    def judged_after(self, training: Training, images: int) -> "dict[str, Any]":
        """Train, and look at good images with and without defects: distances, pooled features and classes."""
        model = self.model()
        model.network.head.load_state_dict(self.start.network.head.state_dict())
        steps, student, began = images // training.batch, model.network.student, time.perf_counter()
        optimizer, cycle = cycle_of(student.parameters(), training.lr, model.weight_decay, steps)
        draw, count = np.random.default_rng(0), len(self.training.image)
        order = np.concatenate([draw.permutation(count) for _ in range(0, images, count)])[:images]
        model.train()
        for index in order.reshape(steps, training.batch):
            image = _as_bright(self.training.image[index], training.brightness)
            given = torch.from_numpy(with_defects_to_restore(image.numpy(), index[0])) if training.drawn else image
            learned = student(_disturbed(model.network.normalize(given), training))
            errors = [(s - t).square().mean(dim=1) for s, t in zip(learned, model.targets(image), strict=True)]
            losses = torch.stack([_mean(each, training.hardest) for each in errors])
            loss = losses.sum() - (1 - training.finest) * losses[0]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cycle.step()
        seconds = round(time.perf_counter() - began)
        seen: dict[str, Any] = {"seconds": seconds, "loss": float(loss.detach()), "commit": commit()}
        model.eval()
        held_out, some = self.held_out.image.numpy(), self._some(self.fitted)
        seen["fitted"] = _seen(model, some.image, some.label)
        for name, changed in (
            ("good", held_out),
            ("plain", self._with(with_defects)),
            ("faint", self._with(with_faint_defects)),
        ):
            seen[name] = _seen(model, torch.from_numpy(changed), self.held_out.label)
        return seen

    def _with(self, defects: Any) -> np.ndarray:
        """The held-out images with defects whose patches come from the same class."""
        changed = self.held_out.image.numpy().copy()
        for label in range(len(self.classes)):
            own = self.held_out.label.numpy() == label
            changed[own] = defects(changed[own], seed=label)
        return changed


def _as_bright(image: Tensor, most: float) -> Tensor:
    """(N, H, W, 3) uint8, each image brighter or darker by up to so large a part."""
    factor = 1 + most * (2 * torch.rand(len(image), 1, 1, 1) - 1)
    return (image * factor).clamp(0, 255).to(torch.uint8) if most else image


def _disturbed(pixels: Tensor, training: Training) -> Tensor:
    """What the student is given of normalised pixels (N, 3, H, W)."""
    if training.noise:
        pixels = pixels + training.noise * torch.randn_like(pixels)
    if training.dropout:
        pixels = pixels * (torch.rand_like(pixels[:, :1]) >= training.dropout)
    return pixels


def _mean(error: Tensor, hardest: float) -> Tensor:
    """The mean of (N, h, w), and that of the hardest positions of each image."""
    if not hardest:
        return error.mean()
    flat = error.flatten(1)
    return flat.mean() + flat.topk(max(1, int(hardest * flat.shape[1])), dim=1).values.mean()


@torch.inference_mode()
def _seen(model: STFPM, image: Tensor, label: Tensor) -> "dict[str, Any]":
    network, parts = model.network, []
    for batch in image.split(BATCH):
        teacher, student = network.features(batch)
        parts.append((*network.head.distances(teacher, student), pooled(teacher[-1])))
    *maps, features = (torch.cat(each) for each in zip(*parts, strict=True))
    return {"maps": maps, "pooled": features, "label": label}


def aurocs(
    seen: "dict[str, Any]",
    classes: "list[str]",
    share: float = export.readout.REGIONAL_SHARE,
    smoothing: float = uad.models.readout.SMOOTHING,
    top: float = uad.models.readout.TOP_FRACTION,
) -> "dict[str, Any]":
    """Of plain and of faint defects, mean over the classes, and the latter class by class."""
    export.readout.REGIONAL_SHARE, uad.models.readout.SMOOTHING, uad.models.readout.TOP_FRACTION = share, smoothing, top
    fitted, (good, plain, faint) = seen["fitted"], (seen[name] for name in ("good", "plain", "faint"))
    source = backbone_of(BACKBONE)
    readout = RegionalReadOut(source.strides, fitted["pooled"].shape[1], source.offsets)
    readout.fit([Seen(**fitted)], len(classes))
    found: dict[str, list[float]] = {}
    for name, bad in (("plain", plain), ("faint", faint)):
        found[name] = []
        for label in range(len(classes)):
            own = good["label"] == label
            scores = [readout([level[own] for level in each["maps"]], each["pooled"][own])[0] for each in (good, bad)]
            is_defect = np.repeat([False, True], int(own.sum()))
            found[name].append(image_auroc(torch.cat(scores).numpy(), is_defect))  # type: ignore[arg-type]
    return {
        **{name: float(np.mean(values)) for name, values in found.items()},
        "classes": dict(zip(classes, found["faint"], strict=True)),
    }


def page(result: "dict[str, Any]") -> str:
    """Two tables: the trainings, and the read-outs on the first of them."""
    parts = [
        f"## Held-out good images with drawn defects, image AUROC; each training sees {result['images']:,} images\n"
    ]
    for title, key in (("training", "trainings"), ("read-out", "readouts")):
        rows = result[key]
        classes = list(next(iter(rows.values()))["classes"]) if rows else []
        table = [
            [name, *(f"{row[each]:.3f}" for each in ("plain", "faint")), *(f"{v:.3f}" for v in row["classes"].values())]
            for name, row in rows.items()
        ]
        parts.append(markdown([title, "plain", "faint", *(f"faint, {name}" for name in classes)], table) + "\n")
    commits = [row.get("commit") or result["machine"]["commit"] for row in result["trainings"].values()]
    return "\n".join([*parts, footer(result["machine"], commits)])


if __name__ == "__main__":
    main()
