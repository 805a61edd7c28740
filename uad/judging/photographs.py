"""A photograph: the file that it is of, as the file was when it was read."""

import dataclasses
import errno
import functools
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple, Optional, Union

from engines.errors import ImageFileError
from engines.images import Loaded

IN_MEMORY = 1 << 24  # bytes of the largest file that is read into memory before it is decoded


class Stamp(NamedTuple):
    """What the system says of a file: one that was changed, or that took the place of another, has another stamp.

    But some disks keep times of two seconds, and give numbers again: then only the content tells.
    """

    size: int  # bytes
    modified: int  # ns; when its content was changed
    changed: int  # ns; when its entry was changed; -1 where it was not noted
    number: int  # of the file on its disk; -1 where it was not noted


UNKNOWN = Stamp(-1, -1, -1, -1)  # of a file that was not looked at: no file has it


class ChangedError(ImageFileError):
    """A file is not, or no longer, what its stamp said."""


@dataclasses.dataclass
class Photograph:
    """A photograph to be judged, once."""

    path: Path  # as it was given
    class_name: Optional[str] = None
    stamp: Optional[Stamp] = None  # of the file as it is to be judged; None takes it as it is
    content: Optional[bytes] = None  # of the file, once it was read; None where it is larger than `IN_MEMORY`
    digest: bytes = b""  # of the content, once it was read

    def read(self) -> Union[Path, Loaded]:
        """Read the file, unless that was done; returns what to decode.

        Raises:
            ChangedError: it is another file than its stamp says, or was changed meanwhile.
            ImageFileError: it cannot be read.
        """
        if self.content is not None:
            return Loaded(self.path, self.content)
        try:
            before = stamp_of(self.path)
            content = self.path.read_bytes() if before.size <= IN_MEMORY else None
            self.digest = digest_of(self.path) if content is None else digest_of_content(content)
            after = stamp_of(self.path)
        except FileNotFoundError as error:
            raise ImageFileError(f"{self.path} (no such file)") from error
        except OSError as error:
            raise ImageFileError(f"{self.path} (cannot be read: {error.strerror or error})") from error
        if not before == after == (self.stamp or before):
            raise ChangedError(f"{self.path} (changed while it was read)")
        self.stamp, self.content = before, content
        return self.path if content is None else Loaded(self.path, content)


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file.

    Raises:
        OSError: there is none, it may not be looked at, or it is a pipe or a device, which would never end.
    """
    status = os.stat(str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def place_of(path: Path) -> str:
    """One path for all spellings of one: the real path of its folder, and its name there."""
    folder, name = os.path.split(path)
    return f"{_real(folder, os.getcwd())}/{name}"


@functools.lru_cache(maxsize=4096)
def _real(folder: str, current: str) -> str:
    return os.path.realpath(os.path.join(current, folder))


def digest_of_content(content: bytes) -> bytes:
    """8 bytes: BLAKE2b, RFC 7693."""
    return hashlib.blake2b(content, digest_size=8).digest()


def digest_of(path: Path) -> bytes:
    """The same of a file, a piece at a time.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.digest()
