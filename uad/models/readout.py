"""Distance maps to what is said of an image: the score (N,) and the anomaly map (N, h, w), float32.

A read-out is a module of the head. It takes any number of distance maps (N, 1, h, w), the finest first, and the pooled
features (N, C) that tell of which class an image is. Its map is on the finest grid.
"""

from typing import Any, Dict, Iterable, List, NamedTuple, Protocol, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uad.models.layers import enlarge, gaussian, pixel_count

SMOOTHING = 1.0  # standard deviation of the Gaussian on the joined map, in map pixels
TOP_FRACTION = 0.003  # of the joined map's pixels, whose mean is the score


class Seen(NamedTuple):
    """What a network makes of some good images, for a read-out to be fitted to."""

    maps: List[Tensor]  # (N, 1, h, w) each
    pooled: Tensor  # (N, C)
    label: Tensor  # (N,) int64, index of each image's class


class ReadOut(Protocol):
    """What every read-out offers."""

    def __call__(self, maps: List[Tensor], pooled: Tensor) -> Tuple[Tensor, Tensor]:
        """Score (N,) and anomaly map (N, h, w)."""

    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Learn what is needed of good images of so many classes."""


class ProductReadOut(nn.Module):
    """The product of the maps, and its greatest pixel as the score: as in the STFPM paper. It fits nothing.

    Args:
        strides: image pixels for each pixel of each map.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.scales = [stride / strides[0] for stride in strides]

    def forward(self, maps: List[Tensor], pooled: Tensor) -> Tuple[Tensor, Tensor]:
        """The maps are brought to the finest grid first."""
        joined = enlarge(maps[0], self.scales[0]).clamp_min(0.0)
        for values, scale in zip(maps[1:], self.scales[1:]):
            joined = joined * enlarge(values, scale).clamp_min(0.0)
        return joined.flatten(1).amax(dim=1), joined.squeeze(1)

    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Nothing is needed."""


class RegionalReadOut(nn.Module):
    """Distances on the scale of good images of the same class in the same region, squared and added up.

    Each distance becomes a number of standard deviations above the mean that it has on good images. What is below the
    mean counts as 0. The sum over the maps is smoothed, and its highest pixels give the score. The class is that of
    the nearest centroid of pooled features. Cf. the quantiles of EfficientAD (Batzner et al., WACV 2024) and the
    position-wise statistics of PaDiM (Defard et al., 2021).

        centroids    (classes, C)       of pooled features, in units of `spread`
        spread       (C,)               standard deviation of the pooled features
        mean         (classes, L, h, w) of the distance in each of the L maps, on the coarsest grid
        std          (classes, L, h, w)
        border       (1, 1, H, W)       what makes up for the zeros that smoothing sees outside the finest map

    Before `fit`, distances count as they are.

    Args:
        strides: image pixels for each pixel of each map, the finest first.
        channels: C.
    """

    centroids: Tensor
    spread: Tensor
    mean: Tensor
    std: Tensor
    border: Tensor
    blur: Tensor

    def __init__(self, strides: Sequence[int], channels: int) -> None:
        super().__init__()
        assert list(strides) == sorted(strides)
        self.strides = list(strides)
        self.register_buffer("centroids", torch.zeros(1, channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("mean", torch.zeros(1, len(strides), 1, 1))
        self.register_buffer("std", torch.ones(1, len(strides), 1, 1))
        self.register_buffer("border", torch.ones(1, 1, 1, 1))
        self.register_buffer("blur", gaussian(SMOOTHING))

    def forward(self, maps: List[Tensor], pooled: Tensor) -> Tuple[Tensor, Tensor]:
        """Statistics are looked up level by level: an exported graph then needs no Slice."""
        place = pooled / self.spread
        nearest = (place[:, None] - self.centroids).square().sum(dim=2).argmin(dim=1)
        joined = torch.zeros(())
        for level, (values, stride) in enumerate(zip(maps, self.strides)):
            scale = self.strides[-1] / stride  # from the grid of the statistics to this map
            mean = enlarge(self.mean[:, level : level + 1][nearest], scale)
            std = enlarge(self.std[:, level : level + 1][nearest], scale)
            excess = enlarge((values - mean) / std, stride / self.strides[0]).clamp_min(0.0).square()
            joined = excess if level == 0 else joined + excess
        anomaly_map = F.conv2d(joined, self.blur, padding=self.blur.shape[-1] // 2) * self.border
        top = max(1, round(TOP_FRACTION * pixel_count(anomaly_map)))
        score = torch.topk(anomaly_map.flatten(1), top, dim=1).values.mean(dim=1)
        return score, anomaly_map.squeeze(1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Seen], classes: int) -> None:
        """Fit every buffer to good images; every class is among them."""
        pooled: List[Tensor] = []
        labels: List[Tensor] = []
        sums = squares = torch.zeros(())
        for maps, features, label in batches:
            pooled.append(features)
            labels.append(label)
            member = F.one_hot(label, classes).float()
            sums = sums + _sum_by_class(member, maps)
            squares = squares + _sum_by_class(member, [level.square() for level in maps])
        features, label = torch.cat(pooled), torch.cat(labels)
        count = F.one_hot(label, classes).sum(dim=0).view(-1, 1, 1, 1)
        mean, square = _smooth(sums / count), _smooth(squares / count)
        ones = torch.ones_like(maps[0][:1])
        self.border = 1.0 / F.conv2d(ones, self.blur, padding=self.blur.shape[-1] // 2)
        # A region where good images never differ is given a hundredth of the level's mean, so that nothing is
        # divided by zero.
        least = 0.01 * mean.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        self.mean = mean
        self.std = torch.maximum((square - mean.square()).clamp_min(0.0).sqrt(), least)
        self.spread = features.std(dim=0, correction=0).clamp_min(1e-3)
        centroids = [features[label == index].mean(dim=0) for index in range(classes)]
        self.centroids = torch.stack(centroids) / self.spread

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the shapes of the buffers, which depend on the classes, from what is loaded."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _sum_by_class(member: Tensor, maps: List[Tensor]) -> Tensor:
    """L maps (N, 1, h, w), averaged on the last one's grid, summed over each class: (classes, L, h, w)."""
    grid = (maps[-1].shape[-2], maps[-1].shape[-1])
    averaged = torch.cat([F.adaptive_avg_pool2d(level, grid) for level in maps], dim=1)
    return torch.einsum("nc,nlhw->clhw", member, averaged)


def _smooth(statistics: Tensor) -> Tensor:
    """Blur (classes, L, h, w) by one grid step: a few images a class say little of a single place."""
    kernel = gaussian(1.0)
    margin = kernel.shape[-1] // 2
    flat = statistics.flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.pad(flat, (margin,) * 4, mode="replicate"), kernel).view_as(statistics)
