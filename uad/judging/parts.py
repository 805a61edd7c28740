"""Decisions as Parquet files, OUT/predictions/part-NNNNNN.parquet, for archives that no table would hold.

Each part is written whole or not at all, so that a kill loses the rows of the last `SECONDS` seconds, which a later
call judges again, and no photograph has two rows. A part says in its metadata which model it is of.
"""

import dataclasses
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Set, Type

from engines.errors import RuntimeNotInstalled, UserError
from engines.files import make_folder, replacing
from uad.judging.predictions import HEADER, UNREADABLE, Decision, Region, digest_of

if TYPE_CHECKING:
    import pyarrow

FOLDER = "predictions"
MODEL = b"uad.model"  # key of the metadata: SHA-256 of the model file
ROWS, SECONDS = 8192, 20.0  # rows become a part when they are so many, or the last part is so old


def schema() -> "pyarrow.Schema":
    """The columns of a part: those of predictions.csv, but the regions themselves in place of their number.

    Raises:
        RuntimeNotInstalled: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise RuntimeNotInstalled("Parquet files need pyarrow: pip install pyarrow") from error
    region = pyarrow.struct([(field.name, pyarrow.int64()) for field in dataclasses.fields(Region)])
    kinds = {name: pyarrow.string() for name in HEADER}
    kinds.update({name: pyarrow.float64() for name in ("score", "threshold", "seconds")})
    kinds["regions"] = pyarrow.list_(region)
    return pyarrow.schema(kinds.items())


def table_of(decisions: Sequence[Decision]) -> "pyarrow.Table":
    """Rows for `Parts.append`. Bytes of a path that are no UTF-8, which Parquet has not, become `\\udcNN`."""
    import pyarrow

    rows = [dict(zip(HEADER, map(_sayable, dataclasses.asdict(decision).values()))) for decision in decisions]
    return pyarrow.Table.from_pylist(rows, schema())


def _sayable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


class Parts:
    """The parts of a folder, to be added to. Use as a context manager.

    Attributes:
        digest: of the model file, see `digest_of`.
    """

    def __init__(self, out: Path, model: Path, resume: bool) -> None:
        """Begin anew, or go on with what is there, but for rows of what could not be read.

        Raises:
            OutputError: the folder cannot be written.
            RuntimeNotInstalled: pyarrow is not installed.
            UserError: what is there is of another model, or damaged.
        """
        self._folder = make_folder(out / FOLDER)
        self.digest = digest_of(model)
        self._schema = schema().with_metadata({MODEL: self.digest})
        self._judged: Set[str] = set()
        self._waiting: List[pyarrow.Table] = []
        self._since = time.monotonic()
        for path in self._files():
            if resume:
                self._judged.update(self._mended(path))
            else:
                path.unlink()
        self._next = max((int(path.stem.rpartition("-")[2]) for path in self._files()), default=-1) + 1

    def __contains__(self, image: Path) -> bool:
        """Whether a photograph, by its path as it was given, was judged by an earlier call."""
        return _sayable(str(image)) in self._judged

    def append(self, table: "pyarrow.Table") -> None:
        """Add rows, which are soon on the disk.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= ROWS or time.monotonic() - self._since >= SECONDS:
            self._write()

    def counts(self) -> Dict[str, int]:
        """How many rows there are on the disk of each decision."""
        from pyarrow import parquet

        counts: Dict[str, int] = {}
        for path in self._files():
            for each in parquet.read_table(str(path), columns=["decision"])["decision"].value_counts().to_pylist():
                counts[each["values"]] = counts.get(each["values"], 0) + each["counts"]
        return counts

    def _files(self) -> List[Path]:
        return sorted(self._folder.glob("part-[0-9]*.parquet"))

    def _mended(self, path: Path) -> List[str]:
        """The photographs of a part, from which the rows of what could not be read are gone."""
        import pyarrow
        from pyarrow import compute, parquet

        try:
            table = parquet.read_table(str(path))
            names, decisions = table["image"], table["decision"]
        except (OSError, KeyError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is no part of predictions ({error}): leave out --resume") from error
        if (table.schema.metadata or {}).get(MODEL) != self._schema.metadata[MODEL]:
            raise UserError(f"{path} holds what another model said: give another --out, or begin anew")
        readable = compute.not_equal(decisions, UNREADABLE)
        if compute.all(readable).as_py():
            return list(names.to_pylist())
        kept = table.filter(readable)
        self._save(kept, path)
        return list(kept["image"].to_pylist())

    def _save(self, table: "pyarrow.Table", path: Path) -> None:
        from pyarrow import parquet

        with replacing(path) as temporary:
            parquet.write_table(table.cast(self._schema), str(temporary))

    def _write(self) -> None:
        import pyarrow

        if self._waiting:
            self._save(pyarrow.concat_tables(self._waiting), self._folder / f"part-{self._next:06d}.parquet")
            self._next += 1
        self._waiting, self._since = [], time.monotonic()

    def __enter__(self) -> "Parts":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._write()
