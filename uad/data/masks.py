"""Masks of defects: which files belong to an image, which of their pixels are defective, and how a mask shrinks."""

import warnings
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from engines.errors import UadWarning
from engines.images import SUFFIXES, decoded, orientation, read_image, stored_size, turned
from uad.data.files import count, images_below, listing

ENDINGS = ("_mask", "", "_label")  # of a mask's name behind that of its image, the first that there is
WANTED = "<name>_mask.png, <name>.png, <name>_label.png or <name>/*.png"
JPEGS = (".jpg", ".jpeg", ".jfif")
NOISE = 16  # an 8-bit value up to this is background where a mask reaches 128: a mask that was once a JPEG has some
MOST = 0.5  # of an image: a mask that covers more may be inverted


class MaskFolder:
    """The masks of one kind of defect, to be matched with its images."""

    def __init__(self, folder: Path) -> None:
        """List the masks; the folder may be absent."""
        self._folder = folder
        self._files = images_below(folder) if folder.is_dir() else []
        self._by_name: Dict[str, Path] = {}
        for path in self._files:
            self._by_name.setdefault(str(path.relative_to(folder)).lower(), path)
        self._taken: Dict[Path, None] = {}

    def of(self, image: Path, below: Path) -> Tuple[Path, ...]:
        """The masks of an image, of which all are joined; `below` is the folder of the images of this kind."""
        inside = image.relative_to(below)
        places = dict.fromkeys(str(place / inside.stem).lower() for place in (inside.parent, Path()))
        for place in places:
            for ending in ENDINGS:
                for suffix in SUFFIXES:
                    path = self._by_name.get(f"{place}{ending}{suffix}")
                    if path is not None:
                        return self._take([path])
            joined = [path for name, path in self._by_name.items() if str(Path(name).parent) == place]
            if joined:
                return self._take(joined)
        return ()

    @property
    def left(self) -> List[Path]:
        """The masks that no image took."""
        return [path for path in self._files if path not in self._taken]

    def _take(self, paths: List[Path]) -> Tuple[Path, ...]:
        self._taken.update(dict.fromkeys(paths))
        return tuple(paths)


def masks_among(images: Sequence[Path]) -> List[Path]:
    """Which of some images are called as the mask of another one beside them, such as a_mask.png beside a.png."""
    ending = ENDINGS[0]
    stems = {image.with_suffix("") for image in images}
    return [
        image
        for image in images
        if image.stem.endswith(ending) and image.with_name(image.stem[: -len(ending)]) in stems
    ]


def read_masks(paths: Sequence[Path], image: Optional[Path] = None) -> np.ndarray:
    """Decode the masks of an image: (H, W) bool, True where one of them says that it is defective.

    Where EXIF data turn a photograph by a quarter, a mask that has the size of the stored pixels is turned too.

    Raises:
        ImageFileError: a mask cannot be read, or two differ in size.
    """
    turn = orientation(image) if image is not None else 1
    masks = []
    for path in paths:
        mask = _is_defective(path)
        if turn in (5, 6, 7, 8) and image is not None and orientation(path) == 1:
            stored = stored_size(image)
            if mask.shape == stored and stored[0] != stored[1]:
                mask = turned(mask, turn)
        masks.append(mask)
    joined = masks[0].copy()
    for mask in masks[1:]:
        joined |= mask
    return joined


def shrink(mask: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool at another size (height, width): a pixel is defective if any of its source pixels is.

    So no region vanishes; two that lie close may merge.
    """
    if mask.shape == tuple(size):
        return mask
    return _shorter(_shorter(mask, size[0]).T, size[1]).T


def _shorter(mask: np.ndarray, side: int) -> np.ndarray:
    """(rows, n) to (side, n): a row is defective where any of the rows that it overlaps is."""
    steps = np.arange(side + 1) * len(mask)
    return np.stack([mask[first:last].any(axis=0) for first, last in zip(steps[:-1] // side, -(-steps[1:] // side))])


def regions(mask: np.ndarray) -> int:
    """How many connected regions a mask has; pixels that touch at a corner are connected."""
    from scipy.ndimage import label

    return int(label(mask, structure=np.ones((3, 3)))[1])


def tell_of_doubtful(masks: Sequence[Tuple[Path, float]], turned: Sequence[Path]) -> None:
    """Warn of masks that are empty, that cover most of their image, or whose photograph is turned.

    Args:
        masks: path, and the share of the image that it covers.
        turned: masks without a rotation of their own, of photographs that EXIF turns without changing their size.
    """
    empty = [path for path, share in masks if share == 0]
    full = [f"{path} ({100 * share:.0f}%)" for path, share in masks if share > MOST]
    if empty:
        warnings.warn(f"{count(empty, 'mask')} without a defective pixel: {listing(empty, 5)}", UadWarning, 2)
    if full:
        warnings.warn(
            f"{count(full, 'mask')} cover more than half of the image, inverted? {listing(full, 5)}", UadWarning, 2
        )
    if turned:
        text = f"{count(turned, 'mask')} of photographs that EXIF turns, taken as they are: {listing(turned, 5)}"
        warnings.warn(text, UadWarning, 2)


def is_turned_in_place(image: Path, masks: Sequence[Path]) -> bool:
    """Whether EXIF turns a photograph so that its size does not tell whether its mask was drawn before or after."""
    turn = orientation(image)
    height, width = stored_size(image)
    return turn != 1 and (turn < 5 or height == width) and any(orientation(mask) == 1 for mask in masks)


def _is_defective(path: Path) -> np.ndarray:
    """(H, W) bool of one file.

    Grey and colour: what is not black. A palette in which nothing is black, as an annotator's on a white ground: what
    is not its first colour. An image that is black throughout and has transparent parts: what is opaque. JPEG: what is
    brighter than half of the brightest.
    """
    pixels = read_image(path, faint=True).max(axis=2)
    with decoded(path) as (image, turn):
        mode, bands = image.mode, image.getbands()
        if mode == "P" and pixels.all():
            return turned(np.asarray(image) != 0, turn)
        if "A" in bands and not pixels.any():
            alpha = turned(np.asarray(image.getchannel("A")), turn)
            return np.asarray(alpha > 127) if alpha.min() < alpha.max() else np.zeros(pixels.shape, bool)
    if path.suffix.lower() in JPEGS:  # whose ringing makes regions of their own, above any noise that is small
        return np.asarray(pixels > pixels.max() / 2)
    return np.asarray(pixels > (NOISE if pixels.max() >= 128 and not mode.startswith("I") else 0))
