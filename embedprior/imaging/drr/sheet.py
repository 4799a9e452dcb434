"""All images on one sheet, for a look: upright, heart to the viewer's right, nothing cut off?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from embedprior.imaging.contact_sheet import Tile, contact_sheet, picture_tile

from .job import Rendered, image_name
from .settings import DrrConfig
from .tables import drr_id

COLUMNS, MOST = 6, 240


def drr_sheet(rendered: Sequence[Rendered], config: DrrConfig, path: Path) -> int:
    """Write the images with what the audit of their CTs found, at most 240; returns how many are on the sheet."""
    tiles: list[Tile] = []
    for result in rendered:
        for pose in range(config.poses):
            if result.folder is None or len(tiles) == MOST:
                break
            with Image.open(result.folder / f"{image_name(pose)}.png") as image:
                grey = np.asarray(image, dtype=np.float32) / 65535
            detail = "lungs complete" if result.complete else "lungs not complete"
            tiles.append(picture_tile(drr_id(result.exam_id, config.view, pose), grey, result.findings, detail))
    if tiles:
        contact_sheet(tiles, path, COLUMNS)
    return len(tiles)
