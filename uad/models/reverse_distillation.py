"""Reverse Distillation: a decoder restores the teacher's features from a narrow embedding of them.

Paper: Deng and Li, CVPR 2022, https://arxiv.org/abs/2201.10834

The teacher's three levels are fused at 1/16 of the image, and embedded at 1/32. The decoder, a mirror of the teacher,
makes the levels from that again. It cannot restore what is not in the embedding, which learns good images alone. A
student that sees the image itself can learn to copy defects.

Differs from the paper:

- The decoder learns the teacher's features standardised, and the distances are read out, as in STFPM: see
  `uad.models.head` and `uad.models.readout`. The paper adds the maps up and takes the greatest pixel.
- The paper writes its loss position by position, its code flattens each level to one vector, which measured a little
  better here (`--model.loss`).
- One transposed convolution leads to each finer level, and blocks that keep the size follow; the paper's sits inside
  the first block and its shortcut. A convolution of 1 by 1 ends each level, so that it can be negative, too.
- Positions that are restored already give no gradient, as in ReContrast (`--model.mining`): a decoder that goes on
  learning what is easy restores defects, too.
- AdamW and one cycle of the learning rate instead of Adam for 200 epochs.
- Decoders of MobileNetV2 and EfficientNet-Lite, whose blocks are inverted residuals.
"""

import functools
from typing import Any, Callable, Dict, List, Literal, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from engines.errors import UserError
from uad.data.batches import Batch
from uad.models.backbones import backbone_of
from uad.models.head import PyramidNetwork, Pyramids, distance, head_of, teacher_of, with_hard_gradient
from uad.models.layers import Normalize
from uad.models.pyramid_model import PyramidModel
from uad.models.readout import ReadOutName

Upsampling = Literal["transposed", "resize"]


def _halve(inputs: int, outputs: int) -> nn.Module:
    """Half as high and wide."""
    return _normed(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.ReLU())


def _double(inputs: int, outputs: int, upsampling: Upsampling) -> nn.Module:
    """Twice as high and wide: by a transposed convolution, or each pixel repeated, and then a convolution."""
    if upsampling == "transposed":
        return _normed(nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.ReLU())
    return nn.Sequential(nn.Upsample(scale_factor=2.0), _normed(_convolution(inputs, outputs, 3), nn.ReLU()))


def _convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)


def _normed(convolution: nn.Module, *activation: nn.Module) -> nn.Sequential:
    assert isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d))
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), *activation)


class Residual(nn.Module):
    """A block of ResNet: two convolutions of 3 by 3, or with `narrowing` above 1, one between two of 1 by 1."""

    def __init__(self, channels: int, narrowing: int = 1) -> None:
        super().__init__()
        inner, kernels = channels // narrowing, [3, 3] if narrowing == 1 else [1, 3, 1]
        counts = [channels, *[inner] * (len(kernels) - 1), channels]
        layers = [_normed(_convolution(*some), nn.ReLU()) for some in zip(counts, counts[1:], kernels)]
        layers[-1] = layers[-1][:2]  # the last activation comes after the sum
        self.branch = nn.Sequential(*layers)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        restored: Tensor = self.activation(self.branch(x) + x)
        return restored


