"""A folder watched for photographs: each is judged soon after it is complete, once, and none is missed.

With the package watchdog the system tells which files change, and the whole folder is looked at every `SCAN` seconds,
for what was not told; without it every `EVERY` seconds. A file is complete when its size and time stay as they are from
one look to the next, and it can be read. One that cannot be read is waited for `PATIENCE` seconds after its last
change, then it is set aside.

What was judged stands in a journal, SQLite in OUT/journal.sqlite, with the size and the time of the file: a file that
changes afterwards is another photograph. Lines are written before the journal; what a kill leaves between the two is
found in the last lines at the next start.
"""

import dataclasses
import os
import shutil
import sqlite3
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, Type

from engines import Engine
from engines.errors import OutputError, UadWarning
from engines.files import make_folder, write_json
from engines.images import SUFFIXES
from uad.data.files import RESULTS, is_hidden, names_of_images
from uad.judging.decisions import decide
from uad.judging.inputs import class_of
from uad.judging.predictions import UNREADABLE, Decision, Predictions

EVERY = 0.2  # seconds between two looks at what changes
SCAN = 60.0  # seconds between two looks at the whole folder, where the system tells of changes
PATIENCE = 5.0  # seconds after its last change for which a file that cannot be read is waited for
HEARTBEAT = 1.0  # seconds between two heartbeats
AT_ONCE = 32  # photographs that are judged between two looks, at most
JOURNAL, ALIVE = "journal.sqlite", "heartbeat.json"

Stamp = Tuple[int, int]  # of a file: its size in bytes, and when it was changed, ns


class Journal:
    """Which files were judged, or set aside. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin one.

        Raises:
            OutputError: it cannot be opened, or is no journal.
        """
        make_folder(path.parent)
        try:
            self._rows = sqlite3.connect(str(path))
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, decision TEXT)"
            )
        except sqlite3.Error as error:
            raise OutputError(
                f"{path} cannot be used as a journal ({error}): remove it, or give another --out"
            ) from error

    def decision_on(self, path: str, stamp: Stamp) -> Optional[str]:
        """What was decided on this file as it is; None if it is not done with."""
        row = self._of(path)
        return str(row[2]) if row is not None and row[:2] == stamp else None

    def knows(self, path: str) -> bool:
        """Whether there was a file of that name, as it is or as it was."""
        return self._of(path) is not None

    def _of(self, path: str) -> Any:
        rows = self._rows.execute("SELECT size, changed, decision FROM files WHERE path = ?", (os.fsencode(path),))
        return rows.fetchone()

    def add(self, path: str, stamp: Stamp, decision: str) -> None:
        """Note a file; it is safe on the disk afterwards."""
        with self._rows:
            self._rows.execute("REPLACE INTO files VALUES (?, ?, ?, ?)", (os.fsencode(path), *stamp, decision))

    def counts(self) -> Dict[str, int]:
        """How many files there are of each decision."""
        return dict(self._rows.execute("SELECT decision, COUNT(*) FROM files GROUP BY decision"))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._rows.close()


class Arrivals:
    """Which files of a folder may be new, by the system's notes or by looking. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Begin to listen, if watchdog is installed."""
        self._folder, self._lock, self._told = folder, threading.Lock(), set()  # type: ignore[var-annotated]
        self._scanned = float("-inf")
        self._observer: Any = None
        try:
            from watchdog.events import FileSystemEventHandler
            from watchdog.observers import Observer
        except ImportError:
            return

        class Handler(FileSystemEventHandler):
            def on_any_event(handler, event: Any) -> None:  # noqa: N805
                with self._lock:
                    self._told.update(
                        path for path in (event.src_path, getattr(event, "dest_path", "")) if not event.is_directory
                    )

        observer = Observer()
        observer.schedule(Handler(), str(folder), recursive=True)
        try:
            observer.start()
        except OSError as error:  # the system watches no more files
            warnings.warn(f"{folder} is looked at every {EVERY:g} s, because {error}", UadWarning, stacklevel=2)
        else:
            self._observer = observer

    def take(self) -> Set[str]:
        """The files that may be new since the last call; all of them now and then."""
        now = time.monotonic()
        if self._observer is None or now - self._scanned >= SCAN:
            self._scanned = now
            names = set(names_of_images(self._folder))
        else:
            names = set()
        with self._lock:
            changed, self._told = self._told, set()
        return names | {path for path in map(os.fsdecode, changed) if self._is_photograph(Path(path))}

    def _is_photograph(self, path: Path) -> bool:
        """Whether a full look at the folder would take it, by its name and where it lies."""
        if path.suffix.lower() not in SUFFIXES:
            return False
        inside = path.relative_to(self._folder).parts
        folders = [self._folder.joinpath(*inside[:depth]) for depth in range(len(inside))]
        return not any(map(is_hidden, inside)) and not any((folder / RESULTS).exists() for folder in folders)

    def __enter__(self) -> "Arrivals":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()


