"""What models share whose teacher is a patch network: the teacher's descriptions, standardised, are what is learned.

Their `network` has the parts `normalize`, `teacher` and `head`, and `features`, which gives the head what it reads, the
teacher's descriptions first. The head has `standardize`, `distances`, `readout`, and `is_regional`.
"""

from typing import Any, List

import torch
from torch import Tensor

from uad.data.batches import GoodImages
from uad.models.base import Model
from uad.models.layers import fit_standardization
from uad.models.patch_networks import pooled
from uad.models.readout import Seen


class PatchModel(Model):
    """Learns from a teacher of patches; `loss` and the optimizer are the model's own."""

    network: Any

    @torch.no_grad()
    def targets(self, image: Tensor) -> List[Tensor]:
        """The teacher's descriptions, standardised."""
        return [self.network.head.standardize(self.network.teacher(self.network.normalize(image)))]

    def early_score(self, image: Tensor) -> Tensor:
        """The greatest pixel of each distance map, added up."""
        maps = self.network.head.distances(*self.network.features(image))
        return torch.stack([each.flatten(1).amax(dim=1) for each in maps]).sum(dim=0)

    @torch.no_grad()
    def prepare(self, good: GoodImages) -> None:
        """Fit the scale of what is to be learned."""
        network = self.network
        described = ([network.teacher(network.normalize(batch.image))] for batch in good)
        fit_standardization([network.head.standardize], described)

    @property
    def fits_readout_to_held_out(self) -> bool:
        """The paper's scale is fitted to images that were not trained on."""
        return not self.network.head.is_regional

    @torch.no_grad()
    def fit_readout(self, training: GoodImages, held_out: GoodImages) -> None:
        """The regional read-out is fitted to training images, the paper's scale to held-out ones."""
        head = self.network.head
        good = training if head.is_regional else held_out
        features = ((self.network.features(batch.image), batch.label) for batch in good)
        seen = (Seen(head.distances(*levels), pooled(levels[0]), label) for levels, label in features)
        head.readout.fit(seen, len(good.classes))
