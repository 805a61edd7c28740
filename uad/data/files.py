"""Which files below a folder are images: the same in training, calibration, testing and judging.

Hidden files and folders are passed over, and so are the overlays of an earlier `uad predict`. Links are followed; the
name that counts is the link's, as where DVC or git-annex keep the images in a store.
"""

import os
import unicodedata
import warnings
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Set, Tuple

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
    for path, is_link in _entries_below(folder, set()):
        if is_link and not os.path.exists(str(path)):
            dead.append(path)
        elif path.suffix.lower() in SUFFIXES:
            images.append(path)
        elif is_unknown(path):
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
    return sorted(path for path in _files_below(folder) if path.suffix.lower() in ANNOTATIONS)


def files_below(folder: Path) -> List[Path]:
    """The files of a folder and its subfolders, whatever they are, for a folder that changes."""
    return list(_files_below(folder))


def folders_below(folder: Path) -> List[Path]:
    """A folder and those below it in which `files_below` finds files."""
    return list(_folders_below(folder, set()))


def has_results(folder: Path) -> bool:
    """Whether a folder holds what `uad predict` drew."""
    return (folder / RESULTS).exists()


def is_unknown(path: Path) -> bool:
    """Whether the name of a file says neither that it is an image nor that it is none."""
    return path.suffix.lower() not in (*SUFFIXES, *NOT_IMAGES)


def has_images(folder: Path, deep: bool = True) -> bool:
    """Whether there is an image file in a folder, or also in its subfolders."""
    files = _files_below(folder) if deep else (path for path in folder.iterdir() if not is_hidden(path.name))
    return any(path.suffix.lower() in SUFFIXES and path.is_file() for path in files)


def folders_in(folder: Path) -> List[Path]:
    """The folders directly in a folder, by name, without the hidden ones and those that may not be entered."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    return [path for path in folders if _may_enter(path)]


def _may_enter(folder: Path) -> bool:
    if os.access(str(folder), os.R_OK | os.X_OK):
        return True
    _tell_of_closed(folder)
    return False


def _tell_of_closed(folder: Path) -> None:
    warnings.warn(f"{folder} is passed over: this user may not enter it", UadWarning, stacklevel=3)


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


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file that is not hidden."""
    return (path for path, _ in _entries_below(folder, set()))


def _entries_below(folder: Path, above: Set[str]) -> Iterator[Tuple[Path, bool]]:
    """The same, and whether each is a link; `above` are the real paths of the folders that led here, in no circle."""
    above = above | {os.path.realpath(folder)}
    for entry in _inside(folder) or []:
        if not _is_folder(entry):
            yield folder / entry.name, entry.is_symlink()
        elif os.path.realpath(entry.path) not in above:
            yield from _entries_below(folder / entry.name, above)


def _folders_below(folder: Path, above: Set[str]) -> Iterator[Path]:
    above = above | {os.path.realpath(folder)}
    inside = _inside(folder)
    if inside is not None:
        yield folder
    for entry in inside or []:
        if _is_folder(entry) and os.path.realpath(entry.path) not in above:
            yield from _folders_below(folder / entry.name, above)


def _inside(folder: Path) -> "Optional[List[os.DirEntry[str]]]":
    """What lies in a folder and is not hidden; None where it holds results, is gone, or may not be entered."""
    try:
        with os.scandir(str(folder)) as entries:
            found = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        return None if has_results(folder) else found
    except PermissionError:
        _tell_of_closed(folder)
    except FileNotFoundError:
        pass
    return None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round
        return False
