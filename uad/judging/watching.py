"""A folder watched for photographs: each is judged soon after it is complete, once, and none is missed.

A file is complete when the system says that it was closed, or put in its place (see `uad.judging.arrivals`). Where it
says nothing, a file is complete when it stays as it is from one look to the next: by its stamp if that is old, else by
its content. One that ends in zeros may be a file whose place was reserved and whose content is still to come: it is
waited for `PATIENCE` seconds after its last change, and so is one that cannot be read, before it is set aside.
"""

import collections
import contextlib
import dataclasses
import errno
import faulthandler
import itertools
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Callable, Deque, Dict, Iterable, Iterator, Optional, Set, Tuple, Type

from engines import Engine
from engines.errors import ImageFileError, OutputError, printable
from engines.files import replacing, write_json, write_text
from uad.judging.arrivals import EVERY, READ_AHEAD, Arrivals
from uad.judging.decisions import decide
from uad.judging.inputs import class_of
from uad.judging.ledger import NOT_JUDGED, Ledger, NoRoomError
from uad.judging.photographs import Photograph, Stamp, digest_of, stamp_of
from uad.judging.predictions import Decision
from uad.judging.recording import record
from uad.judging.views import FULL, Views

PATIENCE = 5.0  # seconds after its last change for which a file that may not be complete is waited for
OPEN_FOR = 30.0  # seconds after its last change for which a file that is open for writing is waited for
RECENT = 10.0  # seconds for which the content of a file is compared, not its stamp alone
HEARTBEAT = 1.0  # seconds between two heartbeats
ROOM_EVERY = 1.0  # seconds between two tries where the disk is full
STOP_WITHIN = 15.0  # seconds after which a process that was told to end is ended
AT_ONCE = 64  # photographs that are judged between two looks, at most
RESERVED = bytes(64)  # the end of a file whose place was reserved
ALIVE, STALLED = "heartbeat.json", 3  # exit code of a process that judged nothing for too long


@dataclasses.dataclass
class Watch:
    """What is watched, and where what was judged goes."""

    folder: Path
    out: Path
    overlays: Optional[Path] = None
    only_defects: bool = False
    class_name: Optional[str] = None
    move_to: Optional[Path] = None
    accept_truncated: bool = False
    metrics: Optional[Path] = None  # file for Prometheus's node exporter
    time_limit: float = 120.0  # seconds for one photograph


@dataclasses.dataclass
class _Look:
    """What a file was like at the last look."""

    stamp: Stamp
    since: float  # time.monotonic
    digest: bytes = b""  # b"" where it was not read
    is_reserved: bool = False  # it ends in zeros
    was_tried: bool = False  # it could not be read


def watch(
    engine: Engine,
    what: Watch,
    ledger: Ledger,
    views: Views,
    stop: threading.Event,
    judged: Callable[[Decision], object] = lambda decision: None,
) -> Dict[str, int]:
    """Judge photographs as they arrive until `stop` is set; how many of each decision the ledger then holds.

    Args:
        engine: the model.
        what: which folder, and what becomes of its photographs.
        ledger: open.
        views: of it.
        stop: set from a signal's handler or another thread; what is being judged is finished.
        judged: called with each decision, once it is safe.

    Raises:
        OutputError: the ledger or a view cannot be written, but for a full disk, or a photograph not be moved.
        ModelFileError: the model gives values that are not finite.
    """
    with Arrivals(what.folder) as arrivals, _Guard(what.time_limit, stop) as guard:
        return _Watching(engine, what, ledger, views, arrivals, guard, stop).run(judged)


