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
Lengths and places are in units of the image side, from the middle, with x to the right and y down.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator

GOOD = "good"
_SUPERSAMPLE = 2
_TAU = 2 * np.pi


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
    scene = product.draw(scene_rng, size * _SUPERSAMPLE)
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
    x, y = _rotate(*_grid(len(small)), rng.uniform(0, _TAU))
    light = 1 + rng.uniform(0.02, 0.12) * x - 0.25 * (x**2 + y**2)
    exposure = rng.uniform(0.96, 1.04) * rng.uniform(0.99, 1.01, 3)
    noisy = small * light[..., None] * exposure + rng.normal(0, 0.012, small.shape)
    return np.asarray(np.rint(np.clip(noisy, 0, 1) * 255), dtype=np.uint8)


def _shrink(image: Array) -> Array:
    side = len(image) // _SUPERSAMPLE
    blocks: Array = image.reshape((side, _SUPERSAMPLE, side, _SUPERSAMPLE, *image.shape[2:]))
    return np.asarray(blocks.mean(axis=(1, 3)))


# Drawing tools. A shape is a field over the image, negative inside it and about a distance outside.


@dataclass(frozen=True)
class Scene:
    """A good product, drawn at _SUPERSAMPLE times the final size."""

    image: Array  # (n, n, 3), colours from 0 to 1; what is above 1 saturates the camera
    x: Array  # (n, n), place of each pixel on the product
    y: Array
    body: Mask  # (n, n), where a surface defect can be
    parts: int = 0  # number of parts that can be wrong
    without: Callable[[int], Array] = lambda part: np.zeros(0)  # redraws the image with that part missing, or doubled


def _grid(side: int) -> tuple[Array, Array]:
    steps = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    x, y = np.meshgrid(steps, steps)
    return x, y


def _rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _lay(side: int, rng: Rng, turn: float, shift: float) -> tuple[Array, Array]:
    """Coordinates on a product that lies a little turned (radians) and shifted."""
    x, y = _grid(side)
    return _rotate(x - rng.uniform(-shift, shift), y - rng.uniform(-shift, shift), rng.uniform(-turn, turn))


def _around_a_point(scene: Scene, rng: Rng) -> tuple[Array, Array]:
    """Coordinates whose origin is a random place on the body, away from the image's border."""
    inner = np.maximum(np.abs(scene.x), np.abs(scene.y)) < 0.38
    place = rng.choice(np.flatnonzero(scene.body & inner))
    return scene.x - scene.x.flat[place], scene.y - scene.y.flat[place]


def _noise(side: int, rng: Rng, rows: int, columns: int) -> Array:
    """Smooth noise of unit variance whose grain is 1 / rows high and 1 / columns wide."""
    noise = _spread(side, rows) @ rng.normal(size=(rows + 1, columns + 1)) @ _spread(side, columns).T
    return np.asarray(noise / noise.std(), dtype=np.float32)


def _spread(side: int, cells: int) -> Array:
    distance = np.linspace(0, cells, side)[:, None] - np.arange(cells + 1)
    return np.asarray(np.exp(-2 * distance**2))


def _disc(x: Array, y: Array, radius: float) -> Array:
    return np.asarray(np.hypot(x, y) - radius)


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _comb(x: Array, pitch: float, half_width: float) -> Array:
    """Endless bars at the multiples of pitch."""
    return np.asarray(np.abs(x - pitch * np.rint(x / pitch)) - half_width)


def _blob(x: Array, y: Array, radius: float, rng: Rng) -> Array:
    angle, wobble = np.arctan2(y, x), np.zeros_like(x)
    for waves in range(2, 7):
        wobble += rng.uniform(-0.35, 0.35) / waves * np.cos(waves * angle + rng.uniform(0, _TAU))
    return _disc(x, y, 0) - radius * (1 + wobble)


def _walk(rng: Rng, start: Array, heading: float, length: float, bend: float) -> Array:
    """A path of 10 points, shape (10, 2), whose heading (radians) changes by about bend at each."""
    headings = heading + bend * np.cumsum(rng.normal(size=9))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / 9
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _stroke(x: Array, y: Array, points: Array, width: float, taper: float = 0.0) -> Array:
    """A line through points, thinner towards its ends where taper is more than 0."""
    field, middle = np.full_like(x, 9), (len(points) - 2) / 2
    for index, ((x0, y0), (x1, y1)) in enumerate(zip(points[:-1], points[1:])):
        dx, dy = float(x1 - x0), float(y1 - y0)
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        half = width / 2 * (1 - taper * abs(index - middle) / max(middle, 1))
        field = np.minimum(field, _disc(x - x0 - along * dx, y - y0 - along * dy, half))
    return field


