"""The head of models that compare two feature pyramids, that of a teacher and that of a student."""

import abc
from typing import Callable, Iterable, List, Tuple

import torch
from torch import Tensor, nn

from engines.errors import UserError
from uad.data.batches import GoodImages
from uad.data.defects import with_faint_defects, with_warps
from uad.models.backbones import Backbone, FeaturePyramid, backbone_of
from uad.models.bank import Bank
from uad.models.layers import Standardize, fit_standardization
from uad.models.readout import JoinedReadOut, ProductReadOut, ReadOut, ReadOutName, RegionalReadOut, Seen, read_off

TRIED = 100  # images of each class, at most, on which trust in a bank is chosen
Pyramids = Tuple[List[Tensor], List[Tensor]]  # of teacher and student, the finest level first
Features = Callable[[Tensor], Pyramids]  # of images (N, H, W, 3) uint8


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the squared distance of unit features, eq. 1 of STFPM (Wang et al., BMVC 2021): 1 minus their cosine.

    (N, C, h, w) twice -> (N, 1, h, w), computed in float32. The roots are taken before the product, because a product
    of two squared norms reaches 6e5, and float16 ends at 65504.
    """
    t, s = teacher.float(), student.float()
    t_norm, s_norm = ((each.square().sum(dim=1, keepdim=True) + 1e-12).sqrt() for each in (t, s))
    return 1.0 - (t * s).sum(dim=1, keepdim=True) / (t_norm * s_norm)


def with_hard_gradient(target: Tensor, student: Tensor, part_done: float) -> Tensor:
    """The student's features, but without a gradient where they are near the target already; the values are the same.

    Hard mining of ReContrast (Guo et al., NeurIPS 2023, https://arxiv.org/abs/2306.02602): positions whose distance is
    below mean + a * deviation give no gradient. a rises from -3 to 1 over the first tenth of the steps. Good images are
    mostly easy; a student that learns these to the end restores defects, too.

    Args:
        target: (N, C, h, w).
        student: of the same shape.
        part_done: part of the training that is behind, from 0 to 1.
    """
    with torch.no_grad():
        apart = distance(target, student)
        above = -3.0 + 4.0 * min(part_done / 0.1, 1.0)
        is_hard = apart >= apart.mean() + above * apart.std()
    return torch.where(is_hard, student, student.detach())


def pooled(deepest: Tensor) -> Tensor:
    """(N, C): the mean of the teacher's deepest features over the image, which tells of which class it is."""
    return deepest.float().mean(dim=(2, 3))


class Head(nn.Module):
    """Feature pyramids of teacher and student -> score (N,), anomaly map (N, H/4, W/4), float32, and class index (N,).

    Args:
        source: the teacher's backbone.
        readout: how the distances become a map and a score: regional, or as in the STFPM paper, their product.
    """

    readout: ReadOut

    def __init__(self, source: Backbone, readout: ReadOutName) -> None:
        super().__init__()
        self.standardize = nn.ModuleList(Standardize(count) for count in source.channels)
        self.depth = len(source.layers)  # levels of a pyramid
        regional = RegionalReadOut(source.strides, source.channels[-1], source.offsets)
        self.readout = regional if readout == "regional" else ProductReadOut(source.strides)

    def forward(self, teacher: List[Tensor], student: List[Tensor]) -> Tuple[Tensor, ...]:
        """Read off the distances."""
        return read_off(self.readout, *self.seen(teacher, student))

    def seen(self, teacher: List[Tensor], student: List[Tensor]) -> Tuple[List[Tensor], Tensor]:
        """What the student's distances are read off from: maps (N, 1, h, w), and the pooled features (N, C)."""
        return self.distances(teacher, student), pooled(teacher[self.depth - 1])

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
        fit_standardization(self.standardize, (levels[: self.depth] for levels in teacher))

    def fit_places(self, teacher: Iterable[List[Tensor]]) -> None:
        """Fit what describes a place to the teacher's features of batches of good images; a bank needs it."""

    def fit_readout(self, features: Features, in_float: Features, good: GoodImages) -> None:
        """Fit the read-out to good images.

        Args:
            features: what the network sees of images, (N, H, W, 3) uint8.
            in_float: what it sees without quantization.
            good: images of every class.
        """
        seen = (Seen(*self.seen(*features(batch.image)), batch.label) for batch in good)
        self.readout.fit(seen, len(good.classes))


class HeadWithBank(Head):
    """A head that also puts each place beside a bank of good patches: one more distance map.

    The teacher gives all of `Backbone.all_layers`: its pyramid, then the levels that only the bank reads.

    Args:
        source: the teacher's backbone.
        size: how many patches of each class.
    """

    readout: JoinedReadOut

    def __init__(self, source: Backbone, size: int) -> None:
        super().__init__(source, "regional")
        self.bank = Bank(source)
        self.size = size
        self.remembered = [source.all_layers.index(layer) for layer in source.bank_layers]
        self.readout = JoinedReadOut(source)

    def forward(self, teacher: List[Tensor], student: List[Tensor]) -> Tuple[Tensor, ...]:
        """Read off the distances, of which those from the bank come last, and tell how far the class itself is."""
        maps, deepest = self.seen(teacher, student)
        label = self.readout.class_of(deepest)
        distances = self.bank(self.levels_of_bank(teacher), label)
        score, anomaly_map = self.readout([*maps, distances], label)
        return score, anomaly_map, label.int(), self.bank.class_distance(distances, label)

    def levels_of_bank(self, teacher: List[Tensor]) -> List[Tensor]:
        """Those of the teacher's levels that the bank reads."""
        return [teacher[place] for place in self.remembered]

    def fit_places(self, teacher: Iterable[List[Tensor]]) -> None:
        """Fit the bank's projection."""
        self.bank.fit_projection(map(self.levels_of_bank, teacher))

    def fit_readout(self, features: Features, in_float: Features, good: GoodImages) -> None:
        """Choose patches, fit the read-out, and choose how far the bank is trusted.

        Patches are those of the network in float: which ones lie farthest apart is shuffled by rounding.
        Trust is chosen on copies with drawn defects of kinds that training does not draw.
        """

        def look(image: Tensor, features: Features = features) -> List[Tensor]:
            teacher, student = features(image)
            maps, deepest = self.seen(teacher, student)
            return [*maps, self.bank.described(self.levels_of_bank(teacher)), deepest]

        self.bank.choose(good, lambda image: look(image, in_float), self.size)
        seen = list(self.bank.beside_others(good, look))
        self.readout.fit(seen, len(good.classes))
        self.bank.fit_farthest(seen)
        some = good.first_of_each_class(TRIED)
        drawn = [some.with_drawn(draw) for draw in (with_faint_defects, with_warps)]
        self.readout.fit_trust(*(self.bank.beside_others(images, look) for images in (some, *drawn)))


def head_of(source: Backbone, readout: ReadOutName, bank: int) -> Head:
    """The head of a model with a bank of so many patches of each class, or with none.

    Raises:
        UserError: a negative number, or a bank with the read-out of the paper, which has no place for it.
    """
    if bank < 0:
        raise UserError(f"--model.bank {bank}: give a number of patches, or 0 for no bank")
    if bank and readout == "paper":
        raise UserError("--model.readout paper has no place for a bank: give --model.bank 0")
    return HeadWithBank(source, bank) if bank else Head(source, readout)


def teacher_of(backbone: str, weights: str, bank: int) -> FeaturePyramid:
    """The frozen teacher of a model with such a head; see `FeaturePyramid`."""
    source = backbone_of(backbone)
    layers = source.all_layers if bank else source.layers
    return FeaturePyramid(backbone, weights, layers).requires_grad_(False).eval()


class PyramidNetwork(nn.Module, abc.ABC):
    """A network that is exported: (N, H, W, 3) uint8 RGB -> what its head gives.

    Who derives from it gives it `normalize`, a frozen `teacher`, a `student`, a `head`, and says what they see.
    """

    normalize: nn.Module
    teacher: nn.Module
    student: nn.Module
    head: Head

    @abc.abstractmethod
    def features(self, image: Tensor) -> Pyramids:
        """The pyramids of teacher and student."""

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Nothing is computed here: what is neither normalisation nor head is part of a backbone."""
        judged: Tuple[Tensor, ...] = self.head(*self.features(image))
        return judged

    def train(self, mode: bool = True) -> "PyramidNetwork":
        """The teacher stays in evaluation mode: its batch statistics are ImageNet's."""
        super().train(mode)
        self.teacher.eval()
        return self
