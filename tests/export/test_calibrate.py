"""export.calibrate: from values to histograms, ranges and scales, against numbers worked out by hand or by others."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from export.calibrate import (
    BINS,
    CALIBRATORS,
    Histogram,
    amax_entropy,
    amax_minmax,
    amax_percentile,
    calibrator,
    merged,
    scale_from_amax,
)

LEVELS = 128  # magnitudes of INT8, zero included
RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal(100_000).astype(np.float32)
OUTLIERS = np.concatenate([NORMAL, [30.0, -40.0, 50.0]]).astype(np.float32)
RELU = np.maximum(NORMAL, 0)
UNIFORM = RANDOM.uniform(-1, 1, 200_000).astype(np.float32)
LAPLACE = RANDOM.laplace(size=100_000).astype(np.float32)


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(part)
    return histogram


# Scales ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amax", "scale"), [(127.0, 1.0), (6.35, 0.05), (1.0, 1 / 127), (254e6, 2e6)])
def test_scale_is_the_range_over_127(amax: float, scale: float) -> None:
    found = scale_from_amax(np.array(amax))
    assert found == np.float32(scale)
    assert found.dtype == np.float32 and found.shape == ()


def test_scale_of_the_docstring_maps_1_to_20() -> None:
    assert np.rint(1.0 / scale_from_amax(np.array(6.35))) == 20


def test_dead_channel_has_the_scale_1() -> None:
    np.testing.assert_array_equal(scale_from_amax(np.array([0.0, 127.0])), [1.0, 1.0])


@pytest.mark.parametrize("amax", [5e-324, 1e-45, 1e-40, 1e-36])
def test_scale_of_a_tiny_range_is_above_0_and_normal(amax: float) -> None:
    # A subnormal scale is flushed to 0 by some processors.
    assert scale_from_amax(np.array(amax)) >= np.finfo(np.float32).tiny


def test_scale_keeps_the_shape() -> None:
    amax = np.array([[127.0, 254.0, 0.0]])
    np.testing.assert_array_equal(scale_from_amax(amax), [[1.0, 2.0, 1.0]])


# Histograms -----------------------------------------------------------------------------------------------------------


def test_histogram_counts_magnitudes_in_equal_bins() -> None:
    histogram = histogram_of(np.array([4.0]))
    width = histogram.limit / BINS
    histogram.update(np.array([0.0, 10.5 * width, -10.5 * width, 2000.5 * width]))
    expected = np.zeros(BINS, np.int64)
    expected[[0, 10, 2000, BINS - 1]] = [1, 2, 1, 1]
    np.testing.assert_array_equal(histogram.counts, expected)


def test_edges_are_the_borders_of_the_bins() -> None:
    histogram = histogram_of(NORMAL)
    counts, _ = np.histogram(np.abs(NORMAL), histogram.edges)
    # A value on a border may fall to either side in float32.
    assert np.abs(np.cumsum(counts) - np.cumsum(histogram.counts)).max() <= 3


def test_doubling_keeps_the_count_and_the_largest_magnitude() -> None:
    parts = [np.array([0.0, 0.0]), NORMAL[:100] * 1e-3, NORMAL[100:300], NORMAL[300:350] * -1e4]
    histogram = histogram_of(*parts)
    assert histogram.counts.sum() == 352
    assert histogram.amax == np.abs(parts[-1]).max()
    assert histogram.limit > histogram.amax


def test_doubling_leaves_between_half_and_all_bins_in_use() -> None:
    histogram = Histogram()
    for factor in (1.0, 1.5, 3.0, 100.0):
        histogram.update(np.array([factor]))
        assert BINS // 2 <= np.nonzero(histogram.counts)[0][-1] < BINS


def test_doubling_merges_neighbours() -> None:
    histogram = histogram_of(NORMAL)
    before = histogram.counts.copy()
    histogram.update(np.array([1.5 * histogram.limit]))
    histogram.counts[int(1.5 * BINS / 2)] -= 1
    np.testing.assert_array_equal(histogram.counts[: BINS // 2], before[0::2] + before[1::2])
    assert not histogram.counts[BINS // 2 :].any()


def test_many_updates_count_what_one_counts() -> None:
    one, many = histogram_of(LAPLACE), histogram_of(np.array([np.abs(LAPLACE).max()]), *np.split(LAPLACE[1:], 9))
    assert many.limit == one.limit
    assert many.counts.sum() == one.counts.sum()
    assert np.abs(many.counts - one.counts).sum() <= 2  # the first value is not in it, the largest twice


def test_zeros_that_come_first_are_counted() -> None:
    histogram = histogram_of(np.zeros(5), np.array([1.0, 2.0]))
    assert histogram.counts[0] == 5 and histogram.counts.sum() == 7


def test_empty_tensor_changes_nothing() -> None:
    histogram = histogram_of(np.array([1.0]), np.zeros((0, 3)))
    assert histogram.counts.sum() == 1 and histogram.amax == 1.0


@pytest.mark.parametrize("name", CALIBRATORS)
def test_merged_histograms_give_the_range_of_one_that_saw_all(name: str) -> None:
    parts = [NORMAL, 0.01 * LAPLACE, 3 * UNIFORM]
    whole, joined = histogram_of(*parts), merged([histogram_of(part) for part in parts])
    assert joined.counts.sum() == whole.counts.sum() and joined.amax == whole.amax
    assert calibrator(name)(joined) == pytest.approx(calibrator(name)(whole), rel=0.02)


def test_merged_zeros_are_zeros() -> None:
    joined = merged([histogram_of(np.zeros(5, np.float32)), histogram_of(np.zeros(3, np.float32))])
    assert joined.counts[0] == 8 and amax_percentile(joined) == 0.0


@pytest.mark.parametrize("values", [np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_histogram_takes_any_float(values: type) -> None:
    histogram = histogram_of(np.array([[-2.0, 1.0]], values))
    assert histogram.amax == 2.0 and histogram.counts.sum() == 2


def test_the_tensor_is_not_changed() -> None:
    values = np.array([-1.0, 2.0], np.float32)
    histogram_of(values)
    np.testing.assert_array_equal(values, [-1.0, 2.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        histogram_of(np.array([1.0, bad]))


@pytest.mark.parametrize("factor", [1e-20, 1e-38, 1e-44])
def test_tiny_values_are_counted(factor: float) -> None:
    values = (np.array([1.0, 0.5, 0.25]) * factor).astype(np.float32)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == 3
    assert histogram.amax == values[0]


def test_memory_does_not_grow() -> None:
    tracemalloc.start()
    try:
        histogram = histogram_of(NORMAL)
        histogram.update(NORMAL * 2)
        before, _ = tracemalloc.get_traced_memory()
        for factor in range(1, 50):
            histogram.update(NORMAL * factor)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 8 * BINS and after < before + NORMAL.nbytes / 4


# Calibrators ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALIBRATORS)
def test_nothing_but_zeros_has_the_range_0(name: str) -> None:
    assert calibrator(name)(histogram_of(np.zeros(10))) == 0.0


@pytest.mark.parametrize("name", CALIBRATORS)
def test_no_value_at_all_has_the_range_0(name: str) -> None:
    assert calibrator(name)(Histogram()) == 0.0


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("values", [OUTLIERS, RELU, UNIFORM], ids=["outliers", "relu", "uniform"])
def test_range_is_at_most_the_largest_magnitude(name: str, values: np.ndarray) -> None:
    histogram = histogram_of(values)
    before = histogram.counts.copy()
    assert 0 < calibrator(name)(histogram) <= histogram.amax
    np.testing.assert_array_equal(histogram.counts, before)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_constant_tensor_keeps_its_value(name: str) -> None:
    assert calibrator(name)(histogram_of(np.full(100, -3.0))) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_range_scales_with_the_values(name: str) -> None:
    one, eight = (calibrator(name)(histogram_of(factor * OUTLIERS)) for factor in (1, 8))
    assert eight == pytest.approx(8 * one, rel=1e-6)


def test_minmax_is_the_largest_magnitude_of_all_images() -> None:
    assert amax_minmax(histogram_of(NORMAL, np.array([-7.125]), NORMAL)) == 7.125


@pytest.mark.parametrize("percentile", [1.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("values", [NORMAL, LAPLACE, UNIFORM], ids=["normal", "laplace", "uniform"])
def test_percentile_is_that_of_numpy_to_one_bin(values: np.ndarray, percentile: float) -> None:
    histogram = histogram_of(values[:10] / 8, values)
    magnitudes = np.abs(np.concatenate([values[:10] / 8, values]))
    exact = np.percentile(magnitudes, percentile, method="inverted_cdf")
    found = amax_percentile(histogram, percentile)
    # The upper border of the bin: not below the value, and not a bin above it.
    assert -1e-6 <= found - exact <= histogram.limit / BINS


def test_percentile_drops_outliers() -> None:
    values = np.concatenate([np.ones(99_999), [1000.0]])
    assert amax_percentile(histogram_of(values)) == pytest.approx(1.0, abs=1000.2 / BINS)


def test_entropy_clips_the_outliers_of_a_gaussian() -> None:
    assert 3.0 < amax_entropy(histogram_of(OUTLIERS)) < 10.0


def test_entropy_does_not_clip_a_uniform_tensor() -> None:
    assert amax_entropy(histogram_of(UNIFORM)) > 0.99


def test_entropy_does_not_let_exact_zeros_decide() -> None:
    zeros = np.zeros(1_000_000, np.float32)
    assert amax_entropy(histogram_of(RELU, zeros)) == pytest.approx(amax_entropy(histogram_of(RELU)), rel=0.01)


def brute_force(counts: np.ndarray, stride: int) -> int:
    """The width with the least divergence, as Migacz' slides have it, bin by bin; of equals the widest."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    last = np.nonzero(counts)[0][-1] + 1
    divergences = {}
    for width in range(LEVELS, last + 1, stride):
        p = counts[:width].copy()
        p[-1] += counts[width:].sum()
        q = np.zeros(width)
        for level in range(LEVELS):
            # bin i belongs to level floor(i * LEVELS / width)
            bins = slice(-(-level * width // LEVELS), -(-(level + 1) * width // LEVELS))
            members = counts[bins] > 0
            if members.any():
                q[bins][members] = counts[bins].sum() / members.sum()
        p, q = p / p.sum(), q / q.sum()
        with np.errstate(divide="ignore"):
            terms = [p[i] * np.log(p[i] / q[i]) for i in range(width) if p[i] > 0]
        divergences[width] = sum(terms)
    least = min(divergences.values())
    return max(width for width, value in divergences.items() if value <= least)


@pytest.mark.parametrize("values", [OUTLIERS, RELU, LAPLACE], ids=["outliers", "relu", "laplace"])
def test_entropy_is_that_of_a_brute_force_search(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    stride = 64
    expected = histogram.edges[brute_force(histogram.counts, stride)]
    step = stride * histogram.limit / BINS * 1.001
    assert amax_entropy(histogram, stride=stride) == pytest.approx(expected, abs=step)


@pytest.mark.parametrize("values", [OUTLIERS, RELU, LAPLACE, UNIFORM], ids=["outliers", "relu", "laplace", "uniform"])
def test_entropy_is_that_of_pytorch_quantization(values: np.ndarray) -> None:
    peer = pytest.importorskip("pytorch_quantization.calib.histogram", reason="pytorch-quantization is not installed")
    histogram = histogram_of(values)
    stride = 8
    expected = float(peer._compute_amax_entropy(histogram.counts.copy(), histogram.edges, 8, False, stride))
    # One stride: it also tries ranges beyond the largest value, and rounds the borders of its levels.
    step = stride * histogram.limit / BINS * 1.001
    assert amax_entropy(histogram, stride=stride) == pytest.approx(expected, abs=step)
