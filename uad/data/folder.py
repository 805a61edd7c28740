"""Image folders in the layout of MVTec AD (Bergmann et al., CVPR 2019).

    ROOT/CLASS/train/good/*.png               good images; all that training sees
    ROOT/CLASS/test/good/*.png                held back for `uad test`
    ROOT/CLASS/test/<kind of defect>/*.png
    ROOT/CLASS/ground_truth/<kind>/<name>_mask.png    optional; see `uad.data.masks`

ROOT may also be one CLASS, or a plain folder of good images, and a CLASS may be one. `good` may be called `ok`, in any
case. Images may lie in subfolders. `uad.data.files` says which files are images.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from engines.errors import UadWarning
from uad.data.files import annotations_below, composed, count, folders_in, has_images, images_below, listing
from uad.data.masks import WANTED, MaskFolder, masks_among
from uad.errors import DataError

GOOD = "good"
GOOD_NAMES = (GOOD, "ok")  # in lower case
PARTS = ("train", "test", "ground_truth")  # of a class


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image file and what is known of it."""

    path: Path
    class_name: str
    kind: str  # "good", or the kind of defect
    masks: Tuple[Path, ...] = ()  # files of masks, which are joined
    depth: int = 16  # bits used in a 16-bit file

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
    _refuse_a_part_of_a_class(root)
    inside = folders_in(root)
    classes_there = {composed(folder.name): folder for folder in inside if _is_class(folder)}
    plain = {composed(folder.name): folder for folder in inside if folder not in classes_there.values()}
    if _is_class(root) or (not classes_there and has_images(root, deep=False)):
        classes_there = {composed(root.resolve().name): root}
    else:
        plain = {name: folder for name, folder in plain.items() if has_images(folder)}
        if classes_there and plain:
            text = f"{root}: {', '.join(plain)} without train and test, taken as good images"
            warnings.warn(text, UadWarning, stacklevel=2)
        classes_there = dict(sorted({**classes_there, **plain}.items()))
    if not classes_there:
        raise DataError(f"{root} holds no images: expected {root}/CLASS/train/good/*.png, or images")
    classes = [composed(name) for name in classes or ()]
    unknown = sorted(set(classes) - set(classes_there))
    if unknown:
        raise DataError(f"{root} has no class {', '.join(unknown)}: it has {', '.join(classes_there)}")
    return {name: classes_there[name] for name in classes_there if not classes or name in classes}


def train_samples(root: Path, classes: Optional[Sequence[str]] = None) -> List[Sample]:
    """The good images for training, by class and name.

    Raises:
        DataError: as `find_classes`, or a class without good images.
    """
    samples = []
    for name, folder in find_classes(root, classes).items():
        sources = _good_folders(folder / "train") if _is_class(folder) else [folder]
        files = [path for source in sources for path in images_below(source)]
        if not files:
            where = folder / "train" / GOOD if _is_class(folder) else folder
            raise DataError(f"{where} holds no images: put the good images of {name} there")
        samples += [Sample(path, name, GOOD) for path in files]
    return samples


