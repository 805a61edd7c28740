"""Scores of a detector against the truth: image metrics, a threshold, rank correlation, pixel metrics.

Everything works on raw scores, of any range: nothing here squashes, rescales or rounds an image score.
A metric that the data does not define (only good images, say) is ``None``, never 0, 0.5 or 1. The decision
rule of the whole project is: an image is called defective iff its score is strictly above the threshold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def image_auroc(scores: ArrayLike, is_defect: ArrayLike) -> float | None:
    """ROC area of image scores, ties count half (Fawcett, 2006, 'An introduction to ROC analysis').

    Args:
        scores: (n,) finite numbers, higher means more anomalous. Compared as float64.
        is_defect: (n,) bool, the truth.

    Returns:
        The area in [0, 1], or None when the images are all good, all defective, or none.

    Raises:
        ValueError: A shape or dtype is wrong, the lengths differ, or a score is not finite.
    """
    values, labels = _scores_and_labels(scores, is_defect)
    if labels.all() or not labels.any():
        return None
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped,unused-ignore]

    return float(roc_auc_score(labels, values))


def best_f1(scores: ArrayLike, is_defect: ArrayLike) -> float | None:
    """Best F1 of the class 'defect' over every possible threshold, exactly.

    A threshold takes all images of equal score or none of them. The threshold is chosen on the very images it
    is judged on, so this is an upper bound ('F1-max' in Jeong et al., 2023, 'WinCLIP'), not an estimate of
    the F1 at a threshold fixed beforehand.

    Args:
        scores: (n,) finite numbers, higher means more anomalous. Compared as float64.
        is_defect: (n,) bool, the truth.

    Returns:
        The F1 in (0, 1], or None when the images are all good, all defective, or none.

    Raises:
        ValueError: A shape or dtype is wrong, the lengths differ, or a score is not finite.
    """
    values, labels = _scores_and_labels(scores, is_defect)
    if labels.all() or not labels.any():
        return None
    order = np.argsort(-values, kind="stable")
    values, labels = values[order], labels[order]
    last_of_equals = np.append(values[1:] != values[:-1], True)
    called = np.arange(1, values.size + 1)[last_of_equals]
    correct = np.cumsum(labels)[last_of_equals]
    return float(np.max(2 * correct / (called + labels.sum())))


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation: Pearson's correlation of the ranks, equal values share their mean rank.

    Args:
        a: (n,) finite numbers.
        b: (n,) finite numbers, paired with `a`.

    Returns:
        The correlation in [-1, 1], or None when n < 2 or either side is constant.

    Raises:
        ValueError: A wrong shape, different lengths, or a value that is not finite.
    """
    left, right = _vector(a, "a"), _vector(b, "b")
    if left.size != right.size:
        raise ValueError(f"a and b differ in length: {left.size} and {right.size}")
    if left.size < 2 or np.all(left == left[0]) or np.all(right == right[0]):
        return None
    from scipy.stats import rankdata  # type: ignore[import-untyped,unused-ignore]

    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


# Sign, exponent and 11 bits of the fraction of a float32: the (normal) values of one bin differ by less than
# 1 part in 2^11; subnormal ones, below 1.2e-38, by less than 1e-41.
_BITS = 20
_BINS = 1 << _BITS

