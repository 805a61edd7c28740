"""Outputs that are whole or absent: written beside their place, synced to the disk, then renamed.

A link stays a link: what it leads to is replaced. A device, a pipe or this process's own output is written to, never
replaced. What a killed process leaves is `.uad-*.part` beside the file: never read, and safe to delete.
"""

import contextlib
import csv
import io
import json
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence, TextIO, Union

from engines.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # beginnings of a cell that a spreadsheet would compute


def make_folder(path: Union[str, Path], flag: Optional[str] = "--out") -> Path:
    """Create a folder (and its parents) that can be written to; `flag` is named in errors.

    Raises:
        OutputError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except OSError as error:
        cure = f": choose another with {flag}" if flag else ""
        raise OutputError(f"cannot write to the folder {folder} ({error.strerror or error}){cure}") from error
    return folder


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the only right to write to a folder, by a lock on its file `.uad-lock`, which a process loses when it ends.

    On systems without flock there is no such lock.

    Raises:
        OutputError: another process has it.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".uad-lock"
    while True:
        with _opened_lock(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                who = file.read().strip() or "another process"
                raise OutputError(f"{who} writes to {folder}: end it first, or give another --out") from error
            try:
                is_in_place = os.path.samestat(os.fstat(file.fileno()), os.stat(str(path)))
            except OSError:
                is_in_place = False
            if not is_in_place:  # whoever had it before removed it just now
                continue
            with contextlib.suppress(OSError):  # a full disk: the lock holds, only the name is missing
                file.truncate(0)
                file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
                file.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _opened_lock(path: Path) -> TextIO:
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror})") from error


def check_output(path: Optional[Path], flag: str) -> None:
    """Refuse before the work a file that could not be written after it; None is no file. Its folder is made.

    Raises:
        OutputError: names the flag that gave it.
    """
    if path is None:
        return
    if _is_stream(path):
        if not os.access(str(path), os.W_OK):
            raise OutputError(f"cannot write to {path}: choose another with {flag}")
        return
    target = Path(os.path.realpath(str(path)))
    if os.path.isdir(str(target)):
        raise OutputError(f"{path} is a folder: name a file with {flag}")
    make_folder(target.parent, flag)


@contextlib.contextmanager
def replacing(path: Union[str, Path]) -> Iterator[Path]:
    """Yield a temporary path; on success what is there becomes the content of `path`, on an error it is removed.

    Raises:
        OutputError: the file cannot be written.
    """
    to_stream = _is_stream(path)
    target = Path(os.path.realpath(str(path)))
    if os.path.isdir(str(target)):
        raise OutputError(f"{target} is a folder: name a file")
    folder = Path(tempfile.gettempdir()) if to_stream else make_folder(target.parent, None)
    temporary = folder / f".uad-{secrets.token_hex(8)}.part"  # the process's number is the same in many containers
    try:
        yield temporary
        if to_stream:
            _pour(temporary, path)
        else:
            _put_in_place(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Union[str, Path], text: str) -> None:
    """Write text as UTF-8, whole or not at all; bytes of file names that are no UTF-8 become themselves again.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def write_json(path: Union[str, Path], content: Any) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Union[str, Path], header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, whole or not at all; text that a spreadsheet would compute gets an apostrophe in front.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, "".join(csv_line(row) for row in (header, *rows)))


def csv_line(cells: Sequence[Any]) -> str:
    """A row of a CSV file with its end; text that a spreadsheet would compute gets an apostrophe in front."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow([_harmless(cell) for cell in cells])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    text = str(cell) if isinstance(cell, (str, Path)) else ""
    return f"'{text}" if text.startswith(FORMULA) else cell


def _is_stream(path: Union[str, Path]) -> bool:
    """Whether a path leads to something that is no file, or to what this process prints into."""
    try:
        status = os.stat(str(path))
    except OSError:
        return False
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or _descriptor_of_output(path) is not None


def _descriptor_of_output(path: Union[str, Path]) -> Optional[int]:
    """Which of stdout and stderr a path leads to, as /dev/stdout does."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(str(path)), os.fstat(descriptor)):
                return descriptor
    return None


def _pour(source: Path, path: Union[str, Path]) -> None:
    """Write a file's content to a stream."""
    descriptor = _descriptor_of_output(path)
    if descriptor is not None:
        sys.stdout.flush()  # what was printed before stays before
    with open(source, "rb") as content, open(path if descriptor is None else os.dup(descriptor), "wb") as stream:
        shutil.copyfileobj(content, stream)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give a file its place, so that after a loss of power either the old one or the new one is there."""
    if os.path.exists(str(target)):
        shutil.copymode(str(target), str(temporary))
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(str(temporary), str(target))
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(str(target.parent), os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