def test_samples(root: Path, classes: Optional[Sequence[str]] = None) -> List[Sample]:
    """The images for testing, with their masks, by class, kind and name; empty where there is no test folder.

    Raises:
        DataError: as `find_classes`, or masks that belong to no image.
    """
    samples: List[Sample] = []
    orphans: List[Path] = []
    beside: List[Path] = []
    of_good: List[Path] = []
    unread: List[Path] = []
    for name, folder in find_classes(root, classes).items():
        tests, truth = (folder / part for part in ("test", "ground_truth"))
        kinds = folders_in(tests) if _is_class(folder) and tests.is_dir() else []
        masks = {kind.name: MaskFolder(kind) for kind in (folders_in(truth) if truth.is_dir() else [])}
        for kind in kinds:
            of_kind = masks.get(kind.name) or MaskFolder(truth / kind.name)
            kind_name = GOOD if kind.name.lower() in GOOD_NAMES else kind.name
            images = images_below(kind)
            beside += masks_among(images)
            found = [Sample(path, name, kind_name, of_kind.of(path, kind)) for path in images]
            if kind_name == GOOD:
                of_good += [path for sample in found for path in sample.masks]
                found = [dataclasses.replace(sample, masks=()) for sample in found]
            samples += found
        unread += [path for part in (tests, truth) for path in annotations_below(part)]
        orphans += [path for of_kind in masks.values() for path in of_kind.left]
    if orphans:
        raise DataError(
            f"{count(orphans, 'mask')} without an image: {listing(orphans)}: expected {WANTED}, where <name> is that "
            "of an image in the folder of the same kind below test"
        )
    if beside:
        raise DataError(
            f"{count(beside, 'mask')} among the photographs, to be judged as such: {listing(beside, 5)}: move them to "
            "CLASS/ground_truth/KIND"
        )
    _tell_of_masks(samples, of_good, unread)
    return samples


def _tell_of_masks(samples: Sequence[Sample], of_good: Sequence[Path], unread: Sequence[Path]) -> None:
    """Warn of masks that are not looked at, of annotations that are not read, and of defects without a mask."""
    if of_good:
        text = f"{count(of_good, 'mask')} of good images, not looked at: {listing(of_good, 3)}"
        warnings.warn(text, UadWarning, stacklevel=3)
    if unread:
        text = f"{count(unread, 'annotation')} not read, only masks are: {listing(unread, 3)}: draw them as {WANTED}"
        warnings.warn(text, UadWarning, stacklevel=3)
    for name in sorted({sample.class_name for sample in samples}):
        defects = [sample for sample in samples if sample.class_name == name and sample.is_defect]
        bare = [sample.path for sample in defects if not sample.masks]
        if 0 < len(bare) < len(defects):
            text = f"{len(bare)} of {len(defects)} defects of {name} have no mask, and count in no pixel figure"
            warnings.warn(f"{text}: {listing(bare, 3)}", UadWarning, stacklevel=3)


def labelled_samples(root: Path, classes: Optional[Sequence[str]] = None) -> List[Sample]:
    """As `test_samples`, where there must be some.

    Raises:
        DataError: as `test_samples`, or there is no test image.
    """
    samples = test_samples(root, classes)
    if not samples:
        raise DataError(f"{root} holds no test images: expected CLASS/test/good and CLASS/test/<defect>")
    return samples


def with_depths(samples: Sequence[Sample], depth_of: Callable[[str], int]) -> List[Sample]:
    """Samples to be read with the depth of their class, mostly `ModelInfo.depth_of`."""
    return [dataclasses.replace(sample, depth=depth_of(sample.class_name)) for sample in samples]


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


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _refuse_a_part_of_a_class(root: Path) -> None:
    """Refuse a folder whose subfolders would pass for classes, though some of them hold defects.

    Raises:
        DataError: it is the train, test or ground_truth of a class, or holds `good` beside folders of defects.
    """
    here = root.resolve()
    name, inside = here.name, folders_in(root)
    if name.lower() in PARTS and not _is_class(root) and _is_class(here.parent):
        raise DataError(
            f"{root} is the {name} folder of {here.parent.name}: give the folder of the classes, or {here.parent}"
        )
    good = [folder.name for folder in inside if folder.name.lower() in GOOD_NAMES and not _is_class(folder)]
    others = [
        folder.name for folder in inside if folder.name not in good and not _is_class(folder) and has_images(folder)
    ]
    if good and others and not _is_class(root):
        raise DataError(
            f"{root} holds {good[0]} beside {listing(others, 3)}, as a test folder does: these would pass for classes; "
            f"give the folder of the classes, or {root / good[0]}"
        )


def _good_folders(folder: Path) -> List[Path]:
    """The folders of good images in `train` or `test`."""
    inside = folders_in(folder) if folder.is_dir() else []
    return [kind for kind in inside if kind.name.lower() in GOOD_NAMES]
