"""Decisions on image files: predictions.csv, predictions.json, and an overlay for each image."""

import dataclasses
import glob
import os
import warnings
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import numpy as np

from engines import Engine
from engines.errors import Doubt, OutputError, UserError
from engines.files import make_folder, replacing, write_csv, write_json
from engines.images import SUFFIXES, read_image, resize
from engines.metadata import is_defect
from uad.data.files import RESULTS, images_below
from uad.data.folder import Sample, check_samples
from uad.evaluation.evaluate import enlarge

SHOWN = 4_000_000  # pixels: an overlay of a larger photograph is made at this size
LONGEST = 200  # bytes of a photograph's name in that of its overlay
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the model says of one image file; the columns of predictions.csv."""

    image: str
    class_name: str  # "" where it is not known; then the global threshold serves
    score: float
    threshold: float
    decision: str  # "defect" where score > threshold, or "good"
    overlay: str  # path of the overlay; "" where it could not be written


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


def decide(
    engine: Engine,
    images: Dict[Path, Path],
    out: Path,
    class_name: Optional[str] = None,
    progress: Callable[[], object] = lambda: None,
) -> List[Decision]:
    """Judge images and write `out`/predictions.csv, `out`/predictions.json and `out`/overlays/*.png.

    An overlay has the size of its photograph, up to `SHOWN` pixels; see `overlay`.

    Args:
        engine: the model.
        images: image files of any size, each with the input that led to it; see `find_images`.
        out: folder, made if needed.
        class_name: class of all the images; by default a folder that has a class's name gives it; see `class_of`.
        progress: called after each image.

    Raises:
        DataError: names every file that cannot be read; then nothing is written.
        UserError: an unknown class.
    """
    names = {path: class_name or class_of(path, source, engine.info.classes) for path, source in images.items()}
    check_samples([Sample(path, "", "", depth=engine.info.depth_of(name)) for path, name in names.items()])
    if class_name is not None and class_name not in engine.info.thresholds:
        raise UserError(f"unknown class '{class_name}': the model knows {', '.join(engine.info.thresholds)}")
    decisions = []
    overlays = make_folder(out / "overlays")
    (overlays / RESULTS).touch()
    for number, (path, name) in enumerate(names.items()):
        decisions.append(_judged(engine, path, name, overlays / f"{number:05d}_{_short(path.stem)}.png"))
        progress()
    _write_tables(out, decisions)
    return decisions


def _judged(engine: Engine, path: Path, class_name: Optional[str], overlay_path: Path) -> Decision:
    """Judge one image and draw its overlay; a function of its own, so that only one photograph is in memory."""
    photograph = read_image(path, depth=engine.info.depth_of(class_name))
    prediction = engine.infer(resize(photograph, engine.info.size)[None], [str(path)])
    threshold = engine.info.threshold_of(class_name)
    score = float(prediction.score[0])
    drawn = str(overlay_path)
    try:
        _write_png(overlay_path, overlay(_reduced(photograph), prediction.anomaly_map[0], threshold))
    except OutputError as error:
        warnings.warn(f"{path} has no overlay: {error}", Doubt, stacklevel=2)
        drawn = ""
    decision = "defect" if is_defect(score, threshold) else "good"
    return Decision(str(path), class_name or "", score, threshold, decision, drawn)


def overlay(photograph: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The photograph on the left, and on the right with its anomalies in yellow to red.

    Colour begins at half the threshold and is full at one and a half times the threshold.

    Args:
        photograph: (H, W, 3) uint8.
        anomaly_map: (h, w) float32.
        threshold: the score above which an image is defective.

    Returns:
        (H, 2 W, 3) uint8.
    """
    height, width = photograph.shape[:2]
    enlarged = enlarge(anomaly_map, (height, width))
    heat = np.clip(enlarged / max(threshold, 1e-12) - 0.5, 0.0, 1.0)[..., None]
    colour = np.concatenate([np.full_like(heat, 255.0), 255.0 * (1.0 - heat), np.zeros_like(heat)], axis=2)
    opacity = 0.65 * np.minimum(2.0 * heat, 1.0)
    marked = (1.0 - opacity) * photograph + opacity * colour
    return np.concatenate([photograph, np.rint(marked).astype(np.uint8)], axis=1)


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


def _reduced(photograph: np.ndarray) -> np.ndarray:
    """A photograph of at most `SHOWN` pixels."""
    height, width = photograph.shape[:2]
    scale = (SHOWN / (height * width)) ** 0.5
    return photograph if scale >= 1 else resize(photograph, (max(1, int(height * scale)), max(1, int(width * scale))))


def _short(name: str) -> str:
    """A name that leaves room for a number and a suffix within the 255 bytes that a file system takes."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST else encoded[:LONGEST].decode("utf-8", "ignore")


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="png")


def _write_tables(out: Path, decisions: Sequence[Decision]) -> None:
    columns = [field.name for field in dataclasses.fields(Decision)]
    header = ["class" if column == "class_name" else column for column in columns]
    rows = [[getattr(decision, column) for column in columns] for decision in decisions]
    write_csv(out / "predictions.csv", header, rows)
    write_json(out / "predictions.json", [dict(zip(header, row)) for row in rows])