def _paint(image: Array, field: Array, colour: npt.ArrayLike, alpha: float = 1, soft: float = 0.006) -> Array:
    cover = alpha * _cover(field, soft)[..., None]
    return np.asarray(image + cover * (np.asarray(colour, dtype=np.float32) - image))


def _cover(field: Array, soft: float = 0.006) -> Array:
    """How much of each pixel a shape covers, 0 to 1, with an edge of width soft."""
    return np.clip(0.5 - field / soft, 0, 1)


def _relief(field: Array, width: float) -> Array:
    """Light on the bevelled rim of a shape lit from the upper left: -1.4 to 1.4, and 0 off the rim."""
    down, right = np.gradient(field)
    slope = -(down + right) / (np.hypot(down, right) + 1e-9)
    return np.asarray(slope * _cover(np.abs(field + width / 2) - width / 2))


def _tint(light: Array, colour: npt.ArrayLike) -> Array:
    return light[..., None] * np.asarray(colour, dtype=np.float32)


# Defects of more than one product: functions of the good scene and random numbers, which return the
# repainted image and the shape that they repainted.


def _scratch(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    heading = rng.choice([-1, 1]) * rng.uniform(0.5, 1.4)
    start = np.array([rng.uniform(-0.35, 0.1), rng.uniform(-0.15, 0.15) - 0.2 * np.sign(heading)])
    points = _walk(rng, start, heading, rng.uniform(0.25, 0.45), bend=0.05)
    bright, dark = (_stroke(scene.x, scene.y, points + offset, 0.014, taper=0.6) for offset in (0, 0.009))
    image = _paint(_paint(scene.image, dark, (0.16, 0.16, 0.17), 0.75), bright, (0.97, 0.97, 0.98), 0.9)
    return image, np.minimum(bright, dark) < 0.003


def _rust(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    x, y = _around_a_point(scene, rng)
    radius = rng.uniform(0.025, 0.05)
    field = _blob(x, y, radius, rng)
    for _ in range(4):
        speck_x, speck_y = _rotate(x, y, rng.uniform(0, _TAU))
        speck = _blob(speck_x - radius * rng.uniform(1.1, 1.7), speck_y, radius * rng.uniform(0.2, 0.4), rng)
        field = np.minimum(field, speck)
    brown = _tint(1 + 0.2 * _noise(len(x), rng, 60, 60), (0.46, 0.25, 0.12))
    return _paint(scene.image, field, brown, 0.85, soft=0.016), (field < 0.007) & scene.body


def _missing_part(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    return _redrawn(scene, int(rng.integers(scene.parts)))


def _redrawn(scene: Scene, part: int) -> tuple[Array, Mask]:
    image = scene.without(part)
    return image, np.abs(image - scene.image).max(axis=-1) > 0.03


# Fabric


def _draw_fabric(rng: Rng, side: int) -> Scene:
    """Denim: a twill in which each blue warp yarn runs over two pale weft yarns and under one."""
    x, y = _lay(side, rng, turn=0.03, shift=0.5)
    u = 40 + 26 * x + 0.12 * _noise(side, rng, 3, 3)
    v = 40 + 26 * y + 0.12 * _noise(side, rng, 3, 3)
    warp, weft = np.floor(u).astype(int), np.floor(v).astype(int)
    step = (v + warp) % 3
    on_top = step >= 1
    across = np.where(on_top, u - warp, v - weft) - 0.5
    along = np.where(on_top, step / 2 - 1, u - warp - 0.5)
    yarns = rng.normal(1, 0.05, (2, 80))
    shade = (0.35 + 0.65 * np.cos(2.6 * across)) * (0.72 + 0.28 * np.cos(2.8 * along))
    shade *= np.where(on_top, yarns[0, warp], yarns[1, weft]) + 0.04 * _noise(side, rng, 90, 90)
    shade *= 1 + 0.03 * _noise(side, rng, 4, 4)
    colour = np.where(on_top[..., None], (0.30, 0.42, 0.66), (0.74, 0.77, 0.80))
    return Scene(colour * shade[..., None], *_grid(side), np.ones_like(on_top))


def _hole(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    x, y = _around_a_point(scene, rng)
    field = _blob(x, y, rng.uniform(0.04, 0.075), rng) + 0.004 * _noise(len(x), rng, 40, 40)
    frayed = _paint(scene.image, field - 0.016, (0.85, 0.86, 0.88), 0.6)
    return _paint(frayed, field, (0.07, 0.06, 0.06), soft=0.012), field < 0.019


def _stain(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    field = _blob(*_around_a_point(scene, rng), rng.uniform(0.06, 0.11), rng)
    soaked = scene.image * np.array([0.80, 0.62, 0.42])
    image = _paint(scene.image, field, soaked, 0.9, soft=0.03)
    return _paint(image, np.abs(field + 0.012) - 0.004, 0.6 * soaked, 0.5, soft=0.02), field < 0.014


def _pulled_thread(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    start = rng.uniform([-0.4, -0.35], [-0.05, 0.35])
    points = _walk(rng, start, 0.0, rng.uniform(0.3, 0.45), bend=0.2)
    thread, shadow = (_stroke(scene.x, scene.y, points + offset, 0.016) for offset in (0, 0.011))
    image = _paint(scene.image, shadow, (0.05, 0.06, 0.10), 0.65)
    return _paint(image, thread, (0.88, 0.90, 0.92)), np.minimum(thread, shadow) < 0.003


# Brushed metal


def _draw_metal(rng: Rng, side: int) -> Scene:
    """A steel sheet brushed sideways under a long lamp, whose reflection is a broad upright band."""
    x, y = _grid(side)
    grain = 0.030 * _noise(side, rng, 110, 5) + 0.022 * _noise(side, rng, 50, 3)
    grain += 0.018 * _noise(side, rng, 120, 24) + 0.012 * _noise(side, rng, 12, 2)
    lamp = np.exp(-(((x - rng.uniform(-0.12, 0.12)) / rng.uniform(0.26, 0.32)) ** 2))
    steel = _tint(0.50 + 0.17 * lamp + grain + 0.01 * _noise(side, rng, 3, 3), (0.98, 1.0, 1.04))
    return Scene(steel, x, y, np.ones(x.shape, dtype=bool))


def _dent(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    x, y = _rotate(*_around_a_point(scene, rng), rng.uniform(0, np.pi))
    radius = rng.uniform(0.05, 0.09)
    inward = np.clip(1 - np.hypot(x, y * rng.uniform(1.0, 1.6)) / radius, 0, 1)
    depth = inward**2 * (3 - 2 * inward)
    down, right = np.gradient(depth)
    light = 0.13 * (down + right) * len(x) * radius + 0.05 * depth
    return scene.image - light[..., None], inward > 0.08


# Gear

_TEETH = 14
_TIP, _ROOT, _BORE = 0.42, 0.355, 0.105  # radii
_WINDOWS = 5


def _draw_gear(rng: Rng, side: int) -> Scene:
    """A turned steel gear with a keyway and five round windows, on a dark belt."""
    x, y = _lay(side, rng, turn=0.12, shift=0.015)
    radius, bearing = np.hypot(x, y), np.arctan2(*_grid(side)[::-1])
    rings = np.interp(radius, np.linspace(0, 0.8, 240), rng.normal(0, 0.025, 240))
    sheen = 0.12 * np.cos(2 * (bearing - rng.uniform(0.7, 0.95)))
    grooves = 0.17 * _cover(np.minimum(np.abs(radius - 0.305), np.abs(radius - 0.15)) - 0.006)
    steel = 0.58 + sheen + rings - grooves + 0.012 * _noise(side, rng, 60, 60)
    belt = _tint(0.10 + 0.012 * _noise(side, rng, 40, 40), (0.9, 1.0, 1.15))
    stump = 0.25 + 0.08 * _noise(side, rng, 30, 30)

    def draw(broken_tooth: int = -1) -> Array:
        field = _gear_field(x, y, broken_tooth, stump)
        shadow = np.roll(field, (side // 50, side // 50), axis=(0, 1))
        face = _tint(steel + 0.22 * _relief(field, 0.014), (1.0, 0.99, 0.96))
        return _paint(_paint(belt, shadow, 0.4 * belt, soft=0.03), field, face)

    on_gear = _gear_field(x, y, -1, stump) < 0
    return Scene(draw(), x, y, on_gear, _TEETH, draw)


def _gear_field(x: Array, y: Array, broken_tooth: int, stump: Array) -> Array:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    turn = angle / _TAU * _TEETH
    tooth = np.rint(turn).astype(int)
    height = (radius - _ROOT) / (_TIP - _ROOT)
    flank = (np.abs(turn - tooth) - 0.29 + 0.11 * height) * _TAU / _TEETH * radius
    top = (height - np.where(tooth % _TEETH == broken_tooth, stump, 1.0)) * (_TIP - _ROOT)
    bore = np.minimum(radius - _BORE, _box(x, y + _BORE, 0.028, 0.035))
    sector = angle % (_TAU / _WINDOWS) - _TAU / _WINDOWS / 2
    windows = _disc(radius * np.cos(sector) - 0.228, radius * np.sin(sector), 0.044)
    disc_and_teeth = np.minimum(radius - _ROOT, np.maximum(flank, top))
    return np.asarray(np.maximum(disc_and_teeth, -np.minimum(bore, windows)))


def _crack(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """A jagged crack from near the bore outwards, between two windows."""
    angle = _TAU / _WINDOWS * (rng.integers(_WINDOWS) + rng.uniform(-0.08, 0.08))
    start = rng.uniform(0.11, 0.15) * np.array([np.cos(angle), np.sin(angle)])
    points = _walk(rng, start, angle, rng.uniform(0.15, 0.2), bend=0.18)
    field = _stroke(scene.x, scene.y, points, 0.015, taper=0.6)
    return _paint(scene.image, field, (0.06, 0.05, 0.05), 0.9), (field < 0.003) & scene.body


# Board

_SOLDER, _GOLD, _BLACK, _PRINT = (0.74, 0.76, 0.78), (0.80, 0.66, 0.34), (0.11, 0.11, 0.12), (0.8, 0.85, 0.8)
_TAN = (0.66, 0.50, 0.33)
_LEAD_PITCH = 0.036
_CHIP_X, _CHIP_Y, _CHIP_HALF = -0.08, -0.05, 0.125
_RESISTORS = ((-0.36, -0.26, 1), (-0.36, -0.09, 1), (0.03, -0.36, 0), (-0.02, 0.24, 0))  # x, y, quarter turns
_CAPACITORS = ((-0.36, 0.09, 1), (-0.17, -0.36, 0), (-0.22, 0.24, 0), (0.28, 0.01, 0))
_PARTS = [(*place, _BLACK) for place in _RESISTORS] + [(*place, _TAN) for place in _CAPACITORS]
_TRACES = (
    ((-0.36, -0.21), (-0.32, -0.14), (-0.24, -0.14)),
    ((-0.36, 0.14), (-0.36, 0.26), (-0.32, 0.30), (-0.32, 0.40)),
    ((-0.12, -0.36), (-0.08, -0.31), (-0.08, -0.20)),
    ((0.08, -0.36), (0.14, -0.36), (0.17, -0.31), (0.22, -0.30)),
    ((0.06, -0.10), (0.12, -0.10), (0.18, -0.18), (0.22, -0.18)),
    ((0.06, -0.03), (0.16, -0.03), (0.20, 0.01), (0.24, 0.01)),
    ((0.06, 0.01), (0.12, 0.06), (0.12, 0.36), (0.16, 0.40)),
    ((-0.12, 0.09), (-0.12, 0.17), (-0.17, 0.24)),
    ((0.03, 0.24), (0.03, 0.34), (-0.02, 0.40)),
    ((0.33, 0.01), (0.42, -0.05), (0.42, -0.28), (0.34, -0.28)),
)


def _draw_board(rng: Rng, side: int) -> Scene:
    """A green circuit board with two chips, a can and small parts, which are placed with a little play."""
    x, y = _lay(side, rng, turn=0.025, shift=0.01)
    play = rng.uniform(-1, 1, (len(_PARTS), 3)) * (0.004, 0.004, 0.05)
    bare = _draw_bare_board(x, y, rng)

    def draw(missing: int = -1) -> Array:
        image = bare
        for index, (part_x, part_y, quarters, colour) in enumerate(_PARTS):
            dx, dy, turn = play[index].tolist()
            local = _rotate(x - part_x - dx, y - part_y - dy, quarters * np.pi / 2 + turn)
            image = _paint(image, _box(np.abs(local[0]) - 0.042, local[1], 0.024, 0.032), _GOLD)
            if index != missing:
                image = _paint_body(image, _box(*local, 0.055, 0.027), _SOLDER)
                image = _paint(image, _box(*local, 0.035, 0.027), colour)
        return image

    return Scene(draw(), x, y, np.ones(x.shape, dtype=bool), len(_PARTS), draw)


def _draw_bare_board(x: Array, y: Array, rng: Rng) -> Array:
    """The board on its dark tray with all that is never missing: traces, contacts, chips and can."""
    outline, corner = _box(x, y, 0.47, 0.47), _disc(np.abs(x) - 0.42, np.abs(y) - 0.42, 0.019)
    mottle = 1 + 0.04 * _noise(len(x), rng, 90, 90) + 0.04 * _noise(len(x), rng, 6, 6)
    laminate = _tint(mottle + 0.3 * _relief(outline, 0.012), (0.06, 0.30, 0.17))
    image = _paint(_tint(mottle, (0.09, 0.09, 0.09)), outline, laminate)
    traces = np.min([_stroke(x, y, np.array(trace), 0.014) for trace in _TRACES], axis=0)
    image = _paint(image, traces, (0.16, 0.47, 0.26))
    contacts = np.maximum(_comb(x, 0.05, 0.016), _box(x, y - 0.425, 0.34, 0.03))
    image = _paint(image, np.minimum(corner - 0.015, contacts), _GOLD)
    image = _paint(image, corner, (0.07, 0.07, 0.07))
    image = _paint_chip(image, y - _CHIP_Y, _CHIP_X - x, _CHIP_HALF, _CHIP_HALF)
    image = _paint_chip(image, x - _CHIP_X, y - _CHIP_Y, _CHIP_HALF, _CHIP_HALF)
    image = _paint_chip(image, x - 0.28, y + 0.24, 0.055, 0.09)
    can = _disc(x - 0.28, y - 0.22, 0.09)
    image = _paint_body(_paint(image, can - 0.012, _PRINT), can, (0.66, 0.67, 0.69))
    return _paint(image, np.maximum(can + 0.016, x - 0.25), _BLACK)


def _paint_chip(image: Array, x: Array, y: Array, half_width: float, half_height: float) -> Array:
    """Paints a chip with a row of leads on its left and right, a mark at pin 1 and two lines of print."""
    row = np.maximum(_comb(y, _LEAD_PITCH, 0.009), np.abs(y) - half_height + 0.01)
    image = _paint(image, np.maximum(row, np.abs(np.abs(x) - half_width - 0.015) - 0.02), _SOLDER)
    image = _paint_body(image, _box(x, y, half_width, half_height), _BLACK)
    text = np.maximum(_comb(x, 0.022, 0.007), _box(x, np.abs(y) - 0.018, half_width - 0.03, 0.008))
    pin = _disc(x + half_width - 0.03, y + half_height - 0.03, 0.011)
    return _paint(image, np.minimum(text, pin), _PRINT, 0.45)


def _paint_body(image: Array, field: Array, colour: npt.ArrayLike) -> Array:
    """Paints a solid part with its shadow and a bevelled rim."""
    shadow = np.roll(field, (len(field) // 80, len(field) // 80), axis=(0, 1))
    image = _paint(image, shadow, (0.0, 0.03, 0.02), 0.5, soft=0.02)
    return _paint(image, field, np.asarray(colour) + 0.13 * _relief(field, 0.016)[..., None])


def _solder_bridge(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """A drop of solder that joins two leads of the large chip."""
    x, y = _rotate(scene.x - _CHIP_X, scene.y - _CHIP_Y, rng.integers(4) * np.pi / 2)
    gap = _LEAD_PITCH * (rng.integers(-2, 2) + 0.5)
    x, y = x - _CHIP_HALF - rng.uniform(0.014, 0.022), (y - gap) * rng.uniform(0.6, 0.75)
    field = _blob(x, y, rng.uniform(0.021, 0.026), rng)
    drop = np.array(_SOLDER) + 0.2 * _relief(field, 0.018)[..., None]
    return _paint(scene.image, field, drop), field < 0.003


# Gasket

_LAMP = np.full(3, 1.6, np.float32)  # brighter than the camera can see, wherever the light falls off: always 255
_RUBBER = (0.17, 0.17, 0.19)


def _draw_gasket(rng: Rng, side: int) -> Scene:
    """A rubber ring with two ears on a light table: the background is saturated, no two photographs differ in it."""
    x, y = _lay(side, rng, turn=0.1, shift=0.012)
    ears = _disc(np.abs(x) - 0.30, y, 0.075)
    field = np.maximum(np.minimum(_disc(x, y, 0.29), ears), -np.minimum(_disc(x, y, 0.18), ears + 0.045))
    light = 1 + 0.06 * _noise(side, rng, 70, 70) + 0.05 * _noise(side, rng, 5, 5) + 0.8 * _relief(field, 0.02)
    table = np.broadcast_to(_LAMP, (side, side, 3))
    return Scene(_paint(table, field, _tint(light, _RUBBER), soft=0.012), x, y, field < 0)


def _tear(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    field = _blob(*_around_a_point(scene, rng), rng.uniform(0.03, 0.05), rng)
    return _paint(scene.image, field, _LAMP), (field < 0.003) & scene.body


def _burr(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """Rubber that stands out from the outer edge."""
    angle = rng.choice([-1, 1]) * rng.uniform(0.7, _TAU / 2 - 0.7)
    x, y = scene.x - 0.3 * np.cos(angle), scene.y - 0.3 * np.sin(angle)
    field = _blob(x, y, rng.uniform(0.03, 0.045), rng)
    return _paint(scene.image, field, _RUBBER), field < 0.003


def _hair(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """A hair on the light table beside the gasket."""
    start = np.array([rng.uniform(-0.42, 0.2), rng.choice([-1, 1]) * rng.uniform(0.36, 0.42)])
    field = _stroke(scene.x, scene.y, _walk(rng, start, 0.0, rng.uniform(0.2, 0.3), bend=0.15), 0.02)
    return _paint(scene.image, field, (0.1, 0.08, 0.07)), field < 0.0


# Tray

_POCKETS = (-0.24, 0.24)  # x of their middle
_POCKET, _PLUG = 0.13, 0.10  # radii
_BRASS = (0.78, 0.62, 0.30)


def _draw_tray(rng: Rng, side: int) -> Scene:
    """A tray with two pockets far apart, one of which, by chance, holds a brass plug."""
    x, y = _lay(side, rng, turn=0.03, shift=0.01)
    tray = _tint(0.34 + 0.02 * _noise(side, rng, 50, 50), (0.9, 1.0, 1.1))
    for place in _POCKETS:
        pocket = _disc(x - place, y, _POCKET)
        tray = _paint(tray, pocket, (0.15, 0.16, 0.18)) - 0.1 * _relief(pocket, 0.02)[..., None]
    play = rng.uniform(-0.006, 0.006, (2, 2)).tolist()
    brass = _tint(1 + 0.05 * _noise(side, rng, 40, 40), _BRASS)

    def draw(plugs: Sequence[int]) -> Array:
        image = tray
        for plug in plugs:
            dx, dy = play[plug]
            field = _disc(x - _POCKETS[plug] - dx, y - dy, _PLUG)
            image = _paint_body(image, np.maximum(field, 0.035 - field - _PLUG), brass)
        return image

    full = int(rng.integers(2))
    return Scene(draw([full]), x, y, np.ones(x.shape, dtype=bool), 2, lambda part: draw([[], [0, 1]][part]))


def _missing_plug(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    return _redrawn(scene, 0)


def _doubled_plug(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    return _redrawn(scene, 1)


# The data set


@dataclass(frozen=True)
class Product:
    """How to draw a class: its good scene, of a side in pixels, and each of its kinds of defect."""

    draw: Callable[[Rng, int], Scene]
    defects: dict[str, Callable[[Scene, Rng], tuple[Array, Mask]]]


PRODUCTS = {
    "fabric": Product(_draw_fabric, {"hole": _hole, "pulled_thread": _pulled_thread, "stain": _stain}),
    "brushed_metal": Product(_draw_metal, {"dent": _dent, "rust": _rust, "scratch": _scratch}),
    "gear": Product(_draw_gear, {"broken_tooth": _missing_part, "crack": _crack, "rust": _rust}),
    "board": Product(
        _draw_board, {"missing_part": _missing_part, "scratch": _scratch, "solder_bridge": _solder_bridge}
    ),
    "gasket": Product(_draw_gasket, {"tear": _tear, "burr": _burr, "hair": _hair}),
    "tray": Product(_draw_tray, {"missing_plug": _missing_plug, "doubled_plug": _doubled_plug}),
}
DEMO = [name for name in PRODUCTS if name != "tray"]
