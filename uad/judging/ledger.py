"""The one record of what was judged: OUT/ledger.sqlite, a row for each photograph.

A photograph is what its stamp says (see `uad.judging.photographs`), not how its path is spelled. Its row is committed
before anything follows from it: the lines of predictions.csv and predictions.jsonl, which are views of the ledger (see
`uad.judging.views`), and the move of the file. SQLite keeps through a loss of power what it committed (WAL,
synchronous=FULL). One process writes at a time; any number may read.
"""

import contextlib
import hashlib
import os
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type

from engines.errors import ImageFileError, OutputError
from engines.files import make_folder, only_writer
from engines.plan_file import SUFFIX, description_path
from uad.judging.photographs import UNKNOWN, Photograph, Stamp, place_of
from uad.judging.predictions import UNREADABLE, Decision, decision_of, json_line

FILE = "ledger.sqlite"
VERSION, APPLICATION = 1, 0x75616431  # of the tables; "uad1"
COMMIT_EVERY = 0.25  # seconds, at least, between two commits while photographs are judged
SETTLED_AFTER = 3.0  # seconds after which a file that is changed gets another time on any disk: FAT keeps 2 s
AT_ONCE = 1000  # rows that are read together
MOST_TRIES = 3  # of a photograph that ends the process each time
JUDGED, MOVED, SET_ASIDE = "judged", "moved", "set aside"  # states; and `UNREADABLE`
NOT_JUDGED = (UNREADABLE, SET_ASIDE)
TABLES = """
CREATE TABLE photographs (
    id INTEGER PRIMARY KEY, place BLOB NOT NULL,
    size INTEGER NOT NULL, modified INTEGER NOT NULL, changed INTEGER NOT NULL, number INTEGER NOT NULL,
    digest BLOB NOT NULL, is_settled INTEGER NOT NULL, judged_at REAL NOT NULL, model TEXT NOT NULL,
    state TEXT NOT NULL, decision TEXT NOT NULL, is_of_other_class INTEGER NOT NULL, line TEXT NOT NULL
);
CREATE INDEX by_place ON photographs (place);
CREATE INDEX by_decision ON photographs (decision);
CREATE TABLE begun (place BLOB PRIMARY KEY, tries INTEGER NOT NULL);
CREATE TABLE views (name TEXT PRIMARY KEY, id INTEGER NOT NULL, bytes INTEGER NOT NULL);
"""
COLUMNS = "id, size, modified, changed, number, digest, is_settled, judged_at, model, state, line"


class NoRoomError(OutputError):
    """The disk is full, or takes no more; what was to be written is kept, for another try."""


class Row(NamedTuple):
    """What the ledger says of a photograph."""

    id: int  # rows are in the order in which they were committed
    stamp: Stamp
    digest: bytes  # of the content; b"" where it was not noted
    is_settled: bool  # the file had this content when its stamp could be trusted: see `SETTLED_AFTER`
    judged_at: float  # seconds since 1970
    model: str  # see `digest_of_model`
    state: str
    line: str  # of predictions.jsonl

    @property
    def decision(self) -> Decision:
        """What was decided."""
        return decision_of(self.line)


