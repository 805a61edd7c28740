"""Brushed metal: a steel sheet, with dents, rust and scratches."""

from __future__ import annotations

import numpy as np

from uad.data.synthetic.defects import rust, scratch
from uad.data.synthetic.drawing import Array, Mask, Product, Rng, Scene, around_a_point, grid, noise, rotate, tint


def _draw_metal(rng: Rng, side: int) -> Scene:
    """A steel sheet brushed sideways under a long lamp, whose reflection is a broad upright band."""
    x, y = grid(side)
    grain = 0.030 * noise(side, rng, 110, 5) + 0.022 * noise(side, rng, 50, 3)
    grain += 0.018 * noise(side, rng, 120, 24) + 0.012 * noise(side, rng, 12, 2)
    lamp = np.exp(-(((x - rng.uniform(-0.12, 0.12)) / rng.uniform(0.26, 0.32)) ** 2))
    steel = tint(0.50 + 0.17 * lamp + grain + 0.01 * noise(side, rng, 3, 3), (0.98, 1.0, 1.04))
    return Scene(steel, x, y, np.ones(x.shape, dtype=bool))


def _dent(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    x, y = rotate(*around_a_point(scene, rng), rng.uniform(0, np.pi))
    radius = rng.uniform(0.05, 0.09)
    inward = np.clip(1 - np.hypot(x, y * rng.uniform(1.0, 1.6)) / radius, 0, 1)
    depth = inward**2 * (3 - 2 * inward)
    down, right = np.gradient(depth)
    light = 0.13 * (down + right) * len(x) * radius + 0.05 * depth
    return scene.image - light[..., None], inward > 0.08


BRUSHED_METAL = Product(_draw_metal, {"dent": _dent, "rust": rust, "scratch": scratch})
