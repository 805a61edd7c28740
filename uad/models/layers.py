"""Small layers that models share. All of them compute in float32."""

import math
import warnings
from typing import Iterable, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, normalised as the backbone wants it.

    Args:
        mean: of each colour, for pixels in [0, 1].
        std: the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Cast before transposing, as TensorRT 8.5 wants it."""
        return (image.float().permute(0, 3, 1, 2) - self.mean) / self.std


class Standardize(nn.Module):
    """(N, C, h, w) -> the same in float32, each channel at mean 0 and standard deviation 1 over the training images."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Before `fit_standardization` the features stay as they are."""
        return (features.float() - self.mean) / self.std


@torch.no_grad()
def fit_standardization(layers: Iterable[nn.Module], batches: Iterable[List[Tensor]]) -> None:
    """Fit a `Standardize` for each level to the features (N, C, h, w) of good images, level by level in each batch."""
    layers, count = list(layers), 0
    sums = [torch.zeros(())] * len(layers)
    squares = list(sums)
    for features in batches:
        count += len(features[0])
        for level, values in enumerate(features):
            sums[level] = sums[level] + values.double().mean(dim=(2, 3), keepdim=True).sum(dim=0, keepdim=True)
            square = values.double().square().mean(dim=(2, 3), keepdim=True)
            squares[level] = squares[level] + square.sum(dim=0, keepdim=True)
    for level, layer in enumerate(layers):
        assert isinstance(layer, Standardize)
        mean = sums[level] / count
        std = (squares[level] / count - mean.square()).clamp_min(0.0).sqrt()
        layer.mean.copy_(mean)
        layer.std.copy_(std.clamp_min(1e-3))  # a dead channel stays 0


def gaussian(sigma: float) -> Tensor:
    """(1, 1, k, k) normalised kernel that reaches three standard deviations; `sigma` in pixels."""
    radius = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = torch.outer(line, line)
    return (kernel / kernel.sum()).view(1, 1, 2 * radius + 1, 2 * radius + 1)


def back_by(offset: float) -> Tensor:
    """(1, 1, k, k) kernel that moves a map up and left, by so many pixels, at least 0; bilinear."""
    whole = int(offset)
    reach = math.ceil(offset)
    line = torch.zeros(2 * reach + 1)
    line[reach + whole] = 1.0 - (offset - whole)
    if offset > whole:
        line[reach + whole + 1] = offset - whole
    return torch.outer(line, line).view(1, 1, len(line), len(line))


def enlarge(maps: Tensor, scale: float) -> Tensor:
    """(N, C, h, w) -> (N, C, scale h, scale w), bilinear; the scale becomes a constant of an exported graph."""
    if scale == 1:
        return maps
    return F.interpolate(maps, scale_factor=float(scale), mode="bilinear", align_corners=False)


def fixed_shape(maps: Tensor) -> Tuple[int, int, int]:
    """C, h and w of maps (N, C, h, w): constants of an exported graph, whose image has a fixed size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return int(maps.shape[1]), int(maps.shape[2]), int(maps.shape[3])


def pixel_count(maps: Tensor) -> int:
    """How many pixels maps (N, C, h, w) have; see `fixed_shape`."""
    _, height, width = fixed_shape(maps)
    return height * width