class _Watching:
    """The state of a watch: what waits to be complete, and what waits to be judged."""

    def __init__(
        self,
        engine: Engine,
        what: Watch,
        ledger: Ledger,
        views: Views,
        arrivals: Arrivals,
        guard: "_Guard",
        stop: threading.Event,
    ) -> None:
        self._engine, self._what, self._ledger, self._views = engine, what, ledger, views
        self._arrivals, self._guard, self._stop = arrivals, guard, stop
        self._looks: Dict[Path, _Look] = {}  # of files that are not complete yet
        self._ready: Deque[Photograph] = collections.deque()
        self._queued: Dict[Tuple[Path, Optional[Stamp]], Photograph] = {}  # what is ready or being judged
        self._settled: Dict[Path, Stamp] = {}  # what is known to be done with, of what lies there
        self._held = 0  # bytes of what is ready and was read
        self._targets: Set[str] = set()  # of moves that are planned
        self._counts, self._of_other_class = ledger.counts(), ledger.of_other_class()
        self._begun, self._done = time.monotonic(), 0
        self._beat_at, self._is_beating, self._problem = 0.0, True, ""

    def run(self, judged: Callable[[Decision], object]) -> Dict[str, int]:
        """Go on until `stop`."""
        while not self._stop.is_set():
            self._find()
            self._beat()
            for decision in self._judge():
                self._counts[decision.decision] = self._counts.get(decision.decision, 0) + 1
                self._of_other_class += decision.is_of_other_class
                self._done += 1
                judged(decision)
                self._beat()
            if not self._ready:
                self._arrivals.wait(EVERY)
        self._beat(now=True)
        return self._counts

    # Which photographs are complete -----------------------------------------------------------------------------------

    def _find(self) -> None:
        """Put what is complete behind what is ready."""
        read, names = self._arrivals.take()
        for photograph in read:
            self._looks.pop(photograph.path, None)
            self._queue(photograph)
        looked_at = [self._look(path) for path in {*self._looks} | names]
        complete = [photograph for photograph in looked_at if photograph is not None]
        for photograph in sorted(complete, key=lambda each: each.stamp.modified if each.stamp else 0):
            self._queue(photograph)
        if len(self._settled) > 2 * len(names) + 1000:  # most of them are gone
            self._settled.clear()

    def _look(self, path: Path) -> Optional[Photograph]:
        """The photograph at a path, if it is complete and was not judged."""
        self._guard.touch()
        try:
            photograph, now = Photograph(path, stamp=stamp_of(path)), time.monotonic()
        except OSError:  # it is gone
            self._looks.pop(path, None)
            return None
        stamp, before = photograph.stamp, self._looks.get(path)
        assert stamp is not None
        if self._settled.get(path) == stamp or (path, stamp) in self._queued:
            return None
        if before is None and self._is_done(photograph):
            return None
        look = _Look(stamp, now)
        if before is not None and before.stamp == stamp and before.was_tried:
            return photograph if now - before.since >= PATIENCE else None
        if abs(time.time() - max(stamp.modified, stamp.changed) / 1e9) < RECENT:
            try:
                photograph.read()
            except ImageFileError:  # it is being changed
                self._looks[path] = look
                return None
            look.digest, look.is_reserved = photograph.digest, (photograph.content or b"").endswith(RESERVED)
        if before is None or (before.stamp, before.digest) != (stamp, look.digest):
            self._looks[path] = look
            return None
        patience = OPEN_FOR if self._arrivals.is_open(path) else PATIENCE if look.is_reserved else 0.0
        return photograph if now - before.since >= patience else None

    def _queue(self, photograph: Photograph) -> None:
        """Let a photograph be judged, unless it is or was."""
        key = photograph.path, photograph.stamp
        other = self._queued.get(key)
        if other is not None and photograph.digest in (b"", other.digest):
            return
        if other is not None and not other.digest:  # found by a look, and read as the system told of it
            other.content, other.digest = photograph.content, photograph.digest
        elif not self._is_done(photograph):
            classes = self._engine.info.classes
            photograph.class_name = self._what.class_name or class_of(photograph.path, self._what.folder, classes)
            self._queued[key] = photograph
            if self._held > READ_AHEAD:  # it is read again
                photograph.content = None
            self._held += len(photograph.content or b"")
            self._ready.append(photograph)

    def _is_done(self, photograph: Photograph) -> bool:
        """Whether a photograph was judged; if so, it is moved where it still lies, as after a kill."""
        row = self._ledger.knows(photograph, careful=True)
        if row is None:
            return False
        if self._what.move_to is not None and row.state not in NOT_JUDGED:
            planned = row.decision.moved_to
            self._move(row.id, photograph, Path(planned) if planned else self._target(photograph))
        elif row.is_settled and photograph.stamp is not None:
            self._settled[photograph.path] = photograph.stamp
        return True

    # Judging ----------------------------------------------------------------------------------------------------------

    def _judge(self) -> Iterator[Decision]:
        """Judge some of what is ready; the decisions, once they are safe and their photographs are moved."""
        some = [self._ready.popleft() for _ in range(min(AT_ONCE, len(self._ready)))]
        self._held -= sum(len(photograph.content or b"") for photograph in some)
        info, room = self._engine.info, self._wait_for_room
        for number, photograph, decision in record(self._ledger, self._views, self._decide, some, info, room):
            self._looks.pop(photograph.path, None)
            if decision.moved_to:
                self._move(number, photograph, Path(decision.moved_to))
            photograph.content = None
            if self._problem:
                self._problem = ""
                _say(f"{self._what.out} has room again")
            yield decision
        for photograph in some:
            self._queued.pop((photograph.path, photograph.stamp), None)

    def _decide(self, photographs: Iterable[Photograph]) -> Iterator[Tuple[Photograph, Decision]]:
        """Decisions, but for files that may not be complete, which are looked at again."""
        what = self._what
        wanted = itertools.takewhile(lambda _: not self._stop.is_set(), photographs)
        for photograph, decision in decide(
            self._engine, wanted, what.overlays, what.only_defects, what.accept_truncated, self._guard.in_hand
        ):
            if decision.error and not self._is_patience_over(photograph):
                continue
            if what.move_to is not None and not decision.error:
                decision = dataclasses.replace(decision, moved_to=str(self._target(photograph)))
            yield photograph, decision

    def _is_patience_over(self, photograph: Photograph) -> bool:
        """Whether a file that cannot be judged has stayed as it is for long enough."""
        path, stamp, now = photograph.path, photograph.stamp, time.monotonic()
        look = self._looks.get(path)
        if look is None or look.stamp != stamp:
            assert stamp is not None
            look = self._looks[path] = _Look(stamp, now)
        look.was_tried = True
        return now - look.since >= PATIENCE

    # Moving -----------------------------------------------------------------------------------------------------------

    def _target(self, photograph: Photograph) -> Path:
        """Where a photograph will go: its name, or NAME-1, NAME-2 and so on, whichever is free."""
        assert self._what.move_to is not None
        plain = self._what.move_to / photograph.path.relative_to(self._what.folder)

        def named(number: int) -> Path:
            return plain.with_name(f"{plain.stem}-{number}{plain.suffix}") if number else plain

        def is_free(number: int) -> bool:
            return str(named(number)) not in self._targets and not os.path.lexists(str(named(number)))

        taken, free = -1, 0
        while not is_free(free):
            taken, free = free, 2 * free + 1
        while free - taken > 1:  # those before `taken` are taken, too, unless somebody removed them
            middle = (taken + free) // 2
            taken, free = (taken, middle) if is_free(middle) else (middle, free)
        self._targets.add(str(named(free)))
        return named(free)

    def _move(self, number: int, photograph: Photograph, target: Path) -> None:
        """Move the file of a row to its place.

        Raises:
            OutputError: it cannot be moved.
        """
        while True:
            try:
                move(photograph, target)
                break
            except FileExistsError:  # planned before a kill, and taken since
                target = self._target(photograph)
            except (OSError, OutputError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                why = (isinstance(cause, OSError) and cause.strerror) or error
                text = f"cannot move {photograph.path} to {target} ({why}): see --move-to"
                if not (isinstance(cause, OSError) and cause.errno in FULL):
                    raise OutputError(text) from error
                self._wait_for_room(NoRoomError(text))
        self._targets.discard(str(target))
        self._ledger.note_moved(number)

    # What is said meanwhile -------------------------------------------------------------------------------------------

    def _wait_for_room(self, error: NoRoomError) -> None:
        """Wait a moment, and say why; the error itself once the watch is told to end."""
        if self._stop.is_set():
            raise error
        if self._problem != str(error):
            self._problem = str(error)
            _say(f"{error}; it is waited for")
        self._beat()
        self._stop.wait(ROOM_EVERY)

    def _beat(self, now: bool = False) -> None:
        """Say in OUT/heartbeat.json that work goes on, once in `HEARTBEAT` seconds."""
        self._guard.touch()
        moment = time.monotonic()
        if moment - self._beat_at < HEARTBEAT and not now:
            return
        self._beat_at = moment
        figures = {
            "waiting": len(self._ready),
            "incomplete": len(self._looks),
            "of_other_class": self._of_other_class,
            "per_second": self._done / max(moment - self._begun, 1e-9),
        }
        state = {"folder_is_there": self._arrivals.is_there, "problem": self._problem}
        try:
            write_json(
                self._what.out / ALIVE,
                {"time": time.time(), "process": os.getpid(), **self._counts, **figures, **state},
            )
            if self._what.metrics is not None:
                write_text(self._what.metrics, metrics(self._counts, figures, not self._problem))
            self._is_beating = True
        except OutputError as error:
            if self._is_beating and not self._problem:
                _say(str(error))
            self._is_beating = False


def move(photograph: Photograph, target: Path) -> None:
    """Give the file of a photograph another place; where the file is another one by now, write what was read of it.

    Raises:
        FileExistsError: another file lies there.
        OSError: that is not possible.
    """
    path = photograph.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and digest_of(target) != (photograph.digest or digest_of(path)):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if not _is_still(photograph):
        if photograph.content is not None:
            with replacing(target) as temporary:
                temporary.write_bytes(photograph.content)
        return
    if target.exists():  # copied to another disk, and killed before it was removed here
        path.unlink()
        return
    try:
        os.rename(str(path), str(target))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target) as temporary:
            shutil.copy2(str(path), str(temporary))
        path.unlink()


