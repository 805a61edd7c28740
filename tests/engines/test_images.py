"""engines.images: every kind of image file becomes the right RGB pixels, or an error that names the file."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from engines import images
from engines.errors import CutShortError, ImageFileError, UadWarning
from engines.images import (
    SUFFIXES,
    check_image,
    grey_depth,
    limit_megapixels,
    orientation,
    read_image,
    read_resized,
    resize,
    size_of,
    stored_size,
    turned,
)

ROOT = Path(__file__).resolve().parents[2]
GREY = np.array([[0, 1, 100], [128, 254, 255]], np.uint8)
COLOURS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [200, 150, 100], [255, 255, 255]]], np.uint8
)
ORIENTATION = 0x0112  # the EXIF tag


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def three(grey: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3) of equal channels."""
    return np.repeat(grey[..., None], 3, axis=2)


def assert_read(path: Path, expected: Any) -> None:
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def message_of(path: Path) -> str:
    with pytest.raises(ImageFileError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    assert_read(saved(Image.fromarray(COLOURS), tmp_path / "a.png"), COLOURS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    flat = np.full((8, 8, 3), 90, np.uint8)  # flat, so that lossy formats keep it
    assert_read(saved(Image.fromarray(flat), tmp_path / f"a{suffix}"), flat)


def test_8_bit_grey_has_equal_channels(tmp_path: Path) -> None:
    assert_read(saved(Image.fromarray(GREY), tmp_path / "a.png"), three(GREY))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    wide = np.array([[0, 257, 257 * 100, 65535], [128, 129, 257 * 7 + 128, 257 * 7 + 129]], np.uint16)
    expected = np.array([[0, 1, 100, 255], [0, 1, 7, 8]], np.uint8)
    assert_read(saved(Image.fromarray(wide), tmp_path / f"a{suffix}"), three(expected))


def test_16_bit_grey_keeps_all_256_levels(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = saved(Image.fromarray((levels * 257).astype(np.uint16)), tmp_path / "a.png")
    assert_read(path, three(levels.astype(np.uint8)))


def test_dark_16_bit_grey_is_not_stretched(tmp_path: Path) -> None:
    # Nothing is guessed from pixel values: an image of at most 255 is nearly black, not 8 bits in disguise.
    path = saved(Image.fromarray(np.full((2, 2), 255, np.uint16)), tmp_path / "a.png")
    assert_read(path, np.ones((2, 2, 3)))


def test_1_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    assert_read(saved(Image.fromarray(bits), tmp_path / "a.png"), three(bits.astype(np.uint8) * 255))


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 100])
    return image


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    red, green, blue = (255, 0, 0), (0, 200, 0), (0, 0, 100)
    assert_read(saved(palette_image(), tmp_path / "a.png"), [[red, green], [blue, green]])


def test_transparent_colour_of_a_palette_is_black(tmp_path: Path) -> None:
    path = saved(palette_image(), tmp_path / "a.png", transparency=1)
    assert_read(path, [[(255, 0, 0), (0, 0, 0)], [(0, 0, 100), (0, 0, 0)]])


def test_transparent_grey_is_black(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GREY), tmp_path / "a.png", transparency=128)
    assert_read(path, three(np.where(GREY == 128, 0, GREY)))


def test_rgba_is_laid_over_black(tmp_path: Path) -> None:
    pixels = np.array([[[255, 100, 0, 255], [255, 100, 0, 0], [255, 100, 0, 128]]], np.uint8)
    assert_read(saved(Image.fromarray(pixels), tmp_path / "a.png"), [[(255, 100, 0), (0, 0, 0), (128, 50, 0)]])


def test_grey_with_alpha_is_laid_over_black(tmp_path: Path) -> None:
    pixels = np.array([[[200, 255], [200, 0], [255, 128]]], np.uint8)
    path = saved(Image.fromarray(pixels, "LA"), tmp_path / "a.png")
    assert_read(path, [[(200, 200, 200), (0, 0, 0), (128, 128, 128)]])


def test_cmyk_is_converted(tmp_path: Path) -> None:
    cyan, yellow, black, none = (255, 0, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)
    pixels = np.array([[cyan, yellow], [black, none]], np.uint8)
    path = saved(Image.fromarray(pixels, "CMYK"), tmp_path / "a.tif")
    assert_read(path, [[(0, 255, 255), (255, 255, 0)], [(0, 0, 0), (255, 255, 255)]])


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def test_exif_orientation_6_is_turned_clockwise(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOURS), tmp_path / "a.png", exif=with_orientation(6))
    assert_read(path, np.rot90(COLOURS, k=-1))


