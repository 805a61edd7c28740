"""What a head knows of each class, by the names that it has in a checkpoint and in an exported graph.

Every such array has a row for each class, in the order of `ModelInfo.classes`: patches of the bank, statistics and
centroid of the read-out. A class is added by adding rows, and removed by removing them; the rows of the others stay.
"""

import re
from typing import Dict, Iterable, List, Sequence, Tuple

import numpy as np

Arrays = Dict[str, np.ndarray]
BANK, SPREAD = "head.bank.patches", "head.readout.spread"
OF_CLASSES = re.compile(
    r"head\.(bank\.(patches|squares|farthest)|readout\.(centroids|shift|unit|trust|levels\.\d+\.(mean|std)))"
)


def of_classes(names: Iterable[str]) -> List[str]:
    """The names of arrays with a row for each class."""
    return [name for name in names if OF_CLASSES.fullmatch(name)]


def rows(values: Arrays, places: Sequence[int]) -> Arrays:
    """The rows of the classes at some places."""
    return {name: values[name][list(places)] for name in of_classes(values)}


def together(values: Arrays, more: Arrays) -> Arrays:
    """The rows of one head, and behind them those of another one of the same form.

    Centroids are in units of the spread of the head that they come from, and become those of the first. Of banks of
    unequal size the smaller one repeats its patches.

    Args:
        values: of the first head, every array.
        more: of the other.
    """
    joined = {}
    for name in of_classes(values):
        one, other = _of_one_size(name, values[name], _in_units_of(name, values, more))
        joined[name] = np.concatenate([one, other])
    return joined


def mixed(values: Arrays, place: int, more: Arrays, share: float) -> Arrays:
    """The rows of one head, where those of one class are mixed with what another head knows of more of its images.

    Means, deviations and the centroid are those of all images, and the farthest image is that of either. The patches
    are those of the other head, which were chosen among the patches of both. Trust in the bank stays.

    Args:
        values: of the head, every array.
        place: of the class.
        more: of a head with that class alone.
        share: part of the images that the other head saw, between 0 and 1.
    """
    old = {name: values[name][place].astype(np.float64) for name in of_classes(values)}
    new = {name: _in_units_of(name, values, more)[0].astype(np.float64) for name in old}

    def average(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray((1 - share) * one + share * other)

    def row_of(name: str) -> np.ndarray:
        if name.endswith((".mean", ".centroids")):
            return average(old[name], new[name])
        if name.endswith(".std"):
            mean = name[: -len("std")] + "mean"
            squares = [np.square(each[name]) + np.square(each[mean]) for each in (old, new)]
            variance = average(*squares) - np.square(average(old[mean], new[mean]))
            return np.asarray(np.sqrt(np.maximum(variance, 1e-12)))
        if name.endswith(".farthest"):
            return np.asarray(np.maximum(old[name], new[name]))
        row: np.ndarray = (old if name.endswith(".trust") else new)[name]
        return row

    changed = {}
    for name in old:
        all_rows, of_class = _of_one_size(name, values[name], row_of(name)[None].astype(values[name].dtype))
        changed[name] = all_rows.copy()
        changed[name][place] = of_class[0]
    return changed


def _in_units_of(name: str, values: Arrays, more: Arrays) -> np.ndarray:
    """An array of another head, where it is of centroids in the units of the first."""
    if not name.endswith(".centroids"):
        return more[name]
    return np.asarray(more[name] * (more[SPREAD].astype(np.float64) / values[SPREAD]), values[name].dtype)


def _of_one_size(name: str, one: np.ndarray, other: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Arrays of two banks, of which the smaller one repeats its patches; all others as they are."""
    if not name.startswith("head.bank.") or one.ndim != 3 or one.shape[2] == other.shape[2]:
        return one, other
    most = max(one.shape[2], other.shape[2])
    parts = [part[:, :, np.arange(most) % part.shape[2]] for part in (one, other)]
    return parts[0], parts[1]
