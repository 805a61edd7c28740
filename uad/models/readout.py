"""Distance maps to what is said of an image: the score (N,) and the anomaly map (N, h, w), float32.

A read-out is a module of the head. It takes any number of distance maps (N, 1, h, w), the finest first, and the class
of each image (N,), which it tells by the image's pooled features (N, C). Its map is on the finest grid.
"""

import functools
import operator
from typing import Any, Callable, Dict, Iterable, List, Literal, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export import readout
from uad.models.backbones import Backbone
from uad.models.layers import back_by, enlarge, gaussian, pixel_count

SMOOTHING = 1.0  # standard deviation of the Gaussian on the joined map, in map pixels
TOP_FRACTION = 0.003  # of the joined map's pixels, whose mean is the score
TRUSTS = (0.8, 0.5, 0.0)  # of a bank beside a student; the first unless another is clearly better
ReadOutName = Literal["regional", "paper"]
Pixels = npt.NDArray[np.float64]


class Seen(NamedTuple):
    """What a network makes of some good images, for a read-out to be fitted to."""

    maps: List[Tensor]  # (N, 1, h, w) each
    pooled: Tensor  # (N, C)
    label: Tensor  # (N,) int64, index of each image's class


def nearest_class(pooled: Tensor, spread: Tensor, centroids: Tensor) -> Tensor:
    """Pooled features (N, C) -> the index of the nearest of `centroids` (classes, C), in units of `spread` (C,)."""
    return ((pooled / spread)[:, None] - centroids).square().sum(dim=2).argmin(dim=1)