def test_exif_orientation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # the left half is white; turned clockwise, the upper half
    read = read_image(saved(Image.fromarray(pixels), tmp_path / "a.jpg", exif=with_orientation(6), quality=95))
    assert read.shape == (32, 16, 3)
    assert read[:16].min() > 200 and read[16:].max() < 50


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.ones((2, 2), np.float32)), tmp_path / "a.tif")
    assert "floating-point" in message_of(path)


@pytest.mark.parametrize("value", [65536, -1])
def test_more_than_16_bits_are_refused(tmp_path: Path, value: int) -> None:
    path = saved(Image.fromarray(np.full((2, 2), value, np.int32)), tmp_path / "a.tif")
    assert "more than 16 bits" in message_of(path)


def test_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    assert "empty file" in message_of(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message_of(path)


def test_text_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("not an image")
    assert "not an image" in message_of(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "a.png")


def test_folder_is_named(tmp_path: Path) -> None:
    message_of(tmp_path)


def test_resize_keeps_an_image_of_that_size() -> None:
    assert resize(COLOURS, COLOURS.shape[:2]) is COLOURS


def test_resize_takes_height_before_width() -> None:
    assert resize(COLOURS, (5, 7)).shape == (5, 7, 3)


def test_resize_averages_what_it_shrinks() -> None:
    # Without antialiasing every second row of a striped image would be lost: black or white, not grey.
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::2] = 255
    shrunk = resize(stripes, (8, 8))[2:-2]
    assert shrunk.dtype == np.uint8
    assert shrunk.min() > 100 and shrunk.max() < 155


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "transparent", "turned"])
def test_an_image_that_is_resized_as_it_is_read_is_the_same(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    image, more = Image.fromarray(values), {}
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode == "transparent":
        more = {"transparency": tuple(map(int, values[0, 0]))}
    elif mode == "turned":
        more = {"exif": with_orientation(6)}
    else:
        image = image.convert(mode)
    path = saved(image, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), **more)
    sizes = ((16, 20), (37, 50), (50, 37))
    for size, small in zip(sizes, read_resized(path, sizes)):
        np.testing.assert_array_equal(small, resize(read_image(path), size))
        assert small.shape == (*size, 3) and small.dtype == np.uint8
    assert size_of(path) == read_image(path).shape[:2]


# Depths of 16-bit files -----------------------------------------------------------------------------------------------


def wide(path: Path, *values: int) -> Path:
    return saved(Image.fromarray(np.array([values], np.uint16)), path)


@pytest.mark.parametrize(
    ("highest", "depth"),
    [(0, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, 16), (65535, 16)],
)
def test_the_depth_is_the_least_that_holds_the_values(highest: int, depth: int, tmp_path: Path) -> None:
    assert grey_depth(wide(tmp_path / "a.png", 0, highest)) == depth


def test_a_file_of_8_bits_has_no_depth(tmp_path: Path) -> None:
    assert grey_depth(saved(Image.fromarray(GREY), tmp_path / "a.png")) is None
    assert grey_depth(saved(Image.fromarray(COLOURS), tmp_path / "b.png")) is None


