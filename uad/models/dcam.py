"""DCAM: STFPM whose student is taught through attention, which is gone once it is trained.

Paper: 'Attend, Distill, Detect', Jena et al., 2024, https://arxiv.org/abs/2405.06467

While it trains, a gate on the channels of each of the student's levels (Woo et al., CBAM, ECCV 2018) lets through what
matters, and the result is compared with the teacher channel by channel: by the cosine of their maps, and by the
relative entropy of their maps as distributions over the positions, at several scales. It is the paper's best variant,
channel attention with channel cosine and spatial KL. The network is that of `uad.models.stfpm`, node for node.

The paper publishes neither the weights of its losses nor the temperature. Here STFPM's own loss goes on beside them, so
that the student's features themselves, which judge an image, are those of the teacher.
"""

from typing import Any, List

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UserError
from uad.models.backbones import backbone_of
from uad.models.base import not_negative
from uad.models.readout import ReadOutName
from uad.models.stfpm import STFPM

SCALES = (1, 2, 4)  # positions of a side that are averaged into one
NARROWING = 8  # of the channels inside a gate


class ChannelGate(nn.Module):
    """(N, C, h, w) -> the same, each channel times a number in (0, 1) that its mean and its maximum give."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // NARROWING)
        self.inside = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))

    def forward(self, features: Tensor) -> Tensor:
        """The same small network looks at both, as in CBAM."""
        seen: Tensor = self.inside(features.mean(dim=(2, 3))) + self.inside(features.amax(dim=(2, 3)))
        return features * torch.sigmoid(seen)[..., None, None]


def channel_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """1 minus the cosine of the maps of a channel, mean over the channels: (N, C, h, w) twice -> a scalar."""
    return (1.0 - F.cosine_similarity(teacher.flatten(2), student.flatten(2), dim=2)).mean()


def spatial_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL of the softmax over the positions of a channel, in nats, mean over channels and `SCALES`: a scalar.

    Times the temperature squared, so that gradients keep their size (Hinton et al., 2015).
    """
    divergences = []
    for scale in SCALES:
        t, s = (F.log_softmax(F.avg_pool2d(each, scale).flatten(2) / temperature, dim=2) for each in (teacher, student))
        divergences.append((t.exp() * (t - s)).sum(dim=2).mean())
    return torch.stack(divergences).mean() * temperature**2


class DCAM(STFPM):
    """Trains the student to match the teacher on good images, through gates on its channels as well.

    Args:
        backbone: as in STFPM.
        weights: of the teacher, as in STFPM.
        lr: the greatest learning rate of the cycle.
        weight_decay: of AdamW.
        channel_weight: of the channel-wise cosine distance in the loss.
        spatial_weight: of the divergence over positions.
        temperature: of its softmax.
        readout: as in STFPM.
        bank: as in STFPM.

    Raises:
        UserError: an unknown backbone, weights that do not fit, a negative number, or a temperature of 0.
    """

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        weights: str = "imagenet",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        channel_weight: float = 1.0,
        spatial_weight: float = 1.0,
        temperature: float = 1.0,
        readout: ReadOutName = "regional",
        bank: int = 0,
    ) -> None:
        super().__init__(backbone, weights, lr, weight_decay, readout, bank)
        not_negative(channel_weight=channel_weight, spatial_weight=spatial_weight)
        if temperature <= 0:
            raise UserError(f"--model.temperature {temperature}: give a number above 0")
        self.config.update(channel_weight=channel_weight, spatial_weight=spatial_weight, temperature=temperature)
        self.description["model"] = "dcam"
        self.gates = nn.ModuleList(ChannelGate(channels) for channels in backbone_of(backbone).channels)
        self.channel_weight = channel_weight
        self.spatial_weight = spatial_weight
        self.temperature = temperature

    def distillation(self, targets: List[Tensor], student: List[Tensor]) -> Tensor:
        """STFPM's, and both comparisons of the gated features, summed over the levels."""
        losses = [super().distillation(targets, student)]
        for gate, target, features in zip(self.gates, targets, student):
            gated, wanted = gate(features.float()), target.float()
            losses.append(self.channel_weight * channel_distance(wanted, gated))
            losses.append(self.spatial_weight * spatial_divergence(wanted, gated, self.temperature))
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        """The student and the gates."""
        parameters = [*self.network.student.parameters(), *self.gates.parameters()]
        return self.one_cycle(parameters, self.config["lr"], self.config["weight_decay"])