class ReadOut(Protocol):
    """What every read-out offers."""

    def class_of(self, pooled: Tensor) -> Optional[Tensor]:
        """The index of the class of each image, (N,) int64; None where classes do not matter to it."""

    def __call__(self, maps: List[Tensor], label: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """Score (N,) and anomaly map (N, h, w)."""

    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Learn what is needed of good images of so many classes."""


def read_off(readout: ReadOut, maps: List[Tensor], pooled: Tensor) -> Tuple[Tensor, ...]:
    """What a head gives: score, anomaly map and, where the read-out knows classes, the class index (N,) int32."""
    label = readout.class_of(pooled)
    score, anomaly_map = readout(maps, label)
    return (score, anomaly_map) if label is None else (score, anomaly_map, label.int())


class ProductReadOut(nn.Module):
    """The product of the maps, and its greatest pixel as the score: as in the STFPM paper. It fits nothing.

    Args:
        strides: image pixels for each pixel of each map.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.scales = [stride / strides[0] for stride in strides]

    def class_of(self, pooled: Tensor) -> None:
        """Every class is judged alike."""

    def forward(self, maps: List[Tensor], label: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """The maps are brought to the finest grid first."""
        joined = enlarge(maps[0], self.scales[0]).clamp_min(0.0)
        for values, scale in zip(maps[1:], self.scales[1:]):
            joined = joined * enlarge(values, scale).clamp_min(0.0)
        return joined.flatten(1).amax(dim=1), joined.squeeze(1)

    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Nothing is needed."""


class ScaledReadOut(nn.Module):
    """Maps of one grid, each on its scale of good images of the class, added up; the score is the greatest pixel.

        centroids    (classes, C) of pooled features, in units of `spread` (C,), which tell the class
        shift, unit  (classes, L) of each map: a pixel counts as (pixel - shift) / unit

    What is below 0 in the sum counts as 0: a map of ours is never negative.

    Args:
        maps: L.
        channels: C.
        scale: the pixels of each map on good images of a class, (L, pixels) float64 -> shift and unit, (L,) each.
    """

    centroids: Tensor
    spread: Tensor
    shift: Tensor
    unit: Tensor

    def __init__(self, maps: int, channels: int, scale: Callable[[Pixels], Tuple[Pixels, Pixels]]) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("centroids", torch.zeros(1, channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(1, maps))
        self.register_buffer("unit", torch.ones(1, maps))

    def class_of(self, pooled: Tensor) -> Tensor:
        """That of the nearest centroid."""
        return nearest_class(pooled, self.spread, self.centroids)

    def forward(self, maps: List[Tensor], label: Tensor) -> Tuple[Tensor, Tensor]:
        """Each image is put on the scale of its class."""
        shift, unit = self.shift[label][..., None, None], self.unit[label][..., None, None]
        joined = ((torch.cat(maps, dim=1) - shift) / unit).sum(dim=1).clamp_min(0.0)
        return joined.flatten(1).amax(dim=1), joined

    @torch.no_grad()
    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Fit every buffer to good images; every class is among them."""
        maps, pooled, label = zip(*((torch.cat(maps, dim=1), pooled, label) for maps, pooled, label in batches))
        pixels, features, labels = torch.cat(maps).flatten(2), torch.cat(pooled), torch.cat(label)
        members = [labels == index for index in range(classes)]
        of_class = (pixels[member].transpose(0, 1).flatten(1).double().cpu().numpy() for member in members)
        shift, unit = (np.stack(each) for each in zip(*map(self.scale, of_class)))
        self.shift, self.unit = (torch.from_numpy(each).to(pixels) for each in (shift, np.maximum(unit, 1e-6)))
        self.spread = features.std(dim=0, correction=0).clamp_min(1e-3)
        self.centroids = torch.stack([features[member].mean(dim=0) for member in members]) / self.spread

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        take_shapes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class RegionalReadOut(nn.Module):
    """Distances on the scale of good images of the same class in the same region, squared and added up.

    Each distance becomes a number of standard deviations above the mean that it has on good images. What is below the
    mean counts as 0. The sum over the maps is smoothed, and its highest pixels give the score. The class is that of
    the nearest centroid of pooled features. Cf. the quantiles of EfficientAD (Batzner et al., WACV 2024) and the
    position-wise statistics of PaDiM (Defard et al., 2021).

        centroids    (classes, C)       of pooled features, in units of `spread`
        spread       (C,)               standard deviation of the pooled features
        levels       each of the L maps has a `Level`, with the mean and the deviation of its distance, and its offset
        border       (1, 1, H, W)       what makes up for the zeros that smoothing sees outside the finest map

    Before `fit`, distances count as they are. `export.readout` fits the statistics, and finds them in an exported graph
    by the names that they have here.

    Args:
        strides: image pixels for each pixel of each map, the finest first.
        channels: C.
        offsets: how far down and right of a place the pixels of each map lie that see it, image pixels.
    """

    centroids: Tensor
    spread: Tensor
    border: Tensor
    blur: Tensor

    def __init__(self, strides: Sequence[int], channels: int, offsets: Sequence[float]) -> None:
        super().__init__()
        assert list(strides) == sorted(strides)
        self.levels = nn.ModuleList(
            Level(strides[-1] / stride, stride / strides[0], offset / strides[0])
            for stride, offset in zip(strides, offsets)
        )
        self.register_buffer("centroids", torch.zeros(1, channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("border", torch.ones(1, 1, 1, 1))
        self.register_buffer("blur", gaussian(SMOOTHING))

    def class_of(self, pooled: Tensor) -> Tensor:
        """That of the nearest centroid."""
        return nearest_class(pooled, self.spread, self.centroids)

    def forward(self, maps: List[Tensor], label: Tensor) -> Tuple[Tensor, Tensor]:
        """The statistics are looked up level by level: an exported graph then needs no Slice."""
        joined = self.joined([level(values, label) for level, values in zip(self.levels, maps)], label)
        anomaly_map = F.conv2d(joined, self.blur, padding=self.blur.shape[-1] // 2) * self.border
        top = max(1, round(TOP_FRACTION * pixel_count(anomaly_map)))
        score = torch.topk(anomaly_map.flatten(1), top, dim=1).values.mean(dim=1)
        return score, anomaly_map.squeeze(1)

    def joined(self, excesses: List[Tensor], label: Tensor) -> Tensor:
        """What the levels say of each place, (N, 1, H, W) each, and the class of each image (N,) -> the same."""
        return functools.reduce(operator.add, excesses)

    @torch.no_grad()
    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Fit every buffer to good images; every class is among them."""
        arrays = (
            readout.Seen([values.float().cpu().numpy() for values in maps], pooled.cpu().numpy(), label.cpu().numpy())
            for maps, pooled, label in batches
        )
        self.set_statistics(readout.fit(arrays, classes))

    def set_statistics(self, statistics: readout.Statistics) -> None:
        """Judge by these."""
        device = self.blur.device
        self.centroids = torch.from_numpy(statistics.centroids).to(device)
        self.spread = torch.from_numpy(statistics.spread).to(device)
        for index, level in enumerate(self.levels):
            level.mean, level.std = (
                torch.from_numpy(values[:, index : index + 1].copy()).to(device)
                for values in (statistics.mean, statistics.std)
            )
        finest = [round(side * self.levels[0].scale) for side in statistics.mean.shape[2:]]
        ones = torch.ones(1, 1, *finest, device=device)
        self.border = 1.0 / F.conv2d(ones, self.blur, padding=self.blur.shape[-1] // 2)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        take_shapes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class JoinedReadOut(RegionalReadOut):
    """The levels of a student and, as the last one, a bank of patches, which is trusted class by class.

    Squared excesses grow without bounds, and a sum of two follows the one that shouts. So their logarithms are joined,
    log(1 + excess): `1 - trust` of the student's and `trust` of the bank's, which is a weighted product.

        trust        (classes, 1, 1, 1) in the bank, one of `TRUSTS`

    Args:
        source: the teacher's backbone.
    """

    trust: Tensor

    def __init__(self, source: Backbone) -> None:
        strides, offsets = (*source.strides, source.strides[-1]), (*source.offsets, source.offsets[-1])
        super().__init__(strides, source.channels[-1], offsets)
        self.register_buffer("trust", torch.full((1, 1, 1, 1), TRUSTS[0]))

    def joined(self, excesses: List[Tensor], label: Tensor) -> Tensor:
        """See the class."""
        student, bank = super().joined(excesses[:-1], label), excesses[-1]
        trust = self.trust[label]
        return (1.0 - trust) * (1.0 + student).log() + trust * (1.0 + bank).log()

    @torch.no_grad()
    def fit_trust(self, good: Iterable[Seen], *kinds: Iterable[Seen]) -> None:
        """Trust the bank less in a class where that parts drawn defects from good images clearly better.

        Clearly: the AUROC, mean over the kinds, is greater by more than 0.5 / sqrt(images), about two standard errors
        of a difference. Drawn defects flatter a student, which was trained on such, and few images say little.

        Args:
            good: good images of every class; the statistics are fitted before.
            kinds: copies of them with drawn defects, of several kinds.
        """
        scores, label = self._tried(good)
        of_kinds = [self._tried(each) for each in kinds]
        chosen = []
        for index in range(len(self.centroids)):
            fine = scores[:, label == index]
            tried = ([_auroc(*pair) for pair in zip(fine, drawn[:, of == index])] for drawn, of in of_kinds)
            criterion = np.mean(list(tried), axis=0)
            gain = criterion.max() - criterion[0]
            chosen.append(TRUSTS[criterion.argmax()] if gain > 0.5 / fine.shape[1] ** 0.5 else TRUSTS[0])
        self.trust = torch.tensor(chosen, device=self.blur.device).reshape(-1, 1, 1, 1)

    def _tried(self, batches: Iterable[Seen]) -> Tuple[Tensor, Tensor]:
        """The scores with each of `TRUSTS` (trusts, N), and the labels (N,)."""
        scores, labels = [], []
        for maps, pooled, label in batches:
            labels.append(label)
            of_trusts = []
            for trust in TRUSTS:
                self.trust = torch.full((len(self.centroids), 1, 1, 1), trust, device=self.blur.device)
                of_trusts.append(self(maps, self.class_of(pooled))[0])
            scores.append(torch.stack(of_trusts))
        return torch.cat(scores, dim=1), torch.cat(labels)


class Level(nn.Module):
    """One map of a regional read-out: how far it is above its mean on good images, in deviations, squared.

        mean, std    (classes, 1, h, w) of the distance on good images, on the coarsest grid
        move         (1, 1, k, k) what brings the finest map back by the offset; what it takes from beyond the edge is 0

    Args:
        scale: from the grid of the statistics to that of the map.
        enlargement: from there to the finest map.
        offset: how far down and right its pixels lie of what they see, pixels of the finest map.
    """

    mean: Tensor
    std: Tensor
    move: Tensor

    def __init__(self, scale: float, enlargement: float, offset: float) -> None:
        super().__init__()
        self.scale = scale
        self.enlargement = enlargement
        self.register_buffer("mean", torch.zeros(1, 1, 1, 1))
        self.register_buffer("std", torch.ones(1, 1, 1, 1))
        self.register_buffer("move", back_by(offset))

    def forward(self, values: Tensor, label: Tensor) -> Tensor:
        """(N, 1, h, w) on its own grid, and the class of each image (N,) -> (N, 1, H, W) on the finest."""
        mean, std = (enlarge(statistic[label], self.scale) for statistic in (self.mean, self.std))
        excess = enlarge((values - mean) / std, self.enlargement)
        return F.conv2d(excess, self.move, padding=self.move.shape[-1] // 2).clamp_min(0.0).square()

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        take_shapes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _auroc(good: Tensor, defective: Tensor) -> float:
    """The part of the pairs in which the defective one scores higher; half of those that are equal."""
    above = defective[:, None] - good
    return float((above > 0).float().mean() + 0.5 * (above == 0).float().mean())


def take_shapes(module: nn.Module, state_dict: Dict[str, Any], prefix: str) -> None:
    """Give the buffers of a module the shapes of what will be loaded, which depend on the classes and the image."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        stored = state_dict.get(prefix + name)
        if stored is not None and stored.shape != buffer.shape:
            setattr(module, name, torch.empty_like(stored, device=buffer.device))
