"""uad.evaluation.thresholds: by hand, by their definition, and as float32 holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uad.evaluation.thresholds import (
    MARGIN,
    between,
    limits_at,
    paired_threshold,
    promised_rate,
    rates_of_few,
    threshold_at,
    threshold_for_recall,
    thresholds_at,
)

anything = settings(derandomize=True, deadline=None)
SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


def in_float32(scores: Any, threshold: float) -> np.ndarray:
    """What README's program at the line computes."""
    return np.asarray(scores, np.float32) > np.float32(threshold)


@pytest.mark.parametrize(
    ("scores", "rate", "expected"),
    [
        (range(1, 11), 0.0, 10.0 * (1 + MARGIN)),  # none above
        (range(1, 11), 0.05, 10.0 * (1 + MARGIN)),  # 10 images cannot show 5 %
        (range(1, 11), 0.1, 9.5),  # one above
        (range(1, 11), 0.19, 9.5),
        (range(1, 11), 0.2, 8.5),
        (range(1, 11), 0.99, 1.5),  # nine above
        (range(1, 101), 0.29, 71.5),  # 29 above, although 0.29 * 100 < 29 in floating point
        ([2, 1, 2, 2], 0.5, 2.0 * (1 + MARGIN)),  # two may be above, but below 2 there would be three
        ([2, 1, 2, 2], 0.75, 1.5),
        ([-3.5], 0.5, -3.5 * (1 - MARGIN)),
    ],
)
def test_threshold_at_by_hand(scores: Any, rate: float, expected: float) -> None:
    assert threshold_at(list(scores), rate) == pytest.approx(expected, rel=1e-6)


@anything
@given(SCORES, st.floats(0, 1, exclude_max=True))
def test_the_rate_holds_and_a_lower_place_would_not_hold_it(scores: list[float], rate: float) -> None:
    values = np.asarray(scores, np.float32)
    threshold = threshold_at(scores, rate)
    above = in_float32(scores, threshold)
    assert above.mean() <= rate and (above == (values > threshold)).all()
    highest = values[~above].max()
    assert (values >= highest).mean() > rate


@anything
@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_a_threshold_is_a_float32_number_and_parts_its_scores(one: float, other: float) -> None:
    lower, upper = min(one, other), max(one, other)
    for threshold, greater in ((between(lower, upper), upper), (between(lower, None), None)):
        assert float(np.float32(threshold)) == threshold and not in_float32(lower, threshold)
        assert greater is None or greater == lower or in_float32(greater, threshold)


def test_noise_in_the_last_bits_changes_no_decision_on_held_out_images() -> None:
    random = np.random.default_rng(0)
    for images in (5, 20, 60):
        scores = random.gamma(4.0, 1.0, images).astype(np.float32)
        threshold = threshold_at(scores, 0.05)
        for _ in range(50):
            noisy = scores * (1 + random.normal(0, 1e-6, images).astype(np.float32))
            assert (in_float32(noisy, threshold) == in_float32(scores, threshold)).all()


@pytest.mark.parametrize(
    ("scores", "rate"),
    [([], 0.1), ([1.0], 1.0), ([1.0], -0.1), ([1.0], np.nan), ([np.nan], 0.1), ([[1.0]], 0.1)],
)
def test_threshold_at_rejects(scores: Any, rate: float) -> None:
    with pytest.raises(ValueError, match="scores_of_good|false_positive_rate"):
        threshold_at(scores, rate)


def test_each_class_has_its_own() -> None:
    thresholds = thresholds_at([1.0, 2.0, 30.0, 40.0], ["nut", "nut", "bolt", "bolt"], 0.5)
    assert thresholds == {"bolt": 35.0, "nut": 1.5}


# Of a changed model ---------------------------------------------------------------------------------------------------


def test_a_changed_model_parts_the_images_as_before() -> None:
    reference = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert paired_threshold([10.0, 20.0, 30.0, 40.0, 50.0], reference, 3.5) == 35.0
    # One decision flips at least: between 11 and 30 it is the one of 11, between 30 and 40 the one of 30.
    assert paired_threshold([10.0, 20.0, 30.0, 11.0, 50.0], reference, 3.5) in (25.0, 40.0)


