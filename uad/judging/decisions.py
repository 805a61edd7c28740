"""Photographs to decisions: what the model says of each.

A few threads take a photograph each, from the file to its overlay. As there are more of them than the model serves at
a time, it never waits while others read and draw. Each has one photograph in memory, reduced to what is still needed.
"""

import collections
import dataclasses
import itertools
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines import Engine
from engines.cpu import cpu_count
from engines.errors import CutShortError, ImageFileError, ModelFileError, NotFiniteError, OutputError, UadWarning
from engines.images import read_resized, size_of
from engines.metadata import GOOD
from uad.evaluation.evaluate import enlarge
from uad.judging.overlays import overlay, overlay_path, shown_size, write_picture
from uad.judging.photographs import Photograph
from uad.judging.predictions import Decision, Region, not_judged

AHEAD = 4  # photographs that threads may take while an earlier one takes long
MOST_THREADS = 8
CUT_SHORT = "cut short: its last rows may be grey"
NOT_FINITE = 8  # photographs in a row whose scores are not finite: it is the model, and the work ends


@dataclasses.dataclass
class _Seen:
    """A photograph that was read, or why not."""

    photograph: Photograph
    begun: float  # time.perf_counter
    small: Optional[np.ndarray] = None  # (height, width, 3) uint8, as the model takes it
    shown: Optional[np.ndarray] = None  # as it is drawn, where it may be
    size: Tuple[int, int] = (0, 0)  # height and width, pixels
    error: str = ""
    note: str = ""
    is_finite: bool = True  # what the model gives
    score: float = 0.0  # score by the model
    anomaly_map: Optional[np.ndarray] = None  # (h, w) float32
    seen_as: Optional[str] = None  # class that the model sees
    class_distance: Optional[float] = None
    decision: Optional[Decision] = None


def decide(
    engine: Engine,
    photographs: Iterable[Photograph],
    overlays: Optional[Path],
    only_defects: bool = False,
    accept_truncated: bool = False,
    in_hand: Optional[Dict[Path, float]] = None,
) -> Iterator[Tuple[Photograph, Decision]]:
    """Judge photographs; a decision for each, in their order. One that cannot be judged is a decision, too.

    Args:
        engine: the model.
        photographs: image files of any size; they are taken a few at a time.
        overlays: folder for overlays; None draws none.
        only_defects: whether only what is not good is drawn.
        accept_truncated: whether a JPEG that was cut short is judged, with grey where its pixels are missing.
        in_hand: filled with what is being judged, and since when (time.monotonic), for who looks on.

    Raises:
        ModelFileError: the model gives `NOT_FINITE` photographs in a row values that are not finite.
    """
    held = {} if in_hand is None else in_hand
    free = threading.Semaphore(engine.lanes)

    def judge(group: Sequence[Photograph]) -> List[_Seen]:
        held.update(dict.fromkeys([each.path for each in group], time.monotonic()))
        seen = [_see(engine, each, overlays is not None, accept_truncated) for each in group]
        with free:
            _infer(engine, [each for each in seen if not each.error])
        for each in seen:
            each.decision = _finish(engine, each, overlays, only_defects)
            held.pop(each.photograph.path, None)
        return seen

    waiting, not_finite = iter(photographs), 0
    groups = iter(lambda: list(itertools.islice(waiting, engine.batch)), [])
    pending: Deque[Future[List[_Seen]]] = collections.deque()
    count = max(engine.lanes + 1, min(cpu_count(), MOST_THREADS))
    with ThreadPoolExecutor(count) as threads:
        while True:
            group = next(groups, [])
            if group:
                pending.append(threads.submit(judge, group))
            while pending and (not group or len(pending) > count + AHEAD or pending[0].done()):
                for each in pending.popleft().result():
                    assert each.decision is not None
                    yield each.photograph, each.decision
                    not_finite = not_finite + 1 if not each.is_finite else not_finite if each.error else 0
                    if not_finite == NOT_FINITE:
                        raise ModelFileError(
                            f"{engine.path} gives {NOT_FINITE} photographs in a row scores that are not finite: "
                            "train or export it again"
                        )
            if not group:
                return


