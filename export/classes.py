"""What a head knows of each class, by the names that it has in a checkpoint and in an exported graph.

Every such array has a row for each class, in the order of `ModelInfo.classes`: patches of the bank, statistics and
centroid of the read-out. A class is added by adding rows, and removed by removing them; the rows of the others stay.
"""

import re
from typing import Dict, Iterable, Sequence

import numpy as np

Arrays = Dict[str, np.ndarray]
BANK, SPREAD = "head.bank.patches", "head.readout.spread"
OF_CLASSES = re.compile(
    r"head\.(bank\.(patches|squares|farthest)|readout\.(centroids|shift|unit|trust|levels\.\d+\.(mean|std)))"
)


def of_classes(names: Iterable[str]) -> "list[str]":
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
        parts = [values[name], more[name]]
        if name.endswith(".centroids"):
            parts[1] = (parts[1] * (more[SPREAD].astype(np.float64) / values[SPREAD])).astype(parts[0].dtype)
        if name.startswith("head.bank.") and parts[0].ndim == 3:
            most = max(part.shape[2] for part in parts)
            parts = [part[:, :, np.arange(most) % part.shape[2]] for part in parts]
        joined[name] = np.concatenate(parts)
    return joined
