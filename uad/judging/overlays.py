"""A photograph beside itself with its anomalies marked, for people."""

import os
import re
from pathlib import Path
from typing import Tuple

import numpy as np

from engines.files import make_folder, replacing
from uad.data.files import RESULTS
from uad.evaluation.evaluate import enlarge
from uad.judging.photographs import Photograph, digest_of_content, place_of

SHOWN = 4_000_000  # pixels: an overlay of a larger photograph is made at this size
SIDE = 32_000  # pixels: a JPEG file has at most 65,500, and an overlay is twice as wide as its photograph
LONGEST = 200  # bytes of a photograph's name in that of its overlay
# Okabe and Ito, 'Color Universal Design', 2008: told apart by people who are blind to some colours.
FAINT, STRONG, CONTOUR = (240, 228, 66), (213, 94, 0), (0, 114, 178)
NAME = re.compile(r".*-([0-9a-f]{8}|[0-9a-f]{16})\.(jpg|png)")  # of an overlay; .png and the short one once


def overlay(photograph: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The photograph on the left, and on the right with its anomalies in yellow to orange, outlined in blue.

    Colour begins at half the threshold and is full at one and a half times the threshold. The outline is that of what
    lies above the threshold.

    Args:
        photograph: (H, W, 3) uint8.
        anomaly_map: (h, w) float32.
        threshold: the score above which an image is defective.

    Returns:
        (H, 2 W, 3) uint8.
    """
    from PIL import Image

    height, width = photograph.shape[:2]
    enlarged = enlarge(anomaly_map, (height, width))
    heat = np.clip(enlarged * (255 / max(threshold, 1e-12)) - 127.5, 0, 255).astype(np.uint8)
    colour = Image.fromarray(heat)
    opacity = colour.point([round(0.65 * min(2 * level, 255)) for level in range(256)])
    colour.putpalette(np.linspace(FAINT, STRONG, 256).round().astype(np.uint8).tobytes())
    marked = np.array(Image.composite(colour.convert("RGB"), Image.fromarray(photograph), opacity))
    marked[_outline(enlarged > threshold, max(1, round(min(height, width) / 200)))] = CONTOUR
    return np.concatenate([photograph, marked], axis=1)


def _outline(region: np.ndarray, thick: int) -> np.ndarray:
    """The part of a region, (H, W) bool, that lies within `thick` pixels of what is not the region."""
    inside = region
    for _ in range(thick):
        before, inside = inside, inside.copy()
        inside[1:] &= before[:-1]
        inside[:-1] &= before[1:]
        inside[:, 1:] &= before[:, :-1]
        inside[:, :-1] &= before[:, 1:]
    outline: np.ndarray = region & ~inside
    return outline


def shown_size(size: Tuple[int, int]) -> Tuple[int, int]:
    """(height, width) at which a photograph of that size is drawn: at most `SHOWN` pixels, each side at most `SIDE`."""
    height, width = size
    scale = min(1.0, (SHOWN / (height * width)) ** 0.5, SIDE / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def overlay_path(folder: Path, photograph: Photograph) -> Path:
    """Where the overlay of a photograph goes: its name, and what tells it from any other of that name."""
    identity = repr((os.fsencode(place_of(photograph.path)), photograph.stamp, photograph.digest)).encode()
    stem = os.fsencode(photograph.path.stem)[:LONGEST].decode("utf-8", "ignore")
    return folder / f"{stem}-{digest_of_content(identity).hex()}.jpg"


def overlay_folder(out: Path, keep: bool) -> Path:
    """The folder of the overlays, made if needed; those of an earlier call are removed, unless they are to be kept."""
    folder = make_folder(out / "overlays")
    if not keep and (folder / RESULTS).exists():
        for path in folder.iterdir():
            if NAME.fullmatch(path.name):
                path.unlink()
    (folder / RESULTS).touch()
    return folder


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture for people, (H, W, 3) uint8, as JPEG, whole or not at all: PNG takes ten times as long.

    Raises:
        OutputError: it cannot be written.
    """
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="jpeg", quality=90, subsampling=0)
