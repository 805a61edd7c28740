"""Draws the image set of `uad demo`: small factory products in the MVTec AD folder layout.

A first run should need no download, so the products are drawn by code: two textures (denim `fabric` and
`brushed_metal`) and three objects (a `gear`, a circuit `board` and a `gasket`, whose background is
saturated), each with three kinds of defect. A sixth, the `tray`, is not in the demo: its defects are logical,
which means that each of its places looks as on some good image, and only the whole is wrong.
Good images vary as photographs of one product do (position, yarn, grain, lighting, sensor noise), so that a
model has something to learn.

A picture is made in three steps, each with random numbers of its own: the good product is drawn at twice
the size (`Scene`), a defect repaints part of it, and `_photograph` lights it, shrinks it and adds noise.
So a mask is exactly where a defect repainted, and the same picture without its defect can be drawn too.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Sequence

import numpy as np
import numpy.typing as npt

from uad.data.synthetic import board, brushed_metal, fabric, gasket, gear, tray
from uad.data.synthetic.drawing import SUPERSAMPLE, TAU, Array, Mask, Rng, grid, rotate

GOOD = "good"


def draw_dataset(
    root: Path,
    *,
    classes: Sequence[str] = (),
    size: int = 128,
    n_train: int = 40,
    n_test_good: int = 12,
    n_test_defect: int = 12,
    seed: int = 0,
) -> list[str]:
    """Writes the demo data set, with the same bytes for the same seed.

    An image depends on the seed, the size and its own path only, so a larger set contains a smaller one.
    Files of the same names are overwritten; others under `root` are left alone.

    Args:
        root: Folder to fill with CLASS/train/good, CLASS/test/good, CLASS/test/KIND and
            CLASS/ground_truth/KIND; it is created if missing.
        classes: keys of `PRODUCTS`; those of the demo if not given.
        size: Side of the square images in pixels, at least 32.
        n_train: Good training images per class.
        n_test_good: Good test images per class.
        n_test_defect: Defective test images per class, spread evenly over its kinds of defect.
        seed: Non-negative number that picks the data set.

    Returns:
        The class names, in the order drawn.
    """
    names = list(classes) or DEMO
    for name in names:
        product = PRODUCTS[name]
        _write_images(root, name, "train", GOOD, n_train, size, seed)
        _write_images(root, name, "test", GOOD, n_test_good, size, seed)
        for index, kind in enumerate(product.defects):
            count = len(range(index, n_test_defect, len(product.defects)))
            _write_images(root, name, "test", kind, count, size, seed)
    return names


def draw_image(
    name: str, kind: str = GOOD, *, size: int = 128, key: Sequence[int] = (0,)
) -> tuple[npt.NDArray[np.uint8], Mask]:
    """Draws one product.

    Args:
        name: Class name, a key of `PRODUCTS`.
        kind: "good" or a key of `PRODUCTS[name].defects`.
        size: Side of the image in pixels, at least 32.
        key: Non-negative numbers that pick the product, its lighting and the place of its defect; the
            same key with another kind gives the same picture but for the defect.

    Returns:
        The image, uint8 of shape (size, size, 3), and the mask of its defect, bool of shape (size, size),
        which is all False for a good image.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, not {size}")
    product = PRODUCTS[name]
    scene_rng, defect_rng, camera_rng = (np.random.default_rng([*key, stream]) for stream in range(3))
    scene = product.draw(scene_rng, size * SUPERSAMPLE)
    image, changed = scene.image, np.zeros(scene.x.shape, dtype=bool)
    if kind != GOOD:
        repainted, changed = product.defects[kind](scene, defect_rng)
        image = np.where(changed[..., None], repainted, image)
    return _photograph(image, camera_rng), _shrink(changed) >= 0.5


def _write_images(root: Path, name: str, split: str, kind: str, count: int, size: int, seed: int) -> None:
    from PIL import Image

    for index in range(count):
        path = root / name / split / kind / f"{index:03d}.png"
        key = (seed, zlib.crc32(f"{name}/{split}/{kind}/{index}".encode()))
        image, mask = draw_image(name, kind, size=size, key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        if kind != GOOD:
            mask_path = root / name / "ground_truth" / kind / f"{index:03d}_mask.png"
            mask_path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(mask_path)


def _photograph(image: Array, rng: Rng) -> npt.NDArray[np.uint8]:
    """Shrinks a drawing to its final size under uneven light, with sensor noise."""
    small = _shrink(image)
    x, y = rotate(*grid(len(small)), rng.uniform(0, TAU))
    light = 1 + rng.uniform(0.02, 0.12) * x - 0.25 * (x**2 + y**2)
    exposure = rng.uniform(0.96, 1.04) * rng.uniform(0.99, 1.01, 3)
    noisy = small * light[..., None] * exposure + rng.normal(0, 0.012, small.shape)
    return np.asarray(np.rint(np.clip(noisy, 0, 1) * 255), dtype=np.uint8)


def _shrink(image: Array) -> Array:
    side = len(image) // SUPERSAMPLE
    blocks: Array = image.reshape((side, SUPERSAMPLE, side, SUPERSAMPLE, *image.shape[2:]))
    return np.asarray(blocks.mean(axis=(1, 3)))


PRODUCTS = {
    "fabric": fabric.FABRIC,
    "brushed_metal": brushed_metal.BRUSHED_METAL,
    "gear": gear.GEAR,
    "board": board.BOARD,
    "gasket": gasket.GASKET,
    "tray": tray.TRAY,
}
DEMO = [name for name in PRODUCTS if name != "tray"]