def _infer(engine: Engine, seen: Sequence[_Seen]) -> None:
    """Let the model judge what was read; where it gives values that are not finite, those photographs have an error."""
    if not seen:
        return
    try:
        small = np.stack([each.small for each in seen])  # type: ignore[misc]
        prediction = engine.infer(small, [str(each.photograph.path) for each in seen])
    except NotFiniteError as error:
        if len(seen) > 1:
            for each in seen:
                _infer(engine, [each])
        else:
            seen[0].is_finite, seen[0].error = False, str(error)
    else:
        for index, each in enumerate(seen):
            each.score, each.anomaly_map = float(prediction.score[index]), prediction.anomaly_map[index]
            each.seen_as, each.class_distance = prediction.class_of(index, engine.info.classes)


def _see(engine: Engine, photograph: Photograph, is_drawn: bool, accept_truncated: bool) -> _Seen:
    """Read a photograph once, and keep of it what is needed."""
    seen = _Seen(photograph, time.perf_counter())
    try:
        file = photograph.read()
        seen.size = size_of(file)
        sizes = [engine.info.size, shown_size(seen.size)] if is_drawn else [engine.info.size]
        depth = engine.info.depth_of(photograph.class_name)
        try:
            seen.small, *shown = read_resized(file, sizes, depth)
        except CutShortError:
            if not accept_truncated:
                raise
            seen.small, *shown = read_resized(file, sizes, depth, accept_truncated)
            seen.note = CUT_SHORT
        seen.shown = shown[0] if shown else None
    except ImageFileError as error:
        seen.error = str(error)
    return seen


def _finish(engine: Engine, seen: _Seen, overlays: Optional[Path], only_defects: bool) -> Decision:
    """The decision on a photograph, its regions, and its overlay."""
    name, path = seen.photograph.class_name, seen.photograph.path
    if seen.anomaly_map is None:
        return not_judged(path, name, engine.info, seen.error, time.perf_counter() - seen.begun)
    threshold = engine.info.threshold_of(name, seen.seen_as)
    score, anomaly_map = seen.score, seen.anomaly_map
    decision = engine.info.decide(score, threshold, seen.seen_as, seen.class_distance)
    regions = regions_of(anomaly_map, threshold, engine.info.size, seen.size) if decision != GOOD else ()
    seconds, drawn = time.perf_counter() - seen.begun, ""
    if overlays is not None and seen.shown is not None and (decision != GOOD or not only_defects):
        picture = overlay_path(overlays, seen.photograph)
        try:
            write_picture(picture, overlay(seen.shown, anomaly_map, threshold))
            drawn = str(picture)
        except OutputError as error:
            warnings.warn(f"{path} has no overlay: {error}", UadWarning, stacklevel=2)
    return Decision(
        image=str(path),
        class_name=name or "",
        score=score,
        threshold=threshold,
        decision=decision,
        overlay=drawn,
        regions=regions,
        seconds=seconds,
        note=seen.note,
        seen_as=seen.seen_as or "",
        class_distance=seen.class_distance,
    )


def regions_of(
    anomaly_map: np.ndarray, threshold: float, size: Tuple[int, int], photograph: Tuple[int, int]
) -> Tuple[Region, ...]:
    """The connected parts of a map that lie above the threshold, the largest first.

    Args:
        anomaly_map: (h, w) float32.
        threshold: the score above which an image is defective.
        size: (height, width) of the model's input, to which the map is enlarged.
        photograph: (height, width) in whose pixels the regions are told.
    """
    from scipy import ndimage

    labels, count = ndimage.label(enlarge(anomaly_map, size) > threshold, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    down, across = photograph[0] / size[0], photograph[1] / size[1]
    regions: List[Region] = []
    for area, (rows, columns) in zip(areas, ndimage.find_objects(labels)):
        top, bottom = int(rows.start * down), int(np.ceil(rows.stop * down))
        left, right = int(columns.start * across), int(np.ceil(columns.stop * across))
        regions.append(Region(left, top, right - left, bottom - top, max(1, round(float(area) * down * across))))
    return tuple(sorted(regions, key=lambda region: -region.area))
