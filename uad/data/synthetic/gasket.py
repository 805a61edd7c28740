"""A gasket before a saturated background, with tears, burrs and hairs."""

from __future__ import annotations

import numpy as np

from uad.data.synthetic.drawing import (
    TAU,
    Array,
    Mask,
    Product,
    Rng,
    Scene,
    around_a_point,
    blob,
    disc,
    lay,
    noise,
    paint,
    relief,
    stroke,
    tint,
    walk,
)

_LAMP = np.full(3, 1.6, np.float32)  # brighter than the camera can see, wherever the light falls off: always 255
_RUBBER = (0.17, 0.17, 0.19)


def _draw_gasket(rng: Rng, side: int) -> Scene:
    """A rubber ring with two ears on a light table: the background is saturated, no two photographs differ in it."""
    x, y = lay(side, rng, turn=0.1, shift=0.012)
    ears = disc(np.abs(x) - 0.30, y, 0.075)
    field = np.maximum(np.minimum(disc(x, y, 0.29), ears), -np.minimum(disc(x, y, 0.18), ears + 0.045))
    light = 1 + 0.06 * noise(side, rng, 70, 70) + 0.05 * noise(side, rng, 5, 5) + 0.8 * relief(field, 0.02)
    table = np.broadcast_to(_LAMP, (side, side, 3))
    return Scene(paint(table, field, tint(light, _RUBBER), soft=0.012), x, y, field < 0)


def _tear(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    field = blob(*around_a_point(scene, rng), rng.uniform(0.03, 0.05), rng)
    return paint(scene.image, field, _LAMP), (field < 0.003) & scene.body


def _burr(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """Rubber that stands out from the outer edge."""
    angle = rng.choice([-1, 1]) * rng.uniform(0.7, TAU / 2 - 0.7)
    x, y = scene.x - 0.3 * np.cos(angle), scene.y - 0.3 * np.sin(angle)
    field = blob(x, y, rng.uniform(0.03, 0.045), rng)
    return paint(scene.image, field, _RUBBER), field < 0.003


def _hair(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """A hair on the light table beside the gasket."""
    start = np.array([rng.uniform(-0.42, 0.2), rng.choice([-1, 1]) * rng.uniform(0.36, 0.42)])
    field = stroke(scene.x, scene.y, walk(rng, start, 0.0, rng.uniform(0.2, 0.3), bend=0.15), 0.02)
    return paint(scene.image, field, (0.1, 0.08, 0.07)), field < 0.0


GASKET = Product(_draw_gasket, {"tear": _tear, "burr": _burr, "hair": _hair})
