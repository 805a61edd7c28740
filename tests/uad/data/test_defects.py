"""uad.data.defects: one patch on each image, the same at every call."""

from __future__ import annotations

import numpy as np
import pytest

from uad.data.defects import with_defects, with_defects_to_restore, with_faint_defects, with_warps


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (256, 256)])
def test_each_image_has_one_patch_of_a_modest_size(size: tuple[int, int]) -> None:
    images = np.full((20, *size, 3), 100, np.uint8)
    changed = with_defects(images)
    assert changed.shape == images.shape and changed.dtype == np.uint8
    sizes = set()
    for image in changed:
        rows, columns = np.nonzero((image != 100).any(axis=2))
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert len(rows) == height * width  # one rectangle
        assert size[0] // 16 <= height <= size[0] // 5 and size[1] // 16 <= width <= size[1] // 5
        assert int(image[rows[0], columns[0], 0]) in (40, 70, 130, 160)
        sizes.add((rows.min(), columns.min(), height, width))
    assert len(sizes) > 10


def test_the_same_seed_draws_the_same_and_the_images_stay() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    before = images.copy()
    np.testing.assert_array_equal(with_defects(images), with_defects(images))
    assert (with_defects(images, seed=1) != with_defects(images)).any()
    np.testing.assert_array_equal(images, before)


def test_faint_defects_lie_on_the_part_and_are_small() -> None:
    images = np.full((40, 128, 128, 3), 250, np.uint8)
    images[:, 40:90, 30:100] = np.random.default_rng(0).integers(60, 120, (40, 50, 70, 3), np.uint8)
    changed = with_faint_defects(images)
    assert changed.dtype == np.uint8 and changed.shape == images.shape
    forms = set()
    for before, after in zip(images, changed):
        rows, columns = np.nonzero((before != after).any(axis=2))
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert rows.min() < 90 and rows.max() >= 40 and columns.min() < 100 and columns.max() >= 30
        assert max(height, width) <= 32 and min(height, width) <= 16
        forms.add((height > 16, width > 16))
    assert forms == {(False, False), (True, False), (False, True)}  # patches, and scars both ways


def test_faint_defects_are_fainter_and_drawn_again_from_a_seed() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    before = images.copy()
    faint, plain = with_faint_defects(images), with_defects(images)
    assert np.abs(faint.astype(int) - images).sum() < 0.5 * np.abs(plain.astype(int) - images).sum()
    np.testing.assert_array_equal(faint, with_faint_defects(images))
    assert (with_faint_defects(images, seed=1) != faint).any()
    np.testing.assert_array_equal(images, before)
    for tiny in (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 16, 200, 3), np.uint8)):
        assert with_faint_defects(tiny).shape == tiny.shape


def test_a_faint_defect_is_half_transparent() -> None:
    images = np.stack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8)] * 10)
    bright = with_faint_defects(images)[1::2]
    assert 75 <= bright.min() <= 125  # half of what is under, half of a black patch, and a step of at most 25


def test_a_warp_bends_one_spot_on_the_part_and_adds_no_colour() -> None:
    images = np.full((40, 128, 96, 3), 250, np.uint8)
    images[:, 40:90, 30:70] = np.random.default_rng(0).integers(60, 120, (40, 50, 40, 3), np.uint8)
    before = images.copy()
    changed = with_warps(images)
    assert changed.dtype == np.uint8 and (changed != images).any(axis=(1, 2, 3)).all()
    for image, after in zip(images, changed):
        rows, columns = np.nonzero((np.abs(image.astype(int) - after) > 2).any(axis=2))
        assert max(np.ptp(rows), np.ptp(columns)) < 8 * 128 / 16 and after.min() >= 60 and after.max() <= 250
        assert (image == after).all(axis=2).mean() > 0.5
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(changed, with_warps(images))
    assert (with_warps(images, seed=1) != changed).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_line_is_bent_by_as_much_as_is_said(axis: int) -> None:
    """By hand: the middle of a spot comes from 1/64 to 1/24 of the height away, what is far stays."""
    images = np.zeros((30, 192, 192, 3), np.uint8)
    images += np.moveaxis(np.arange(192, dtype=np.uint8)[:, None, None], 0, axis)  # a pixel says its row, or column
    moved = np.abs(with_warps(images).astype(int) - images).max(axis=(1, 2, 3))
    assert moved.max() <= 8 and moved.max() >= 5 and (moved == 0).mean() < 0.2


def test_a_defect_to_restore_is_a_patch_or_an_ellipse_of_a_colour_that_is_near() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 128, 128, 3), np.uint8)
    before = images.copy()
    changed, filled = with_defects_to_restore(images), []
    for image, after, patch in zip(images, changed, with_defects(images)):
        rows, columns = np.nonzero((image != after).any(axis=2))
        if (after == patch).all():
            continue
        (colour,) = np.unique(after[rows, columns], axis=0)  # one
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert min(height, width) >= 3 and max(height, width) <= 2 * 128 / 20 + 1
        filled.append(len(rows) / (height * width))
        around = image[max(rows.min() - 16, 0) : rows.max() + 17, max(columns.min() - 16, 0) : columns.max() + 17]
        assert (around == colour).all(axis=2).any()
    assert 20 <= len(filled) <= 40
    assert 0.7 < np.mean(filled) < 0.88  # an ellipse fills 0.785 of its box
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(changed, with_defects_to_restore(images))
    assert (with_defects_to_restore(images, seed=1) != changed).any()