def test_where_all_are_good_the_threshold_is_scaled_and_lies_above_all() -> None:
    reference = np.array([1.0, 2.0, 3.0], np.float32)
    assert paired_threshold(2 * reference, reference, 4.0) == 8.0
    assert paired_threshold([1.0], [1e-38], 50.0) == 50.0  # of a score near 0 a ratio says nothing
    assert paired_threshold([2.0, 4.0, 9.0], reference, 4.0) == pytest.approx(9.0 * (1 + MARGIN), rel=1e-6)


@anything
@given(st.lists(st.tuples(st.floats(0, 100, width=32), st.floats(0, 100, width=32)), min_size=1, max_size=20))
def test_no_threshold_flips_fewer_decisions(pairs: list[tuple[float, float]]) -> None:
    scores, reference = (np.array(each, np.float32) for each in zip(*pairs))
    threshold = paired_threshold(scores, reference, 50.0)

    def flipped(at: float) -> int:
        return int(np.sum(in_float32(scores, at) != (reference > 50.0)))

    if (reference > 50.0).all():  # no threshold lies below all scores
        return
    assert flipped(threshold) <= min(flipped(float(score)) for score in scores)
    assert float(np.float32(threshold)) == threshold


def test_what_pairs_need() -> None:
    for scores, reference in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="each image needs both"):
            paired_threshold(scores, reference, 1.0)


# For a rate of found defects, and what is promised --------------------------------------------------------------------

HUNDRED = [float(value) for value in range(1, 101)]


@pytest.mark.parametrize(("rate", "above"), [(1.0, 100), (0.99, 99), (0.985, 99), (0.0, 1), (0.07, 7)])
def test_at_least_that_part_of_the_defects_lies_above_and_no_more(rate: float, above: int) -> None:
    assert in_float32(HUNDRED, threshold_for_recall(HUNDRED, [], rate)).sum() == above


def test_the_defect_that_sets_the_threshold_is_found_in_float32() -> None:
    defect = float(np.float32(0.1))
    for others in ([], [0.05], [float(np.nextafter(np.float32(0.1), np.float32(0)))]):
        assert in_float32(defect, threshold_for_recall([defect], others, 1.0))


def test_a_threshold_for_recall_lies_half_way_to_the_next_lower_score_of_any_image() -> None:
    assert threshold_for_recall([5.0, 8.0], [1.0, 6.0], 0.5) == 7.0
    assert threshold_for_recall([1.0, 2.0, 2.0, 2.0], [], 0.25) == 1.5


@pytest.mark.parametrize(
    ("images", "rate", "expected"),
    [(12, 0.05, 1 / 13), (19, 0.05, 1 / 20), (20, 0.05, 2 / 21), (60, 0.05, 4 / 61), (1, 0.0, 0.5)],
)
def test_what_a_number_of_images_promises(images: int, rate: float, expected: float) -> None:
    assert promised_rate(images, rate) == pytest.approx(expected)
    # By the definition: of n + 1 equally likely places of a further score, those above the greatest score below it.
    scores = np.arange(images, dtype=float)
    below = scores[scores <= threshold_at(scores, rate)].max()
    assert promised_rate(images, rate) == pytest.approx((images - below) / (images + 1))


def test_too_few_images_are_said_by_class() -> None:
    said = rates_of_few({"bolt": 12, "nut": 60, "gear": 3}, 0.05)
    assert said.startswith("thresholds for 5% false alarms rest on few held-out images")
    assert "bolt 8% (12 images), gear 25% (3 images)" in said and "nut" not in said
    assert rates_of_few({"nut": 60}, 0.05) == rates_of_few({}, 0.05) == ""


def test_the_unknown_begins_behind_the_farthest_good_image() -> None:
    limits = limits_at([0.5, 1.2, 0.9], ["bolt", "bolt", "nut"], ["bolt", "cog", "nut"])
    assert limits == pytest.approx({"bolt": 1.05 * 1.2, "cog": 1.05, "nut": 1.05})  # those of training lie at 1 at most
    with pytest.raises(ValueError, match="finite"):
        limits_at([np.nan], ["bolt"], ["bolt"])
