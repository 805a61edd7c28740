"""Image files to RGB uint8 arrays, the one way that training, calibration and every engine share."""

from pathlib import Path
from typing import Tuple, Union

import numpy as np

from engines.errors import ImageFileError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jfif", ".jp2", ".gif", ".pgm", ".ppm")
RESIZE_RULE = "bilinear with antialiasing (Pillow), aspect ratio not kept"


def read_image(path: Union[str, Path], faint: bool = False) -> np.ndarray:
    """Decode one image file.

    EXIF rotation is applied; grey and palette images become RGB; transparent pixels are laid over black; a 16-bit
    grey value v becomes round(v / 257), so that 65535 is 255.

    Args:
        path: the file.
        faint: whether 16-bit values that would become 0 become 1, as in a mask.

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
            return _to_rgb(image, path, faint)
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


def read_resized(path: Union[str, Path], size: Tuple[int, int]) -> np.ndarray:
    """Decode one image file and resize it to `size` (height, width): (height, width, 3) uint8, RGB."""
    return resize(read_image(path), size)


def resize(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to `size` (height, width) by `RESIZE_RULE`."""
    from PIL import Image

    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _to_rgb(image, path: Union[str, Path], faint: bool) -> np.ndarray:  # type: ignore[no-untyped-def]
    """image: a PIL.Image of any mode."""
    from PIL import Image

    if image.mode == "F":
        raise ImageFileError(f"{path} (floating-point pixels have no fixed range: save it with 8 or 16 bits)")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageFileError(f"{path} (more than 16 bits a pixel: save it with 8 or 16 bits)")
        narrow = (wide + 128) // 257
        image = Image.fromarray((np.maximum(narrow, wide > 0) if faint else narrow).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))
