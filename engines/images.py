"""Image files to RGB uint8 arrays, the one way that training, calibration and every engine share."""

import contextlib
import dataclasses
import io
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from engines.errors import CutShortError, ImageFileError, UadWarning

if TYPE_CHECKING:
    import PIL.Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".jfif", ".jp2", ".gif", ".pgm", ".ppm")
DEPTHS = (10, 12, 14, 16)  # of cameras that write 16-bit files
MEGAPIXELS = 120.0  # of the largest image that is decoded, which takes about 1.1 GB; `limit_megapixels` raises it
LARGE = 2**24  # pixels: of larger images only one is decoded at a time
RESIZE_RULE = "bilinear with antialiasing (Pillow), aspect ratio not kept"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An image file that was read into memory, and its path, which errors name."""

    path: Path
    content: bytes

    def __str__(self) -> str:
        return str(self.path)


ImageSource = Union[str, Path, Loaded]

_allowed = MEGAPIXELS
_one_large_image = threading.Lock()
_pillow_limit = threading.Lock()
_opened_now = 0  # images; while there are some, Pillow's limit is off
_limit_before: Optional[int] = None


def limit_megapixels(megapixels: float) -> None:
    """Let `read_image` decode images of up to so many million pixels, in this process; `MEGAPIXELS` at first."""
    global _allowed
    _allowed = megapixels


def read_image(path: ImageSource, faint: bool = False, depth: int = 16) -> np.ndarray:
    """Decode one image file.

    EXIF rotation is applied; grey and palette images become RGB; transparent pixels are laid over black. Grey values of
    a 16-bit file are taken to have `depth` bits: v becomes round(255 v / (2^depth - 1)), so that 65535 of 16 bits and
    4095 of 12 are 255. A `UadWarning` says where that does not fit. It takes 8 to 11 bytes a pixel while it decodes.

    Args:
        path: the file.
        faint: whether 16-bit values that would become 0 become 1, as in a mask.
        depth: bits of a 16-bit file that are used, such as 12 of many cameras; see `ModelInfo.depths`.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageFileError: the file is missing, empty, truncated, not an image, larger than allowed, or holds floats.
    """
    with decoded(path) as (image, turn):
        return turned(_pixels_of(image, path, faint, depth), turn)


def read_resized(
    path: ImageSource, sizes: Sequence[Tuple[int, int]], depth: int = 16, accept_truncated: bool = False
) -> List[np.ndarray]:
    """The same as `resize(read_image(path, depth=depth), size)` for each of some sizes, from one decoding.

    No copy of the whole image is made for most files, and of large images only one is in memory at a time.

    Args:
        path: the file.
        sizes: (height, width) each.
        depth: see `read_image`.
        accept_truncated: whether a JPEG that was cut short is read, with grey where its pixels are missing.

    Raises:
        CutShortError: a JPEG was cut short, and that is not accepted.
        ImageFileError: as `read_image`.
    """
    with decoded(path, accept_truncated) as (image, turn):
        if turn == 1 and image.mode in ("L", "RGB") and "transparency" not in image.info:
            return [_resized(image, size) for size in sizes]
        pixels = turned(_pixels_of(image, path, faint=False, depth=depth), turn)
        return [resize(pixels, size) for size in sizes]


def size_of(path: ImageSource) -> Tuple[int, int]:
    """(H, W) of an image file, from its header.

    Raises:
        ImageFileError: as `read_image`, but for what only decoding shows.
    """
    with _opened(path) as image:
        return _size_of(image)


def stored_size(path: ImageSource) -> Tuple[int, int]:
    """(H, W) of the stored pixels of an image file, whichever way EXIF turns them.

    Raises:
        ImageFileError: as `size_of`.
    """
    with _opened(path) as image:
        return _stored_size(image)


def _size_of(image: "PIL.Image.Image") -> Tuple[int, int]:
    """As it is shown; of an image that is not decoded yet."""
    height, width = _stored_size(image)
    return (height, width) if _orientation_of(image) < 5 else (width, height)


def _stored_size(image: "PIL.Image.Image") -> Tuple[int, int]:
    """Of an image that is not decoded yet. Pillow 11 and later give a TIFF's size as it is shown, earlier as stored."""
    if image.format == "TIFF":
        width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
    else:
        width, height = image.size
    return height, width


@contextlib.contextmanager
def decoded(path: ImageSource, accept_truncated: bool = False) -> "Iterator[Tuple[PIL.Image.Image, int]]":
    """An image file, decoded by Pillow, and the orientation that is left to apply: it turns a TIFF itself.

    Raises:
        ImageFileError: as `read_resized`.
    """
    with _opened(path) as image, _decoding(image.size):
        if _is_deep_colour(image):
            raise ImageFileError(
                f"{path} (16 bits a colour, of which Pillow keeps the upper 8: save it with 8 bits a colour, or as "
                "16-bit grey values)"
            )
        _tell_of_frames(path, image)
        if image.format in ("JPEG", "MPO"):
            image = _with_end(path, image, accept_truncated)
        image.load()
        yield image, _orientation_of(image)