class Ledger:
    """The ledger of a folder. Use as a context manager."""

    def __init__(self, out: Path, model: str) -> None:
        """Name it; it is opened on entering.

        Args:
            out: the folder, made if needed.
            model: digest of the model that judges now; see `digest_of_model`.
        """
        self.path, self.model = out / FILE, model
        self._added: List[Tuple[Any, ...]] = []
        self._states: List[Tuple[str, int]] = []  # state, id
        self._settled: List[Tuple[int, int, int]] = []  # changed, number, id
        self._committed_at = time.monotonic()
        self._close = contextlib.ExitStack()

    def __enter__(self) -> "Ledger":
        """Open it, or begin one.

        Raises:
            OutputError: the folder cannot be written, another process writes there, or the file is damaged, of another
                program, or of a later version.
        """
        make_folder(self.path.parent)
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_writer(self.path.parent))
            with self._in_one_line():
                self._rows = sqlite3.connect(str(self.path), isolation_level=None, check_same_thread=False)
                stack.callback(self._rows.close)
                self._prepare()
                self._tries = dict(self._rows.execute("SELECT place, tries FROM begun"))
                self._last = int(self._rows.execute("SELECT COALESCE(MAX(id), 0) FROM photographs").fetchone()[0])
            self._close = stack.pop_all()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._close:
            try:
                self.commit()
                with self._in_one_line():
                    self._rows.execute("DELETE FROM begun")  # whoever comes here was not ended by a photograph
            except OutputError:
                if kind is None:  # else the first error is the one to tell
                    raise

    def _prepare(self) -> None:
        for setting in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = FULL"):
            self._rows.execute(f"PRAGMA {setting}")
        (version,) = self._rows.execute("PRAGMA user_version").fetchone()
        (application,) = self._rows.execute("PRAGMA application_id").fetchone()
        (tables,) = self._rows.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION:
            raise OutputError(f"{self.path} is of another program: remove it, or give another --out")
        if version > VERSION:
            raise OutputError(f"{self.path} is of a later version of uad ({version}): use that, or give another --out")
        if not tables:
            marks = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
            self._rows.executescript(f"BEGIN IMMEDIATE; {TABLES} {marks} COMMIT")

    # What is known ----------------------------------------------------------------------------------------------------

    def knows(self, photograph: Photograph, careful: bool = False) -> Optional[Row]:
        """The row of a photograph, whose stamp is given; None where it is to be judged.

        The content is compared where the stamp tells too little: times may be coarse, and the entry of a file may
        change while its content does not.

        Args:
            photograph: it is read if needed.
            careful: whether an equal stamp is trusted only once it is settled.
        """
        place = place_of(photograph.path)
        row = self.newest([place]).get(place)
        return row if row is not None and self.is_of(row, photograph, careful) else None

    def is_of(self, row: Row, photograph: Photograph, careful: bool = False) -> bool:
        """Whether a row is of a photograph, and stands; see `knows`."""
        stamp = photograph.stamp
        assert stamp is not None
        if row.stamp[:2] != stamp[:2] or (row.state in NOT_JUDGED and row.model != self.model):
            return False  # another file, or one that another model may judge
        is_equal = row.stamp == stamp or row.stamp.changed < 0
        if is_equal and (not row.digest or not (photograph.digest or (careful and not row.is_settled))):
            return True
        try:
            if not photograph.digest:
                photograph.read()
        except ImageFileError:
            return False
        if photograph.digest != row.digest:
            return False
        if abs(time.time() - row.judged_at) > SETTLED_AFTER:
            self._settled.append((stamp.changed, stamp.number, row.id))
        return True

    def newest(self, places: Sequence[str]) -> Dict[str, Row]:
        """Place (see `place_of`) -> its last row, whatever lies there now; of at most 999 places."""
        marks = ", ".join("?" * len(places))
        last = f"SELECT MAX(id) FROM photographs WHERE place IN ({marks}) GROUP BY place"
        with self._in_one_line():
            found = self._rows.execute(
                f"SELECT place, {COLUMNS} FROM photographs WHERE id IN ({last})", [os.fsencode(each) for each in places]
            ).fetchall()
        return {os.fsdecode(place): _row(rest) for place, *rest in found}

    def rows(self, after: int = 0) -> Iterator[Row]:
        """The committed rows behind one, in their order."""
        query = f"SELECT {COLUMNS} FROM photographs WHERE id > ? ORDER BY id LIMIT {AT_ONCE}"
        while True:
            with self._in_one_line():
                found = self._rows.execute(query, (after,)).fetchall()
            yield from map(_row, found)
            if len(found) < AT_ONCE:
                return
            after = found[-1][0]

    def counts(self) -> Dict[str, int]:
        """How many photographs there are of each decision."""
        with self._in_one_line():
            return dict(self._rows.execute("SELECT decision, COUNT(*) FROM photographs GROUP BY decision"))

    def of_other_class(self) -> int:
        """How many photographs are seen as another class than the one that was given."""
        with self._in_one_line():
            return int(self._rows.execute("SELECT COALESCE(SUM(is_of_other_class), 0) FROM photographs").fetchone()[0])

    def models(self) -> List[str]:
        """The digests of the models that judged."""
        with self._in_one_line():
            return [name for (name,) in self._rows.execute("SELECT DISTINCT model FROM photographs")]

    def tries(self, photograph: Photograph) -> int:
        """How often the process ended while it had this photograph in hand."""
        tries: int = self._tries.get(os.fsencode(place_of(photograph.path)), 0)
        return tries

    # What is added ----------------------------------------------------------------------------------------------------

    def begin(self, photographs: Sequence[Photograph]) -> None:
        """Note what is about to be judged: if it ends the process, the next one knows. A loss of power may lose that.

        Raises:
            NoRoomError: the disk is full.
        """
        places = [(os.fsencode(place_of(each.path)),) for each in photographs]
        with self._in_one_line():
            self._rows.execute("PRAGMA synchronous = NORMAL")
            try:
                with self._transaction():
                    self._rows.executemany(
                        "INSERT INTO begun VALUES (?, 1) ON CONFLICT (place) DO UPDATE SET tries = tries + 1", places
                    )
            finally:
                self._rows.execute("PRAGMA synchronous = FULL")

    def add(self, photograph: Photograph, decision: Decision) -> int:
        """Add a row, which is safe after `commit`; returns its number."""
        self._last += 1
        place, stamp = os.fsencode(place_of(photograph.path)), photograph.stamp or UNKNOWN
        state = JUDGED if not decision.error else SET_ASIDE if self.tries(photograph) >= MOST_TRIES else UNREADABLE
        row = (self._last, place, *stamp, photograph.digest, 0, time.time(), self.model, state)
        self._added.append((*row, *_columns_of(decision)))
        self._tries.pop(place, None)  # another photograph of this name is another one
        return self._last

    def note_moved(self, number: int) -> None:
        """Note, with the next commit, that the file of a row lies where the row says."""
        self._states.append((MOVED, number))

    def is_due(self) -> bool:
        """Whether the last commit is a while ago."""
        return time.monotonic() - self._committed_at >= COMMIT_EVERY

    def commit(self) -> None:
        """Make what was added safe.

        Raises:
            NoRoomError: the disk is full; nothing is lost, and another call tries again.
            OutputError: the file is locked or damaged.
        """
        self._committed_at = time.monotonic()
        if not (self._added or self._states or self._settled):
            return
        with self._in_one_line(), self._transaction():
            self._rows.executemany(f"INSERT INTO photographs VALUES ({', '.join('?' * 14)})", self._added)
            self._rows.executemany("DELETE FROM begun WHERE place = ?", [(row[1],) for row in self._added])
            self._rows.executemany("UPDATE photographs SET state = ? WHERE id = ?", self._states)
            self._rows.executemany(
                "UPDATE photographs SET changed = ?, number = ?, is_settled = 1 WHERE id = ?", self._settled
            )
        self._added, self._states, self._settled = [], [], []

    def forget(self, numbers: Sequence[int]) -> None:
        """Remove rows, of photographs that are to be judged again; the views are to be made again."""
        with self._in_one_line(), self._transaction():
            self._rows.executemany("DELETE FROM photographs WHERE id = ?", [(number,) for number in numbers])
            self._rows.execute("DELETE FROM views")

    def clear(self) -> None:
        """Remove all rows."""
        with self._in_one_line(), self._transaction():
            for table in ("photographs", "begun", "views"):
                self._rows.execute(f"DELETE FROM {table}")
        self._last = 0

    def take_over(self, rows: Iterable[Tuple[str, Stamp, str, Decision]]) -> None:
        """Add rows of before there was a ledger: place, stamp, model and decision."""
        for place, stamp, model, decision in rows:
            self._last += 1
            state = UNREADABLE if decision.error else JUDGED
            row = (self._last, os.fsencode(place), *stamp, b"", 1, 0.0, model, state)
            self._added.append((*row, *_columns_of(decision)))
        self.commit()

    def view(self, name: str) -> Tuple[int, int]:
        """Up to which row a view is safe on the disk, and how many bytes it then has; 0, 0 where nothing is known."""
        with self._in_one_line():
            found = self._rows.execute("SELECT id, bytes FROM views WHERE name = ?", (name,)).fetchone()
        return (0, 0) if found is None else (int(found[0]), int(found[1]))

    def note_view(self, name: str, number: int, size: int) -> None:
        """Note up to which row a view is safe."""
        with self._in_one_line(), self._transaction():
            self._rows.execute("REPLACE INTO views VALUES (?, ?, ?)", (name, number, size))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._rows.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._rows.execute("COMMIT")
        except BaseException:
            if self._rows.in_transaction:
                self._rows.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """What SQLite raises, as an OutputError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if any(words in str(error) for words in ("full", "I/O")):
                raise NoRoomError(f"cannot write {self.path} ({error}): make room on its disk") from error
            raise OutputError(f"cannot use {self.path} ({error}): give another --out") from error
        except sqlite3.DatabaseError as error:
            raise OutputError(
                f"{self.path} is no ledger, or is damaged ({error}): remove it, or give another --out"
            ) from error


def _columns_of(decision: Decision) -> Tuple[str, bool, str]:
    return decision.decision, decision.is_of_other_class, json_line(decision)


def _row(found: Sequence[Any]) -> Row:
    number, size, modified, changed, file, digest, is_settled, *rest = found
    return Row(number, Stamp(size, modified, changed, file), digest, bool(is_settled), *rest)


def digest_of_model(model: Path) -> str:
    """SHA-256 of the files of a model, in hexadecimal digits: a plan's thresholds lie in the file beside it."""
    digest = hashlib.sha256(model.read_bytes())
    if model.suffix == SUFFIX:
        digest.update(description_path(model).read_bytes())
    return digest.hexdigest()
