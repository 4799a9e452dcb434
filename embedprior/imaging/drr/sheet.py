"""All images on one sheet, for a look: upright, heart to the viewer's right, nothing cut off?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from embedprior.runs.files import write_file

CELL, BAR, COLUMNS = 224, 18, 6
MOST = 240


def contact_sheet(images: Sequence[tuple[str, Path]], path: Path, columns: int = COLUMNS) -> int:
    """Write a PNG with one cell for each image, at most 240; returns how many are on it.

    Args:
        images: caption and 16-bit PNG.
        path: of the sheet.
        columns: cells in a row.
    """
    shown = list(images)[:MOST]
    columns = max(1, min(columns, len(shown)))
    rows = -(-len(shown) // columns) or 1
    sheet = Image.new("L", (columns * (CELL + 4) + 4, rows * (CELL + BAR + 4) + 4), 24)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (caption, file) in enumerate(shown):
        left, top = 4 + (number % columns) * (CELL + 4), 4 + (number // columns) * (CELL + BAR + 4)
        with Image.open(file) as image:
            grey = np.asarray(image, dtype=np.float32) / 65535
        cell = Image.fromarray(np.round(grey * 255).astype(np.uint8))
        sheet.paste(cell.resize((CELL, CELL), Image.Resampling.BOX), (left, top + BAR))
        while caption and draw.textlength(caption, font) > CELL - 4:
            caption = caption[:-2].rstrip("…") + "…"
        draw.text((left + 2, top + 2), caption, fill=220, font=font)
    write_file(path, lambda handle: sheet.save(handle, "PNG"))
    return len(shown)
