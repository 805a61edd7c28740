"""The head of models that compare two feature pyramids, that of a teacher and that of a student."""

import abc
from typing import Iterable, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from uad.models.backbones import Backbone
from uad.models.layers import Standardize, fit_standardization
from uad.models.readout import ProductReadOut, ReadOut, ReadOutName, RegionalReadOut, Seen


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the squared distance of unit features, eq. 1 of STFPM (Wang et al., BMVC 2021): 1 minus their cosine.

    (N, C, h, w) twice -> (N, 1, h, w), computed in float32. The roots are taken before the product, because a product
    of two squared norms reaches 6e5, and float16 ends at 65504.
    """
    t, s = teacher.float(), student.float()
    t_norm, s_norm = ((each.square().sum(dim=1, keepdim=True) + 1e-12).sqrt() for each in (t, s))
    return 1.0 - (t * s).sum(dim=1, keepdim=True) / (t_norm * s_norm)


def pooled(teacher: Sequence[Tensor]) -> Tensor:
    """(N, C): the mean of the deepest features over the image, which tells of which class it is."""
    return teacher[-1].float().mean(dim=(2, 3))


class Head(nn.Module):
    """Feature pyramids of teacher and student -> score (N,), anomaly map (N, H/4, W/4), float32.

    Args:
        source: the teacher's backbone.
        readout: how the distances become a map and a score: regional, or as in the STFPM paper, their product.
    """

    readout: ReadOut

    def __init__(self, source: Backbone, readout: ReadOutName) -> None:
        super().__init__()
        self.standardize = nn.ModuleList(Standardize(count) for count in source.channels)
        regional = RegionalReadOut(source.strides, source.channels[-1], source.offsets)
        self.readout = regional if readout == "regional" else ProductReadOut(source.strides)

    def forward(self, teacher: List[Tensor], student: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """Read off the distances."""
        score, anomaly_map = self.readout(self.distances(teacher, student), pooled(teacher))
        return score, anomaly_map

    def targets(self, teacher: List[Tensor]) -> List[Tensor]:
        """What the student learns: the teacher's features, standardised."""
        return [standardize(features) for standardize, features in zip(self.standardize, teacher)]

    def distances(self, teacher: List[Tensor], student: List[Tensor]) -> List[Tensor]:
        """(N, 1, h, w) for each level."""
        return [distance(t, s) for t, s in zip(self.targets(teacher), student)]

    def greatest_distance(self, teacher: List[Tensor], student: List[Tensor]) -> Tensor:
        """(N,): the sum over the levels of the greatest distance, a score before the read-out is fitted."""
        return torch.stack([level.flatten(1).amax(dim=1) for level in self.distances(teacher, student)]).sum(dim=0)

    def fit_targets(self, teacher: Iterable[List[Tensor]]) -> None:
        """Fit the scale of what the student is to learn, to the teacher's features of batches of good images."""
        fit_standardization([layer for layer in self.standardize if isinstance(layer, Standardize)], teacher)

    def fit_readout(self, seen: Iterable[Tuple[List[Tensor], List[Tensor], Tensor]], classes: int) -> None:
        """Fit the read-out to good images of so many classes: batches of both pyramids, with labels (N,)."""
        self.readout.fit((Seen(self.distances(t, s), pooled(t), label) for t, s, label in seen), classes)


class PyramidNetwork(nn.Module, abc.ABC):
    """A network that is exported: (N, H, W, 3) uint8 RGB -> score (N,), anomaly map (N, H/4, W/4).

    Who derives from it gives it `normalize`, a frozen `teacher`, a `student`, a `head`, and says what they see.
    """

    normalize: nn.Module
    teacher: nn.Module
    student: nn.Module
    head: Head

    @abc.abstractmethod
    def features(self, image: Tensor) -> Tuple[List[Tensor], List[Tensor]]:
        """The pyramids of teacher and student."""

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """Nothing is computed here: what is neither normalisation nor head is part of a backbone."""
        score, anomaly_map = self.head(*self.features(image))
        return score, anomaly_map

    def train(self, mode: bool = True) -> "PyramidNetwork":
        """The teacher stays in evaluation mode: its batch statistics are ImageNet's."""
        super().train(mode)
        self.teacher.eval()
        return self