def check_image(path: ImageSource, depth: int = 16) -> Tuple[int, int]:
    """Decode one image file as `read_image` does, without keeping it: (H, W).

    Raises:
        ImageFileError: as `read_image`.
    """
    size = size_of(path)
    with decoded(path) as (image, _):
        for _ in _rgb_bands(image, path, faint=False, depth=depth):
            pass
        return size


@contextlib.contextmanager
def _opened(path: ImageSource) -> "Iterator[PIL.Image.Image]":
    """An image file of a size that is allowed, not decoded yet.

    Raises:
        ImageFileError: as `read_image`, of the block too.
    """
    from PIL import UnidentifiedImageError

    try:
        if not (len(path.content) if isinstance(path, Loaded) else Path(path).stat().st_size):
            raise ImageFileError(f"{path} (empty file)")
        with _without_pillow_limit(), _pillow_image(path) as file:
            megapixels = file.size[0] * file.size[1] / 1e6
            if megapixels > _allowed:
                raise ImageFileError(
                    f"{path} ({megapixels:.0f} megapixels, {_allowed:g} are allowed: --max-megapixels raises that)"
                )
            yield file
    except ImageFileError:
        raise
    except FileNotFoundError as error:
        raise ImageFileError(f"{path} (no such file)") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{path} (not an image)") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise ImageFileError(f"{path} (cannot be decoded: {error})") from error


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Pillow's own limit is off: it warns with a line of its code, and no flag raises it. It belongs to the program,
    which has it back when the last image is closed.
    """
    from PIL import Image

    global _opened_now, _limit_before
    with _pillow_limit:
        if _opened_now == 0:
            _limit_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _opened_now += 1
    try:
        yield
    finally:
        with _pillow_limit:
            _opened_now -= 1
            if _opened_now == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before


@contextlib.contextmanager
def _pillow_image(path: ImageSource) -> "Iterator[PIL.Image.Image]":
    """An image file as Pillow opens it.

    Pillow maps an uncompressed TIFF of grey values into memory by its size as it is shown, and scrambles one that EXIF
    turns by a quarter (seen in 13.0). It maps no stream.
    """
    from PIL import Image

    file = io.BytesIO(path.content) if isinstance(path, Loaded) else path
    with contextlib.closing(Image.open(file)) as image:  # Pillow's own context keeps the pixels
        is_turned = image.format == "TIFF" and _orientation_of(image) >= 5
        if isinstance(file, io.BytesIO) or not is_turned:
            yield image
            return
    with open(file, "rb") as stream, contextlib.closing(Image.open(stream)) as image:
        yield image


def _decoding(size: Tuple[int, int]) -> "contextlib.AbstractContextManager[object]":
    """Waits while another thread decodes a large image, if this is one too."""
    if size[0] * size[1] > LARGE:
        return _one_large_image
    return contextlib.nullcontext()


def _with_end(path: ImageSource, image: "PIL.Image.Image", accept_truncated: bool) -> "PIL.Image.Image":
    """A JPEG that is not decoded yet; where its end marker is missing, the same with one, if all its pixels are there.

    What is behind the last pixel makes no difference to a decoder. So pixels are missing where two endings that differ
    give two images. Of a progressive JPEG that says nothing: each of its scans holds something of every pixel.
    """
    from PIL import Image

    content = path.content if isinstance(path, Loaded) else Path(path).read_bytes()
    if _has_end(content):
        return image
    ended = [Image.open(io.BytesIO(content.rstrip(b"\0\xff") + more + b"\xff\xd9")) for more in (b"", b"\x55" * 64)]
    is_whole = "progression" not in image.info and ended[0].tobytes() == ended[1].tobytes()
    if not (is_whole or accept_truncated):
        raise CutShortError(f"{path} (cut short: a JPEG without its end marker, its last rows may be missing)")
    return ended[0]


def _has_end(content: bytes) -> bool:
    """Whether a JPEG has its end marker, FF D9, behind the head, in which a thumbnail has one of its own.

    In compressed pixels FF is followed by 00, so it is no chance. Without it decoders fill what is missing with grey.
    ITU-T T.81, annex B.
    """
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":  # up to the first scan
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content.rfind(b"\xff\xd9", place) >= 0


def _is_deep_colour(image: "PIL.Image.Image") -> bool:
    """Whether an image that is not decoded yet has several channels of 16 bits, as its tiles say."""
    for tile in getattr(image, "tile", ()):
        raw_mode = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        if isinstance(raw_mode, str) and ";16" in raw_mode and not image.mode.startswith("I"):
            return True
    return False


def _tell_of_frames(path: ImageSource, image: "PIL.Image.Image") -> None:
    """Warn, once a folder, that of several frames or pages the first is judged. Smaller ones are thumbnails."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format in ("MPO", "TIFF"):
        size, sizes = image.size, []
        for frame in range(1, count):
            image.seek(frame)
            sizes.append(image.size)
        image.seek(0)
        count = 1 + sum(each == size for each in sizes)
    if count > 1:
        folder = Path(str(path)).parent
        text = f"{folder}: there are files of {count} frames or pages, and only the first of each is judged"
        warnings.warn(text, UadWarning, stacklevel=2)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, ...) as one of EXIF's orientations, 1 to 8, shows them; 1 is as they are."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def orientation(path: ImageSource) -> int:
    """How EXIF wants an image file turned: 1 is not at all, 5 to 8 by a quarter.

    Raises:
        ImageFileError: the file cannot be opened.
    """
    with _opened(path) as image:
        return _orientation_of(image)


