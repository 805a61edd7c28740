"""A gear, with broken teeth, cracks and rust."""

from __future__ import annotations

import numpy as np

from uad.data.synthetic.defects import missing_part, rust
from uad.data.synthetic.drawing import (
    TAU,
    Array,
    Mask,
    Product,
    Rng,
    Scene,
    box,
    cover,
    disc,
    grid,
    lay,
    noise,
    paint,
    relief,
    stroke,
    tint,
    walk,
)

_TEETH = 14
_TIP, _ROOT, _BORE = 0.42, 0.355, 0.105  # radii
_WINDOWS = 5


def _draw_gear(rng: Rng, side: int) -> Scene:
    """A turned steel gear with a keyway and five round windows, on a dark belt."""
    x, y = lay(side, rng, turn=0.12, shift=0.015)
    radius, bearing = np.hypot(x, y), np.arctan2(*grid(side)[::-1])
    rings = np.interp(radius, np.linspace(0, 0.8, 240), rng.normal(0, 0.025, 240))
    sheen = 0.12 * np.cos(2 * (bearing - rng.uniform(0.7, 0.95)))
    grooves = 0.17 * cover(np.minimum(np.abs(radius - 0.305), np.abs(radius - 0.15)) - 0.006)
    steel = 0.58 + sheen + rings - grooves + 0.012 * noise(side, rng, 60, 60)
    belt = tint(0.10 + 0.012 * noise(side, rng, 40, 40), (0.9, 1.0, 1.15))
    stump = 0.25 + 0.08 * noise(side, rng, 30, 30)

    def draw(broken_tooth: int = -1) -> Array:
        field = _gear_field(x, y, broken_tooth, stump)
        shadow = np.roll(field, (side // 50, side // 50), axis=(0, 1))
        face = tint(steel + 0.22 * relief(field, 0.014), (1.0, 0.99, 0.96))
        return paint(paint(belt, shadow, 0.4 * belt, soft=0.03), field, face)

    on_gear = _gear_field(x, y, -1, stump) < 0
    return Scene(draw(), x, y, on_gear, _TEETH, draw)


def _gear_field(x: Array, y: Array, broken_tooth: int, stump: Array) -> Array:
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    turn = angle / TAU * _TEETH
    tooth = np.rint(turn).astype(int)
    height = (radius - _ROOT) / (_TIP - _ROOT)
    flank = (np.abs(turn - tooth) - 0.29 + 0.11 * height) * TAU / _TEETH * radius
    top = (height - np.where(tooth % _TEETH == broken_tooth, stump, 1.0)) * (_TIP - _ROOT)
    bore = np.minimum(radius - _BORE, box(x, y + _BORE, 0.028, 0.035))
    sector = angle % (TAU / _WINDOWS) - TAU / _WINDOWS / 2
    windows = disc(radius * np.cos(sector) - 0.228, radius * np.sin(sector), 0.044)
    disc_and_teeth = np.minimum(radius - _ROOT, np.maximum(flank, top))
    return np.asarray(np.maximum(disc_and_teeth, -np.minimum(bore, windows)))


def _crack(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """A jagged crack from near the bore outwards, between two windows."""
    angle = TAU / _WINDOWS * (rng.integers(_WINDOWS) + rng.uniform(-0.08, 0.08))
    start = rng.uniform(0.11, 0.15) * np.array([np.cos(angle), np.sin(angle)])
    points = walk(rng, start, angle, rng.uniform(0.15, 0.2), bend=0.18)
    field = stroke(scene.x, scene.y, points, 0.015, taper=0.6)
    return paint(scene.image, field, (0.06, 0.05, 0.05), 0.9), (field < 0.003) & scene.body


GEAR = Product(_draw_gear, {"broken_tooth": missing_part, "crack": _crack, "rust": rust})
