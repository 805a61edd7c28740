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
from typing import Deque, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines import Engine
from engines.cpu import cpu_count
from engines.errors import ImageFileError, OutputError, UadWarning
from engines.images import read_resized, size_of
from engines.metadata import is_defect
from uad.evaluation.evaluate import enlarge
from uad.judging.overlays import overlay, overlay_path, shown_size, write_picture
from uad.judging.predictions import DEFECT, GOOD, UNREADABLE, Decision, Region

AHEAD = 4  # photographs that threads may take while an earlier one takes long
MOST_THREADS = 8


@dataclasses.dataclass
class _Seen:
    """A photograph that was read, or why not."""

    path: Path
    class_name: Optional[str]
    begun: float  # time.perf_counter
    small: Optional[np.ndarray] = None  # (height, width, 3) uint8, as the model takes it
    shown: Optional[np.ndarray] = None  # as it is drawn, where it may be
    size: Tuple[int, int] = (0, 0)  # height and width, pixels
    error: str = ""
    score: float = 0.0  # score by the model
    anomaly_map: Optional[np.ndarray] = None  # (h, w) float32


def decide(
    engine: Engine, images: Dict[Path, Optional[str]], overlays: Optional[Path], only_defects: bool = False
) -> Iterator[Decision]:
    """Judge photographs; a decision for each, in their order. One that cannot be read is a decision, too.

    Args:
        engine: the model.
        images: image files of any size, each with its class, if it is known.
        overlays: folder for overlays; None draws none.
        only_defects: whether only defects are drawn.

    Raises:
        ModelFileError: the model gives values that are not finite.
    """
    free = threading.Semaphore(engine.lanes)

    def judge(group: Sequence[Tuple[Path, Optional[str]]]) -> List[Decision]:
        seen = [_see(engine, path, name, overlays is not None) for path, name in group]
        readable = [each for each in seen if not each.error]
        images = [each.small for each in readable if each.small is not None]
        if images:
            with free:
                prediction = engine.infer(np.stack(images), [str(each.path) for each in readable])
            for each, score, anomaly_map in zip(readable, prediction.score, prediction.anomaly_map):
                each.score, each.anomaly_map = float(score), anomaly_map
        return [_finish(engine, each, overlays, only_defects) for each in seen]

    waiting = iter(images.items())
    groups = iter(lambda: list(itertools.islice(waiting, engine.batch)), [])
    pending: Deque[Future[List[Decision]]] = collections.deque()
    count = max(engine.lanes + 1, min(cpu_count(), MOST_THREADS))
    with ThreadPoolExecutor(count) as threads:
        for group in groups:
            pending.append(threads.submit(judge, group))
            while pending and (len(pending) > count + AHEAD or pending[0].done()):
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _see(engine: Engine, path: Path, class_name: Optional[str], is_drawn: bool) -> _Seen:
    """Read a photograph once, and keep of it what is needed."""
    seen = _Seen(path, class_name, time.perf_counter())
    try:
        seen.size = size_of(path)
        sizes = [engine.info.size, shown_size(seen.size)] if is_drawn else [engine.info.size]
        seen.small, *shown = read_resized(path, sizes, engine.info.depth_of(class_name))
        seen.shown = shown[0] if shown else None
    except ImageFileError as error:
        seen.error = str(error)
    return seen


def _finish(engine: Engine, seen: _Seen, overlays: Optional[Path], only_defects: bool) -> Decision:
    """The decision on a photograph, its regions, and its overlay."""
    name, threshold = seen.class_name or "", engine.info.threshold_of(seen.class_name)
    if seen.anomaly_map is None:
        seconds = time.perf_counter() - seen.begun
        return Decision(str(seen.path), name, None, threshold, UNREADABLE, error=seen.error, seconds=seconds)
    score, anomaly_map = seen.score, seen.anomaly_map
    decision = DEFECT if is_defect(score, threshold) else GOOD
    regions = regions_of(anomaly_map, threshold, engine.info.size, seen.size) if decision == DEFECT else ()
    seconds, drawn = time.perf_counter() - seen.begun, ""
    if overlays is not None and seen.shown is not None and (decision == DEFECT or not only_defects):
        path = overlay_path(overlays, seen.path)
        try:
            write_picture(path, overlay(seen.shown, anomaly_map, threshold))
            drawn = str(path)
        except OutputError as error:
            warnings.warn(f"{seen.path} has no overlay: {error}", UadWarning, stacklevel=2)
    return Decision(str(seen.path), name, score, threshold, decision, drawn, regions, seconds=seconds)


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
