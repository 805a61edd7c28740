"""Image files to RGB uint8 arrays, the one way that training, calibration and every engine share."""

import warnings
from pathlib import Path
from typing import Optional, Tuple, Union

import numpy as np

from engines.errors import Doubt, ImageFileError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jfif", ".jp2", ".gif", ".pgm", ".ppm")
DEPTHS = (10, 12, 14, 16)  # of cameras that write 16-bit files
RESIZE_RULE = "bilinear with antialiasing (Pillow), aspect ratio not kept"


def read_image(path: Union[str, Path], faint: bool = False, depth: int = 16) -> np.ndarray:
    """Decode one image file.

    EXIF rotation is applied; grey and palette images become RGB; transparent pixels are laid over black. Grey values of
    a 16-bit file are taken to have `depth` bits: v becomes round(255 v / (2^depth - 1)), so that 65535 of 16 bits and
    4095 of 12 are 255. A `Doubt` says where that does not fit.

    Args:
        path: the file.
        faint: whether 16-bit values that would become 0 become 1, as in a mask.
        depth: bits of a 16-bit file that are used, such as 12 of many cameras; see `ModelInfo.depths`.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageFileError: the file is missing, empty, truncated, not an image, or holds floats.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if Path(path).stat().st_size == 0:
            raise ImageFileError(f"{path} (empty file)")
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            return _to_rgb(image, path, faint, depth)
    except ImageFileError:
        raise
    except FileNotFoundError as error:
        raise ImageFileError(f"{path} (no such file)") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{path} (not an image)") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise ImageFileError(f"{path} (cannot be decoded: {error})") from error


def orientation(path: Union[str, Path]) -> int:
    """How EXIF wants an image file turned: 1 is not at all, 5 to 8 by a quarter.

    Raises:
        ImageFileError: the file cannot be opened.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return int(file.getexif().get(0x0112, 1))
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{path} (cannot be opened: {error})") from error


def read_resized(path: Union[str, Path], size: Tuple[int, int], depth: int = 16) -> np.ndarray:
    """Decode one image file and resize it to `size` (height, width): (height, width, 3) uint8, RGB."""
    return resize(read_image(path, depth=depth), size)


def resize(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to `size` (height, width) by `RESIZE_RULE`."""
    from PIL import Image

    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def grey_depth(path: Union[str, Path]) -> Optional[int]:
    """How many bits the values of a 16-bit file need: 10, 12, 14 or 16; None for a file of 8 bits.

    Raises:
        ImageFileError: the file cannot be opened.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            if not file.mode.startswith("I"):
                return None
            highest = int(np.asarray(file).max())
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageFileError(f"{path} (cannot be decoded: {error})") from error
    return next((depth for depth in DEPTHS if highest < 2**depth), DEPTHS[-1])


def _to_rgb(image, path: Union[str, Path], faint: bool, depth: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """image: a PIL.Image of any mode."""
    from PIL import Image

    if image.mode == "F":
        raise ImageFileError(f"{path} (floating-point pixels have no fixed range: save it with 8 or 16 bits)")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageFileError(f"{path} (more than 16 bits a pixel: save it with 8 or 16 bits)")
        full = 2**depth - 1
        if not faint:
            _tell_of_depth(path, int(wide.max()), depth)
        narrow = np.minimum((510 * wide + full) // (2 * full), 255)
        image = Image.fromarray((np.maximum(narrow, wide > 0) if faint else narrow).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def _tell_of_depth(path: Union[str, Path], highest: int, depth: int) -> None:
    """Warn where the values of a 16-bit file are not of the depth that they are taken to have."""
    if highest >= 2**depth:
        said = f"{path} has values up to {highest}, but those of its class have {depth} bits: what is above is clipped"
    elif depth == DEPTHS[-1] and highest < 2 ** DEPTHS[-2]:
        said = (
            f"{path} has 16 bits a pixel but no value above {highest}: no other depth is known, so it is nearly black"
        )
    else:
        return
    warnings.warn(said, Doubt, stacklevel=2)
