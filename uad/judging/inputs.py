"""Which photographs `uad predict` is given, and of which class each is: files, folders, patterns and manifests.

A manifest is a table of photographs, CSV or Parquet, as data sets have them: its column `image` is a path, seen from
the folder of the manifest, and its column `class`, if there is one, a name or nothing.
"""

import codecs
import csv
import functools
import glob
import os
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from engines.errors import RuntimeNotInstalled, UserError
from engines.images import SUFFIXES
from uad.data.files import composed, images_below

MANIFESTS = (".csv", ".parquet")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def find_photographs(
    inputs: Sequence[Path], classes: Sequence[str], class_name: Optional[str] = None
) -> Dict[Path, Optional[str]]:
    """The photographs among the inputs, in the folders and manifests among them, each once, with its class if known.

    Args:
        inputs: files, folders, patterns (see `find_images`) and manifests.
        classes: those that the model knows.
        class_name: of all of them, whatever folders and manifests say.

    Raises:
        UserError: as `find_images`; a manifest cannot be read or names a class that the model does not know.
    """
    photographs: Dict[Path, Optional[str]] = {}
    files: List[Path] = []
    for path in inputs:
        if path.suffix.lower() in MANIFESTS and path.is_file():
            photographs.update((photograph, class_name or name) for photograph, name in _manifest(path, classes))
        else:
            files.append(path)
    if files or not inputs:
        for path, source in find_images(files).items():
            photographs.setdefault(path, class_name or class_of(path, source, classes))
    if len(files) == len(inputs):  # then each comes once already
        return photographs
    return {path: photographs[path] for path in _once(photographs)}


def _manifest(path: Path, classes: Sequence[str]) -> Iterator[Tuple[Path, Optional[str]]]:
    """The photographs of a manifest and their classes; a class column that says nothing leaves it to the folder."""
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    number = 0
    # Spreadsheets leave rows of nothing at the end.
    for number, (image, name) in ((number, row) for number, row in enumerate(rows, 1) if any(row)):
        if not image:
            raise UserError(f"{path}, row {number} names no image")
        photograph = path.parent / image
        if photograph.is_dir():
            raise UserError(f"{path}, row {number}: {image} is a folder: name a photograph, or give the folder itself")
        hint = "" if photograph.exists() else _hint(image, path.parent)
        if hint:
            raise UserError(f"{path}, row {number}: {image} {hint}")
        known = known_class(name, classes)
        if name and known is None:
            raise UserError(f"{path}, row {number}: unknown class '{name}': the model knows {', '.join(classes)}")
        yield photograph, known or class_of(photograph, photograph, classes)
    if number == 0:
        raise UserError(f"{path} has no rows: a manifest names a photograph in each")


def _hint(image: str, folder: Path) -> str:
    """Why a path of a manifest that leads nowhere was meant to lead somewhere; "" where that is not known."""
    if "\\" in image and os.sep == "/":
        return "is a path of Windows: write it with /, as this system sees it"
    if image.startswith("~/"):
        return "begins with ~, which only a shell knows: write the whole path"
    if (folder / image.strip()).exists():
        return "has a space at an end: remove it"
    if Path(image).exists():
        return f"is seen from the folder of the manifest, {folder}, and there is none: write the whole path"
    return ""


def _csv_rows(path: Path) -> Iterator[Tuple[str, str]]:
    try:
        with open(path, "rb") as head:
            if head.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"{path} is UTF-16: save it as UTF-8")
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            _check_columns(path, rows.fieldnames or [])
            for row in rows:
                yield row["image"] or "", row.get("class") or ""
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a manifest ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Tuple[str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise RuntimeNotInstalled(f"{path} needs pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(str(path)) as file:
            _check_columns(path, file.schema_arrow.names)
            columns = [name for name in ("image", "class") if name in file.schema_arrow.names]
            for name in columns:
                kind = file.schema_arrow.field(name).type
                if pyarrow.types.is_nested(kind):
                    raise UserError(f"{path}: its column {name} holds {str(kind)[:60]}, not text: a manifest has paths")
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    yield str(row["image"] or ""), str(row.get("class") or "")
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a manifest ({error})") from error


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if "image" not in columns:
        raise UserError(f"{path} has no column image, but {', '.join(columns) or 'none'}: a manifest names photographs")


def find_images(inputs: Sequence[Path]) -> Dict[Path, Path]:
    """The image files among the inputs and, recursively, in the folders among them; see `uad.data.files`.

    A pattern such as `photos/*.png`, which a shell leaves alone in quotes, stands for the files it matches.

    Returns:
        The image, and the input that led to it; each file once.

    Raises:
        UserError: an input does not exist or is no photograph, a link leads nowhere, or there is no image.
    """
    images: Dict[Path, Path] = {}
    for given in inputs:
        matched = [given] if os.path.exists(str(given)) else sorted(map(Path, glob.glob(str(given), recursive=True)))
        if not matched:
            raise UserError(f"{given}: no such file or folder")
        for path in matched:
            if path.is_dir():
                images.update((file, path) for file in images_below(path) if file not in images)
            elif not path.is_file():
                raise UserError(f"{path} is a pipe or a device: write the image to a file first")
            elif path.suffix.lower() in VIDEOS:
                raise UserError(f"{path} is a video: give its frames, as from ffmpeg -i {path.name} FOLDER/%06d.png")
            else:
                images.setdefault(path, path)
    if not images:
        raise UserError(f"no images in {', '.join(map(str, inputs))}: expected {' '.join(SUFFIXES)}")
    return {path: images[path] for path in _once(images)}


def _once(paths: Iterable[Path]) -> List[Path]:
    """The paths without those that are another spelling of one before."""
    absolute = functools.lru_cache(maxsize=None)(os.path.abspath)
    first: Dict[str, Path] = {}
    for path in paths:
        folder, name = os.path.split(path)
        first.setdefault(f"{absolute(folder)}/{name}", path)
    return list(first.values())


def class_of(path: Path, source: Path, classes: Sequence[str]) -> Optional[str]:
    """The class that a folder of an image is named like, the innermost first.

    Folders below the input that was given count, and the last three of the input itself: CLASS, CLASS/test or
    CLASS/test/KIND may be given. Folders further up are the user's own, whatever their names. A link has its own name.

    Args:
        path: of the image.
        source: the input that led to it, a folder above it or the image itself.
        classes: the names.
    """
    folder = source if source.is_dir() else source.parent
    given = Path(os.path.abspath(folder)).parts[-3:]
    below = path.parent.relative_to(folder).parts
    found = (known_class(name, classes) for name in reversed([*given, *below]))
    return next((name for name in found if name is not None), None)


def known_class(name: str, classes: Sequence[str]) -> Optional[str]:
    """The class of that name, however its accents are written; None if there is none."""
    return next((each for each in classes if composed(each) == composed(name)), None)