@dataclasses.dataclass
class Watch:
    """What is watched, and where what was judged goes."""

    folder: Path
    out: Path
    overlays: Optional[Path]
    only_defects: bool
    class_name: Optional[str]
    move_to: Optional[Path]

    def __post_init__(self) -> None:
        self._seen: Dict[str, Tuple[Stamp, float]] = {}  # file -> its stamp at the last look, and since when it has it
        self._beat = 0.0

    def ready(self, arrivals: Arrivals, journal: Journal) -> "Tuple[Dict[Path, Stamp], int]":
        """The files that are complete and not yet done with, the oldest first; and how many are being written."""
        seen: Dict[str, Tuple[Stamp, float]] = {}
        complete: List[Tuple[Stamp, Path]] = []
        now = time.monotonic()
        for path in {*self._seen, *arrivals.take()}:
            stamp = stamp_of(Path(path))
            if stamp is None:
                continue
            decision = journal.decision_on(path, stamp)
            if decision is not None:
                if self.move_to is not None and decision != UNREADABLE:  # killed before it was moved
                    self._move(Path(path))
                continue
            before = self._seen.get(path)
            if before is not None and before[0] == stamp:
                seen[path] = before
                complete.append((stamp, Path(path)))
            else:
                seen[path] = (stamp, now)
        self._seen = seen
        complete.sort(key=lambda each: each[0][1])
        return {path: stamp for stamp, path in complete[:AT_ONCE]}, len(seen) - len(complete)

    def judge(
        self, engine: Engine, files: Dict[Path, Stamp], written: Predictions, journal: Journal
    ) -> Iterator[Decision]:
        """Judge files; those that are done with are noted, and given out."""
        classes = engine.info.classes
        names = {path: self.class_name or class_of(path, self.folder, classes) for path in files}
        for decision in decide(engine, names, self.overlays, self.only_defects):
            path = Path(decision.image)
            stamp = files[path]
            if stamp_of(path) != stamp:
                continue  # it was still being written, or is gone
            if decision.error and time.monotonic() - self._seen[decision.image][1] < PATIENCE:
                continue
            written.append(decision)
            journal.add(decision.image, stamp, decision.decision)
            if self.move_to is not None and not decision.error:
                self._move(path)
            yield decision

    def _move(self, path: Path) -> None:
        target = self.move_to / path.relative_to(self.folder)  # type: ignore[operator]
        make_folder(target.parent)
        number = 1
        while target.exists():
            target, number = target.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
        try:
            shutil.move(str(path), str(target))
        except OSError as error:
            raise OutputError(f"cannot move {path} to {target} ({error.strerror})") from error

    def beat(self, counts: Dict[str, int], waiting: int, per_second: float) -> None:
        """Say in OUT/heartbeat.json that work goes on, once in `HEARTBEAT` seconds."""
        now = time.monotonic()
        if now - self._beat >= HEARTBEAT:
            self._beat = now
            rates = {"waiting": waiting, "per_second": per_second}
            content = {"time": time.time(), "process": os.getpid(), **counts, **rates}
            write_json(self.out / ALIVE, content)


def stamp_of(path: Path) -> Optional[Stamp]:
    """Size and time of a file; None if it is gone."""
    try:
        status = os.stat(str(path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def watch(
    engine: Engine,
    what: Watch,
    written: Predictions,
    stop: threading.Event,
    judged: Callable[[Decision], object] = lambda decision: None,
) -> Dict[str, int]:
    """Judge photographs as they arrive until `stop` is set; how many of each decision the journal then holds.

    Args:
        engine: the model.
        what: which folder, and what becomes of its photographs.
        written: where lines go.
        stop: set from a signal's handler or another thread; what is being judged is finished.
        judged: called with each decision.

    Raises:
        OutputError: a line, the journal or the heartbeat cannot be written, or a photograph not be moved.
    """
    with Journal(what.out / JOURNAL) as journal, Arrivals(what.folder) as arrivals:
        for decision in written.before.values():
            stamp = stamp_of(Path(decision.image))
            if stamp is not None and not journal.knows(decision.image):
                journal.add(decision.image, stamp, decision.decision)
        counts = journal.counts()
        begun, done = time.monotonic(), 0
        while not stop.is_set():
            files, writing = what.ready(arrivals, journal)
            for decision in what.judge(engine, files, written, journal):
                counts[decision.decision] = counts.get(decision.decision, 0) + 1
                done += 1
                judged(decision)
                what.beat(counts, writing, done / max(time.monotonic() - begun, 1e-9))
            what.beat(counts, writing, done / max(time.monotonic() - begun, 1e-9))
            if len(files) < AT_ONCE:
                stop.wait(EVERY)
        return counts
