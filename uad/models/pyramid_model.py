"""What models share that compare two feature pyramids, that of a teacher and that of a student."""

from typing import Any, Dict, List

import torch
from torch import Tensor

from uad.data.batches import GoodImages
from uad.models.backbones import backbone_of
from uad.models.base import Model, not_negative
from uad.models.head import PyramidNetwork


class PyramidModel(Model):
    """Learns from the teacher's pyramid; `loss` is the model's own.

    Args:
        name: of the model, a key of `uad.models.MODELS`.
        network: its network.
        config: the arguments of its constructor: backbone, lr and weight_decay are among them.

    Raises:
        UserError: lr or weight_decay is negative.
    """

    network: Any
    steps = 2000

    def __init__(self, name: str, network: PyramidNetwork, config: Dict[str, Any]) -> None:
        super().__init__()
        not_negative(lr=config["lr"], weight_decay=config["weight_decay"])
        source = backbone_of(config["backbone"])
        self.config = config
        self.network = network.to(memory_format=torch.channels_last)
        self.description = {"model": name, "backbone": config["backbone"], **source.description()}
        self.image_multiple = source.strides[-1]

    @torch.no_grad()
    def targets(self, image: Tensor) -> List[Tensor]:
        """The teacher's features, standardised."""
        targets: List[Tensor] = self.network.head.targets(self.network.teacher(self.network.normalize(image)))
        return targets

    def early_score(self, image: Tensor) -> Tensor:
        """The sum over the levels of the greatest distance."""
        score: Tensor = self.network.head.greatest_distance(*self.network.features(image))
        return score

    def configure_optimizers(self) -> Any:
        """Only the student is trained."""
        return self.one_cycle(self.network.student.parameters(), self.config["lr"], self.config["weight_decay"])

    @torch.no_grad()
    def prepare(self, good: GoodImages) -> None:
        """Fit the scale of what the student is to learn, and what describes a place to a bank."""
        network = self.network
        for fit in (network.head.fit_targets, network.head.fit_places):
            fit(network.teacher(network.normalize(batch.image)) for batch in good)

    @torch.no_grad()
    def fit_readout(self, training: GoodImages, held_out: GoodImages) -> None:
        """Fit the read-out to training images: there are more of them."""
        features = self.network.features
        self.network.head.fit_readout(features, self.features_in_float or features, training)
