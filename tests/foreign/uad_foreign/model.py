"""Edges: a student of one convolution learns what a fixed one sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from uad.data.batches import Batch, GoodImages
from uad.models.base import Model
from uad.models.layers import Normalize

STRIDE = 4


class Head(nn.Module):
    """The squared distance, in deviations that it has on good images; the score is the greatest pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.ones(()))

    def distance(self, teacher: Tensor, student: Tensor) -> Tensor:
        return (teacher - student).square().mean(dim=1)

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        anomaly_map = self.distance(teacher, student) / self.usual
        return anomaly_map.amax(dim=(1, 2)), anomaly_map


class Network(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normalize = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.teacher = nn.Sequential(nn.Conv2d(3, channels, 8, STRIDE, 2)).requires_grad_(False)
        self.student = nn.Sequential(nn.Conv2d(3, channels, 4, STRIDE), nn.ReLU(), nn.Conv2d(channels, channels, 1))
        self.head = Head()

    def forward(self, image: Tensor) -> Any:
        pixels = self.normalize(image)
        return self.head(self.teacher(pixels), self.student(pixels))


class Edges(Model):
    """A student of one convolution.

    Args:
        channels: of each convolution.
        weights: of the teacher: none (random).
        lr: learning rate.
    """

    steps = 20
    image_multiple = STRIDE

    def __init__(self, channels: int = 8, weights: str = "none", lr: float = 1e-2) -> None:
        super().__init__()
        self.config = {"channels": channels, "weights": weights, "lr": lr}
        self.network = Network(channels)
        self.lr = lr
        self.description = {"model": "edges", "backbone": "convolution", "map_stride": STRIDE}
        self.description.update(mean=[0.5] * 3, std=[0.25] * 3)

    def loss(self, batch: Batch) -> Tensor:
        pixels = self.network.normalize(batch.image)
        return self.network.head.distance(self.network.teacher(pixels), self.network.student(pixels)).mean()

    def configure_optimizers(self) -> Any:
        return self.one_cycle(self.network.student.parameters(), self.lr, 0.0)

    def prepare(self, good: GoodImages) -> None:
        pass

    @torch.no_grad()
    def fit_readout(self, training: GoodImages, held_out: GoodImages) -> None:
        maps = [self.network(batch.image)[1] for batch in training]
        self.network.head.usual.mul_(torch.cat(maps).mean())
