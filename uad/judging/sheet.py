"""A contact sheet: what a model says of some images, side by side in one picture."""

from pathlib import Path
from typing import Sequence

from engines.files import replacing
from uad.judging.predictions import Decision

SIDE = 144  # of a photograph in the sheet, pixels
CAPTION, GAP, FRAME = 22, 8, 3  # pixels
COLOURS = {"defect": (200, 30, 30), "good": (40, 140, 60)}


def contact_sheet(decisions: Sequence[Decision], path: Path, columns: int = 2) -> None:
    """Write a PNG of the overlays of decisions, photograph and marked photograph, each with what was decided below.

    Args:
        decisions: those that have an overlay; see `uad.judging.decisions.decide`.
        path: of the PNG.
        columns: decisions in a row.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = 2 * SIDE + 2 * FRAME, SIDE + 2 * FRAME + CAPTION
    rows = -(-len(decisions) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for index, decision in enumerate(decisions):
        row, column = divmod(index, columns)
        x, y = GAP + column * (width + GAP), GAP + row * (height + GAP)
        draw.rectangle((x, y, x + width - 1, y + SIDE + 2 * FRAME - 1), COLOURS[decision.decision])
        with Image.open(decision.overlay) as overlay:
            sheet.paste(overlay.resize((2 * SIDE, SIDE)), (x + FRAME, y + FRAME))
        caption = (
            f"{decision.class_name}: {decision.decision}   score {decision.score:.1f}, limit {decision.threshold:.1f}"
        )
        draw.text((x + FRAME, y + SIDE + 2 * FRAME + 2), caption, COLOURS[decision.decision], font)
    with replacing(path) as temporary:
        sheet.save(temporary, format="png", optimize=True)
