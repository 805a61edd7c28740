"""export.readout: statistics of good images, and what corrects them for another network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from graphs import with_readout

from engines.graph import constants
from export import readout
from export.readout import Seen, Statistics

CLASSES, LEVELS, GRID, CHANNELS = 2, 2, 16, 5


def seen(count: int = 60, seed: int = 0) -> Seen:
    """Distances of good images of two classes, of two levels; the left half of the second class never differs."""
    random = np.random.default_rng(seed)
    label = np.arange(count) % CLASSES
    maps = []
    for side in (2 * GRID, GRID):
        level = random.normal(1.0, 0.1, (count, 1, side, side)).astype(np.float32) * (1 + label[:, None, None, None])
        level[label == 1, :, :, : side // 2] = 0.5
        maps.append(level.astype(np.float32))
    pooled = random.normal(0.0, 0.3, (count, CHANNELS)) + label[:, None]
    return Seen(maps, pooled.astype(np.float32), label)


def changed(before: Seen, noise: float = 0.0, shift: float = 0.0, seed: int = 1) -> Seen:
    random = np.random.default_rng(seed)
    maps = [level + shift + noise * random.normal(size=level.shape) for level in before.maps]
    return before._replace(maps=[level.astype(np.float32) for level in maps])


def same(one: Statistics, other: Statistics, **tolerance: Any) -> None:
    for field in dataclasses.fields(Statistics):
        np.testing.assert_allclose(getattr(one, field.name), getattr(other, field.name), **tolerance)


def test_a_fine_level_counts_pixel_by_pixel_on_the_coarsest_grid() -> None:
    fine = np.tile(np.array([[0.0, 4.0], [0.0, 4.0]], np.float32), (6, 1, 8, 8))  # 2 on average, 2 away from it
    coarse = np.ones((6, 1, 8, 8), np.float32)
    statistics = readout.fit([Seen([fine, coarse], np.zeros((6, 3), np.float32), np.zeros(6, np.int64))], 1)
    assert statistics.mean.shape == (1, 2, 8, 8) and statistics.mean.dtype == np.float32
    np.testing.assert_allclose(statistics.mean[0, 0], 2.0, rtol=1e-6)
    np.testing.assert_allclose(statistics.std[0, 0], 2.0, rtol=1e-6)


@pytest.fixture
def of_regions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of each region that know nothing of the whole image."""
    monkeypatch.setattr(readout, "REGIONAL_SHARE", 1.0)


def test_each_class_has_its_own_mean_deviation_and_centroid(of_regions_alone: None) -> None:
    good = seen(400)
    statistics = readout.fit([good], CLASSES)
    assert statistics.mean.shape == statistics.std.shape == (CLASSES, LEVELS, GRID, GRID)
    np.testing.assert_allclose(statistics.mean[0], 1.0, atol=0.03)
    np.testing.assert_allclose(statistics.mean[1, :, :, 12], 2.0, atol=0.06)
    np.testing.assert_allclose(statistics.std[0], 0.1, rtol=0.15)
    np.testing.assert_allclose(statistics.std[1, :, :, 12], 0.2, rtol=0.15)
    centroids = statistics.centroids * statistics.spread
    np.testing.assert_allclose(
        centroids, [good.pooled[good.label == index].mean(axis=0) for index in (0, 1)], rtol=1e-5
    )


def test_the_moments_of_a_region_are_brought_towards_those_of_the_whole_image() -> None:
    statistics = readout.fit([seen(400)], CLASSES)
    share, rest = readout.REGIONAL_SHARE, 1 - readout.REGIONAL_SHARE
    whole, square = (0.5 + 2.0) / 2, (0.5**2 + 2.0**2 + 0.2**2) / 2
    for column, mean, variance in ((0, 0.5, 0.0), (12, 2.0, 0.04)):
        expected = share * mean + rest * whole
        deviation = np.sqrt(share * (mean**2 + variance) + rest * square - expected**2)
        np.testing.assert_allclose(statistics.mean[1, :, :, column], expected, rtol=0.05)
        np.testing.assert_allclose(statistics.std[1, :, :, column], deviation, rtol=0.05)


