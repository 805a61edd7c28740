"""The statistics of the regional read-out: fitted to good images, and again to the graph that is deployed.

`uad.models.readout.RegionalReadOut` says what they mean and judges by them. They are fitted here, with numpy, because
the device that quantizes a graph has no torch, and must come to the same numbers.
"""

import dataclasses
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import constants
from export.quantize import observe

READOUT = "head.readout"  # the module's path in a network, with which torch names what it holds
NOISE_SHARE = 0.1  # of the deviation of a level, root mean square over the regions, that every region is given
LEAST_SHRINKING = 0.7  # a few images may find a deviation smaller, but not by more than this factor


class Seen(NamedTuple):
    """What a network makes of some good images."""

    maps: np.ndarray  # (N, L, h, w) float32: the distances of the L levels, averaged on the coarsest grid
    pooled: np.ndarray  # (N, C) float32: the features that tell of which class an image is
    label: np.ndarray  # (N,) int64: the index of each image's class


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the read-out knows of good images of each class."""

    mean: np.ndarray  # (classes, L, h, w) float32, of the distances
    std: np.ndarray  # the same, > 0
    centroids: np.ndarray  # (classes, C) float32, of the pooled features, in units of `spread`
    spread: np.ndarray  # (C,) float32, standard deviation of the pooled features


def on_coarsest_grid(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Average maps (N, 1, h, w), whose sizes are multiples of the last one's, on its grid: (N, L, h, w) float32."""
    height, width = maps[-1].shape[2:]
    blocks = [level.reshape(len(level), 1, height, level.shape[2] // height, width, -1) for level in maps]
    return np.concatenate([block.mean(axis=(3, 5), dtype=np.float64) for block in blocks], axis=1).astype(np.float32)


def together(parts: Iterable[Seen]) -> Seen:
    """Join what was seen in several batches."""
    return Seen(*(np.concatenate(each) for each in zip(*parts)))


def fit(seen: Seen, classes: int) -> Statistics:
    """Fit the statistics to good images of every class.

    A region where good images hardly differ is given a share of the deviation of its level and class: what is smaller
    than that is noise, of which a defect must not be made.
    """
    members = [seen.label == index for index in range(classes)]
    maps = seen.maps.astype(np.float64)
    mean = _smooth(np.stack([maps[member].mean(axis=0) for member in members]))
    square = _smooth(np.stack([np.square(maps[member]).mean(axis=0) for member in members]))
    variance = np.maximum(square - np.square(mean), 0.0)
    floor = np.maximum(NOISE_SHARE * np.sqrt(variance.mean(axis=(2, 3), keepdims=True)), 1e-6)
    pooled = seen.pooled.astype(np.float64)
    spread = np.maximum(pooled.std(axis=0), 1e-3)
    centroids = np.stack([pooled[member].mean(axis=0) for member in members]) / spread
    return _statistics(mean, np.maximum(np.sqrt(variance), floor), centroids, spread)


def refit(statistics: Statistics, before: Seen, after: Seen) -> Statistics:
    """Correct statistics by what a change of the network does to a few good images.

    Args:
        statistics: of the network before the change, fitted to many images.
        before: what that network makes of some images.
        after: what the changed one makes of the same images. Classes of which there are none are only widened.
    """
    wide = widen(statistics, before, after)
    mean, std, centroids = (each.astype(np.float64) for each in (wide.mean, wide.std, wide.centroids))
    std[np.unique(before.label)] = statistics.std[np.unique(before.label)]
    for index in np.unique(before.label):
        member = before.label == index
        one, other = (maps[member].astype(np.float64) for maps in (before.maps, after.maps))
        shift = _smooth((other - one).mean(axis=0))
        square = np.square(mean[index]) + np.square(std[index])
        square += _smooth((np.square(other) - np.square(one)).mean(axis=0))
        moved = mean[index] + shift
        variance = np.maximum(square - np.square(moved), np.square(LEAST_SHRINKING * std[index]))
        noise = _noise(one, other)
        mean[index], std[index] = moved, np.maximum(np.sqrt(variance), noise)
        change = (after.pooled[member].astype(np.float64) - before.pooled[member]).mean(axis=0)
        centroids[index] += change / statistics.spread
    return _statistics(mean, std, centroids, statistics.spread)


def widen(statistics: Statistics, before: Seen, after: Seen) -> Statistics:
    """Give every deviation the noise that a change of the network adds, where the classes of the images are unknown."""
    noise = _noise(before.maps.astype(np.float64), after.maps.astype(np.float64))
    return dataclasses.replace(statistics, std=np.maximum(statistics.std, noise).astype(np.float32))


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
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
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
        averaged = on_coarsest_grid([values[name] for name in maps])
        seen.append(Seen(averaged, values[pooled], np.array([index])))
    return together(seen)


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


def _noise(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N, L, h, w) twice -> (L, 1, 1): the deviation of their difference, root mean square over the regions."""
    difference = after - before
    return np.asarray(np.sqrt(np.square(difference - difference.mean(axis=0)).mean(axis=(0, 2, 3))))[:, None, None]


def _statistics(mean: np.ndarray, std: np.ndarray, centroids: np.ndarray, spread: np.ndarray) -> Statistics:
    return Statistics(*(each.astype(np.float32) for each in (mean, std, centroids, spread)))


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
