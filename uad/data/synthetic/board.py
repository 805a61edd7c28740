"""A circuit board, with missing parts, scratches and solder bridges."""

from __future__ import annotations

import numpy as np

from uad.data.synthetic.defects import missing_part, scratch
from uad.data.synthetic.drawing import (
    Array,
    Mask,
    Product,
    Rng,
    Scene,
    blob,
    box,
    comb,
    disc,
    lay,
    noise,
    paint,
    paint_body,
    relief,
    rotate,
    stroke,
    tint,
)

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
    x, y = lay(side, rng, turn=0.025, shift=0.01)
    play = rng.uniform(-1, 1, (len(_PARTS), 3)) * (0.004, 0.004, 0.05)
    bare = _draw_bare_board(x, y, rng)

    def draw(missing: int = -1) -> Array:
        image = bare
        for index, (part_x, part_y, quarters, colour) in enumerate(_PARTS):
            dx, dy, turn = play[index].tolist()
            local = rotate(x - part_x - dx, y - part_y - dy, quarters * np.pi / 2 + turn)
            image = paint(image, box(np.abs(local[0]) - 0.042, local[1], 0.024, 0.032), _GOLD)
            if index != missing:
                image = paint_body(image, box(*local, 0.055, 0.027), _SOLDER)
                image = paint(image, box(*local, 0.035, 0.027), colour)
        return image

    return Scene(draw(), x, y, np.ones(x.shape, dtype=bool), len(_PARTS), draw)


def _draw_bare_board(x: Array, y: Array, rng: Rng) -> Array:
    """The board on its dark tray with all that is never missing: traces, contacts, chips and can."""
    outline, corner = box(x, y, 0.47, 0.47), disc(np.abs(x) - 0.42, np.abs(y) - 0.42, 0.019)
    mottle = 1 + 0.04 * noise(len(x), rng, 90, 90) + 0.04 * noise(len(x), rng, 6, 6)
    laminate = tint(mottle + 0.3 * relief(outline, 0.012), (0.06, 0.30, 0.17))
    image = paint(tint(mottle, (0.09, 0.09, 0.09)), outline, laminate)
    traces = np.min([stroke(x, y, np.array(trace), 0.014) for trace in _TRACES], axis=0)
    image = paint(image, traces, (0.16, 0.47, 0.26))
    contacts = np.maximum(comb(x, 0.05, 0.016), box(x, y - 0.425, 0.34, 0.03))
    image = paint(image, np.minimum(corner - 0.015, contacts), _GOLD)
    image = paint(image, corner, (0.07, 0.07, 0.07))
    image = _paint_chip(image, y - _CHIP_Y, _CHIP_X - x, _CHIP_HALF, _CHIP_HALF)
    image = _paint_chip(image, x - _CHIP_X, y - _CHIP_Y, _CHIP_HALF, _CHIP_HALF)
    image = _paint_chip(image, x - 0.28, y + 0.24, 0.055, 0.09)
    can = disc(x - 0.28, y - 0.22, 0.09)
    image = paint_body(paint(image, can - 0.012, _PRINT), can, (0.66, 0.67, 0.69))
    return paint(image, np.maximum(can + 0.016, x - 0.25), _BLACK)


def _paint_chip(image: Array, x: Array, y: Array, half_width: float, half_height: float) -> Array:
    """Paints a chip with a row of leads on its left and right, a mark at pin 1 and two lines of print."""
    row = np.maximum(comb(y, _LEAD_PITCH, 0.009), np.abs(y) - half_height + 0.01)
    image = paint(image, np.maximum(row, np.abs(np.abs(x) - half_width - 0.015) - 0.02), _SOLDER)
    image = paint_body(image, box(x, y, half_width, half_height), _BLACK)
    text = np.maximum(comb(x, 0.022, 0.007), box(x, np.abs(y) - 0.018, half_width - 0.03, 0.008))
    pin = disc(x + half_width - 0.03, y + half_height - 0.03, 0.011)
    return paint(image, np.minimum(text, pin), _PRINT, 0.45)


def _solder_bridge(scene: Scene, rng: Rng) -> tuple[Array, Mask]:
    """A drop of solder that joins two leads of the large chip."""
    x, y = rotate(scene.x - _CHIP_X, scene.y - _CHIP_Y, rng.integers(4) * np.pi / 2)
    gap = _LEAD_PITCH * (rng.integers(-2, 2) + 0.5)
    x, y = x - _CHIP_HALF - rng.uniform(0.014, 0.022), (y - gap) * rng.uniform(0.6, 0.75)
    field = blob(x, y, rng.uniform(0.021, 0.026), rng)
    drop = np.array(_SOLDER) + 0.2 * relief(field, 0.018)[..., None]
    return paint(scene.image, field, drop), field < 0.003


BOARD = Product(_draw_board, {"missing_part": missing_part, "scratch": scratch, "solder_bridge": _solder_bridge})
