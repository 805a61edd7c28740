"""What people and programs read of a ledger: predictions.csv and predictions.jsonl beside it, or one file of any form.

The two files are appended to as rows are committed. They are synced to the disk now and then, and the ledger knows how
far: behind that, whatever a kill, a full disk or a loss of power left is put right at the next start.
"""

import contextlib
import dataclasses
import errno
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple, Type

from engines.errors import OutputError, RuntimeNotInstalled, UserError
from engines.files import check_output, csv_line, replacing
from uad.judging.ledger import Ledger, NoRoomError, Row
from uad.judging.predictions import HEADER, ROWS, TABLE, Region, csv_row

if TYPE_CHECKING:
    import pyarrow

SYNC_EVERY = 10.0  # seconds between two times that the files are synced to the disk
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORMS = (".csv", ".jsonl", ".parquet")
AT_ONCE = 5000  # rows of a Parquet file that are in memory


def _json(row: Row) -> bytes:
    return row.line.encode()


def _csv(row: Row) -> bytes:
    return csv_row(row.decision).encode("utf-8", "surrogateescape")


class View:
    """One file with a line for each row of a ledger, in their order."""

    def __init__(self, path: Path, ledger: Ledger, header: bytes, line_of: Callable[[Row], bytes]) -> None:
        """Open it, and make it what the ledger says.

        Raises:
            NoRoomError: the disk is full.
            OutputError: the file cannot be written.
        """
        self.path, self._ledger, self._header, self._line_of = path, ledger, header, line_of
        number, size = ledger.view(path.name)
        if not self._has(number, size):
            number, size = self._make()
        with self._in_one_line():
            self._file: BinaryIO = open(path, "rb+", buffering=0)  # noqa: SIM115
        try:
            with self._in_one_line():
                self._last, self._size = number, self._file.seek(size)
                self._mend()
            self.sync()
        except BaseException:
            self._file.close()
            raise

    def _has(self, number: int, size: int) -> bool:
        """Whether the file is at least so long, and ends there with the line of that row."""
        row = next(self._ledger.rows(number - 1), None) if number else None
        if row is None or row.id != number:
            return False
        line = self._line_of(row)
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, size - len(line)))
                return file.read(len(line)) == line
        except OSError:
            return False

    def _make(self) -> Tuple[int, int]:
        """Write the whole file; up to which row, and how many bytes."""
        number, size = 0, len(self._header)
        with replacing(self.path) as temporary, open(temporary, "wb") as file:
            file.write(self._header)
            for row in self._ledger.rows():
                number, size = row.id, size + file.write(self._line_of(row))
        return number, size

    def _mend(self) -> None:
        """Keep what is right behind the safe part, and cut off the rest; it is written again."""
        there = self._file.read()
        for row in self._ledger.rows(self._last):
            line = self._line_of(row)
            if not there.startswith(line):
                break
            there = there[len(line) :]
            self._last, self._size = row.id, self._size + len(line)
        self._file.truncate(self._size)
        self.catch_up()

    def catch_up(self) -> None:
        """Append what was committed since.

        Raises:
            NoRoomError: the disk is full; another call goes on.
            OutputError: the file cannot be written.
        """
        rows = list(self._ledger.rows(self._last))
        if not rows:
            return
        text = b"".join(map(self._line_of, rows))
        with self._in_one_line():
            self._file.seek(self._size)
            written = self._file.write(text)
            if written != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._last, self._size = rows[-1].id, self._size + len(text)

    def sync(self) -> None:
        """Make it safe on the disk as it is, and let the ledger know."""
        with self._in_one_line():
            os.fsync(self._file.fileno())
        self._ledger.note_view(self.path.name, self._last, self._size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = NoRoomError if error.errno in FULL else OutputError
            raise kind(f"cannot write {self.path} ({error.strerror})") from error


class Views:
    """predictions.csv and predictions.jsonl of a ledger. Use as a context manager."""

    def __init__(self, ledger: Ledger) -> None:
        """Name them; they are opened on entering."""
        self._ledger = ledger
        self._views: List[View] = []
        self._synced_at = time.monotonic()

    def __enter__(self) -> "Views":
        """Open both, and make them what the ledger says.

        Raises:
            NoRoomError: the disk is full.
            OutputError: they cannot be written.
        """
        folder = self._ledger.path.parent
        with contextlib.ExitStack() as stack:
            for name, header, line_of in ((ROWS, b"", _json), (TABLE, csv_line(HEADER).encode(), _csv)):
                self._views.append(View(folder / name, self._ledger, header, line_of))
                stack.callback(self._views[-1].close)
            self._close = stack.pop_all()
        return self

    def catch_up(self) -> None:
        """Append what was committed since, and sync the files if that is due; see `View.catch_up`."""
        for view in self._views:
            view.catch_up()
        if time.monotonic() - self._synced_at >= SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Make both safe on the disk."""
        self._synced_at = time.monotonic()
        for view in self._views:
            view.sync()

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._close:
            if kind is None:
                self.catch_up()
                self.sync()


# One file ---------------------------------------------------------------------------------------------------------


def check_form(path: Optional[Path], flag: str) -> None:
    """Refuse, before the work, a file that `write` could not write; None is no file.

    Raises:
        UserError: its name says no form, pyarrow is missing, or the file cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in FORMS:
        raise UserError(f"{flag} {path}: name a file {', '.join(f'*{form}' for form in FORMS)}")
    if path.suffix.lower() == ".parquet":
        schema()
    check_output(path, flag)


def write(ledger: Ledger, path: Path) -> None:
    """Write all rows to one file, whole or not at all, in the form that its name says.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(ledger, temporary)
            return
        line_of = _csv if path.suffix.lower() == ".csv" else _json
        with open(temporary, "wb") as file:
            file.write(csv_line(HEADER).encode() if line_of is _csv else b"")
            file.writelines(map(line_of, ledger.rows()))


def schema() -> "pyarrow.Schema":
    """The columns of a Parquet file: those of predictions.csv, but the regions themselves in place of their number.

    Raises:
        RuntimeNotInstalled: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise RuntimeNotInstalled("Parquet files need pyarrow: pip install pyarrow") from error
    region = pyarrow.struct([(field.name, pyarrow.int64()) for field in dataclasses.fields(Region)])
    kinds = {name: pyarrow.string() for name in HEADER}
    kinds.update({name: pyarrow.float64() for name in ("score", "threshold", "seconds", "class_distance")})
    kinds["regions"] = pyarrow.list_(region)
    return pyarrow.schema(kinds.items())


def _write_parquet(ledger: Ledger, path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def flush(rows: List[Dict[str, object]]) -> None:
        writer.write_table(pyarrow.Table.from_pylist(rows, writer.schema))
        rows.clear()

    with parquet.ParquetWriter(str(path), schema()) as writer:
        waiting: List[Dict[str, object]] = []
        for row in ledger.rows():
            waiting.append(dict(zip(HEADER, map(_sayable, dataclasses.asdict(row.decision).values()))))
            if len(waiting) == AT_ONCE:
                flush(waiting)
        flush(waiting)


def _sayable(value: object) -> object:
    r"""Text as Parquet has it: bytes of a path that are no UTF-8 become `\udcNN`."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