def _is_still(photograph: Photograph) -> bool:
    """Whether the file of a photograph is the one that was judged."""
    try:
        if stamp_of(photograph.path) != photograph.stamp:
            return False
        return not photograph.digest or digest_of(photograph.path) == photograph.digest
    except OSError:
        return False


def metrics(counts: Dict[str, int], figures: Dict[str, float], is_well: bool) -> str:
    """The same in the text format of Prometheus, for the textfile collector of its node exporter."""
    lines = ["# HELP uad_photographs_total Photographs by decision.", "# TYPE uad_photographs_total counter"]
    lines += [f'uad_photographs_total{{decision="{name}"}} {count}' for name, count in sorted(counts.items())]
    for name, text, value in (
        ("waiting", "Photographs that are complete and not judged yet.", figures["waiting"]),
        ("incomplete", "Files that may still be written.", figures["incomplete"]),
        ("of_other_class", "Photographs seen as another class than the one given.", figures["of_other_class"]),
        ("per_second", "Photographs judged a second, since the start.", figures["per_second"]),
        ("well", "1, or 0 where something is wrong, such as a full disk.", int(is_well)),
        ("heartbeat_seconds", "When this was written, seconds since 1970.", time.time()),
    ):
        lines += [f"# HELP uad_{name} {text}", f"# TYPE uad_{name} gauge", f"uad_{name} {value:.15g}"]
    return "\n".join(lines) + "\n"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"uad: warning: {printable(text)}", file=sys.stderr, flush=True)


