"""Turn a volume's axes to left, posterior, superior without touching a voxel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embedprior.imaging.volume import Volume


def canonical(volume: Volume) -> Volume:
    """Return the volume with index x growing to the left, y to the back and z to the head, as far as whole turns go.

    Axes are swapped and flipped, the voxels are a view of the same memory, and every voxel keeps its place in the
    world. What remains of a small obliqueness stays in ``direction``.
    """
    # the index axis (x, y, z order) that runs most along each world axis; greedy from the clearest, so that a volume
    # turned by about 45 degrees still gets three different axes
    cosines = np.abs(volume.direction)
    source = [-1, -1, -1]
    for flat in np.argsort(-cosines, axis=None, kind="stable"):
        world, index = divmod(int(flat), 3)
        if source[world] < 0 and index not in source:
            source[world] = index
    signs = np.array([np.sign(volume.direction[world, source[world]]) for world in range(3)])
    if source == [0, 1, 2] and (signs > 0).all():
        return volume
    direction = volume.direction[:, source] * signs
    far = [volume.shape[2 - source[world]] - 1 if signs[world] < 0 else 0 for world in range(3)]
    corner = np.zeros(4)
    corner[source] = far
    corner[3] = 1.0
    origin = (volume.affine @ corner)[:3]
    # array axes are (z, y, x), index axes (x, y, z)
    hu = volume.hu.transpose([2 - source[2], 2 - source[1], 2 - source[0]])
    hu = hu[tuple(slice(None, None, int(signs[world])) for world in (2, 1, 0))]
    x, y, z = (volume.spacing_mm[index] for index in source)
    left, back, up = (float(v) for v in origin)
    return replace(volume, hu=hu, spacing_mm=(x, y, z), origin_mm=(left, back, up), direction=direction)
