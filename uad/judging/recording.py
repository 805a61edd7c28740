"""Photographs judged and recorded: a decision is given out once its row is safe and its line is written."""

import contextlib
from typing import Callable, Iterable, Iterator, List, Optional, Tuple

from engines.errors import OutputError
from engines.metadata import ModelInfo
from uad.judging.ledger import MOST_TRIES, Ledger, NoRoomError
from uad.judging.photographs import Photograph, stamp_of
from uad.judging.predictions import Decision, not_judged
from uad.judging.views import Views

AHEAD = 32  # photographs that are noted as begun at a time

Decide = Callable[[Iterable[Photograph]], Iterator[Tuple[Photograph, Decision]]]
Recorded = Tuple[int, Photograph, Decision]  # number of the row, photograph and decision


def record(
    ledger: Ledger,
    views: Views,
    decide: Decide,
    photographs: Iterable[Photograph],
    info: ModelInfo,
    wait_for_room: Optional[Callable[[NoRoomError], object]] = None,
    is_here: bool = True,
) -> Iterator[Recorded]:
    """Judge photographs, and record what is decided.

    A photograph that was in hand when an earlier process was killed is judged alone, so that one that kills its process
    is told from those beside it. After `MOST_TRIES` times it is set aside.

    Args:
        ledger: open.
        views: of it.
        decide: what judges; see `uad.judging.decisions.decide`.
        photographs: to be judged.
        info: the description of the model.
        wait_for_room: called where the disk is full, before another try; None lets the error through.
        is_here: whether it is this process that a photograph could end.
    """
    waiting: List[Recorded] = []

    def safe() -> List[Recorded]:
        """Commit, and give out what is safe."""
        for action in (ledger.commit, views.catch_up):
            _with_room(action, wait_for_room)
        done = list(waiting)
        waiting.clear()
        return done

    judged = _judged(ledger, decide, photographs, info, wait_for_room) if is_here else decide(photographs)
    try:
        for photograph, decision in judged:
            waiting.append((ledger.add(photograph, decision), photograph, decision))
            if ledger.is_due():
                yield from safe()
        yield from safe()
    except BaseException:
        with contextlib.suppress(OutputError):  # what was judged is kept; the first error is the one to tell
            ledger.commit()
            views.catch_up()
        raise


def _judged(
    ledger: Ledger,
    decide: Decide,
    photographs: Iterable[Photograph],
    info: ModelInfo,
    wait_for_room: Optional[Callable[[NoRoomError], object]],
) -> Iterator[Tuple[Photograph, Decision]]:
    """Decisions, each after a note that its photograph was begun."""
    fresh: List[Photograph] = []
    for photograph in photographs:
        tries = ledger.tries(photograph)
        if tries == 0:
            fresh.append(photograph)
        elif tries < MOST_TRIES:
            _with_room(ledger.commit, wait_for_room)  # those before are done with, if this one ends the process
            _with_room(lambda one=[photograph]: ledger.begin(one), wait_for_room)  # type: ignore[misc]
            yield from decide([photograph])
        else:
            yield photograph, _set_aside(photograph, tries, info)

    def begun() -> Iterator[Photograph]:
        for start in range(0, len(fresh), AHEAD):
            part = fresh[start : start + AHEAD]
            _with_room(lambda: ledger.begin(part), wait_for_room)  # noqa: B023
            yield from part

    yield from decide(begun())


def _set_aside(photograph: Photograph, tries: int, info: ModelInfo) -> Decision:
    with contextlib.suppress(OSError):
        photograph.stamp = stamp_of(photograph.path)
    error = f"{photograph.path} (ended the process {tries} times: set aside)"
    return not_judged(photograph.path, photograph.class_name, info, error)


def _with_room(action: Callable[[], object], wait_for_room: Optional[Callable[[NoRoomError], object]]) -> None:
    """Do something that is safe to do again, until the disk has room for it."""
    while True:
        try:
            action()
            return
        except NoRoomError as error:
            if wait_for_room is None:
                raise
            wait_for_room(error)
