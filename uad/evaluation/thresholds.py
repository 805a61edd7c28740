"""Thresholds that good images set, and what they promise. A score above its threshold is a defect.

Whoever decides may compare in float32, so every threshold here is a float32 number. None of them is a score: a score
that repeats but for its last bit is decided alike.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
import numpy.typing as npt

MARGIN = 1e-4  # of the greatest score, by which a threshold lies above it
BEYOND = 1.05  # times the class distance of the farthest good image: there the unknown begins
ArrayLike = npt.ArrayLike


def between(lower: float, upper: float | None) -> float:
    """The threshold that parts two scores: their midpoint, rounded down to float32. 1.0 and 2.0 give 1.5.

    Args:
        lower: score that does not lie above the threshold.
        upper: next greater score, which does; None where there is none. Then 2.0 gives 2.0002, see `MARGIN`.
    """
    middle = (lower + upper) / 2 if upper is not None else lower + MARGIN * max(abs(lower), MARGIN)
    return max(_down_to_float32(middle), _down_to_float32(lower))


def _down_to_float32(value: float) -> float:
    """The greatest float32 number that is not above a value."""
    rounded = np.float32(value)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > value else rounded)


def threshold_at(scores_of_good: ArrayLike, false_positive_rate: float) -> float:
    """A threshold with at most this fraction of the good images above it, and no more below than that needs.

    With k = the largest count such that k/n <= false_positive_rate it lies between the (k+1)-th largest score and the
    next greater one, see `between`. So n good images can only set rates in steps of 1/n, and whenever n < 1/rate
    (n = 50 for 1 %) the threshold lies above the largest good score. The rate holds on the images given. A further
    image from the same source exceeds the threshold with probability (k+1)/(n+1) at most: with n = 10 and rate 0 or
    0.05 that is 1/11 = 9 %, so do not read a small n as a small rate.

    Args:
        scores_of_good: (n,) finite numbers, n >= 1, which count as float32.
        false_positive_rate: In [0, 1).

    Returns:
        The threshold, to be used as ``score > threshold``.

    Raises:
        ValueError: No score, a wrong shape, a score that is not finite, or a rate outside [0, 1).
    """
    values = np.sort(_scores(scores_of_good))[::-1]
    if values.size == 0:
        raise ValueError("scores_of_good is empty: a threshold needs at least one good image")
    if not 0.0 <= false_positive_rate < 1.0:
        raise ValueError(f"false_positive_rate must be in [0, 1), got {false_positive_rate}")
    lower = float(values[_allowed(values.size, false_positive_rate)])
    greater = values[values > lower]
    return between(lower, float(greater.min()) if greater.size else None)


def thresholds_at(scores_of_good: ArrayLike, classes: Sequence[str], false_positive_rate: float) -> dict[str, float]:
    """The threshold of each class, by `threshold_at`; `classes` are those of the images, one a score."""
    values, names = _scores(scores_of_good), np.asarray(classes)
    return {name: threshold_at(values[names == name], false_positive_rate) for name in sorted(set(classes))}


def limits_at(distances: ArrayLike, classes: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Class -> the class distance beyond which an image is of no known class: `BEYOND` times the farthest good image.

    Held-out images may lie farther than every image of training, which lie at 1 at most; not nearer than those counts.
    So n images, of both, set the limit, and a further good image lies beyond it with probability 1/(n+1) at most.

    Args:
        distances: (n,) class distances of held-out good images, n >= 0.
        classes: of each.
        known: the classes that have a limit.
    """
    values, names = _scores(distances), np.asarray(classes)
    farthest = {name: max([1.0, *values[names == name].tolist()]) for name in known}
    return {name: BEYOND * distance for name, distance in farthest.items()}


def paired_threshold(scores: ArrayLike, reference: ArrayLike, threshold: float) -> float:
    """The threshold of a changed model that decides on the same images as the model before it did.

    Of all thresholds it takes those with the fewest decisions that flip, and the midpoint of the two scores between
    which they lie. Where the reference calls all the images good they have no upper end. Then it is the reference's
    threshold times the median ratio of the scores, or just above the greatest score if that is more. Scores below a
    hundredth of the threshold say nothing of a ratio.

    Args:
        scores: (n,) of the changed model, n >= 1, which count as float32.
        reference: (n,) of the model before it, of the same images.
        threshold: of the model before it.

    Raises:
        ValueError: no score, wrong shapes, or a score that is not finite.
    """
    values, before = _scores(scores), _scores(reference)
    if values.size == 0 or values.size != before.size:
        raise ValueError(f"{values.size} scores beside {before.size}: each image needs both")
    above = before > threshold
    ends = np.unique(values)
    flipped = np.array([np.sum((values > end) != above) for end in ends])
    comparable = before > abs(threshold) / 100  # of a score near 0 a ratio says nothing
    ratio = float(np.median(values[comparable] / before[comparable])) if comparable.any() else 1.0
    wanted = threshold * ratio
    best = [int(index) for index in np.flatnonzero(flipped == flipped.min())]
    index = min(best, key=lambda place: abs(float(ends[place]) - wanted))
    if index == len(ends) - 1:
        return max(between(float(ends[-1]), None), _down_to_float32(wanted))
    return between(float(ends[index]), float(ends[index + 1]))


def threshold_for_recall(defects: ArrayLike, others: ArrayLike, recall: float) -> float:
    """The highest threshold above which at least this part of the defects lies; the others are good images.

    It lies between the last defect that must be found and the next lower score of any image, see `between`.
    """
    values, beside = np.sort(_scores(defects))[::-1], _scores(others)
    last = float(values[max(1, int(np.ceil(recall * values.size - 1e-9))) - 1])
    lower = np.concatenate([values[values < last], beside[beside < last]])
    return between(float(lower.max()) if lower.size else last - MARGIN * max(abs(last), MARGIN), last)


def promised_rate(images: int, false_positive_rate: float) -> float:
    """With which probability a further good image lies above a threshold that `threshold_at` chose on so many, at most.

    (k+1)/(n+1), as there: of 12 images and a rate of 0.05 it is 1/13, 8 %, and 5 % needs 19 images at least.
    """
    return (_allowed(images, false_positive_rate) + 1) / (images + 1)


def _allowed(images: int, false_positive_rate: float) -> int:
    """The most of so many images that may lie above a threshold."""
    # Compared as k/n rather than floor(rate * n): 0.29 * 100 is 28.999..., yet 29 of 100 is 0.29.
    return int(np.count_nonzero(np.arange(1, images) / images <= false_positive_rate))


def rates_of_few(counts: Mapping[str, int], false_positive_rate: float) -> str:
    """What thresholds promise of the classes that have too few images for the rate; "" where all have enough.

    Args:
        counts: class -> on how many good images its threshold was chosen.
        false_positive_rate: that was asked for. Up to one and a half times of it is let pass.
    """
    rates = {name: promised_rate(count, false_positive_rate) for name, count in counts.items() if count}
    likely = [
        f"{name} {100 * rate:.0f}% ({counts[name]} images)"
        for name, rate in rates.items()
        if rate > 1.5 * false_positive_rate
    ]
    asked = f"thresholds for {100 * false_positive_rate:g}% false alarms rest on few held-out images"
    return f"{asked}, a further good image lies above in up to: {', '.join(likely)}" if likely else ""


def _scores(values: ArrayLike) -> np.ndarray:
    """(n,) float32.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    scores = np.asarray(values, np.float32)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"scores_of_good must be a vector of finite numbers, got the shape {scores.shape}")
    return scores
