"""Samples to arrays: images decoded and resized, by themselves or with the masks of their defects."""

import collections
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np

from engines.errors import ImageFileError
from engines.images import check_image, grey_depth, read_resized, size_of
from uad.data.files import count, listing
from uad.data.folder import Sample
from uad.data.masks import is_turned_in_place, read_masks, regions, shrink, tell_of_doubtful
from uad.errors import DataError

DECODERS = 4  # threads; Pillow decodes outside Python's lock
AHEAD = 16  # images that are decoded before they are asked for
T = TypeVar("T")


def load_images(
    samples: Sequence[Sample], size: Tuple[int, int], progress: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Decode and resize images once: (N, height, width, 3) uint8, RGB.

    Args:
        samples: the images.
        size: (height, width).
        progress: called after each image.

    Raises:
        DataError: names every file that cannot be read.
    """
    images = np.empty((len(samples), *size, 3), np.uint8)

    def load(index: int) -> None:
        sample = samples[index]
        images[index] = read_resized(sample.path, [size], sample.depth)[0]
        progress()

    _for_all(range(len(samples)), load)
    return images


def each_image(samples: Sequence[Sample], size: Tuple[int, int]) -> Iterator[np.ndarray]:
    """Decode and resize images one at a time, (height, width, 3) uint8 each: only one is held in memory.

    Raises:
        DataError: a file cannot be read.
    """
    return (load_images([sample], size)[0] for sample in samples)


def depths_of(samples: Sequence[Sample]) -> Dict[str, int]:
    """Class -> how many bits its 16-bit files need, from the highest value in all of them; classes that have some.

    Raises:
        DataError: names every file that cannot be opened.
    """
    depths: Dict[str, List[int]] = {}

    def look(sample: Sample) -> None:
        depth = grey_depth(sample.path)
        if depth is not None:
            depths.setdefault(sample.class_name, []).append(depth)

    _for_all(samples, look)
    return {name: max(depths[name]) for name in sorted(depths)}


# With masks -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """One image with its mask, at the size of a model."""

    sample: Sample
    pixels: np.ndarray  # (height, width, 3) uint8
    mask: Optional[np.ndarray]  # (height, width) bool; None where no mask belongs to it
    merged: int  # number of regions of the mask that merged as it shrank


def read_labelled(samples: Sequence[Sample], size: Tuple[int, int], batch: int) -> Iterator[List[LabelledImage]]:
    """Images with their masks, in order and by batches, decoded once and ahead; warns of doubtful masks in the end.

    Args:
        samples: the images.
        size: (height, width).
        batch: how many at a time; the last may be fewer.

    Raises:
        DataError: in the end, and names every file that cannot be read, and every mask of another size than its image.
            No batch is given out behind the first such file.
    """
    masks = _Masks()

    def read(sample: Sample) -> Union[LabelledImage, str]:
        try:
            mask = masks.of(sample, size_of(sample.path)) if sample.masks else None
            pixels = read_resized(sample.path, [size], sample.depth)[0]
        except ImageFileError as error:
            return str(error)
        if mask is None:
            return LabelledImage(sample, pixels, None, 0)
        small = shrink(mask, size)
        return LabelledImage(sample, pixels, small, regions(mask) - regions(small))

    failures: List[str] = []
    group: List[LabelledImage] = []
    for image in _ahead(samples, read):
        if isinstance(image, str):
            failures.append(image)
            continue
        group.append(image)
        if len(group) == batch and not failures:
            yield group
            group = []
    _raise_if(failures)
    masks.tell()
    if group:
        yield group


def check_samples(samples: Sequence[Sample], progress: Callable[[], object] = lambda: None) -> None:
    """Decode every image and mask without keeping them; warns of doubtful masks.

    Raises:
        DataError: names every file that cannot be read, and every mask of another size than its image.
    """
    masks = _Masks()

    def check(sample: Sample) -> None:
        shape = check_image(sample.path, sample.depth)
        if sample.masks:
            masks.of(sample, shape)
        progress()

    _for_all(samples, check)
    masks.tell()


class _Masks:
    """Reads masks, and notes what makes them doubtful."""

    def __init__(self) -> None:
        self._shares: Dict[Path, float] = {}
        self._turned: Dict[Path, None] = {}

    def of(self, sample: Sample, shape: Tuple[int, int]) -> np.ndarray:
        """The masks of a sample, joined: (H, W) bool, which is the shape of its image."""
        joined = np.zeros(shape, bool)
        for path in sample.masks:
            mask = read_masks([path], sample.path)
            if mask.shape != shape:
                raise ImageFileError(f"{path} (not the size of its image, {shape[1]}x{shape[0]})")
            joined |= mask
            if sample.is_defect:  # that of a good image is empty
                self._shares[path] = float(mask.mean())
            if is_turned_in_place(sample.path, [path]):
                self._turned[path] = None
        return joined

    def tell(self) -> None:
        tell_of_doubtful(sorted(self._shares.items()), sorted(self._turned))


# Threads --------------------------------------------------------------------------------------------------------------


def _ahead(samples: Sequence[Sample], read: Callable[[Sample], T]) -> Iterator[T]:
    """What is read of each sample, in order; a few are read before they are asked for."""
    pending: Deque[Future[T]] = collections.deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        for sample in samples:
            pending.append(pool.submit(read, sample))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _for_all(items: Sequence[T], work: Callable[[T], None]) -> None:
    """Do the work for every item in threads; raise one DataError that names all that failed."""

    def attempt(item: T) -> Optional[str]:
        try:
            work(item)
        except ImageFileError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(DECODERS) as pool:
        _raise_if([failure for failure in pool.map(attempt, items) if failure])


def _raise_if(failures: Sequence[str]) -> None:
    if failures:
        raise DataError(f"{count(failures, 'file')} cannot be used, repair or remove: {listing(failures)}")