def test_a_region_that_never_differs_gets_half_the_deviation_of_the_whole_image() -> None:
    good = seen(400)
    for level in good.maps:
        level[good.label == 1, :, :, : level.shape[-1] // 2] = 2.0  # as the mean of the other half
    std = readout.fit([good], CLASSES).std
    np.testing.assert_allclose(std[1, :, :, 0], 0.5 * 0.2 / np.sqrt(2), rtol=0.05)


def test_a_network_that_did_not_change_keeps_its_statistics() -> None:
    statistics = readout.fit([seen()], CLASSES)
    same(readout.refit(statistics, seen(), seen()), statistics, rtol=1e-5)


@pytest.mark.parametrize("shift", [-0.2, 0.2])
def test_a_shift_of_every_distance_moves_the_mean_alone(shift: float) -> None:
    statistics = readout.fit([seen()], CLASSES)
    few = seen(16, seed=3)  # not the images that the statistics were fitted to
    moved = readout.refit(statistics, few, changed(few, shift=shift))
    same(moved, dataclasses.replace(statistics, mean=statistics.mean + np.float32(shift)), rtol=1e-4)


def test_on_the_same_images_a_correction_is_nearly_a_new_fit() -> None:
    good = seen(200)
    noisy = changed(good, noise=0.3, shift=0.1)
    corrected = readout.refit(readout.fit([good], CLASSES), good, noisy)
    fitted = readout.fit([noisy], CLASSES)
    np.testing.assert_allclose(corrected.mean, fitted.mean, rtol=1e-5)
    np.testing.assert_allclose(corrected.std, fitted.std, rtol=0.06)
    assert not np.allclose(fitted.std, readout.fit([good], CLASSES).std, rtol=0.5)


def test_a_correction_of_one_region_is_brought_towards_the_whole_image_as_a_fit_is() -> None:
    good = seen(200)
    noisy = changed(good, noise=0.4)
    for before, after in zip(good.maps, noisy.maps):
        after[:, :, before.shape[2] // 2 :] = before[:, :, before.shape[2] // 2 :]  # the lower half is as it was
    corrected = readout.refit(readout.fit([good], CLASSES), good, noisy)
    fitted = readout.fit([noisy], CLASSES)
    np.testing.assert_allclose(corrected.std[0, :, 0].mean(axis=-1), fitted.std[0, :, 0].mean(axis=-1), rtol=0.02)


def test_no_deviation_is_below_the_noise_of_the_change(of_regions_alone: None) -> None:
    good = seen(200)
    statistics = readout.fit([good], CLASSES)
    noisy = changed(good, noise=0.15)
    assert statistics.std[1, :, :, 0].max() < 0.1
    assert readout.refit(statistics, good, noisy).std.min() > 0.14
    assert readout.widen(statistics, good, noisy).std.min() > 0.14


def test_noise_that_hides_in_the_deviation_counts_too(of_regions_alone: None) -> None:
    good = seen(200)
    first = good.label == 0
    means = [level[first].mean(axis=0) for level in good.maps]
    good = Seen([level[first] for level in good.maps], good.pooled[first], good.label[first])
    mirrored = good._replace(maps=[2 * mean - level for mean, level in zip(means, good.maps)])  # deviates as before
    statistics = readout.fit([seen(200)], CLASSES)
    noise = [2 * float((level - mean).std()) for mean, level in zip(means, good.maps)]
    corrected = readout.refit(statistics, good, mirrored)
    for level, least in enumerate(noise):
        assert statistics.std[0, level].max() < 0.9 * least
        assert corrected.std[0, level].min() >= 0.99 * least


def test_a_class_of_which_nothing_was_seen_is_widened_and_not_moved(of_regions_alone: None) -> None:
    statistics = readout.fit([seen(200)], CLASSES)
    good = seen(64, seed=3)
    member = good.label == 0
    first = Seen([level[member] for level in good.maps], good.pooled[member], good.label[member])
    corrected = readout.refit(statistics, first, changed(first, noise=0.15, shift=0.2))
    assert (corrected.mean[1] == statistics.mean[1]).all() and (corrected.centroids[1] == statistics.centroids[1]).all()
    assert statistics.std[1].min() < 0.1 < 0.14 < corrected.std[1].min()
    np.testing.assert_allclose(corrected.mean[0], statistics.mean[0] + 0.2, atol=0.06)


def test_a_few_images_shrink_no_deviation_by_much() -> None:
    statistics = readout.fit([seen(200)], CLASSES)
    few = seen(16, seed=3)
    calm = few._replace(maps=[np.broadcast_to(level.mean(axis=0), level.shape) for level in few.maps])
    corrected = readout.refit(statistics, few, calm)
    assert (corrected.std >= 0.999 * readout.LEAST_SHRINKING * statistics.std).all()


def test_centroids_move_with_the_pooled_features() -> None:
    statistics = readout.fit([seen()], CLASSES)
    after = seen()._replace(pooled=seen().pooled + np.float32(0.5))
    moved = readout.refit(statistics, seen(), after)
    np.testing.assert_allclose(
        moved.centroids - statistics.centroids, (0.5 / statistics.spread)[None] * [[1], [1]], rtol=1e-4
    )


def test_statistics_are_read_from_a_graph_and_written_into_a_copy() -> None:
    model = with_readout(seed=3)
    before = model.SerializeToString()
    statistics = readout.read_statistics(model)
    assert statistics is not None
    doubled = Statistics(*(2 * value for value in dataclasses.astuple(statistics)))
    written = readout.with_statistics(model, doubled)
    found = readout.read_statistics(written)
    assert found is not None
    same(found, doubled, rtol=0)
    assert model.SerializeToString() == before
    assert {name: value.shape for name, value in constants(model).items()} == {
        name: value.shape for name, value in constants(written).items()
    }


def test_a_graph_without_statistics_says_so() -> None:
    from graphs import tiny

    assert readout.read_statistics(tiny()) is None
