"""Defects of more than one product: functions of the good scene and random numbers.

Each returns the repainted image and the shape that it repainted.
"""

from __future__ import annotations

import numpy as np

from uad.data.synthetic.drawing import (
    TAU,
    Array,
    Mask,
    Rng,
    Scene,
    around_a_point,
    blob,
    noise,
    paint,
    rotate,
    stroke,
    tint,
    walk,
)


def scratch(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    heading = rng.choice([-1, 1]) * rng.uniform(0.5, 1.4)
    start = np.array([rng.uniform(-0.35, 0.1), rng.uniform(-0.15, 0.15) - 0.2 * np.sign(heading)])
    points = walk(rng, start, heading, rng.uniform(0.25, 0.45), bend=0.05)
    bright, dark = (stroke(scene.x, scene.y, points + offset, 0.014, taper=0.6) for offset in (0, 0.009))
    image = paint(paint(scene.image, dark, (0.16, 0.16, 0.17), 0.75), bright, (0.97, 0.97, 0.98), 0.9)
    return image, np.minimum(bright, dark) < 0.003


def rust(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    x, y = around_a_point(scene, rng)
    radius = rng.uniform(0.025, 0.05)
    field = blob(x, y, radius, rng)
    for _ in range(4):
        speck_x, speck_y = rotate(x, y, rng.uniform(0, TAU))
        speck = blob(speck_x - radius * rng.uniform(1.1, 1.7), speck_y, radius * rng.uniform(0.2, 0.4), rng)
        field = np.minimum(field, speck)
    brown = tint(1 + 0.2 * noise(len(x), rng, 60, 60), (0.46, 0.25, 0.12))
    return paint(scene.image, field, brown, 0.85, soft=0.016), (field < 0.007) & scene.body


def missing_part(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    return redrawn(scene, int(rng.integers(scene.parts)))


def redrawn(scene: Scene, part: int) -> tuple[Array, Mask]:
    image = scene.without(part)
    return image, np.abs(image - scene.image).max(axis=-1) > 0.03
