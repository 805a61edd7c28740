"""Tools to draw products with. A shape is a field over the image, negative inside it and about a distance outside.

Lengths and places are in units of the image side, from the middle, with x to the right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator
SUPERSAMPLE = 2
TAU = 2 * np.pi


@dataclass(frozen=True)
class Scene:
    """A good product, drawn at SUPERSAMPLE times the final size."""

    image: Array  # (n, n, 3), colours from 0 to 1; what is above 1 saturates the camera
    x: Array  # (n, n), place of each pixel on the product
    y: Array
    body: Mask  # (n, n), where a surface defect can be
    parts: int = 0  # number of parts that can be wrong
    without: Callable[[int], Array] = lambda part: np.zeros(0)  # redraws the image with that part missing, or doubled


@dataclass(frozen=True)
class Product:
    """How to draw a class: its good scene, of a side in pixels, and each of its kinds of defect."""

    draw: Callable[[Rng, int], Scene]
    defects: dict[str, Callable[[Scene, Rng], tuple[Array, Mask]]]


def grid(side: int) -> tuple[Array, Array]:
    steps = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    x, y = np.meshgrid(steps, steps)
    return x, y


def rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def lay(side: int, rng: Rng, turn: float, shift: float) -> tuple[Array, Array]:
    """Coordinates on a product that lies a little turned (radians) and shifted."""
    x, y = grid(side)
    return rotate(x - rng.uniform(-shift, shift), y - rng.uniform(-shift, shift), rng.uniform(-turn, turn))


def around_a_point(scene: Scene, rng: Rng) -> tuple[Array, Array]:
    """Coordinates whose origin is a random place on the body, away from the image's border."""
    inner = np.maximum(np.abs(scene.x), np.abs(scene.y)) < 0.38
    place = rng.choice(np.flatnonzero(scene.body & inner))
    return scene.x - scene.x.flat[place], scene.y - scene.y.flat[place]


def noise(side: int, rng: Rng, rows: int, columns: int) -> Array:
    """Smooth noise of unit variance whose grain is 1 / rows high and 1 / columns wide."""
    values = _spread(side, rows) @ rng.normal(size=(rows + 1, columns + 1)) @ _spread(side, columns).T
    return np.asarray(values / values.std(), dtype=np.float32)


def _spread(side: int, cells: int) -> Array:
    distance = np.linspace(0, cells, side)[:, None] - np.arange(cells + 1)
    return np.asarray(np.exp(-2 * distance**2))


def disc(x: Array, y: Array, radius: float) -> Array:
    return np.asarray(np.hypot(x, y) - radius)


def box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def comb(x: Array, pitch: float, half_width: float) -> Array:
    """Endless bars at the multiples of pitch."""
    return np.asarray(np.abs(x - pitch * np.rint(x / pitch)) - half_width)


def blob(x: Array, y: Array, radius: float, rng: Rng) -> Array:
    angle, wobble = np.arctan2(y, x), np.zeros_like(x)
    for waves in range(2, 7):
        wobble += rng.uniform(-0.35, 0.35) / waves * np.cos(waves * angle + rng.uniform(0, TAU))
    return disc(x, y, 0) - radius * (1 + wobble)


def walk(rng: Rng, start: Array, heading: float, length: float, bend: float) -> Array:
    """A path of 10 points, shape (10, 2), whose heading (radians) changes by about bend at each."""
    headings = heading + bend * np.cumsum(rng.normal(size=9))
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / 9
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def stroke(x: Array, y: Array, points: Array, width: float, taper: float = 0.0) -> Array:
    """A line through points, thinner towards its ends where taper is more than 0."""
    field, middle = np.full_like(x, 9), (len(points) - 2) / 2
    for index, ((x0, y0), (x1, y1)) in enumerate(zip(points[:-1], points[1:])):
        dx, dy = float(x1 - x0), float(y1 - y0)
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        half = width / 2 * (1 - taper * abs(index - middle) / max(middle, 1))
        field = np.minimum(field, disc(x - x0 - along * dx, y - y0 - along * dy, half))
    return field


def paint(image: Array, field: Array, colour: npt.ArrayLike, alpha: float = 1, soft: float = 0.006) -> Array:
    covered = alpha * cover(field, soft)[..., None]
    return np.asarray(image + covered * (np.asarray(colour, dtype=np.float32) - image))


def cover(field: Array, soft: float = 0.006) -> Array:
    """How much of each pixel a shape covers, 0 to 1, with an edge of width soft."""
    return np.clip(0.5 - field / soft, 0, 1)


def relief(field: Array, width: float) -> Array:
    """Light on the bevelled rim of a shape lit from the upper left: -1.4 to 1.4, and 0 off the rim."""
    down, right = np.gradient(field)
    slope = -(down + right) / (np.hypot(down, right) + 1e-9)
    return np.asarray(slope * cover(np.abs(field + width / 2) - width / 2))


def tint(light: Array, colour: npt.ArrayLike) -> Array:
    return light[..., None] * np.asarray(colour, dtype=np.float32)


def paint_body(image: Array, field: Array, colour: npt.ArrayLike) -> Array:
    """Paints a solid part with its shadow and a bevelled rim."""
    shadow = np.roll(field, (len(field) // 80, len(field) // 80), axis=(0, 1))
    image = paint(image, shadow, (0.0, 0.03, 0.02), 0.5, soft=0.02)
    return paint(image, field, np.asarray(colour) + 0.13 * relief(field, 0.016)[..., None])
