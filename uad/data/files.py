"""Which files below a folder are images: the same in training, calibration, testing and judging.

Hidden files and folders are passed over, and so are the overlays of an earlier `uad predict`. Links are followed; the
name that counts is the link's, as where DVC or git-annex keep the images in a store.
"""

import os
import unicodedata
import warnings
from pathlib import Path
from typing import Iterator, List, Sequence, Set

from engines.errors import UadWarning
from engines.images import SUFFIXES
from uad.errors import DataError

RESULTS = ".uad-results"  # in a folder of overlays: what lies there was never a photograph
HIDDEN = (".", "__macosx", "thumbs.db", "desktop.ini")  # beginnings of names, in lower case
ANNOTATIONS = (".json", ".xml")  # polygons, which are not read
# What lies beside images: annotations, notes, results.
NOT_IMAGES = (".json", ".jsonl", ".txt", ".csv", ".xml", ".md", ".yaml", ".yml", ".ini", ".log", ".html", ".pdf", ".db")


def images_below(folder: Path) -> List[Path]:
    """The image files of a folder and its subfolders, by path.

    A file whose name says neither that it is an image nor that it is not is passed over with a `UadWarning`.

    Raises:
        DataError: links that lead nowhere.
    """
    images: List[Path] = []
    dead: List[Path] = []
    unknown: List[Path] = []
    for path in _files_below(folder, set()):
        suffix = path.suffix.lower()
        if not path.exists():
            dead.append(path)
        elif suffix in SUFFIXES:
            images.append(path)
        elif suffix not in NOT_IMAGES:
            unknown.append(path)
    if dead:
        raise DataError(f"{count(dead, 'link')} to nothing, pull the store of the data: {listing(dead)}")
    if unknown:
        warnings.warn(f"{count(unknown, 'file')} passed over, not images by name: {listing(unknown, 5)}", UadWarning, 2)
    return sorted(images)


def annotations_below(folder: Path) -> List[Path]:
    """Files as labelme, CVAT and COCO write them, of a folder that may be absent."""
    if not folder.is_dir():
        return []
    return sorted(path for path in _files_below(folder, set()) if path.suffix.lower() in ANNOTATIONS)


def names_of_images(folder: Path) -> List[str]:
    """The paths of the image files of a folder and its subfolders by their names alone, for a folder that changes."""
    return [str(path) for path in _files_below(folder, set()) if path.suffix.lower() in SUFFIXES]


def has_images(folder: Path, deep: bool = True) -> bool:
    """Whether there is an image file in a folder, or also in its subfolders."""
    files = _files_below(folder, set()) if deep else (path for path in folder.iterdir() if not is_hidden(path.name))
    return any(path.suffix.lower() in SUFFIXES and path.is_file() for path in files)


def folders_in(folder: Path) -> List[Path]:
    """The folders directly in a folder, by name, without the hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is passed over."""
    return name.lower().startswith(HIDDEN)


def composed(name: str) -> str:
    """A name with each letter and its accent as one character (NFC): macOS writes two, other systems one."""
    return unicodedata.normalize("NFC", name)


def count(items: Sequence[object], noun: str) -> str:
    """`3 files`, `1 file`."""
    return f"{len(items)} {noun}" + ("s" if len(items) != 1 else "")


def listing(items: Sequence[object], most: int = 50) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(str(item) for item in items[:most]) + more


def _files_below(folder: Path, above: Set[str]) -> Iterator[Path]:
    """Every file that is not hidden; `above` are the real paths of the folders that led here: links may go round."""
    if (folder / RESULTS).exists():
        return
    above = above | {os.path.realpath(folder)}
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            continue
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from _files_below(path, above)
