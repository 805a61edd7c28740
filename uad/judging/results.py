"""A folder of results, opened for some photographs: what it knows of them, and what is to be judged."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from engines.errors import UserError
from uad.judging.former import take_over
from uad.judging.ledger import NOT_JUDGED, Ledger, Row
from uad.judging.overlays import overlay_folder
from uad.judging.photographs import Photograph, place_of, stamp_of
from uad.judging.predictions import Decision
from uad.judging.views import Views

AT_ONCE = 500  # photographs that are looked up together


@dataclasses.dataclass(frozen=True)
class Results:
    """An open folder of results."""

    ledger: Ledger
    views: Views
    overlays: Optional[Path]  # folder of overlays; None where none are drawn
    missing: List[Photograph]  # those that are to be judged


@contextlib.contextmanager
def opened(
    out: Path,
    model: str,
    photographs: Dict[Path, Optional[str]],
    known: Callable[[Path, Decision], object],
    resume: bool,
    overwrite: bool,
    is_drawn: bool,
) -> Iterator[Results]:
    """Open a folder of results.

    Args:
        out: the folder, made if needed.
        model: digest of the model.
        photographs: those that are asked for, each with its class, if it is known.
        known: called with each that was judged before; those that could not be are to be judged again.
        resume: whether it is gone on with what is there.
        overwrite: whether what is there goes.
        is_drawn: whether overlays are drawn.

    Raises:
        UserError: what is there may not go, or is of another model.
        OutputError: the folder cannot be written, or another process writes there.
    """
    with Ledger(out, model) as ledger:
        take_over(ledger)
        if overwrite:
            ledger.clear()
        models = ledger.models()
        if models and not resume:
            raise UserError(f"--out {out} holds results: give another folder, or --overwrite, or --resume to go on")
        if models and models != [model]:
            raise UserError(f"{out} holds what another model said: give another --out, or --overwrite")
        missing, again = [], []
        for path, row in _newest(ledger, list(photographs)):
            photograph = Photograph(path, photographs[path])
            if row is not None and row.state in NOT_JUDGED:
                again.append(row.id)
            elif row is not None and _is_of(ledger, row, photograph):
                known(path, row.decision)
                continue
            missing.append(photograph)
        if again:
            ledger.forget(again)
        with Views(ledger) as views:
            yield Results(ledger, views, overlay_folder(out, keep=resume) if is_drawn else None, missing)


def _newest(ledger: Ledger, paths: List[Path]) -> Iterator[Tuple[Path, Optional[Row]]]:
    """The last row of each path."""
    for start in range(0, len(paths), AT_ONCE):
        places = {path: place_of(path) for path in paths[start : start + AT_ONCE]}
        rows = ledger.newest(list(places.values()))
        for path, place in places.items():
            yield path, rows.get(place)


def _is_of(ledger: Ledger, row: Row, photograph: Photograph) -> bool:
    try:
        return ledger.is_of(row, dataclasses.replace(photograph, stamp=stamp_of(photograph.path)))
    except OSError:  # it is gone, or no file, which is told when it is judged
        return False
