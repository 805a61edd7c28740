"""Tiny image folders in the layout of MVTec AD: grey noise, with a bright square for a defect."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64


def noise(seed: int, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8, grey noise around 100."""
    values = np.random.default_rng(seed).normal(100, 10, (size, size, 1)).clip(0, 255).astype(np.uint8)
    return np.repeat(values, 3, axis=2)


def save(image: np.ndarray, path: Path) -> Path:
    """Write an image file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@functools.lru_cache(maxsize=None)
def held_out_digests(name: str, train: int, fraction: float, seed: int) -> list[str]:
    """Of the good images that `make_class` writes, those that training would hold out."""
    from uad.data.folder import Sample, hold_out

    held_out = hold_out([Sample(Path(f"{index:03d}.png"), name, "good") for index in range(train)], fraction, seed)[1]
    digests = []
    for sample in held_out:
        content = io.BytesIO()
        Image.fromarray(noise(1000 * sum(map(ord, name)) + int(sample.path.stem))).save(content, "png")
        digests.append(hashlib.sha256(content.getvalue()).hexdigest()[:16])
    return digests


def bolts_and_nuts(root: Path, train: int = 24, good: int = 4, defects: int = 4) -> Path:
    """Write two classes without masks; returns the root."""
    for name in ("bolt", "nut"):
        make_class(root, name, train, good, defects, masks=False)
    return root


def make_class(root: Path, name: str, train: int = 6, good: int = 3, defects: int = 3, masks: bool = True) -> Path:
    """Write one class: train/good, test/good, test/spot and, if asked, ground_truth/spot."""
    folder = root / name
    offset = 1000 * sum(map(ord, name))
    for index in range(train):
        save(noise(offset + index), folder / "train" / "good" / f"{index:03d}.png")
    for index in range(good):
        save(noise(offset + 100 + index), folder / "test" / "good" / f"{index:03d}.png")
    for index in range(defects):
        image = noise(offset + 200 + index)
        image[20:36, 24:40] = 255
        save(image, folder / "test" / "spot" / f"{index:03d}.png")
        if masks:
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[20:36, 24:40] = 255
            save(mask, folder / "ground_truth" / "spot" / f"{index:03d}_mask.png")
    return folder
