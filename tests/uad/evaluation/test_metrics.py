"""uad.evaluation.metrics against scikit-learn, scipy, torchmetrics, brute force and numbers worked out by hand."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr  # type: ignore[import-untyped,unused-ignore]
from sklearn.metrics import (  # type: ignore[import-untyped,unused-ignore]
    precision_recall_curve,
    roc_auc_score,
)

from uad.evaluation.metrics import PixelCurve, best_f1, image_auroc, spearman


def curve_of(*images: tuple[Any, Any]) -> PixelCurve:
    curve = PixelCurve()
    for anomaly_map, mask in images:
        curve.update(np.asarray(anomaly_map, dtype=np.float32), np.asarray(mask, dtype=bool))
    return curve


# --------------------------------------------------------------------------------------- image AUROC, best F1


def test_image_auroc_equals_torchmetrics_without_normalization() -> None:
    # Above 17 a float32 sigmoid is 1.0, so any squashing on either side would tie every score.
    torchmetrics = pytest.importorskip("torchmetrics", minversion="1.8.1")  # first with `normalization`
    import torch

    rng = np.random.default_rng(0)
    is_defect = rng.random(96) < 0.4
    scores = (17.5 + rng.gamma(2.0, 20.0, 96) + 15.0 * is_defect).astype(np.float32)
    reference = torchmetrics.classification.BinaryAUROC(thresholds=None, normalization=None)
    for start in range(0, 96, 10):
        batch = slice(start, start + 10)
        reference.update(torch.from_numpy(scores[batch]), torch.from_numpy(is_defect[batch].astype(np.int64)))
    expected = float(reference.compute())
    assert 0.6 < expected < 0.95
    assert image_auroc(scores, is_defect) == pytest.approx(expected, abs=1e-6)  # torchmetrics adds in float32


def test_image_auroc_by_hand() -> None:
    # Pairs (good, defect): 1<2, 1<3, 2<3 count 1 each, 2=2 counts a half: 3.5 of 4.
    assert image_auroc([1, 2, 2, 3], [False, False, True, True]) == 3.5 / 4


def test_image_auroc_keeps_float64() -> None:
    assert image_auroc([1.0, 1.0 + 1e-12], [False, True]) == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_best_f1_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    is_defect = rng.random(60) < 0.3
    scores = np.round(rng.normal(size=60) + is_defect, 1)  # one decimal: many ties
    assert np.unique(scores).size < 50
    precision, recall, _ = precision_recall_curve(is_defect, scores)
    expected = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    assert best_f1(scores, is_defect) == pytest.approx(expected, abs=1e-12)


def test_best_f1_by_hand() -> None:
    # The two images of score 5 go together: 1 of 1 and 1 of 2 found is 2/3; 2 of 3 and 2 of 2 is 4/5.
    assert best_f1([5, 9, 5, 1], [False, True, True, False]) == pytest.approx(4 / 5)
    assert best_f1([5, 5], [True, False]) == pytest.approx(2 / 3)
    assert best_f1([-1e30, 1e30], [False, True]) == 1.0


@pytest.mark.parametrize("metric", [image_auroc, best_f1])
def test_image_metrics_are_none_for_one_kind(metric: Any) -> None:
    assert metric([1.0, 2.0], [False, False]) is None
    assert metric([1.0, 2.0], [True, True]) is None
    assert metric([], []) is None


@pytest.mark.parametrize("metric", [image_auroc, best_f1])
@pytest.mark.parametrize(
    ("scores", "is_defect"),
    [
        ([1.0, np.nan], [False, True]),
        ([1.0, np.inf], [False, True]),
        ([1.0, 2.0, 3.0], [False, True]),
        ([[1.0, 2.0]], [[False, True]]),
        ([1.0, 2.0], [0, 1]),  # labels are bool: a class index or a score in their place is a mistake
    ],
)
def test_image_metrics_reject(metric: Any, scores: Any, is_defect: Any) -> None:
    with pytest.raises(ValueError, match="scores|is_defect"):
        metric(scores, is_defect)


# ---------------------------------------------------------------------------------------- threshold, spearman


@pytest.mark.parametrize("seed", range(5))
def test_spearman_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = np.round(rng.normal(size=40), 1)
    b = np.round(a + rng.normal(size=40), 0)  # ties on both sides
    assert spearman(a, b) == pytest.approx(spearmanr(a, b)[0], abs=1e-12)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 30], [-5, 0, 1e30]) == pytest.approx(1.0)
    assert spearman([1, 2], [4, 3]) == pytest.approx(-1.0)
    # Ranks 1, 2, 3 and 1.5, 1.5, 3: 1.5 / sqrt(2 * 1.5).
    assert spearman([1, 2, 3], [7, 7, 8]) == pytest.approx(1.5 / 3**0.5)


def test_spearman_is_none_when_undefined() -> None:
    assert spearman([], []) is None
    assert spearman([1.0], [2.0]) is None
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert spearman([1.0, 2.0], [0.1, 0.1]) is None


@pytest.mark.parametrize(("a", "b"), [([1, 2, 3], [1, 2]), ([1, np.nan], [1, 2]), ([[1, 2]], [[1, 2]])])
def test_spearman_rejects(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match="^a "):
        spearman(a, b)


# ------------------------------------------------------------------------------------------------ pixel AUROC


def random_images(seed: int) -> list[tuple[Any, Any]]:
    """Five maps of several sizes, negative and positive values, two of them good."""
    rng = np.random.default_rng(seed)
    images = []
    for index, shape in enumerate([(40, 50), (64, 64), (33, 1), (64, 64), (7, 90)]):
        mask = (rng.random(shape) < 0.2) & (index % 2 == 0)
        images.append(((rng.normal(size=shape) + 1.0 * mask).astype(np.float32), mask))
    return images


def pixels_of(images: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    values = np.concatenate([np.ravel(anomaly_map) for anomaly_map, _ in images])
    return values, np.concatenate([np.ravel(mask) for _, mask in images])


def twelve_bits(values: Any) -> Any:
    """The values cut to 12 binary digits: what a bin of float32 top bits (1 implied, 11 stored) can tell."""
    fraction, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.ldexp(np.trunc(fraction * 4096) / 4096, exponent)


@pytest.mark.parametrize("seed", range(3))
def test_pixel_auroc_is_exact_on_values_of_twelve_bits(seed: int) -> None:
    images = [(twelve_bits(anomaly_map), mask) for anomaly_map, mask in random_images(seed)]
    values, defect = pixels_of(images)
    assert curve_of(*images).auroc() == pytest.approx(roc_auc_score(defect, values), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_pixel_auroc_is_as_near_as_the_bins_allow(seed: int) -> None:
    images = random_images(seed)
    values, defect = pixels_of(images)
    # A pair that shares a bin counts a half in place of 0 or 1, so half their share bounds the error.
    _, bins = np.unique(twelve_bits(values), return_inverse=True)
    bins = bins.ravel()
    same_bin = np.bincount(bins[defect], minlength=values.size) @ np.bincount(bins[~defect], minlength=values.size)
    bound = 0.5 * same_bin / (defect.sum() * (~defect).sum())
    assert 0 < bound < 2**-12
    assert curve_of(*images).auroc() == pytest.approx(roc_auc_score(defect, values), abs=bound + 1e-12)


LADDER = np.array(
    [-3.4e38, -1e30, -1.001, -1.0, -1e-30, 0.0, 1e-30, 1.001e-30, 1.0, 1.001, 1e30, 1.001e30, 3.4e38],
    np.float32,
)


@pytest.mark.parametrize("step", range(len(LADDER) - 1))
def test_pixel_auroc_orders_negative_tiny_and_huge_values(step: int) -> None:
    pair = [LADDER[step : step + 2]]
    assert curve_of((pair, [[False, True]])).auroc() == 1.0
    assert curve_of((pair, [[True, False]])).auroc() == 0.0
    assert curve_of((pair, [[False, True]])).aupro() == 1.0


def test_pixel_ties_count_half() -> None:
    assert curve_of(([[2.0, 2.0]], [[False, True]])).auroc() == 0.5
    assert curve_of(([[-0.0, 0.0]], [[False, True]])).auroc() == 0.5  # equal numbers, other bits
    assert curve_of(([[0.0, -0.0]], [[False, True]])).auroc() == 0.5
    # Good 1, 2, 2 and defect 2, 3: pairs 1, 1; half, 1; half, 1 make 5 of 6.
    assert curve_of(([[1.0, 2.0, 2.0, 2.0, 3.0]], [[0, 0, 0, 1, 1]])).auroc() == pytest.approx(5 / 6)


@pytest.mark.parametrize("value", [0.0, -7.0, 1e30])
def test_constant_maps_are_chance(value: float) -> None:
    mask = np.eye(6, dtype=bool)
    curve = curve_of((np.full((6, 6), value), mask), (np.full((6, 6), value), np.zeros((6, 6))))
    assert curve.auroc() == pytest.approx(0.5)
    assert curve.aupro() == pytest.approx(0.15)  # the diagonal: mean height over [0, 0.3]
    assert curve.aupro(1.0) == pytest.approx(0.5)


def test_pixel_metrics_are_none_for_one_kind() -> None:
    for curve in (PixelCurve(), curve_of(([[1.0, 2.0]], [[0, 0]])), curve_of(([[1.0, 2.0]], [[1, 1]]))):
        assert curve.auroc() is None
        assert curve.aupro() is None
    both = curve_of(([[1.0, 2.0]], [[0, 0]]), ([[3.0, 4.0]], [[1, 1]]))  # a good image is the negatives
    assert both.auroc() == 1.0
    assert both.aupro() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------------ AUPRO


def regions_by_flood_fill(mask: Any) -> list[list[tuple[int, int]]]:
    unseen = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while unseen:
        region, front = [], [unseen.pop()]
        while front:
            y, x = front.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & unseen
            unseen -= near
            front.extend(near)
        regions.append(region)
    return regions


def brute_force_aupro(images: list[tuple[Any, Any]], max_fpr: float) -> float:
    """Every distinct value as a threshold, every region counted on its own, the area piece by piece."""
    values, defect = pixels_of(images)
    points = [(0.0, 0.0)]
    for threshold in np.unique(values)[::-1]:
        overlaps = [
            np.mean([anomaly_map[pixel] >= threshold for pixel in region])
            for anomaly_map, mask in images
            for region in regions_by_flood_fill(mask)
        ]
        points.append((float(np.mean(values[~defect] >= threshold)), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in [(points[i], points[i + 1]) for i in range(len(points) - 1)]:
        end = min(x1, max_fpr)
        if end > x0:
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / max_fpr


@pytest.mark.parametrize("levels", [6, 200])  # many ties, few ties
@pytest.mark.parametrize("seed", range(4))
def test_aupro_equals_brute_force(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for has_defect in (True, True, False, True):
        mask = (rng.random((9, 11)) < 0.25) & has_defect
        anomaly_map = rng.integers(-levels, levels, (9, 11)) / 8 + 0.25 * levels / 8 * mask
        images.append((anomaly_map, mask))
    sizes = {len(region) for _, mask in images for region in regions_by_flood_fill(mask)}
    assert len(sizes) > 2
    curve = curve_of(*images)
    for max_fpr in (0.01, 0.3, 0.77, 1.0):
        assert curve.aupro(max_fpr) == pytest.approx(brute_force_aupro(images, max_fpr), abs=1e-12)
    assert curve.aupro() == curve.aupro(0.3)


def test_aupro_and_auroc_by_hand() -> None:
    # Two regions, of 4 pixels and of 1, and 10 good pixels.
    mask = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    anomaly_map = [[8, 8, 7, 5, 5], [5, 5, 5, 5, 9], [1, 1, 1, 1, 1]]
    curve = curve_of((anomaly_map, mask))
    # From 9 down to 8: overlaps 1 and 2/4, mean 0.75, no false positive. At 7: one of 10 good pixels. At 5:
    # all defect pixels and 5 of 10 good ones, so a straight piece from (0.1, 0.75) to (0.5, 1): 0.875 at 0.3.
    assert curve.aupro() == pytest.approx((0.1 * 0.75 + 0.2 * (0.75 + 0.875) / 2) / 0.3, abs=1e-12)
    assert curve.aupro(0.1) == pytest.approx(0.75, abs=1e-12)  # the border on a point of the curve
    # By pixels the first three of five are found before any false positive: 0.1 * 0.6 + 0.4 * 0.8 + 0.5.
    assert curve.auroc() == pytest.approx(0.88, abs=1e-12)


def test_diagonal_pixels_are_one_region() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[3, 3] = True
    anomaly_map = np.where(np.arange(16).reshape(4, 4) == 15, 3.0, 1.0)
    # One of two regions found at no false positive (one of three if diagonals did not connect), then one tie:
    # from (0, 0.5) to (1, 1), which is 0.65 at 0.3.
    assert curve_of((anomaly_map, mask)).aupro() == pytest.approx((0.5 + 0.65) / 2)


@pytest.mark.parametrize("max_fpr", [0.0, -0.3, 1.01, float("nan")])
def test_aupro_rejects(max_fpr: float) -> None:
    with pytest.raises(ValueError, match="max_fpr"):
        curve_of(([[1.0, 2.0]], [[0, 1]])).aupro(max_fpr)


# ----------------------------------------------------------------------------------------- updates and memory


@pytest.mark.parametrize(
    ("anomaly_map", "mask"),
    [
        (np.array([[1.0, np.nan]], np.float32), np.array([[False, True]])),
        (np.array([[1.0, -np.inf]], np.float32), np.array([[False, True]])),
        (np.array([[1.0, 2.0]], np.float64), np.array([[False, True]])),
        (np.array([1.0, 2.0], np.float32), np.array([False, True])),
        (np.array([[[1.0, 2.0]]], np.float32), np.array([[[False, True]]])),
        (np.zeros((0, 5), np.float32), np.zeros((0, 5), bool)),
        (np.array([[1.0, 2.0]], np.float32), np.array([[0, 255]], np.uint8)),
        (np.array([[1.0, 2.0]], np.float32), np.array([[False], [True]])),
        (np.array([[1.0, 2.0]], np.float32), np.array([False, True])),
    ],
)
def test_update_rejects_and_adds_nothing(anomaly_map: Any, mask: Any) -> None:
    curve = curve_of(([[3.0, 2.0, 1.0]], [[0, 1, 0]]))
    with pytest.raises(ValueError, match="anomaly_map|mask"):
        curve.update(anomaly_map, mask)
    assert curve.auroc() == 0.5


def test_update_takes_any_memory_layout_and_leaves_its_arguments_alone() -> None:
    rng = np.random.default_rng(0)
    wide, mask = rng.normal(size=(20, 30)).astype(np.float32), rng.random((20, 30)) < 0.3
    wide.setflags(write=False)
    mask.setflags(write=False)
    plain = curve_of((wide[::2, ::3].copy(), mask[::2, ::3].copy()))
    strided = PixelCurve()
    strided.update(wide[::2, ::3], mask[::2, ::3])
    transposed = PixelCurve()
    transposed.update(wide[::2, ::3].T, mask[::2, ::3].T)
    for other in (strided, transposed):
        assert other.auroc() == plain.auroc()
        assert other.aupro() == pytest.approx(plain.aupro(), abs=1e-12)


def test_memory_does_not_grow_with_the_pixels() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((256, 256), dtype=bool)
    mask[10:40, 10:40] = True
    anomaly_map = rng.normal(size=(256, 256)).astype(np.float32)
    mebibyte = 2.0**20
    tracemalloc.start()
    try:
        curve = PixelCurve()
        curve.update(anomaly_map, mask)
        after_one, _ = tracemalloc.get_traced_memory()
        for shift in range(120):  # 30 MiB of float32, 7.5 MiB of masks, all values different
            curve.update(anomaly_map + np.float32(shift), mask)
        after_all, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 24 * mebibyte <= after_one < 26 * mebibyte  # as the docstring states
    assert after_all - after_one < 0.5 * mebibyte
    assert peak < 40 * mebibyte
    assert curve.auroc() is not None


# ------------------------------------------------------------------------------- what a number of images promises
