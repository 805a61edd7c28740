"""How strict a model is: thresholds for a rate of false alarms or of found defects, and what they cost on data.

A rate that was counted on few images is not known: 0 false alarms on 20 good images leave up to 17% possible. The
intervals are exact: Clopper and Pearson, Biometrika 1934, 95%.
"""

import dataclasses
from typing import Dict, List, NamedTuple, Optional, Sequence

from engines.errors import UserError
from uad.evaluation.thresholds import threshold_at, threshold_for_recall

CONFIDENCE = 0.95
ALL = "all classes"


class Rate(NamedTuple):
    """A counted rate, and between what it lies with 95% confidence."""

    hits: int
    of: int
    low: float
    high: float

    @classmethod
    def of_counts(cls, hits: int, of: int) -> "Rate":
        """The interval of Clopper and Pearson."""
        from scipy.stats import beta

        tail = (1 - CONFIDENCE) / 2
        low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, of - hits + 1))
        high = 1.0 if hits == of else float(beta.ppf(1 - tail, hits + 1, of - hits))
        return cls(hits, of, low, high)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one class, or of all."""

    good: List[float]
    defects: List[float]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a threshold costs on a class; None where there are no such images."""

    class_name: str
    before: float
    threshold: float
    false_alarms: Optional[Rate]
    found: Optional[Rate]


def choose(
    scores: Dict[str, Scores], target_fpr: Optional[float], target_recall: Optional[float], is_common: bool
) -> Dict[str, float]:
    """Class -> threshold, and `ALL` -> that of an image whose class is not known.

    Args:
        scores: of each class.
        target_fpr: part of the good images that may lie above, less than 1; see `threshold_at`.
        target_recall: in place of it, part of the defects that must lie above.
        is_common: whether all have the threshold of all images together, in place of one for each class.

    Raises:
        UserError: a class has no images of the kind that is needed.
    """

    def of(name: str, each: Scores) -> float:
        needed = each.good if target_fpr is not None else each.defects
        if not needed:
            kind = "good images" if target_fpr is not None else "defects"
            raise UserError(f"{name} has no {kind} in its test folder: leave the class out, or give some")
        if target_fpr is not None:
            return threshold_at(each.good, target_fpr)
        return threshold_for_recall(each.defects, each.good, target_recall or 0)

    together = of(ALL, _together(scores))
    return {**{name: together if is_common else of(name, each) for name, each in scores.items()}, ALL: together}


def costs(scores: Dict[str, Scores], before: Dict[str, float], thresholds: Dict[str, float]) -> List[Cost]:
    """What the thresholds do to each class, and to all together, each image at the threshold of its class."""
    rows = []
    total = [0, 0, 0, 0]
    for name, each in scores.items():
        counts = [_above(each.good, thresholds[name]), len(each.good), _above(each.defects, thresholds[name])]
        counts.append(len(each.defects))
        total = [one + more for one, more in zip(total, counts)]
        rows.append(Cost(name, before[name], thresholds[name], _rate(*counts[:2]), _rate(*counts[2:])))
    return [*rows, Cost(ALL, before[ALL], thresholds[ALL], _rate(*total[:2]), _rate(*total[2:]))]


def _together(scores: Dict[str, Scores]) -> Scores:
    good = [score for each in scores.values() for score in each.good]
    return Scores(good, [score for each in scores.values() for score in each.defects])


def _above(scores: Sequence[float], threshold: float) -> int:
    return sum(score > threshold for score in scores)


def _rate(hits: int, of: int) -> Optional[Rate]:
    return Rate.of_counts(hits, of) if of else None
