"""Results of before there was a ledger: predictions.jsonl with a journal, or Parquet files, read into one once."""

import contextlib
import os
import shutil
import sqlite3
import warnings
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from engines.errors import RuntimeNotInstalled, UadWarning, UserError
from uad.judging.ledger import FILE, Ledger
from uad.judging.photographs import UNKNOWN, Stamp, place_of, stamp_of
from uad.judging.predictions import ROWS, Decision, Region, read_predictions

MODEL, JOURNAL, PARTS = "predictions.model", "journal.sqlite", "predictions"


def take_over(ledger: Ledger) -> None:
    """Read the results of a folder into its ledger, if that is empty and they are from before; says so.

    A photograph is taken to be what was judged if its file is older than its row.

    Raises:
        UserError: they are damaged, or pyarrow is missing.
    """
    out = ledger.path.parent
    parts = sorted((out / PARTS).glob("part-[0-9]*.parquet"))
    if ledger.counts() or not (parts or (out / MODEL).exists()):
        return
    rows = list(_of_parts(parts)) if parts else list(_of_lines(out))
    ledger.take_over(rows)
    for path in (out / MODEL, out / JOURNAL):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    if parts:
        shutil.rmtree(str(out / PARTS))
    text = f"{out}: {len(rows)} rows of an earlier uad were read into {FILE}"
    warnings.warn(text, UadWarning, stacklevel=2)


def _of_lines(out: Path) -> Iterator[Tuple[str, Stamp, str, Decision]]:
    path = out / ROWS
    model = (out / MODEL).read_text(encoding="utf-8").strip()
    journal = _journal(out / JOURNAL)
    decisions = read_predictions(path) if path.exists() else []
    for decision in decisions:
        known = journal.get(os.fsencode(decision.image))
        stamp = Stamp(*known, -1, -1) if known else _stamp(Path(decision.image), path)
        yield place_of(Path(decision.image)), stamp, model, decision


def _journal(path: Path) -> Dict[bytes, Tuple[int, int]]:
    """Path of a photograph -> size and time, of what a watch noted."""
    if not path.exists():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(str(path))) as rows:
            return {name: (size, time) for name, size, time in rows.execute("SELECT path, size, changed FROM files")}
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, or give another --out") from error


def _of_parts(paths: List[Path]) -> Iterator[Tuple[str, Stamp, str, Decision]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise RuntimeNotInstalled(f"{paths[0]} needs pyarrow: pip install pyarrow") from error
    for path in paths:
        try:
            table = parquet.read_table(str(path))
            model = (table.schema.metadata or {})[b"uad.model"].decode()
            rows = table.to_pylist()
            for row in rows:
                row["regions"] = tuple(Region(**each) for each in row["regions"])
                decision = Decision(class_name=row.pop("class"), **row)
                yield place_of(Path(decision.image)), _stamp(Path(decision.image), path), model, decision
        except (OSError, KeyError, TypeError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is no part of predictions ({error}): give another --out") from error


def _stamp(photograph: Path, rows: Path) -> Stamp:
    """The stamp of a file that is older than its row; else one that no file has, and it is judged again."""
    stamp: Optional[Stamp] = None
    with contextlib.suppress(OSError):
        stamp = stamp_of(photograph)
    return stamp if stamp is not None and stamp.modified <= rows.stat().st_mtime_ns else UNKNOWN
