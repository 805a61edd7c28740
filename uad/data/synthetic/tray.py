"""A tray whose defects are logical: each of its places looks as on some good image, and only the whole is wrong."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from uad.data.synthetic.defects import redrawn
from uad.data.synthetic.drawing import (
    Array,
    Mask,
    Product,
    Rng,
    Scene,
    disc,
    lay,
    noise,
    paint,
    paint_body,
    relief,
    tint,
)

_POCKETS = (-0.24, 0.24)  # x of their middle
_POCKET, _PLUG = 0.13, 0.10  # radii
_BRASS = (0.78, 0.62, 0.30)


def _draw_tray(rng: Rng, side: int) -> Scene:
    """A tray with two pockets far apart, one of which, by chance, holds a brass plug."""
    x, y = lay(side, rng, turn=0.03, shift=0.01)
    tray = tint(0.34 + 0.02 * noise(side, rng, 50, 50), (0.9, 1.0, 1.1))
    for place in _POCKETS:
        pocket = disc(x - place, y, _POCKET)
        tray = paint(tray, pocket, (0.15, 0.16, 0.18)) - 0.1 * relief(pocket, 0.02)[..., None]
    play = rng.uniform(-0.006, 0.006, (2, 2)).tolist()
    brass = tint(1 + 0.05 * noise(side, rng, 40, 40), _BRASS)

    def draw(plugs: Sequence[int]) -> Array:
        image = tray
        for plug in plugs:
            dx, dy = play[plug]
            field = disc(x - _POCKETS[plug] - dx, y - dy, _PLUG)
            image = paint_body(image, np.maximum(field, 0.035 - field - _PLUG), brass)
        return image

    full = int(rng.integers(2))
    return Scene(draw([full]), x, y, np.ones(x.shape, dtype=bool), 2, lambda part: draw([[], [0, 1]][part]))


def _missing_plug(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    return redrawn(scene, 0)


def _doubled_plug(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    return redrawn(scene, 1)


TRAY = Product(_draw_tray, {"missing_plug": _missing_plug, "doubled_plug": _doubled_plug})