def _orientation_of(image: "PIL.Image.Image") -> int:
    """1 to 8; a value that EXIF does not know counts as 1."""
    tag = image.getexif().get(0x0112, 1)
    return int(tag) if tag in range(1, 9) else 1


def resize(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to `size` (height, width) by `RESIZE_RULE`."""
    from PIL import Image

    return image if image.shape[:2] == tuple(size) else _resized(Image.fromarray(image), size)


def _resized(image: "PIL.Image.Image", size: Tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR).convert("RGB"))


def grey_depth(path: ImageSource) -> Optional[int]:
    """How many bits the values of a 16-bit file need: 10, 12, 14 or 16; None for a file of 8 bits.

    Raises:
        ImageFileError: the file cannot be opened.
    """
    with _opened(path) as image:
        if not image.mode.startswith("I"):
            return None
        with _decoding(image.size):
            highest = max(int(np.asarray(band).max()) for _, band in _bands(image))
    return next((depth for depth in DEPTHS if highest < 2**depth), DEPTHS[-1])


def _pixels_of(image: "PIL.Image.Image", path: ImageSource, faint: bool, depth: int) -> np.ndarray:
    """The stored pixels, (H, W, 3) uint8."""
    pixels = np.empty((image.size[1], image.size[0], 3), np.uint8)
    for top, band in _rgb_bands(image, path, faint, depth):
        pixels[top : top + len(band)] = band
    return pixels


def _rgb_bands(
    image: "PIL.Image.Image", path: ImageSource, faint: bool, depth: int
) -> "Iterator[Tuple[int, np.ndarray]]":
    """The stored pixels in bands, (h, W, 3) uint8: whole copies of a large image would take far more memory."""
    if image.mode == "F":
        raise ImageFileError(f"{path} (floating-point pixels have no fixed range: save it with 8 or 16 bits)")
    if not image.mode.startswith("I"):
        for top, band in _bands(image):
            yield top, np.asarray(_opaque(band).convert("RGB"))
        return
    highest = 0
    for top, band in _bands(image):
        wide = np.asarray(band).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageFileError(f"{path} (more than 16 bits a pixel: save it with 8 or 16 bits)")
        highest = max(highest, int(wide.max()))
        yield top, np.repeat(_eight_bits(wide, faint, depth)[..., None], 3, axis=2)
    if not faint:
        _tell_of_depth(path, highest, depth)


def _bands(image: "PIL.Image.Image") -> "Iterator[Tuple[int, PIL.Image.Image]]":
    """The rows of an image, about a million pixels at a time, each time with the first row."""
    image.load()  # which may change its size
    width, height = image.size
    rows = max(1, 2**20 // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        band.info = image.info  # the colour that is transparent
        yield top, band


def _eight_bits(wide: np.ndarray, faint: bool, depth: int) -> np.ndarray:
    full = 2**depth - 1
    narrow = np.minimum((510 * wide + full) // (2 * full), 255)
    shown: np.ndarray = np.maximum(narrow, wide > 0) if faint else narrow
    return shown.astype(np.uint8)


def _opaque(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Transparent pixels over black."""
    from PIL import Image

    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


def _tell_of_depth(path: ImageSource, highest: int, depth: int) -> None:
    """Warn where the values of a 16-bit file are not of the depth that they are taken to have."""
    if highest >= 2**depth:
        text = f"{path} has values up to {highest}, but those of its class have {depth} bits: what is above is clipped"
    elif depth == DEPTHS[-1] and highest < 2 ** DEPTHS[-2]:
        text = (
            f"{path} has 16 bits a pixel but no value above {highest}: no other depth is known, so it is nearly black"
        )
    else:
        return
    warnings.warn(text, UadWarning, stacklevel=2)