class Inverted(nn.Module):
    """A block of MobileNetV2: wider by six, a convolution of each channel for itself, and narrow again."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        wide = 6 * channels
        self.branch = nn.Sequential(
            _normed(_convolution(channels, wide, 1), nn.ReLU6()),
            _normed(_convolution(wide, wide, kernel, wide), nn.ReLU6()),
            _normed(_convolution(wide, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        restored: Tensor = x + self.branch(x)
        return restored


class Mirror(NamedTuple):
    """What a decoder is made of."""

    block: Callable[[int], nn.Module]
    embedding: int  # channels at 1/32 of the image: those of the teacher's next stage
    blocks: Tuple[int, int, int, int]  # blocks of the embedding, and of the levels at 1/16, 1/8 and 1/4


MIRRORS: Dict[str, Mirror] = {
    "resnet18": Mirror(Residual, 512, (2, 2, 2, 2)),
    "wide_resnet50_2": Mirror(functools.partial(Residual, narrowing=2), 2048, (3, 6, 4, 3)),
    "mobilenet_v2": Mirror(Inverted, 160, (3, 3, 3, 2)),
    "efficientnet_lite0": Mirror(functools.partial(Inverted, kernel=5), 192, (3, 3, 2, 2)),
    "efficientnet_lite1": Mirror(functools.partial(Inverted, kernel=5), 192, (4, 4, 3, 3)),
    "efficientnet_lite2": Mirror(functools.partial(Inverted, kernel=5), 208, (4, 4, 3, 3)),
}


class Decoder(nn.Module):
    """The teacher's levels (N, C, h, w), the finest first -> the same, restored from a narrow embedding of them.

    Args:
        backbone: of the teacher.
        upsampling: how it comes from a level to the next finer one.
        dropout: part of the embedding that is zero in a step of training.
    """

    def __init__(self, backbone: str, upsampling: Upsampling, dropout: float = 0.0) -> None:
        super().__init__()
        (fine, middle, deep), mirror = backbone_of(backbone).channels, MIRRORS[backbone]

        def stage(entrance: nn.Module, channels: int, count: int) -> nn.Module:
            return nn.Sequential(entrance, *(mirror.block(channels) for _ in range(count)))

        self.from_fine = nn.Sequential(_halve(fine, middle), _halve(middle, deep))
        self.from_middle = _halve(middle, deep)
        self.noise = nn.Dropout(dropout)
        self.embed = stage(_halve(3 * deep, mirror.embedding), mirror.embedding, mirror.blocks[0])
        self.deep = stage(_double(mirror.embedding, deep, upsampling), deep, mirror.blocks[1])
        self.middle = stage(_double(deep, middle, upsampling), middle, mirror.blocks[2])
        self.fine = stage(_double(middle, fine, upsampling), fine, mirror.blocks[3])
        self.last = nn.ModuleList(nn.Conv2d(channels, channels, 1) for channels in (fine, middle, deep))

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> List[Tensor]:
        """Fuse, embed, restore."""
        fused = torch.cat([self.from_fine(fine), self.from_middle(middle), deep], dim=1)
        deep = self.deep(self.noise(self.embed(fused)))
        middle = self.middle(deep)
        fine = self.fine(middle)
        return [last(level) for last, level in zip(self.last, (fine, middle, deep))]


class EncoderDecoder(PyramidNetwork):
    """The student sees the teacher's features alone."""

    def __init__(
        self, backbone: str, weights: str, upsampling: Upsampling, dropout: float, readout: ReadOutName, bank: int
    ) -> None:
        super().__init__()
        source = backbone_of(backbone)
        self.normalize = Normalize(source.mean, source.std)
        self.teacher = teacher_of(backbone, weights, bank)
        self.student = Decoder(backbone, upsampling, dropout)
        self.head = head_of(source, readout, bank)

    def features(self, image: Tensor) -> Pyramids:
        """The pyramids of teacher and student."""
        teacher = self.teacher(self.normalize(image))
        return teacher, self.student(*teacher[: self.head.depth])


class ReverseDistillation(PyramidModel):
    """Trains the decoder to restore the teacher's features of good images.

    Args:
        backbone: of the teacher: resnet18, wide_resnet50_2, mobilenet_v2, efficientnet_lite0, _lite1, _lite2.
        weights: of the teacher: imagenet, none (random), or a file of published weights.
        lr: the greatest learning rate of the cycle.
        weight_decay: of AdamW.
        upsampling: transposed convolutions, or resize and convolution.
        loss: flattened, one distance of all the features of a level, or by position.
        mining: whether positions that are restored already give no gradient (`uad.models.head.with_hard_gradient`).
        dropout: part of the embedding that is zero in a step of training (Dinomaly, Guo et al., CVPR 2025).
        readout: how the distances become a map and a score: regional, or as in the STFPM paper, their product.
        bank: as in STFPM.

    Raises:
        UserError: an unknown backbone, weights that do not fit, a negative number, or a dropout of 1 and more.
    """

    network: EncoderDecoder

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        weights: str = "imagenet",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        upsampling: Upsampling = "transposed",
        loss: Literal["position", "flattened"] = "flattened",
        mining: bool = True,
        dropout: float = 0.0,
        readout: ReadOutName = "regional",
        bank: int = 0,
    ) -> None:
        if not 0 <= dropout < 1:
            raise UserError(f"--model.dropout {dropout}: give a part of the embedding, at least 0 and less than 1")
        config: Dict[str, Any] = dict(
            backbone=backbone, weights=weights, lr=lr, weight_decay=weight_decay, upsampling=upsampling
        )
        config.update(loss=loss, mining=mining, dropout=dropout, readout=readout, bank=bank)
        network = EncoderDecoder(backbone, weights, upsampling, dropout, readout, bank)
        super().__init__("reverse_distillation", network, config)
        self.mining = mining
        self.image_multiple *= 2  # the embedding lies at half the deepest level
        self.is_flattened = loss == "flattened"

    def loss(self, batch: Batch) -> Tensor:
        """Sum over the levels of the mean distance."""
        teacher = [level.float() for level in batch.targets or self.targets(batch.image)]
        wanted, restored = self.network.head.targets(teacher), self.network.student(*teacher)
        if self.mining:
            part = self.part_done
            restored = [with_hard_gradient(t, s, part) for t, s in zip(wanted, restored)]
        if self.is_flattened:
            wanted, restored = ([level.flatten(1)[..., None, None] for level in each] for each in (wanted, restored))
        return torch.stack([distance(t, s).mean() for t, s in zip(wanted, restored)]).sum()

    @torch.no_grad()
    def targets(self, image: Tensor) -> List[Tensor]:
        """The teacher's features, which the decoder is given, too."""
        levels: List[Tensor] = self.network.teacher(self.network.normalize(image))
        return levels[: self.network.head.depth]