class _Guard:
    """Ends the process where nothing moves, so that a supervisor starts it again. Use as a context manager.

    What it had in hand is noted in the ledger as begun, so that a photograph cannot end one process after another.

    Attributes:
        in_hand: filled by `decide`.
    """

    def __init__(self, limit: float, stop: threading.Event) -> None:
        self.in_hand: Dict[Path, float] = {}
        self._limit, self._stop, self._ended = limit, stop, threading.Event()
        self._touched = time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def touch(self) -> None:
        """Say that work goes on."""
        self._touched = time.monotonic()

    def _look(self) -> None:
        told: Set[Path] = set()
        told_to_stop: Optional[float] = None
        while not self._ended.wait(min(1.0, self._limit / 10)):
            # Python's own watchdog needs no lock: it ends the process where a library holds Python's.
            with contextlib.suppress(RuntimeError, ValueError, AttributeError):
                faulthandler.dump_traceback_later(2 * self._limit, exit=True)
            now = time.monotonic()
            for path, since in list(self.in_hand.items()):
                if now - since > self._limit / 4 and path not in told:
                    told.add(path)
                    _say(f"{path} takes longer than {self._limit / 4:g} s")
            if self._stop.is_set() and told_to_stop is None:
                told_to_stop = now
            grace = min(self._limit, STOP_WITHIN)
            if now - self._touched > self._limit or (told_to_stop is not None and now - told_to_stop > grace):
                names = ", ".join(map(str, list(self.in_hand))) or "the folder"
                _say(f"nothing was judged for {self._limit:g} s: ends, with {names} in hand")
                os._exit(STALLED)

    def __enter__(self) -> "_Guard":
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError, ValueError, AttributeError):
            faulthandler.cancel_dump_traceback_later()