@pytest.mark.parametrize("depth", [10, 12, 14, 16])
def test_values_of_a_depth_fill_the_range(depth: int, tmp_path: Path) -> None:
    full = 2**depth - 1
    path = wide(tmp_path / "a.png", 0, full // 3, full)
    np.testing.assert_array_equal(read_image(path, depth=depth)[0, :, 0], [0, 85, 255])
    assert read_resized(path, [(1, 3)], depth)[0][0, 2, 0] == 255


def test_twelve_bits_keep_their_greys(tmp_path: Path) -> None:
    path = wide(tmp_path / "a.png", *range(0, 4096, 16))
    assert len(np.unique(read_image(path, depth=12))) == 255  # 4080 is 254
    with pytest.warns(UadWarning, match="a.png has 16 bits a pixel but no value above 4080: .* nearly black"):
        assert len(np.unique(read_image(path))) == 17


def test_a_photograph_that_does_not_fit_its_depth_is_told(tmp_path: Path) -> None:
    path = wide(tmp_path / "a.png", 0, 5000)
    with pytest.warns(UadWarning, match="a.png has values up to 5000, but those of its class have 12 bits"):
        assert read_image(path, depth=12).max() == 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path, depth=14)
        read_image(wide(tmp_path / "b.png", 0, 40000))
        read_image(wide(tmp_path / "c.png", 0, 1), faint=True)  # a mask


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_bands_join_to_the_whole_image(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, (50, 30), np.uint16))
    else:
        image = Image.fromarray(random.integers(0, 256, (50, 30, 4), np.uint8), "RGBA").convert(mode)
    path = saved(image, tmp_path / "a.tif")
    whole = read_image(path)
    monkeypatch.setattr(images, "_bands", lambda image: _rows_of_seven(image))
    np.testing.assert_array_equal(read_image(path), whole)
    assert check_image(path) == (50, 30)


