"""PatchCore: no student, but a bank of good patches in the teacher's own features. It is made, not trained.

Paper: Roth et al., 'Towards Total Recall in Industrial Anomaly Detection', CVPR 2022, https://arxiv.org/abs/2106.08265

Differs from the paper:

- One model for all classes: each has a bank of its own, and an image is put beside that of its class, which the
  nearest centroid of pooled features tells, as in the other models.
- The features lie at 1/16 of the image, where the paper takes 1/8: a quarter of the places.
- Features are projected (see `uad.models.bank`).
- The distances are read out as in STFPM (see `uad.models.readout`), where the paper takes the greatest one and weighs
  it.
- The read-out is fitted to the images that the bank is made of, each without its own patches: more images than are held
  out, and as unknown to the bank.
"""

from typing import List, Tuple

import torch
from torch import Tensor, nn

from engines.errors import UserError
from uad.data.batches import Batch, GoodImages
from uad.models.backbones import Backbone, FeaturePyramid, backbone_of
from uad.models.bank import Bank
from uad.models.base import Model
from uad.models.head import pooled
from uad.models.layers import Normalize
from uad.models.readout import RegionalReadOut


class BankHead(nn.Module):
    """Levels of features -> score (N,), anomaly map (N, H/16, W/16), float32, class index and class distance (N,).

    Args:
        source: the teacher's backbone.
    """

    def __init__(self, source: Backbone) -> None:
        super().__init__()
        self.bank = Bank(source)
        self.readout = RegionalReadOut(source.bank_strides[-1:], source.bank_channels[-1], source.offsets[-1:])

    def forward(self, levels: List[Tensor]) -> Tuple[Tensor, ...]:
        """Look the class up, and read off the distances from its bank."""
        label = self.readout.class_of(pooled(levels[-1]))
        distances = self.bank(levels, label)
        score, anomaly_map = self.readout([distances], label)
        return score, anomaly_map, label.int(), self.bank.class_distance(distances, label)


class BankNetwork(nn.Module):
    """(N, H, W, 3) uint8 RGB -> what the head gives."""

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        source = backbone_of(backbone)
        self.normalize = Normalize(source.mean, source.std)
        self.teacher = FeaturePyramid(backbone, weights, source.bank_layers).requires_grad_(False).eval()
        self.head = BankHead(source)

    def features(self, image: Tensor) -> List[Tensor]:
        """The teacher's levels."""
        levels: List[Tensor] = self.teacher(self.normalize(image))
        return levels

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Nothing is computed here."""
        judged: Tuple[Tensor, ...] = self.head(self.features(image))
        return judged


class PatchCore(Model):
    """Remembers patches of good images of each class.

    Args:
        backbone: of the teacher: resnet18, wide_resnet50_2, mobilenet_v2, efficientnet_lite0, _lite1, _lite2.
        weights: of the teacher: imagenet, none (random), or a file of published weights.
        bank: how many patches of each class are kept.

    Raises:
        UserError: an unknown backbone, weights that do not fit, or a bank of nothing.
    """

    network: BankNetwork
    steps = 0

    def __init__(self, backbone: str = "mobilenet_v2", weights: str = "imagenet", bank: int = 4000) -> None:
        super().__init__()
        if bank < 1:
            raise UserError(f"--model.bank {bank}: give at least 1 patch")
        source = backbone_of(backbone)
        self.config = dict(backbone=backbone, weights=weights, bank=bank)
        self.network = BankNetwork(backbone, weights).to(memory_format=torch.channels_last)
        stride = source.bank_strides[-1]
        self.description = {"model": "patchcore", "backbone": backbone, **source.description(), "map_stride": stride}
        self.image_multiple = stride

    def loss(self, batch: Batch) -> Tensor:
        """How far the places of good images lie from the bank, in the mean; nothing is learned from it."""
        score: Tensor = self.network(batch.image)[1].mean()
        return score

    @torch.no_grad()
    def prepare(self, good: GoodImages) -> None:
        """Fit what describes a place."""
        self.network.head.bank.fit_projection(self.network.features(batch.image) for batch in good)

    @torch.no_grad()
    def fit_readout(self, training: GoodImages, held_out: GoodImages) -> None:
        """Choose the patches of each class, and fit the read-out to the same images, each without its own patches."""
        head = self.network.head

        def look(image: Tensor) -> List[Tensor]:
            levels = self.network.features(image)
            return [head.bank.described(levels), pooled(levels[-1])]

        head.bank.choose(training, look, int(self.config["bank"]))
        seen = list(head.bank.beside_others(training, look))
        head.readout.fit(seen, len(training.classes))
        head.bank.fit_farthest(seen)
