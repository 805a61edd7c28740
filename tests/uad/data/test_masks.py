"""uad.data.masks: what counts as defective in the masks that annotators write, and how masks shrink."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from uad.data.masks import is_turned_in_place, read_masks, regions, shrink

anything = settings(derandomize=True, deadline=None)
ON = np.zeros((12, 16), bool)
ON[2:6, 3:9] = True
U8 = ON.astype(np.uint8)


def palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(U8).convert("P")
    image.putdata(U8.ravel().tolist())
    image.putpalette(colours)
    return image


def layered(colour: tuple[int, int, int], ground: tuple[int, int, int], opacity: np.ndarray) -> Image.Image:
    pixels = np.where(ON[..., None], np.uint8(colour), np.uint8(ground))
    return Image.fromarray(np.dstack([pixels, opacity.astype(np.uint8)]))


NOISY = np.maximum(255 * U8, np.random.default_rng(0).integers(0, 4, ON.shape).astype(np.uint8))
STORED = {
    "0 and 255": Image.fromarray(255 * U8),
    "0 and 1": Image.fromarray(U8),
    "one bit": Image.fromarray(ON),
    "faint 16 bits": Image.fromarray(U8.astype(np.uint16)),
    "palette": palette([0, 0, 0, 128, 0, 0]),
    "palette on white": palette([255, 255, 255, 255, 0, 0]),
    "red on transparent white": layered((255, 0, 0), (255, 255, 255), 255 * U8),
    "white, opaque": layered((255, 255, 255), (0, 0, 0), np.full_like(U8, 255)),
    "black on transparent": layered((0, 0, 0), (0, 0, 0), 255 * U8),
    "noise in the background": Image.fromarray(NOISY),
}


@pytest.mark.parametrize("name", STORED)
def test_masks_as_tools_write_them(name: str, tmp_path: Path) -> None:
    STORED[name].save(tmp_path / "mask.png")
    found = read_masks([tmp_path / "mask.png"])
    assert found.dtype == bool
    np.testing.assert_array_equal(found, ON)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_an_empty_mask_is_empty(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (16, 12)).save(tmp_path / "mask.png")
    assert not read_masks([tmp_path / "mask.png"]).any()


@pytest.mark.parametrize("quality", [50, 60, 75, 90])
def test_the_ringing_of_a_jpeg_makes_no_region(quality: int, tmp_path: Path) -> None:
    drawn = np.zeros((64, 64), np.uint8)
    drawn[20:30, 25:45] = 255
    drawn[50:53, 10:12] = 255
    Image.fromarray(drawn).save(tmp_path / "a.jpg", quality=quality)
    found = read_masks([tmp_path / "a.jpg"])
    assert regions(found) == 2 and abs(int(found.sum()) - int((drawn > 0).sum())) <= 8


def test_masks_are_joined(tmp_path: Path) -> None:
    for name, rows in (("a", slice(0, 2)), ("b", slice(8, 9))):
        part = np.zeros((12, 16), np.uint8)
        part[rows] = 255
        Image.fromarray(part).save(tmp_path / f"{name}.png")
    joined = read_masks([tmp_path / "a.png", tmp_path / "b.png"])
    assert joined.sum() == 3 * 16


def test_a_thin_crack_does_not_vanish() -> None:
    crack = np.zeros((1024, 1024), bool)
    crack[511:513, 100:900] = True
    small = shrink(crack, (256, 256))
    assert small[127:129, 25:225].all(axis=1).all() and small.sum() <= 2 * 202
    single = np.zeros((4000, 4000), bool)
    single[1234, 3210] = True
    assert np.argwhere(shrink(single, (256, 256))).tolist() == [[78, 205], [79, 205]]  # it lies on rows 78.98 to 79.04


@pytest.mark.parametrize("size", [(37, 41), (100, 30), (256, 256)])
def test_a_pixel_is_defective_if_any_of_its_source_pixels_is(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random((100, 123)) < 0.01
    small = shrink(mask, size)
    rows, columns = np.nonzero(mask)
    centres = ((rows + 0.5) * size[0] / 100).astype(int), ((columns + 0.5) * size[1] / 123).astype(int)
    assert small.shape == size and small[centres].all()
    assert small.sum() <= 4 * mask.sum() * max(1, size[0] / 100) * max(1, size[1] / 123)


def test_a_mask_grows_block_by_block() -> None:
    np.testing.assert_array_equal(shrink(ON, (24, 32)), np.kron(ON, np.ones((2, 2), bool)))
    assert shrink(ON, (12, 16)) is ON


def test_regions_are_counted_with_their_corners() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[5, 5] = True
    assert regions(mask) == 2 and regions(~mask) == 1 and regions(np.zeros((8, 8), bool)) == 0


def photograph(path: Path, turn: int, size: tuple[int, int] = (16, 12)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", size).save(path, exif=exif)
    return path


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_a_mask_on_the_stored_pixels_is_turned_with_its_photograph(turn: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    image = photograph(tmp_path / "a.jpg", turn)
    Image.fromarray(255 * U8).save(tmp_path / "stored.png")
    with Image.open(photograph(tmp_path / "b.png", turn)) as file:
        pixels = Image.fromarray(255 * U8)
        pixels.info["exif"] = file.info["exif"]
        expected = np.asarray(ImageOps.exif_transpose(Image.open(_with_exif(tmp_path, turn)))) > 0
    found = read_masks([tmp_path / "stored.png"], image)
    assert found.shape == (16, 12)
    np.testing.assert_array_equal(found, expected)


def _with_exif(folder: Path, turn: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(255 * U8).save(folder / "turned.png", exif=exif)
    return folder / "turned.png"


def test_a_mask_drawn_on_the_turned_photograph_stays(tmp_path: Path) -> None:
    image = photograph(tmp_path / "a.jpg", 6, (12, 16))
    Image.fromarray(255 * U8).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_masks([tmp_path / "mask.png"], image), ON)


@pytest.mark.parametrize(
    ("turn", "size", "expected"), [(1, (16, 16), False), (3, (16, 12), True), (6, (16, 12), False), (6, (16, 16), True)]
)
def test_where_the_size_does_not_tell_it_is_said(
    turn: int, size: tuple[int, int], expected: bool, tmp_path: Path
) -> None:
    image = photograph(tmp_path / "a.jpg", turn, size)
    Image.new("L", size).save(tmp_path / "mask.png")
    assert is_turned_in_place(image, [tmp_path / "mask.png"]) == expected


@anything
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24)), st.integers(1, 24), st.integers(1, 24))
def test_a_pixel_of_a_smaller_mask_is_defective_where_any_of_its_sources_is(
    mask: np.ndarray, height: int, width: int
) -> None:
    small = shrink(mask, (height, width))
    assert small.shape == (height, width)
    rows, columns = (
        [range(i * full // side, -(-(i + 1) * full // side)) for i in range(side)]
        for full, side in zip(mask.shape, (height, width))
    )
    expected = [[any(mask[y, x] for y in rows[i] for x in columns[j]) for j in range(width)] for i in range(height)]
    np.testing.assert_array_equal(small, expected)
