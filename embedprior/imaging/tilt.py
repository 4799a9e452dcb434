"""Slices of a tilted gantry, which start further along their columns from one to the next, on a straight grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embedprior.imaging.volume import AIR_HU, Volume


def straightened(volume: Volume, shear_mm: float) -> Volume:
    """Return the volume on the grid its ``direction`` spans, every value at its own place in the world.

    The grid gets as many rows more as the slices are spread; what no slice covers is −1024 HU. Values between two rows
    are linearly interpolated and rounded to whole HU.

    Args:
        volume: slices as stored, the first one where ``origin_mm`` says, each next one ``shear_mm`` further along index
            y than ``spacing_mm`` and ``direction`` would have it.
        shear_mm: of either sign; 0 returns the volume itself.
    """
    if shear_mm == 0:
        return volume
    count, rows, columns = volume.shape
    starts = np.arange(count) * shear_mm / volume.spacing_mm[1]
    first = int(np.floor(min(0.0, starts[-1])))
    wide = int(np.ceil(max(0.0, starts[-1]))) + rows - first
    hu = np.full((count, wide, columns), AIR_HU, np.int16)
    for k, start in enumerate(starts):
        place = np.arange(first, first + wide) - start
        inside = np.flatnonzero((place >= -0.5) & (place <= rows - 0.5))
        held = np.clip(place[inside], 0, rows - 1)
        near = np.minimum(held.astype(np.intp), max(0, rows - 2))
        weight = (held - near).astype(np.float32)[:, None]
        plane = volume.hu[k].astype(np.float32)
        hu[k, inside] = np.rint(plane[near] * (1 - weight) + plane[np.minimum(near + 1, rows - 1)] * weight)
    x, y, z = (float(v) for v in (volume.affine @ np.array([0.0, first, 0.0, 1.0]))[:3])
    return replace(volume, hu=hu, origin_mm=(x, y, z))