def _rows_of_seven(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    for top in range(0, image.size[1], 7):
        band = image.crop((0, top, image.size[0], min(top + 7, image.size[1])))
        band.info = image.info
        yield top, band


def test_an_image_of_many_bands_is_read_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1400), np.uint8)
    assert len(list(images._bands(Image.fromarray(pixels)))) > 2
    assert_read(saved(Image.fromarray(pixels), tmp_path / "a.png", compress_level=1), three(pixels))


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_rotation_of_exif_is_as_pillow_has_it(turn: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = turn
    path = saved(Image.fromarray(COLOURS), tmp_path / "a.png", exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert_read(path, expected)
    assert check_image(path) == expected.shape[:2]
    np.testing.assert_array_equal(turned(COLOURS, turn), expected)


def test_a_rotation_that_exif_does_not_know_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    path = saved(Image.fromarray(COLOURS), tmp_path / "a.png", exif=exif)
    assert orientation(path) == 1
    assert_read(path, COLOURS)


def test_an_image_larger_than_allowed_is_refused_before_it_is_decoded_and_a_flag_raises_that(tmp_path: Path) -> None:
    path = saved(Image.new("1", (13_000, 13_000)), tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own, of what it calls a bomb
        tracemalloc.start()
        try:
            assert "169 megapixels, 120 are allowed: --max-megapixels" in message_of(path)
            with pytest.raises(ImageFileError, match="169 megapixels"):
                check_image(path)
            assert tracemalloc.get_traced_memory()[1] < 5e6
        finally:
            tracemalloc.stop()
        try:
            limit_megapixels(200)
            assert check_image(path) == (13_000, 13_000)
        finally:
            limit_megapixels(images.MEGAPIXELS)


def test_the_program_keeps_its_own_limit_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(COLOURS), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read_image, [path] * 40))  # a limit of 1 pixel would refuse them
    message_of(tmp_path / "b.png")
    assert Image.MAX_IMAGE_PIXELS == 1
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_the_environment_of_a_program_that_imports_us_is_left_alone() -> None:
    code = "import os; before = dict(os.environ); import engines.images; assert os.environ == before"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PILLOW_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


def test_one_large_image_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE", 100)
    path = saved(Image.new("L", (20, 20)), tmp_path / "a.png")
    most = now = 0
    whole = images._bands

    def counted(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
        nonlocal most, now
        now += 1
        most = max(most, now)
        threading.Event().wait(0.02)
        yield from whole(image)
        now -= 1

    monkeypatch.setattr(images, "_bands", counted)
    for work in (read_image, check_image):
        threads = [threading.Thread(target=work, args=(path,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1
    monkeypatch.setattr(images, "LARGE", 1000)
    threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most > 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_threads_of_the_command_do_not_keep_the_memory_of_large_images(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (6000, 5000), (90, 120, 30)), tmp_path / "large.jpg")  # 120 MB in Pillow
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
from engines.images import read_resized
from uad import cli

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024 / 1e6

cli.main(["--help"])
read_resized(sys.argv[2], [(64, 64)])
before = peak()
with ThreadPoolExecutor(4) as threads:
    list(threads.map(lambda _: read_resized(sys.argv[1], [(64, 64)]), range(12)))
print(peak() - before)
"""
    small = saved(Image.new("RGB", (8, 8)), tmp_path / "small.jpg")
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(small)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(done.stdout.splitlines()[-1]) < 200


# What EXIF's orientations do to the stored pixels, in Pillow's own words; 1 is as they are.
SHOWN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MODES = {"L": ".png .jpg .jpeg .jfif .tif .tiff .webp", "RGB": ".png .jpg .jpeg .jfif .tif .tiff .webp"}
MODES.update({"I;16": ".png .tif .tiff", "P": ".png .tif", "RGBA": ".png .tif .webp"})
TURNED_FILES = [(mode, suffix) for mode, suffixes in MODES.items() for suffix in suffixes.split()]


def stored_picture(mode: str) -> Image.Image:
    """(12, 20) with a bright corner at the top left."""
    grey = np.full((12, 20), 40, np.uint8)
    grey[:4, :8] = 220
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(("mode", "suffix"), TURNED_FILES)
def test_every_orientation_of_every_kind_of_file_is_as_a_viewer_shows_it(
    mode: str, suffix: str, turn: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    picture, path = stored_picture(mode), tmp_path / f"a{suffix}"
    options = {"quality": 100} if suffix in (".jpg", ".jpeg", ".jfif", ".webp") else {}
    picture.save(path, exif=exif, **options)
    assert orientation(path) == turn and stored_size(path) == (12, 20)
    upright = stored_picture("L") if turn == 1 else stored_picture("L").transpose(SHOWN[turn])
    expected = np.repeat(np.asarray(upright)[..., None], 3, axis=2).astype(int)
    pixels = read_image(path)
    assert size_of(path) == check_image(path) == pixels.shape[:2] == expected.shape[:2]
    assert np.abs(pixels - expected).max() <= (0 if not options else 12)
    small = read_resized(path, [(6, 6)])[0]
    assert np.abs(small - resize(pixels, (6, 6)).astype(int)).max() <= 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_hundred_random_images_are_what_a_plain_viewer_shows(suffix: str, tmp_path: Path) -> None:
    """In training, test and predict alike, which all call `read_resized`."""
    random = np.random.default_rng(SUFFIXES.index(suffix))
    modes = [mode for mode, suffixes in MODES.items() if suffix in suffixes.split() and mode in ("L", "RGB", "P")]
    modes = modes or ["L" if suffix == ".pgm" else "RGB"]
    paths = []
    for number in range(100):
        pixels = random.integers(0, 256, (*random.integers(2, 40, 2), 3), np.uint8)
        exif = with_orientation(int(random.integers(1, 9)))
        more = {} if suffix in (".bmp", ".jp2", ".gif", ".pgm", ".ppm") else {"exif": exif}
        picture = Image.fromarray(pixels).convert(random.choice(modes))
        paths.append(saved(picture, tmp_path / f"{number}{suffix}", **more))
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as file:  # Pillow 13.0 scrambles a turned TIFF that it maps
            shown = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), shown)
        small = read_resized(path, [(8, 8)])[0].astype(int)
        assert np.abs(small - resize(shown, (8, 8))).max() <= 1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_that_is_turned_as_its_photograph_lies_on_the_defect(suffix: str, turn: int, tmp_path: Path) -> None:
    from uad.data.masks import read_masks

    exif = Image.Exif()
    exif[ORIENTATION] = turn
    stored_picture("L").save(tmp_path / f"photo{suffix}", exif=exif)
    flat = Image.fromarray((np.asarray(stored_picture("L")) > 128).astype(np.uint8) * 255)
    flat.save(tmp_path / f"mask{suffix}", exif=exif)
    mask = read_masks([tmp_path / f"mask{suffix}"], tmp_path / f"photo{suffix}")
    np.testing.assert_array_equal(mask, read_image(tmp_path / f"photo{suffix}")[..., 0] > 128)


def deep(suffix: str, path: Path) -> Path:
    """12-bit colours in a file of 16 bits a colour, which Pillow does not write."""
    values = np.full((6, 8, 3), 2000, ">u2")
    if suffix == ".png":
        rows = b"".join(b"\0" + row.tobytes() for row in values)

        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
        content = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )
        path.write_bytes(content)
        return path
    offset = 8 + values.nbytes
    entries = [(256, 3, 1, 8), (257, 3, 1, 6), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, values.nbytes)]
    bits = offset + 2 + 12 * len(entries) + 4
    directory = struct.pack(">H", len(entries))
    for tag, kind, number, value in entries:
        value = bits if tag == 258 else value
        packed = struct.pack(">I", value) if kind == 4 or tag == 258 else struct.pack(">HH", value, 0)
        directory += struct.pack(">HHI", tag, kind, number) + packed
    directory += struct.pack(">I", 0) + struct.pack(">HHH", 16, 16, 16)
    path.write_bytes(b"MM\0*" + struct.pack(">I", offset) + values.tobytes() + directory)
    return path


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("padding", [b"", b"\0" * 300])
def test_a_jpeg_whose_end_is_zeros_is_refused(progressive: bool, padding: bytes, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    thumbnail = io.BytesIO()
    Image.fromarray(pixels[:8, :8]).save(thumbnail, "jpeg")
    exif = Image.Exif()
    exif[0x9286] = thumbnail.getvalue()  # a whole JPEG in the head, with an end of its own
    path = saved(Image.fromarray(pixels), tmp_path / "a.jpg", exif=exif, progressive=progressive)
    whole = path.read_bytes()
    path.write_bytes(whole + padding)  # as cameras that write blocks of one size
    assert read_image(path).shape == (64, 48, 3)
    path.write_bytes(whole[: len(whole) * 2 // 3] + b"\0" * (len(whole) // 3) + padding)
    if not progressive:
        with Image.open(path) as file:
            file.load()  # without a word
    for read in (read_image, check_image, lambda path: read_resized(path, [(4, 4)])):
        with pytest.raises(ImageFileError, match="cut short: a JPEG without its end marker|is truncated"):
            read(path)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_whose_pixels_are_all_there_is_read(missing: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / "a.jpg")
    expected = read_image(path)
    path.write_bytes(path.read_bytes()[:-missing])
    with Image.open(path) as file, pytest.raises(OSError, match="truncated"):
        file.load()
    assert_read(path, expected)
    path.write_bytes(path.read_bytes() + b"\0" * 500)  # a writer that reserved more than it needed
    assert_read(path, expected)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_pixels_is_read_only_where_that_is_accepted(progressive: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / "a.jpg", progressive=progressive)
    expected = read_image(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CutShortError, match="cut short"):
        read_resized(path, [(64, 48)])
    (found,) = read_resized(path, [(64, 48)], accept_truncated=True)
    if not progressive:
        np.testing.assert_array_equal(found[:32], expected[:32])
    assert (found[-8:] != expected[-8:]).any()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_a_colour_are_refused_for_pillow_would_make_them_dark(suffix: str, tmp_path: Path) -> None:
    path = deep(suffix, tmp_path / f"a{suffix}")
    with Image.open(path) as file:
        assert file.mode == "RGB" and np.asarray(file).max() <= 8  # 2000 of 4095
    for read in (read_image, check_image, lambda path: read_resized(path, [(4, 4)])):
        with pytest.raises(ImageFileError, match="16 bits a colour.*save it with 8 bits"):
            read(path)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png", ".mpo.jpg"])
def test_of_several_frames_the_first_is_judged_and_that_is_said_once_a_folder(suffix: str, tmp_path: Path) -> None:
    first, second = (
        Image.fromarray(three(np.full((8, 8), 50, np.uint8))),
        Image.fromarray(three(np.full((8, 8), 200, np.uint8))),
    )
    kind = {".mpo.jpg": "MPO", ".tif": "TIFF", ".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}[suffix]
    for name in ("a", "b"):
        first.save(tmp_path / f"{name}{suffix}", kind, save_all=True, append_images=[second])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for name in ("a", "b"):
            assert abs(int(read_image(tmp_path / f"{name}{suffix}").max()) - 50) < 8
    texts = [str(each.message) for each in caught if each.category is UadWarning]
    assert texts == [f"{tmp_path}: there are files of 2 frames or pages, and only the first of each is judged"]


def test_a_thumbnail_is_no_frame(tmp_path: Path) -> None:
    picture = Image.fromarray(three(np.full((8, 8), 50, np.uint8)))
    for kind, name in (("MPO", "a.jpg"), ("TIFF", "a.tif")):
        picture.save(tmp_path / name, kind, save_all=True, append_images=[picture.resize((4, 4))])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_image(tmp_path / name)
