"""uad.evaluation.strictness: thresholds for a rate, and how far a counted rate can be trusted."""

from __future__ import annotations

import pytest

from engines.errors import UserError
from uad.evaluation.strictness import ALL, Rate, Scores, choose, costs


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 20, 0.0, 0.1684), (0, 1000, 0.0, 0.00368), (5, 100, 0.0164, 0.1128), (20, 20, 0.8316, 1.0)],
)
def test_the_interval_is_clopper_and_pearsons(hits: int, of: int, low: float, high: float) -> None:
    # By statsmodels.stats.proportion.proportion_confint(hits, of, method="beta").
    assert Rate.of_counts(hits, of)[2:] == pytest.approx((low, high), abs=5e-5)


SCORES = {"bolt": Scores([1.0, 2.0, 3.0, 4.0], [5.0, 3.5]), "nut": Scores([10.0, 20.0, 30.0, 40.0], [50.0])}


def test_one_threshold_for_all_or_one_for_each() -> None:
    assert choose(SCORES, 0.25, None, is_common=False) == {"bolt": 3.5, "nut": 35.0, ALL: 25.0}
    assert choose(SCORES, 0.25, None, is_common=True) == {"bolt": 25.0, "nut": 25.0, ALL: 25.0}
    assert choose(SCORES, None, 1.0, is_common=False) == {"bolt": 3.25, "nut": 45.0, ALL: 3.25}


def test_what_it_costs() -> None:
    before = {"bolt": 0.5, "nut": 0.5, ALL: 0.5}
    bolt, nut, everything = costs(SCORES, before, {"bolt": 3.0, "nut": 60.0, ALL: 30.0})
    assert (bolt.before, bolt.threshold) == (0.5, 3.0)
    assert bolt.false_alarms is not None and bolt.false_alarms[:2] == (1, 4)
    assert bolt.found is not None and bolt.found[:2] == (2, 2)
    assert nut.found is not None and nut.found[:2] == (0, 1)
    assert everything.false_alarms is not None and everything.false_alarms[:2] == (1, 8)
    assert everything.found is not None and everything.found[:2] == (2, 3)


def test_a_class_without_the_images_that_are_needed_is_named() -> None:
    with pytest.raises(UserError, match="nut has no defects in its test folder"):
        choose({"bolt": SCORES["bolt"], "nut": Scores([1.0], [])}, None, 0.9, is_common=False)
    (row, _) = costs({"nut": Scores([1.0], [])}, {"nut": 0.0, ALL: 0.0}, {"nut": 2.0, ALL: 2.0})
    assert row.found is None
