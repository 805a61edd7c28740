"""Fabric: denim, with holes, pulled threads and stains."""

from __future__ import annotations

import numpy as np

from uad.data.synthetic.drawing import (
    Array,
    Mask,
    Product,
    Rng,
    Scene,
    around_a_point,
    blob,
    grid,
    lay,
    noise,
    paint,
    stroke,
    walk,
)


def _draw_fabric(rng: Rng, side: int) -> Scene:
    """Denim: a twill in which each blue warp yarn runs over two pale weft yarns and under one."""
    x, y = lay(side, rng, turn=0.03, shift=0.5)
    u = 40 + 26 * x + 0.12 * noise(side, rng, 3, 3)
    v = 40 + 26 * y + 0.12 * noise(side, rng, 3, 3)
    warp, weft = np.floor(u).astype(int), np.floor(v).astype(int)
    step = (v + warp) % 3
    on_top = step >= 1
    across = np.where(on_top, u - warp, v - weft) - 0.5
    along = np.where(on_top, step / 2 - 1, u - warp - 0.5)
    yarns = rng.normal(1, 0.05, (2, 80))
    shade = (0.35 + 0.65 * np.cos(2.6 * across)) * (0.72 + 0.28 * np.cos(2.8 * along))
    shade *= np.where(on_top, yarns[0, warp], yarns[1, weft]) + 0.04 * noise(side, rng, 90, 90)
    shade *= 1 + 0.03 * noise(side, rng, 4, 4)
    colour = np.where(on_top[..., None], (0.30, 0.42, 0.66), (0.74, 0.77, 0.80))
    return Scene(colour * shade[..., None], *grid(side), np.ones_like(on_top))


def _hole(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    x, y = around_a_point(scene, rng)
    field = blob(x, y, rng.uniform(0.04, 0.075), rng) + 0.004 * noise(len(x), rng, 40, 40)
    frayed = paint(scene.image, field - 0.016, (0.85, 0.86, 0.88), 0.6)
    return paint(frayed, field, (0.07, 0.06, 0.06), soft=0.012), field < 0.019


def _stain(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    field = blob(*around_a_point(scene, rng), rng.uniform(0.06, 0.11), rng)
    soaked = scene.image * np.array([0.80, 0.62, 0.42])
    image = paint(scene.image, field, soaked, 0.9, soft=0.03)
    return paint(image, np.abs(field + 0.012) - 0.004, 0.6 * soaked, 0.5, soft=0.02), field < 0.014


def _pulled_thread(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    start = rng.uniform([-0.4, -0.35], [-0.05, 0.35])
    points = walk(rng, start, 0.0, rng.uniform(0.3, 0.45), bend=0.2)
    thread, shadow = (stroke(scene.x, scene.y, points + offset, 0.016) for offset in (0, 0.011))
    image = paint(scene.image, shadow, (0.05, 0.06, 0.10), 0.65)
    return paint(image, thread, (0.88, 0.90, 0.92)), np.minimum(thread, shadow) < 0.003


FABRIC = Product(_draw_fabric, {"hole": _hole, "pulled_thread": _pulled_thread, "stain": _stain})
