"""Bring volumes to a declared grid, exactly: the spacing asked for is the spacing obtained, to the last voxel.

Zooming by a ratio of voxel counts (scipy's ``zoom``, torch's ``interpolate(size=…)``) drifts by up to a third of a
voxel across a chest, and corner-aligned grids by more. Here every output centre has its own place in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from embedprior.errors import BadInput
from embedprior.imaging.volume import AIR_HU, Triple, Volume, canonical, to_sitk

STRAIGHT_DEG = 0.05
MAX_VOXELS = 2**30


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels are: sizes in (x, y, z) order, axes along left, posterior, superior.

    Attributes:
        size: voxels along x, y and z.
        spacing_mm: their size.
        origin_mm: LPS centre of the first voxel.
    """

    size: tuple[int, int, int]
    spacing_mm: Triple
    origin_mm: Triple


def grid_of(volume: Volume) -> Grid:
    """Return the grid of an LPS volume.

    Raises:
        BadInput: the volume's axes are not left, posterior, superior.
    """
    if not _is_axis_aligned(volume) or volume.orientation != "LPS":
        raise BadInput(f"grid_of() wants axes along left, posterior, superior; the volume has {volume.orientation}.")
    z, y, x = volume.shape
    return Grid((x, y, z), volume.spacing_mm, volume.origin_mm)


def covering_grid(volume: Volume, spacing_mm: Triple) -> Grid:
    """Return the LPS grid of this spacing over the volume's extent, from outer edge to outer edge.

    Where the extent is no whole number of voxels the last voxel hangs over by less than half, or is left out.

    Raises:
        BadInput: a spacing that is not positive, or a grid of more than 2³⁰ voxels.
    """
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise BadInput(f"the spacing must be three positive numbers of mm; got {spacing_mm}.")
    z, y, x = volume.shape
    corners = np.array([[i, j, k, 1.0] for i in (-0.5, x - 0.5) for j in (-0.5, y - 0.5) for k in (-0.5, z - 0.5)])
    edges = (volume.affine @ corners.T)[:3]
    low, high = edges.min(axis=1), edges.max(axis=1)
    sizes = [max(1, round(float(extent) / s)) for extent, s in zip(high - low, spacing_mm, strict=True)]
    if float(np.prod([float(n) for n in sizes])) > MAX_VOXELS:
        raise BadInput(f"a grid of {sizes[0]} x {sizes[1]} x {sizes[2]} voxels of {spacing_mm} mm is too large.")
    first = [float(edge) + s / 2 for edge, s in zip(low, spacing_mm, strict=True)]
    return Grid((sizes[0], sizes[1], sizes[2]), spacing_mm, (first[0], first[1], first[2]))


def resample(volume: Volume, spacing_mm: Triple) -> Volume:
    """Return the volume on an LPS grid of this spacing, linearly interpolated and rounded to whole HU.

    Axes are swapped and flipped as needed; oblique volumes are straightened.

    Args:
        volume: in any orientation.
        spacing_mm: along x, y and z.
    """
    return resample_onto(volume, covering_grid(volume, spacing_mm))


def resample_onto(volume: Volume, grid: Grid) -> Volume:
    """Return the volume on a given grid, linearly interpolated; what lies outside the scan is −1024 HU.

    A centre within half a voxel outside the outermost centres takes the border's value: it lies in the voxel.
    """
    upright = canonical(volume)
    if not _is_axis_aligned(upright):
        return _oblique(volume, grid)
    taps = [
        _Taps.of(count, origin, spacing, size, start, step)
        for count, origin, spacing, size, start, step in zip(
            upright.shape[::-1], upright.origin_mm, upright.spacing_mm,
            grid.size, grid.origin_mm, grid.spacing_mm, strict=True,
        )
    ]  # fmt: skip
    hu = _interpolated(upright.hu, taps[2], taps[1], taps[0])
    return replace(volume, hu=hu, spacing_mm=grid.spacing_mm, origin_mm=grid.origin_mm, direction=np.eye(3))


@dataclass(frozen=True, eq=False)
class _Taps:
    """Along one axis: the two input indices each output reads, the weight of the second, and what lies inside."""

    first: np.ndarray[Any, np.dtype[np.intp]]
    second: np.ndarray[Any, np.dtype[np.intp]]
    weight: Float[np.ndarray, " n"]
    outside: np.ndarray[Any, np.dtype[np.bool_]]

    @classmethod
    def of(cls, count: int, origin: float, spacing: float, size: int, start: float, step: float) -> _Taps:
        place = (start - origin + np.arange(size) * step) / spacing
        # a thousandth of a voxel of slack: outer edges that coincide must not fall outside by rounding
        outside = (place < -0.501) | (place > count - 0.499)
        place = np.clip(place, 0, count - 1)
        first = np.minimum(place.astype(np.intp), max(0, count - 2))
        return cls(first, np.minimum(first + 1, count - 1), (place - first).astype(np.float32), outside)


def _interpolated(hu: Int16[np.ndarray, "z y x"], z: _Taps, y: _Taps, x: _Taps) -> Int16[np.ndarray, "z y x"]:
    """Shrink each input slice in its plane once, then blend neighbours: a few slices in memory, all in cache."""
    result = np.empty((z.first.size, y.first.size, x.first.size), np.int16)
    ready: dict[int, Float[np.ndarray, "y x"]] = {}
    for k in range(z.first.size):
        if z.outside[k]:
            result[k] = AIR_HU
            continue
        near, far = int(z.first[k]), int(z.second[k])
        ready = {i: ready[i] if i in ready else _plane(hu[i], y, x) for i in (near, far)}
        blend = ready[far] - ready[near]
        blend *= z.weight[k]
        blend += ready[near]
        result[k] = np.rint(blend, out=blend)
    result[:, y.outside] = AIR_HU
    result[:, :, x.outside] = AIR_HU
    return result


def _plane(plane: Int16[np.ndarray, "y x"], y: _Taps, x: _Taps) -> Float[np.ndarray, "y x"]:
    values = plane.astype(np.float32)
    rows = values.take(y.second, axis=0)
    near = values.take(y.first, axis=0)
    rows -= near
    rows *= y.weight[:, None]
    rows += near
    result = rows.take(x.second, axis=1)
    near = rows.take(x.first, axis=1)
    result -= near
    result *= x.weight
    result += near
    return result


def _oblique(volume: Volume, grid: Grid) -> Volume:
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputSpacing(grid.spacing_mm)
    resampler.SetOutputOrigin(grid.origin_mm)
    resampler.SetOutputDirection(np.eye(3).ravel().tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetDefaultPixelValue(AIR_HU)
    resampler.SetOutputPixelType(sitk.sitkInt16)
    hu = sitk.GetArrayFromImage(resampler.Execute(to_sitk(volume)))
    return replace(volume, hu=hu, spacing_mm=grid.spacing_mm, origin_mm=grid.origin_mm, direction=np.eye(3))


def _is_axis_aligned(volume: Volume) -> bool:
    off = np.degrees(np.arccos(np.clip(np.abs(volume.direction).max(axis=0).min(), -1, 1)))
    return bool(off < STRAIGHT_DEG)