# Diagonal neighbours belong to one region, as in MVTec's own evaluation code (pro_curve_util.compute_pro,
# scipy.ndimage.label with a 3 x 3 structure of ones) and in anomalib (cv2.connectedComponents, default 8).
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class PixelCurve:
    """Pixel AUROC and AUPRO over a stream of anomaly maps, in memory that does not grow with the pixels.

    A pixel is counted in one of 2^20 bins: the top 20 bits of its float32 value, read as an integer that
    orders like the value. No range has to be known, so negative, tiny and huge values all keep a relative
    resolution of 2^-11 (0.05 %). Pixels in one bin are a tie, handled as ties are: half a point in AUROC, a
    straight piece of the curve in AUPRO. Rounding is the only approximation, and it can move AUROC by no more
    than half the share of (good, defect) pixel pairs that fall in one bin with different values. Only maps
    that vary little around a large offset make that share large (1000 to 1001 is 5 bins): remove the offset.

    Memory: three arrays of 2^20 8-byte numbers, 24 MiB, whatever is added. For their duration, `update` takes
    one more such array and about six times its map, `auroc` and `aupro` up to eight such arrays.
    """

    def __init__(self) -> None:
        self._good = np.zeros(_BINS, dtype=np.int64)  # pixels outside every defect
        self._defect = np.zeros(_BINS, dtype=np.int64)  # pixels of a defect
        self._region = np.zeros(_BINS, dtype=np.float64)  # the same, each weighing 1 / (pixels of its region)

    def update(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Add one image. An empty mask (a good image) adds good pixels only.

        Args:
            anomaly_map: float32 (H, W), finite, higher means more anomalous.
            mask: bool (H, W), True on defect pixels. Its 8-connected regions are the regions of AUPRO.

        Raises:
            ValueError: A shape or dtype is wrong, or a map value is not finite; nothing was added then.
        """
        if anomaly_map.ndim != 2 or anomaly_map.size == 0 or anomaly_map.dtype != np.float32:
            raise ValueError(f"anomaly_map must be float32 (H, W), got {_describe(anomaly_map)}")
        if mask.shape != anomaly_map.shape or mask.dtype != np.bool_:
            raise ValueError(f"mask must be bool {anomaly_map.shape}, got {_describe(mask)}")
        if not np.isfinite(anomaly_map).all():
            raise ValueError("anomaly_map has values that are not finite")

        bins = _bin_of(anomaly_map)
        self._good += np.bincount(bins[~mask], minlength=_BINS)
        if mask.any():
            from scipy.ndimage import label  # type: ignore[import-untyped,unused-ignore]

            region_of, _ = label(mask, structure=_EIGHT_CONNECTED)
            size_of = np.bincount(region_of.ravel())
            self._defect += np.bincount(bins[mask], minlength=_BINS)
            self._region += np.bincount(bins[mask], weights=1.0 / size_of[region_of[mask]], minlength=_BINS)

    def auroc(self) -> float | None:
        """Area under the ROC curve of all pixels of all images, in [0, 1].

        Returns:
            The area, or None when no defect pixel or no good pixel was added.
        """
        curve = self._curve(self._defect)
        return None if curve is None else _area(*curve)

    def aupro(self, max_fpr: float = 0.3) -> float | None:
        """Area under the per-region overlap curve, in [0, 1].

        The curve is the overlap (share of a region's pixels above the threshold), averaged over all regions
        of all images, against the share of all good pixels above it. The area from 0 to `max_fpr`, divided by
        `max_fpr`; between two thresholds, so also at `max_fpr`, the curve is linear. Definition and the
        limit 0.3: Bergmann et al., 2021, 'The MVTec Anomaly Detection Dataset', IJCV 129, 1038-1059.

        Args:
            max_fpr: Where the area ends, in (0, 1].

        Returns:
            The normalised area, or None when no defect pixel or no good pixel was added.

        Raises:
            ValueError: `max_fpr` is outside (0, 1].
        """
        if not 0.0 < max_fpr <= 1.0:
            raise ValueError(f"max_fpr must be in (0, 1], got {max_fpr}")
        curve = self.overlap_curve()
        if curve is None:
            return None
        fpr, overlap = curve
        inside = int(np.searchsorted(fpr, max_fpr, side="right"))
        if inside < fpr.size:  # cut the piece with fpr[inside - 1] <= max_fpr < fpr[inside] at the border
            part = (max_fpr - fpr[inside - 1]) / (fpr[inside] - fpr[inside - 1])
            border = overlap[inside - 1] + part * (overlap[inside] - overlap[inside - 1])
            fpr = np.append(fpr[:inside], max_fpr)
            overlap = np.append(overlap[:inside], border)
        return _area(fpr, overlap) / max_fpr

    def overlap_curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """The curve of `aupro`: false positive rate and mean overlap, from (0, 0) to (1, 1); None as there."""
        return self._curve(self._region)

    def _curve(self, hits: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """False positive rate and share of `hits`, from (0, 0) to (1, 1), at each threshold downwards."""
        if not self._good.any() or not self._defect.any():
            return None
        used = np.flatnonzero(self._good + self._defect)[::-1]
        return _running_share(self._good[used]), _running_share(hits[used])


def _bin_of(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bin of each finite float32: the top bits of an unsigned integer that orders like the value."""
    bits = (values + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0, an equal value, into +0.0
    negative = bits >= np.uint32(0x80000000)
    ordered = np.where(negative, ~bits, bits | np.uint32(0x80000000))
    return ordered >> np.uint32(32 - _BITS)


def _running_share(weights: NDArray[np.generic]) -> NDArray[np.float64]:
    total = np.cumsum(weights, dtype=np.float64)
    return np.append(0.0, total / total[-1])


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got {_describe(vector)}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} has values that are not finite")
    return vector


def _scores_and_labels(scores: ArrayLike, is_defect: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, labels = _vector(scores, "scores"), np.asarray(is_defect)
    if labels.shape != values.shape or (labels.size > 0 and labels.dtype != np.bool_):
        raise ValueError(f"is_defect must be bool {values.shape}, got {_describe(labels)}")
    return values, labels.astype(np.bool_)


def _describe(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {array.shape}"
