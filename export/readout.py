"""The statistics of the regional read-out: fitted to good images, and again to the graph that is deployed.

`uad.models.readout.RegionalReadOut` says what they mean and judges by them. They are fitted here, with numpy, because
the device that quantizes a graph has no torch, and must come to the same numbers.
"""

import dataclasses
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import constants, copy_of
from export.quantize import observe

READOUT = "head.readout"  # the module's path in a network, with which torch names what it holds
REGIONAL_SHARE = 0.75  # of a moment of the distances; the rest is that of the whole image: parts turn and move
LEAST_SHRINKING = 0.7  # a few images may find a deviation smaller, but not by more than this factor


class Seen(NamedTuple):
    """What a network makes of some good images."""

    maps: List[np.ndarray]  # (N, 1, h, w) float32 each: the distances of the levels, the finest first
    pooled: np.ndarray  # (N, C) float32: the features that tell of which class an image is
    label: np.ndarray  # (N,) int64: the index of each image's class


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the read-out knows of good images of each class."""

    mean: np.ndarray  # (classes, L, h, w) float32, of the distances
    std: np.ndarray  # the same, > 0
    centroids: np.ndarray  # (classes, C) float32, of the pooled features, in units of `spread`
    spread: np.ndarray  # (C,) float32, standard deviation of the pooled features


def together(parts: Iterable[Seen]) -> Seen:
    """Join what was seen in several batches."""
    maps, pooled, label = zip(*parts)
    return Seen([np.concatenate(level) for level in zip(*maps)], np.concatenate(pooled), np.concatenate(label))


def fit(batches: Iterable[Seen], classes: int) -> Statistics:
    """Fit the statistics to good images of every class.

    The moments of a region, mean and mean square, count by `REGIONAL_SHARE`, those of the whole image by the rest. So
    no deviation vanishes where good images hardly differ: what is small beside the whole image's is noise, of which a
    defect must not be made. With a share of 0.75 it is at least half the deviation of the whole image.
    """
    sums: List[np.ndarray] = [np.zeros(()) for _ in range(classes)]
    squares, counts = list(sums), [0] * classes
    pooled, labels = [], []
    for seen in batches:
        pooled.append(seen.pooled.astype(np.float64))
        labels.append(seen.label)
        for index in np.unique(seen.label):
            maps = [level[seen.label == index].astype(np.float64) for level in seen.maps]
            counts[index] += len(maps[0])
            sums[index] = sums[index] + _on_coarsest_grid(maps).sum(axis=0)
            squares[index] = squares[index] + _on_coarsest_grid([np.square(level) for level in maps]).sum(axis=0)
    mean, square = (
        _towards_whole(_smooth(np.stack([total / count for total, count in zip(moments, counts)])))
        for moments in (sums, squares)
    )
    variance = np.maximum(square - np.square(mean), 1e-12)
    features, label = np.concatenate(pooled), np.concatenate(labels)
    spread = np.maximum(features.std(axis=0), 1e-3)
    centroids = np.stack([features[label == index].mean(axis=0) for index in range(classes)]) / spread
    return _statistics(mean, np.sqrt(variance), centroids, spread)


def refit(statistics: Statistics, before: Seen, after: Seen) -> Statistics:
    """Correct statistics by what a change of the network does to a few good images.

    Args:
        statistics: of the network before the change, fitted to many images.
        before: what that network makes of some images.
        after: what the changed one makes of the same images. Classes of which there are none are only widened.
    """
    wide = widen(statistics, before, after)
    mean, std, centroids = (each.astype(np.float64) for each in (wide.mean, wide.std, wide.centroids))
    for index in np.unique(before.label):
        one, other = (_of_class(seen, index) for seen in (before, after))
        old = statistics.mean[index].astype(np.float64)
        deviation = statistics.std[index].astype(np.float64)
        shift = _smooth((_on_coarsest_grid(other.maps) - _on_coarsest_grid(one.maps)).mean(axis=0))
        new = old + _towards_whole(shift)
        # About the mean, not about 0: the few images lie to one side of it, which must not count as a deviation.
        growth = _smooth((_square_about(other.maps, new) - _square_about(one.maps, old)).mean(axis=0))
        growth = _towards_whole(growth)
        variance = np.maximum(np.square(deviation) + growth, np.square(LEAST_SHRINKING * deviation))
        mean[index], std[index] = new, np.maximum(np.sqrt(variance), _noise(one, other))
        change = (other.pooled.astype(np.float64) - one.pooled).mean(axis=0)
        centroids[index] += change / statistics.spread
    return _statistics(mean, std, centroids, statistics.spread)


def widen(statistics: Statistics, before: Seen, after: Seen) -> Statistics:
    """Give every deviation the noise that a change of the network adds, where the classes of the images are unknown."""
    std = np.maximum(statistics.std, _noise(before, after))
    return dataclasses.replace(statistics, std=std.astype(np.float32))


def read_statistics(model: onnx.ModelProto) -> Optional[Statistics]:
    """The statistics inside an exported graph; None where its read-out has none, as that of the STFPM paper."""
    values = constants(model)
    names = _level_names(model)
    if not names:
        return None
    mean, std = (np.concatenate([values[f"{name}.{kind}"] for name in names], axis=1) for kind in ("mean", "std"))
    return Statistics(mean, std, values[f"{READOUT}.centroids"], values[f"{READOUT}.spread"])


def with_statistics(model: onnx.ModelProto, statistics: Statistics) -> onnx.ModelProto:
    """A copy of an exported graph that judges by other statistics of the same shape."""
    new = {f"{READOUT}.centroids": statistics.centroids, f"{READOUT}.spread": statistics.spread}
    for index, name in enumerate(_level_names(model)):
        for kind, values in (("mean", statistics.mean), ("std", statistics.std)):
            new[f"{name}.{kind}"] = np.ascontiguousarray(values[:, index : index + 1])
    changed = copy_of(model)
    for tensor in changed.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name], tensor.name))
    return changed


def see(model: onnx.ModelProto, images: Iterable[np.ndarray], label: Sequence[int]) -> Seen:
    """What a graph with a regional read-out makes of images (H, W, 3) uint8, one at a time, in ONNX Runtime.

    Raises:
        CalibrationError: no image, or values that are not finite.
    """
    maps, pooled = _readout_inputs(model)
    seen = []
    for values, index in zip(observe(model, [*maps, pooled], images), label):
        seen.append(Seen([values[name] for name in maps], values[pooled], np.array([index])))
    return together(seen)


def class_distances(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> np.ndarray:
    """How unlike the classes of a model images (H, W, 3) uint8 are: (N,), none where its read-out knows no class.

    The mean over the pooled features of the squared distance from the nearest centroid, in units of their spread.

    Raises:
        CalibrationError: values that are not finite.
    """
    statistics = read_statistics(model)
    if statistics is None:
        return np.zeros(0)
    name = _readout_inputs(model)[1]
    pooled = np.concatenate([values[name] for values in observe(model, [name], images)])
    away = pooled[:, None] / statistics.spread - statistics.centroids
    return np.asarray(np.square(away).mean(axis=2).min(axis=1))


def _level_names(model: onnx.ModelProto) -> List[str]:
    """What the initializers of each level begin with, the finest level first."""
    names = {tensor.name for tensor in model.graph.initializer}
    levels: List[str] = []
    while f"{READOUT}.levels.{len(levels)}.mean" in names:
        levels.append(f"{READOUT}.levels.{len(levels)}")
    return levels


def _readout_inputs(model: onnx.ModelProto) -> Tuple[List[str], str]:
    """The tensors that hold the distances of each level, and that of the pooled features."""
    fixed = constants(model)
    place = "/" + READOUT.replace(".", "/")
    maps = []
    for index in range(len(_level_names(model))):
        subtraction = next(
            node
            for node in model.graph.node
            if node.op_type == "Sub" and node.name.startswith(f"{place}/levels.{index}/")
        )
        maps.append(subtraction.input[0])
    division = next(node for node in model.graph.node if f"{READOUT}.spread" in node.input)
    assert division.input[0] not in fixed
    return maps, division.input[0]


def _noise(before: Seen, after: Seen) -> np.ndarray:
    """(L, 1, 1): the deviation of the difference of the maps, root mean square over their pixels."""
    differences = [other.astype(np.float64) - one for one, other in zip(before.maps, after.maps)]
    return np.sqrt([np.square(each - each.mean(axis=0)).mean() for each in differences])[:, None, None]


def _of_class(seen: Seen, index: int) -> Seen:
    member = seen.label == index
    return Seen([level[member] for level in seen.maps], seen.pooled[member], seen.label[member])


def _square_about(maps: Sequence[np.ndarray], mean: np.ndarray) -> np.ndarray:
    """(N, L, h, w): the squared distances of the pixels of each region from its mean (L, h, w), averaged."""
    square = _on_coarsest_grid([np.square(level, dtype=np.float64) for level in maps])
    return np.asarray(square - 2 * mean * _on_coarsest_grid(maps) + np.square(mean))


def _on_coarsest_grid(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Average maps (N, 1, h, w), whose sizes are multiples of the last one's, on its grid: (N, L, h, w) float64."""
    height, width = maps[-1].shape[2:]
    blocks = [level.reshape(len(level), 1, height, level.shape[2] // height, width, -1) for level in maps]
    return np.concatenate([block.mean(axis=(3, 5), dtype=np.float64) for block in blocks], axis=1)


def _statistics(mean: np.ndarray, std: np.ndarray, centroids: np.ndarray, spread: np.ndarray) -> Statistics:
    return Statistics(*(each.astype(np.float32) for each in (mean, std, centroids, spread)))


def _towards_whole(moments: np.ndarray) -> np.ndarray:
    """Bring moments (..., h, w) of each region towards those of the whole image."""
    whole = moments.mean(axis=(-2, -1), keepdims=True)
    blended: np.ndarray = REGIONAL_SHARE * moments + (1.0 - REGIONAL_SHARE) * whole
    return blended


def _smooth(values: np.ndarray) -> np.ndarray:
    """Blur (..., h, w) by one grid step, edges repeated: a few images a class say little of a single place."""
    steps = np.arange(-3, 4)
    kernel = np.exp(-0.5 * np.square(steps.astype(np.float64)))
    kernel /= kernel.sum()
    for axis in (-2, -1):
        size = values.shape[axis]
        places = np.arange(size)
        parts = [w * values.take(np.clip(places + step, 0, size - 1), axis=axis) for w, step in zip(kernel, steps)]
        values = np.sum(parts, axis=0)
    return values
