"""Photographs to decisions: which files, of which class, and what the model says of each.

A few threads read and resize photographs ahead of the model, and draw overlays behind it, so that the model waits for
neither. Only `AHEAD` photographs are in memory at a time, each reduced to what is still needed of it.
"""

import collections
import dataclasses
import glob
import os
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Deque, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines import Engine
from engines.errors import Doubt, ImageFileError, OutputError, UserError
from engines.images import SUFFIXES, read_image, resize
from engines.metadata import is_defect
from uad.data.files import images_below
from uad.evaluation.evaluate import enlarge
from uad.evaluation.overlays import overlay, overlay_path, reduced, write_png
from uad.evaluation.predictions import DEFECT, GOOD, UNREADABLE, Decision, Region

AHEAD = 4  # photographs that are read before the model takes them, and drawn after it, at most
THREADS = 2  # that read and draw
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def find_images(inputs: Sequence[Path]) -> Dict[Path, Path]:
    """The image files among the inputs and, recursively, in the folders among them; see `uad.data.files`.

    A pattern such as `photos/*.png`, which a shell leaves alone in quotes, stands for the files it matches.

    Returns:
        The image, and the input that led to it; each file once.

    Raises:
        UserError: an input does not exist or is no photograph, a link leads nowhere, or there is no image.
    """
    found: Dict[Path, Path] = {}
    for given in inputs:
        matched = [given] if os.path.exists(str(given)) else sorted(map(Path, glob.glob(str(given), recursive=True)))
        if not matched:
            raise UserError(f"{given}: no such file or folder")
        for path in matched:
            if path.is_dir():
                found.update((file, path) for file in images_below(path) if file not in found)
            elif not path.is_file():
                raise UserError(f"{path} is a pipe or a device: write the image to a file first")
            elif path.suffix.lower() in VIDEOS:
                raise UserError(f"{path} is a video: give its frames, as from ffmpeg -i {path.name} FOLDER/%06d.png")
            else:
                found.setdefault(path, path)
    if not found:
        raise UserError(f"no images in {', '.join(map(str, inputs))}: expected {' '.join(SUFFIXES)}")
    once = {os.path.abspath(path): path for path in reversed(list(found))}
    return {path: found[path] for path in reversed(list(once.values()))}


def class_of(path: Path, source: Path, classes: Sequence[str]) -> Optional[str]:
    """The class that a folder of an image is named like, the innermost first.

    Folders below the input that was given count, and the last three of the input itself: CLASS, CLASS/test or
    CLASS/test/KIND may be given. Folders further up are the user's own, whatever their names. A link has its own name.

    Args:
        path: of the image.
        source: the input that led to it, a folder above it or the image itself.
        classes: the names.
    """
    folder = source if source.is_dir() else source.parent
    given = Path(os.path.abspath(folder)).parts[-3:]
    below = path.parent.relative_to(folder).parts
    return next((name for name in reversed([*given, *below]) if name in classes), None)


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
    waiting = iter(images.items())
    reading: Deque[Future[_Seen]] = collections.deque()
    drawing: Deque[Future[Decision]] = collections.deque()

    with ThreadPoolExecutor(THREADS) as threads:

        def read_ahead() -> None:
            while len(reading) < AHEAD + engine.batch - 1:
                path, name = next(waiting, (None, None))
                if path is None:
                    return
                reading.append(threads.submit(_see, engine, path, name, overlays is not None))

        read_ahead()
        while reading:
            group = [reading.popleft().result() for _ in range(min(engine.batch, len(reading)))]
            read_ahead()
            readable = {seen.path: seen.small for seen in group if seen.small is not None}
            maps: Dict[Path, Tuple[float, np.ndarray]] = {}
            if readable:
                found = engine.infer(np.stack(list(readable.values())), [str(path) for path in readable])
                maps = {path: (float(found.score[i]), found.anomaly_map[i]) for i, path in enumerate(readable)}
            for seen in group:
                drawing.append(threads.submit(_finish, engine, seen, maps.get(seen.path), overlays, only_defects))
            while drawing and (len(drawing) > AHEAD or drawing[0].done()):
                yield drawing.popleft().result()
        while drawing:
            yield drawing.popleft().result()


def _see(engine: Engine, path: Path, class_name: Optional[str], is_drawn: bool) -> _Seen:
    """Read a photograph once, and keep of it what is needed."""
    seen = _Seen(path, class_name, time.perf_counter())
    try:
        photograph = read_image(path, depth=engine.info.depth_of(class_name))
    except ImageFileError as error:
        seen.error = str(error)
        return seen
    seen.size = photograph.shape[0], photograph.shape[1]
    seen.small = resize(photograph, engine.info.size)
    seen.shown = reduced(photograph) if is_drawn else None
    return seen


def _finish(
    engine: Engine,
    seen: _Seen,
    found: Optional[Tuple[float, np.ndarray]],
    overlays: Optional[Path],
    only_defects: bool,
) -> Decision:
    """The decision on a photograph, its regions, and its overlay."""
    name, threshold = seen.class_name or "", engine.info.threshold_of(seen.class_name)
    if found is None:
        seconds = time.perf_counter() - seen.begun
        return Decision(str(seen.path), name, None, threshold, UNREADABLE, error=seen.error, seconds=seconds)
    score, anomaly_map = found
    decision = DEFECT if is_defect(score, threshold) else GOOD
    regions = regions_of(anomaly_map, threshold, engine.info.size, seen.size) if decision == DEFECT else ()
    seconds, drawn = time.perf_counter() - seen.begun, ""
    if overlays is not None and seen.shown is not None and (decision == DEFECT or not only_defects):
        path = overlay_path(overlays, seen.path)
        try:
            write_png(path, overlay(seen.shown, anomaly_map, threshold))
            drawn = str(path)
        except OutputError as error:
            warnings.warn(f"{seen.path} has no overlay: {error}", Doubt, stacklevel=2)
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
