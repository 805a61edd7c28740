"""Which files of a watched folder may be new, by the system's notes (inotify) or by looking.

With the package inotify_simple, on Linux, the system tells which files were written and closed, or renamed into the
folder: these are complete, and are read at once, before a camera that always writes one name replaces them. The whole
folder is looked at every `SCAN` seconds for what was not told, such as what other machines write to a share. Without
notes it is looked at every `EVERY` seconds, or at half of the time where a look takes longer.
"""

import collections
import errno
import os
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Deque, Dict, List, Optional, Set, Tuple, Type

from engines.errors import ImageFileError, UadWarning
from engines.images import SUFFIXES
from uad.data.files import files_below, folders_below, has_results, is_hidden, is_unknown
from uad.judging.photographs import Photograph

EVERY = 0.2  # seconds between two looks at what changes
SCAN = 60.0  # seconds between two looks at the whole folder, where the system tells of changes
READ_AHEAD = 1 << 28  # bytes of photographs that were read and not yet taken


class Arrivals:
    """What may be new in a folder. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is listened to on entering."""
        self._folder = folder
        self._lock, self._news = threading.Condition(), False
        self._read: Deque[Photograph] = collections.deque()
        self._names: Set[Path] = set()  # of files that changed
        self._writing: Set[Path] = set()  # files that were written to and not closed
        self._moving: Set[int] = set()  # cookies of moves of such files
        self._is_deaf = False  # to some folders, because the system watches no more
        self._unknown: Set[Path] = set()  # by their names neither images nor none, at the last look
        self._suffixes: Set[str] = set()  # of such files, which were told
        self._looked_at, self._look_took = float("-inf"), 0.0
        self._identity: Optional[Tuple[int, int]] = None  # of the folder itself
        self._notes: Any = None
        self._folders: Dict[int, Path] = {}  # number of a watch -> folder
        self._thread: Optional[threading.Thread] = None

    @property
    def is_there(self) -> bool:
        """Whether the folder is there, by the last call of `take`."""
        return self._identity is not None

    def __enter__(self) -> "Arrivals":
        self._begin()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._end()

    def take(self) -> Tuple[List[Photograph], Set[Path]]:
        """Photographs that are complete and were read, in their order; and files that changed, or may have.

        All files of the folder are among them now and then.
        """
        self._follow()
        files: Set[Path] = set()
        now = time.monotonic()
        hears_all = self._notes is not None and not self._is_deaf
        pause = SCAN if hears_all else max(EVERY, self._look_took)
        with self._lock:
            is_due = self.is_there and now - self._looked_at >= pause
            names, self._names = self._names, set()
            read, self._read = list(self._read), collections.deque()
            self._news = False
        if is_due:
            files = set(files_below(self._folder))
            self._looked_at, self._look_took = time.monotonic(), time.monotonic() - now
        files |= names
        self._tell_of({path for path in self._unknown if path.exists()})  # names of files being written change soon
        self._unknown = {path for path in files if is_unknown(path)}
        return read, {path for path in files if path.suffix.lower() in SUFFIXES}

    def wait(self, seconds: float) -> None:
        """Wait until there is something to take, at most so long."""
        with self._lock:
            self._lock.wait_for(lambda: self._news, seconds)

    def is_open(self, path: Path) -> bool:
        """Whether a file was written to and not closed since, as far as the system tells."""
        return path in self._writing

    def _tell_of(self, unknown: Set[Path]) -> None:
        """Warn of files that are passed over, once for each suffix."""
        for path in sorted(unknown):
            if path.suffix not in self._suffixes:
                self._suffixes.add(path.suffix)
                kind = f"files named *{path.suffix}" if path.suffix else "files without a suffix"
                text = f"{kind} are passed over, such as {path}: images are {' '.join(SUFFIXES)}"
                warnings.warn(text, UadWarning, stacklevel=3)

    # The folder itself ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Listen again where the folder has gone, or is another one: a share that was unmounted, or came back."""
        before, self._identity = self._identity, _identity_of(self._folder)
        if before == self._identity:
            return
        self._end()
        if self._identity is None:
            warnings.warn(f"{self._folder} is gone: it is waited for", UadWarning, stacklevel=3)
        else:
            warnings.warn(f"{self._folder} is there again", UadWarning, stacklevel=3)
            self._begin()

    def _begin(self) -> None:
        self._identity, self._looked_at = _identity_of(self._folder), float("-inf")
        try:
            import inotify_simple
        except (ImportError, OSError):  # not installed, or not for this system
            return
        try:
            self._notes = inotify_simple.INotify()
            self._listen(self._folder)
        except OSError as error:  # the system watches no more files
            self._end()
            warnings.warn(f"{self._folder} is looked at every {EVERY:g} s, because {error}", UadWarning, stacklevel=3)
            return
        self._thread = threading.Thread(target=self._hear, args=(self._notes,), daemon=True)
        self._thread.start()

    def _end(self) -> None:
        notes, self._notes = self._notes, None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if notes is not None:
            notes.close()
        self._folders, self._writing, self._moving, self._is_deaf = {}, set(), set(), False

    # The system's notes -----------------------------------------------------------------------------------------------

    def _listen(self, folder: Path) -> None:
        """Listen to a folder and those below, but for folders of results."""
        from inotify_simple import flags

        what = flags.CREATE | flags.MODIFY | flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE
        for each in folders_below(folder):
            self._folders[self._notes.add_watch(str(each), what | flags.ONLYDIR)] = each

    def _hear(self, notes: Any) -> None:
        """Take notes until the end, in a thread; whatever goes wrong, the folder is looked at in place of it."""
        try:
            while self._notes is notes:
                for note in notes.read(timeout=200):
                    try:
                        self._note(note)
                    except OSError as error:  # a folder that is gone again, or one too many
                        self._is_deaf |= error.errno == errno.ENOSPC
                        self._looked_at = float("-inf")
        except Exception as error:
            self._is_deaf = True
            text = f"{self._folder} is looked at every {EVERY:g} s, because notes cannot be read ({error!r})"
            warnings.warn(text, UadWarning, stacklevel=2)

    def _note(self, note: Any) -> None:
        from inotify_simple import flags

        folder = self._folders.get(note.wd)
        if note.mask & flags.Q_OVERFLOW:
            self._writing.clear()
            self._looked_at = float("-inf")
        if folder is None or is_hidden(note.name) or not note.name or has_results(folder):
            return
        path = folder / note.name
        if note.mask & flags.ISDIR:
            if note.mask & (flags.CREATE | flags.MOVED_TO):
                self._listen(path)
                self._add(files_below(path))
        elif note.mask & (flags.DELETE | flags.MOVED_FROM):
            if path in self._writing and note.mask & flags.MOVED_FROM:
                self._moving.add(note.cookie)
            self._writing.discard(path)
        elif note.mask & flags.CLOSE_WRITE or (note.mask & flags.MOVED_TO and note.cookie not in self._moving):
            self._writing.discard(path)
            self._complete(path)
        else:
            if not note.mask & flags.CREATE and path not in self._writing:
                self._moving.discard(note.cookie)
                self._writing.add(path)
            self._add([path])

    def _complete(self, path: Path) -> None:
        """Read a file that was closed, or put in place, while there is room in memory."""
        if path.suffix.lower() in SUFFIXES and sum(len(each.content or b"") for each in self._read) < READ_AHEAD:
            photograph = Photograph(path)
            try:
                photograph.read()
            except ImageFileError:  # changed again, or gone
                self._add([path])
                return
            with self._lock:
                self._read.append(photograph)
                self._news = True
                self._lock.notify_all()
        else:
            self._add([path])

    def _add(self, paths: List[Path]) -> None:
        with self._lock:
            self._names.update(paths)
            self._news = True
            self._lock.notify_all()


def _identity_of(folder: Path) -> Optional[Tuple[int, int]]:
    """What tells a folder from another of its name; None where it is gone."""
    try:
        status = os.stat(str(folder))
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if folder.is_dir() else None
