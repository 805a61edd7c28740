"""Ranges for INT8: from the values a tensor takes over the calibration images to one `amax`, and on to a scale.

Each calibrator is a pure function of a histogram of absolute values. The histogram of a tensor has a fixed size, so
memory does not grow with the number of images.
"""

from functools import partial
from typing import Callable, Sequence

import numpy as np

from export.errors import ExportError

BINS = 4096
PERCENTILE = 99.99


def scale_from_amax(amax: np.ndarray) -> np.ndarray:
    """The step of symmetric signed INT8 whose largest magnitude is `amax`: amax / 127.

    A range of [-6.35, 6.35] gives a scale of 0.05, and 1.0 becomes the integer 20. A dead tensor or channel (amax 0)
    gets the scale 1: its values are all 0 at any scale, and TensorRT refuses a scale of 0 (NVIDIA/TensorRT#1826).

    Args:
        amax: float array of any shape, >= 0.

    Returns:
        float32 array of the same shape, > 0.
    """
    amax = np.asarray(amax, np.float64)
    scale = np.where(amax > 0, amax / 127.0, 1.0).astype(np.float32)
    return np.maximum(scale, np.finfo(np.float32).tiny)


class Histogram:
    """Counts of |x| in `BINS` equal bins over [0, limit); the limit doubles as larger values arrive.

    When it doubles, neighbouring bins are merged, so between BINS / 2 and BINS bins cover the values seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.amax = 0.0  # the largest magnitude seen, exact

    def update(self, values: np.ndarray) -> None:
        """Count a float array of any shape.

        Raises:
            ValueError: it holds NaN or infinity.
        """
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        amax = float(magnitudes.max()) if magnitudes.size else 0.0
        if not np.isfinite(amax):
            raise ValueError("a tensor is not finite")
        self.amax = max(self.amax, amax)
        if self.limit == 0.0 and amax > 0.0:
            self.limit = amax * 1.0001
        while amax >= self.limit > 0.0:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2.0
        if self.limit == 0.0:  # nothing but zeros so far
            self.counts[0] += magnitudes.size
            return
        bins = np.minimum((magnitudes / self.limit * BINS).astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    @property
    def edges(self) -> np.ndarray:
        """(BINS + 1,) float64, the borders of the bins."""
        return np.linspace(0.0, self.limit, BINS + 1)


def merged(histograms: Sequence[Histogram]) -> Histogram:
    """One histogram of all that several counted, to a bin of the widest."""
    whole = Histogram()
    whole.limit = max(histogram.limit for histogram in histograms)
    whole.amax = max(histogram.amax for histogram in histograms)
    for histogram in histograms:
        middles = (np.arange(BINS) + 0.5) * (histogram.limit / BINS)
        places = np.minimum(middles / (whole.limit or 1.0) * BINS, BINS - 1).astype(np.int64)
        np.add.at(whole.counts, places, histogram.counts)
    return whole


def amax_minmax(histogram: Histogram) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return histogram.amax


def amax_percentile(histogram: Histogram, percentile: float = PERCENTILE) -> float:
    """The magnitude below which `percentile` percent of the values lie (upper border of that bin)."""
    total = histogram.counts.sum()
    if total == 0 or histogram.amax == 0.0:
        return 0.0
    index = int(np.searchsorted(np.cumsum(histogram.counts), total * percentile / 100.0))
    return float(min(histogram.edges[min(index + 1, BINS)], histogram.amax))


def amax_entropy(histogram: Histogram, bits: int = 8, stride: int = 8) -> float:
    """The range whose version in `bits` bits keeps the most information about the float values.

    Migacz, '8-bit inference with TensorRT', GTC 2017: for each candidate range, the Kullback-Leibler divergence of the
    clipped histogram from the same histogram merged into 2 ** (bits - 1) levels, 128 for INT8. As in TensorRT and
    pytorch-quantization the first bin counts as much as the second, because exact zeros (after ReLU) would otherwise
    decide alone.
    """
    counts = histogram.counts.astype(np.float64)
    if histogram.amax == 0.0:
        return 0.0
    counts[0] = counts[1]
    levels = 2 ** (bits - 1)
    last = int(np.nonzero(histogram.counts)[0][-1]) + 1
    best, best_divergence = last, np.inf
    for width in range(levels, last + stride, stride):
        divergence = _divergence(counts, min(width, last), levels)
        if divergence <= best_divergence:  # of equals the widest: it clips least
            best, best_divergence = min(width, last), divergence
    return float(min(histogram.edges[best], histogram.amax))


def _divergence(counts: np.ndarray, width: int, levels: int) -> float:
    """Kullback-Leibler divergence of the first `width` bins (clipped) from their version of `levels`, in nats."""
    if width < levels:
        return np.inf
    reference = counts[:width].copy()
    level = np.minimum(np.arange(width) * levels // width, levels - 1)
    occupied = reference > 0
    sums = np.bincount(level, weights=reference, minlength=levels)
    members = np.bincount(level, weights=occupied, minlength=levels)
    quantized = np.where(occupied, (sums / np.maximum(members, 1))[level], 0.0)
    reference[-1] += counts[width:].sum()  # what is clipped lands on the largest value
    if not quantized.sum() or (reference[~occupied] > 0).any():
        return np.inf
    p = reference[occupied] / reference.sum()
    q = quantized[occupied] / quantized.sum()
    return float((p * np.log(p / q)).sum())


CALIBRATORS = ("entropy", "percentile", "minmax")
Calibrator = Callable[[Histogram], float]  # the histogram of a tensor -> its amax


def calibrator(name: str, *, percentile: float = PERCENTILE, bits: int = 8) -> Calibrator:
    """The calibrator of a name.

    Args:
        name: one of `CALIBRATORS`.
        percentile: for percentile: how many percent of the values are not clipped.
        bits: for entropy: of the integers.

    Raises:
        ExportError: an unknown name, or a percentile that cannot be.
    """
    if not 0 < percentile <= 100:
        raise ExportError(f"percentile {percentile}: give a number above 0, at most 100")
    if name == "entropy":
        return partial(amax_entropy, bits=bits)
    if name == "percentile":
        return partial(amax_percentile, percentile=percentile)
    if name == "minmax":
        return amax_minmax
    raise ExportError(f"unknown calibrator '{name}': choose one of {', '.join(CALIBRATORS)}")
