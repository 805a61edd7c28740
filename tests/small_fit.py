"""A training that takes a few tenths of a second: the backbone `tiny`, which importing this makes known, and flags.

A process of its own knows no such backbone: it takes a real one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from uad.models.backbones import BACKBONES, Backbone

FIT = ["--model.backbone", "tiny", "--model.weights", "none", "--data.image_size", "64"]
FIT += ["--data.batch_size", "4", "--trainer.accelerator", "cpu"]
REAL = ["--model.backbone", "resnet18"]  # behind FIT
CHANNELS = (8, 12, 16)


class Tiny(nn.Module):
    """Convolutions with BatchNorm, one of them depthwise, and levels at 1/4, 1/8 and 1/16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = block(3, 8, nn.ReLU()), block(8, CHANNELS[0], nn.ReLU6())
        self.second = nn.Sequential(
            *block(CHANNELS[0], CHANNELS[0], nn.ReLU6(), groups=CHANNELS[0]), nn.Conv2d(CHANNELS[0], CHANNELS[1], 1)
        )
        self.third = block(CHANNELS[1], CHANNELS[2], nn.ReLU())

    def forward(self, image: Tensor) -> Any:
        return self.third(self.second(self.first(self.stem(image))))


def block(into: int, out: int, activation: nn.Module, groups: int = 1) -> nn.Sequential:
    """Halves the image."""
    return nn.Sequential(nn.Conv2d(into, out, 3, 2, 1, groups=groups, bias=False), nn.BatchNorm2d(out), activation)


BACKBONES["tiny"] = Backbone(Tiny, lambda: Tiny().state_dict(), ("first", "second", "third"), CHANNELS)
