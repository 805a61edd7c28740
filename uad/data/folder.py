"""Image folders in the layout of MVTec AD (Bergmann et al., CVPR 2019).

    ROOT/CLASS/train/good/*.png               good images; all that training sees
    ROOT/CLASS/test/good/*.png                held back for `uad test`
    ROOT/CLASS/test/<kind of defect>/*.png
    ROOT/CLASS/ground_truth/<kind>/<name>_mask.png    optional; not 0 is defective

ROOT may also be one CLASS, or a plain folder of good images. Hidden files are passed over; any other file is expected
to be an image.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar

import numpy as np

from engines.errors import ImageFileError
from engines.images import SUFFIXES, read_image, resize
from uad.errors import DataError

GOOD = "good"
DECODERS = 4  # threads; Pillow decodes outside Python's lock
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image file and what is known of it."""

    path: Path
    class_name: str
    kind: str  # "good", or the kind of defect
    mask: Optional[Path] = None

    @property
    def is_defect(self) -> bool:
        """Whether the image shows a defect."""
        return self.kind != GOOD


def find_classes(root: Path, classes: Optional[Sequence[str]] = None) -> Dict[str, Path]:
    """Find the classes below a root, or take those that are named.

    Returns:
        class name -> its folder, by name. A plain folder of images is one class that holds no test images.

    Raises:
        DataError: the root does not exist or holds no class, or a class is unknown.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: give the one that holds the classes")
    found = {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and _is_class(folder)}
    if _is_class(root) or (not found and any(path.suffix.lower() in SUFFIXES for path in _files(root))):
        found = {root.resolve().name: root}
    if not found:
        raise DataError(f"{root} holds no images: expected {root}/CLASS/train/good/*.png, or images")
    unknown = sorted(set(classes or ()) - set(found))
    if unknown:
        raise DataError(f"{root} has no class {', '.join(unknown)}: it has {', '.join(found)}")
    return {name: found[name] for name in found if not classes or name in classes}


def train_samples(root: Path, classes: Optional[Sequence[str]] = None) -> List[Sample]:
    """The good images for training, by class and name.

    Raises:
        DataError: as `find_classes`, or a class without good images.
    """
    samples = []
    for name, folder in find_classes(root, classes).items():
        source = folder / "train" / GOOD if _is_class(folder) else folder
        files = _files(source) if source.is_dir() else []
        if not files:
            raise DataError(f"{source} holds no images: put the good images of {name} there")
        samples += [Sample(path, name, GOOD) for path in files]
    return samples


def test_samples(root: Path, classes: Optional[Sequence[str]] = None) -> List[Sample]:
    """The images for testing, with their masks, by class, kind and name; empty where there is no test folder.

    Raises:
        DataError: as `find_classes`, or masks that belong to no image.
    """
    samples: List[Sample] = []
    orphans: List[Path] = []
    for name, folder in find_classes(root, classes).items():
        kinds = sorted(kind for kind in (folder / "test").glob("*") if kind.is_dir())
        truth = folder / "ground_truth"
        masks = {path for kind in truth.glob("*") if kind.is_dir() for path in _files(kind)}
        for kind in kinds:
            for path in _files(kind):
                mask = truth / kind.name / f"{path.stem}_mask.png"
                samples.append(Sample(path, name, kind.name, mask if mask in masks else None))
                masks.discard(mask)
        orphans += sorted(masks)
    if orphans:
        raise DataError(f"{_count(orphans, 'mask')} without an image: {_listing(orphans)}")
    return samples


def hold_out(samples: Sequence[Sample], fraction: float, seed: int) -> Tuple[List[Sample], List[Sample]]:
    """Split good images into those to train on and those held out.

    The split of a class depends on its name, its images and the seed, not on which other classes there are: a model of
    one class and a unified model hold out the same images.

    Returns:
        (training, held out); at least one image of each class in both.

    Raises:
        DataError: a class has fewer than two images.
    """
    training: List[Sample] = []
    held: List[Sample] = []
    for name in sorted({sample.class_name for sample in samples}):
        members = [sample for sample in samples if sample.class_name == name]
        if len(members) < 2:
            raise DataError(f"{members[0].path.parent} holds one image: at least two are needed, one is held out")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        random = np.random.default_rng([seed, *name.encode()])
        chosen = set(random.choice(len(members), count, replace=False).tolist())
        training += [member for index, member in enumerate(members) if index not in chosen]
        held += [member for index, member in enumerate(members) if index in chosen]
    return training, held


def draw(samples: Sequence[Sample], count: int, seed: int) -> List[Sample]:
    """Draw `count` samples, as evenly over the classes as their numbers allow, by a seeded shuffle."""
    random = np.random.default_rng(seed)
    names = sorted({sample.class_name for sample in samples})
    shuffled = []
    for name in names:
        members = [sample for sample in samples if sample.class_name == name]
        shuffled.append([members[index] for index in random.permutation(len(members))])
    turns = [
        members[turn]
        for turn in range(max(map(len, shuffled), default=0))
        for members in shuffled
        if turn < len(members)
    ]
    return turns[:count]


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
        images[index] = resize(read_image(samples[index].path), size)
        progress()

    _for_all(range(len(samples)), load)
    return images


def each_image(samples: Sequence[Sample], size: Tuple[int, int]) -> Iterator[np.ndarray]:
    """Decode and resize images one at a time, (height, width, 3) uint8 each: only one is held in memory.

    Raises:
        DataError: a file cannot be read.
    """
    return (load_images([sample], size)[0] for sample in samples)


def check_samples(samples: Sequence[Sample], progress: Callable[[], object] = lambda: None) -> None:
    """Decode every image and mask without keeping them.

    Raises:
        DataError: names every file that cannot be read, and every mask of another size than its image.
    """

    def check(sample: Sample) -> None:
        shape = read_image(sample.path).shape
        if sample.mask is not None and read_mask(sample.mask).shape != shape[:2]:
            raise ImageFileError(f"{sample.mask} (not the size of its image, {shape[1]}x{shape[0]})")
        progress()

    _for_all(samples, check)


def read_mask(path: Path, size: Optional[Tuple[int, int]] = None) -> np.ndarray:
    """Decode a mask: (H, W) bool, True where defective; resized to `size` (height, width) by nearest neighbour."""
    from PIL import Image

    mask: np.ndarray = np.asarray(read_image(path, faint=True).any(axis=2))
    if size is None or mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _for_all(items: Sequence[T], work: Callable[[T], None]) -> None:
    """Do the work for every item in threads; raise one DataError that names all that failed."""

    def attempt(item: T) -> Optional[str]:
        try:
            work(item)
        except ImageFileError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(DECODERS) as pool:
        failures = [failure for failure in pool.map(attempt, items) if failure]
    if failures:
        raise DataError(f"{_count(failures, 'file')} cannot be used, repair or remove: {_listing(failures)}")


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _files(folder: Path) -> List[Path]:
    hidden = (".", "Thumbs.db", "desktop.ini")
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(hidden))


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}" + ("s" if len(items) != 1 else "")


def _listing(items: Sequence[object], most: int = 50) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(str(item) for item in items[:most]) + more
