"""Ways to train that were tried and are no part of `uad fit`: inside one of these contexts, it trains so.

`restoring.py` measures them. Each is as the papers describe it, as far as a few lines can tell.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor, nn

import uad.models.reverse_distillation as reverse_distillation
from uad.data.batches import Batch
from uad.models.head import distance, with_hard_gradient
from uad.models.reverse_distillation import ReverseDistillation
from uad.models.stfpm import STFPM

FROZEN_FROM = 0.8  # part of the training from which statistics are frozen
EASY = 0.1  # of the gradient, which the easier part of the positions gives
HARD = 0.3  # part of the positions that gives all of it

Hard = Callable[[Tensor, Tensor, float], Tensor]


@contextlib.contextmanager
def mined_student() -> Iterator[None]:
    """STFPM with the hard mining of Reverse Distillation."""
    plain = STFPM.distillation

    def distillation(self: STFPM, targets: "list[Tensor]", student: "list[Tensor]") -> Tensor:
        hard = [with_hard_gradient(target, s, self.part_done) for target, s in zip(targets, student, strict=True)]
        return plain(self, targets, hard)

    with patch.object(STFPM, "distillation", distillation):
        yield


@contextlib.contextmanager
def averaged_weights() -> Iterator[None]:
    """What is validated and kept is the exponential moving average of the weights, .995 a step."""
    with _with_callback(lambda: EMAWeightAveraging(decay=0.995)):
        yield


@contextlib.contextmanager
def frozen_statistics() -> Iterator[None]:
    """BatchNorm normalises by its running statistics in the last fifth of the steps, and leaves them."""
    with _with_callback(_Frozen):
        yield


class _Frozen(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.part_done >= FROZEN_FROM:  # type: ignore[operator]
            for part in pl_module.network.student.modules():  # type: ignore[union-attr]
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()


@contextlib.contextmanager
def mined_by_image() -> Iterator[None]:
    """Hard mining whose mean and deviation are of each image, not of the batch."""

    def hard(target: Tensor, student: Tensor, part_done: float) -> Tensor:
        with torch.no_grad():
            apart = distance(target, student)
            above = -3.0 + 4.0 * min(part_done / 0.1, 1.0)
            sides = (1, 2, 3)
            is_hard = apart >= apart.mean(sides, keepdim=True) + above * apart.std(sides, keepdim=True)
        return torch.where(is_hard, student, student.detach())

    with _mined(hard):
        yield


@contextlib.contextmanager
def loose() -> Iterator[None]:
    """The loose loss of Dinomaly: the easier positions of a batch give a tenth of their gradient (Guo et al., 2025)."""

    def hard(target: Tensor, student: Tensor, part_done: float) -> Tensor:
        with torch.no_grad():
            apart = distance(target, student).flatten()
            kept = 1.0 - (1.0 - HARD) * min(part_done / 0.1, 1.0)
            limit = apart.kthvalue(max(1, round((1.0 - kept) * len(apart)))).values
            part = torch.where(distance(target, student) >= limit, 1.0, EASY)
        return student * part + (student * (1.0 - part)).detach()

    with _mined(hard):
        yield


@contextlib.contextmanager
def drawn_defects() -> Iterator[None]:
    """The decoder is given the teacher's features of images with drawn defects, and restores those of the good ones."""
    plain = ReverseDistillation.loss

    def loss(self: ReverseDistillation, batch: Batch) -> Tensor:
        if batch.drawn is None:
            return plain(self, batch)
        with torch.no_grad():
            given = self.network.teacher(self.network.normalize(batch.drawn))[: self.network.head.depth]
        good = [level.float() for level in batch.targets or self.targets(batch.image)]
        student = self.network.student
        with patch.object(student, "forward", lambda *_: type(student).forward(student, *given)):
            return plain(self, Batch(batch.image, batch.label, good))

    with patch.object(ReverseDistillation, "loss", loss), patch.object(ReverseDistillation, "restores", True):
        yield


@contextlib.contextmanager
def embedded_in(channels: int) -> Iterator[None]:
    """The embedding of MobileNetV2's decoder has so many channels in place of 160."""
    mirror = reverse_distillation.MIRRORS["mobilenet_v2"]._replace(embedding=channels)
    with patch.dict(reverse_distillation.MIRRORS, {"mobilenet_v2": mirror}):
        yield


@contextlib.contextmanager
def _mined(hard: Hard) -> Iterator[None]:
    with patch.object(reverse_distillation, "with_hard_gradient", hard):
        yield


@contextlib.contextmanager
def _with_callback(make: "Callable[[], Callback]") -> Iterator[None]:
    """Training has one more callback, the first."""
    fit = Trainer.fit

    def with_one_more(trainer: Trainer, *given: Any, **named: Any) -> None:
        trainer.callbacks.insert(0, make())  # type: ignore[attr-defined]
        fit(trainer, *given, **named)

    with patch.object(Trainer, "fit", with_one_more):
        yield
