"""The patient's own millimetres on a voxel grid: implicit shapes with soft edges, and tubes as clouds of small volumes.

Body coordinates are LPS-like (x left, y back, z up) with the origin mid-chest; a patient's turn and size map them to
the scanner's world. Shapes are sampled with partial volume, so coarse and fine grids hold the same amount of tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Point = Sequence[float] | Array
Box = tuple[slice, slice, slice]
Cloud = tuple[Array, Array]


@dataclass(frozen=True)
class Grid:
    """Voxel centres in body coordinates: x and y are (1, Y, X), z is (Z, 1, 1)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    turn: float
    scale: float
    x: Array
    y: Array
    z: Array

    @property
    def edge(self) -> float:
        """Body millimetres over which a surface fades from inside to outside: one voxel."""
        return float(np.mean(self.spacing)) / self.scale

    def to_index(self, points: Array) -> Array:
        """(N, 3) body (x, y, z) → (N, 3) fractional voxel index (z, y, x)."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x = self.scale * (cos * points[:, 0] - sin * points[:, 1])
        y = self.scale * (sin * points[:, 0] + cos * points[:, 1])
        world = np.stack([self.scale * points[:, 2], y, x], axis=1)
        return np.asarray(world / self.spacing + (np.array(self.shape) - 1) / 2)

    def box(self, low: Point, high: Point) -> Box:
        """Slices (z, y, x) of the voxels that can touch the body-coordinate box between two corners."""
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        index = self.to_index(corners)
        first = np.clip(np.floor(index.min(0)).astype(int) - 1, 0, self.shape)
        last = np.clip(np.ceil(index.max(0)).astype(int) + 2, 0, self.shape)
        return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])

    def at(self, box: Box) -> tuple[Array, Array, Array]:
        """x, y, z of a box of voxels, ready to broadcast."""
        return self.x[:, box[1], box[2]], self.y[:, box[1], box[2]], self.z[box[0]]


def make_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], turn: float, scale: float) -> Grid:
    """A grid centred on the body's origin; turn in radians about the long axis, scale > 1 for a bigger patient."""
    z, y, x = (
        ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(step))
        for n, step in zip(shape, spacing, strict=True)
    )
    cos, sin = np.float32(np.cos(turn) / scale), np.float32(np.sin(turn) / scale)
    across, back = x[None, None, :], y[None, :, None]
    return Grid(
        shape,
        spacing,
        turn,
        scale,
        cos * across + sin * back,
        cos * back - sin * across,
        (z / np.float32(scale))[:, None, None],
    )


def inside(distance: Array, edge: float) -> Array:
    """Share of each voxel inside a surface, from its signed distance (negative inside), both in mm."""
    return np.asarray(np.clip(np.float32(0.5) - distance * np.float32(1 / edge), 0, 1))


def mix(hu: Array, share: Array, value: float | Array) -> None:
    """Replace a share of each voxel by a tissue, in place."""
    hu += share * (value - hu)


def fill_air(hu: Array, lung: Array, value: float, parenchyma: Array) -> None:
    """Replace a share of each voxel, all of it aerated lung, by a solid tissue, in place.

    A voxel shared between lung and wall ends as a mixture of tissue and wall, without a rim of air in between; vessels
    and bone denser than the tissue stay.
    """
    np.copyto(hu, np.minimum(hu + lung * (value - parenchyma), np.maximum(hu, value)))


def ellipsoid(x: Array, y: Array, z: Array, centre: Point, radii: Point, axes: Array | None = None) -> Array:
    """Signed distance (first order) to an ellipsoid; axes rows are its principal directions."""
    dx, dy, dz = (v - np.float32(c) for v, c in zip((x, y, z), centre, strict=True))
    frame = np.eye(3) if axes is None else axes
    level = np.float32(1e-12)
    slope = np.float32(1e-12)
    for row, radius in zip(frame, radii, strict=True):
        along = np.float32(row[0]) * dx + np.float32(row[1]) * dy + np.float32(row[2]) * dz
        squared = along * along
        level = level + squared * np.float32(radius**-2)
        slope = slope + squared * np.float32(radius**-4)
    root = np.sqrt(level)
    return np.asarray((root - 1) * root / np.sqrt(slope))


@dataclass(frozen=True)
class Tube:
    """A tube of tissue: centre line (K, 3) in body mm, radius (one, or one per point; the half-height along z of a
    flattened tube), and flatten = horizontal over vertical radius (ribs are thinner than high)."""

    path: Array
    radius: float | Array
    flatten: float = 1.0


@dataclass(frozen=True)
class Sections:
    """Straight pieces of tubes: ends (N, 3), radius at each end (N,), horizontal over vertical radius (N,)."""

    begins: Array
    ends: Array
    near: Array
    far: Array
    flatten: Array


def sections(tubes: Sequence[Tube]) -> Sections:
    """Tubes cut at the points of their centre lines."""
    radii = [np.broadcast_to(np.asarray(tube.radius, float), len(tube.path)) for tube in tubes]
    return Sections(
        np.concatenate([tube.path[:-1] for tube in tubes]),
        np.concatenate([tube.path[1:] for tube in tubes]),
        np.concatenate([radius[:-1] for radius in radii]),
        np.concatenate([radius[1:] for radius in radii]),
        np.concatenate([np.full(len(tube.path) - 1, tube.flatten) for tube in tubes]),
    )


def _cross(a: Array, b: Array) -> Array:
    # numpy.cross spends ten times as long on argument handling for arrays of this size
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / (np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)) + 1e-9))


def fill(parts: Sections, step: float) -> Cloud:
    """Points (N, 3) `step` mm apart along tube sections and 1.4 steps across, and their volumes (N,) in mm³."""
    begins, ends, near, far, flatten = parts.begins, parts.ends, parts.near, parts.far, parts.flatten
    # sections of like size are filled together; rounding the count of points up to a power of two keeps groups few
    crowd = np.maximum(1.0, np.pi * flatten * np.maximum(near, far) ** 2 / (2 * step**2))
    exponent = np.ceil(np.log2(crowd)).astype(int)
    groups = [
        _fill_segments(begins[g], ends[g], near[g], far[g], flatten[g], 2 ** int(e), step)
        for e in np.unique(exponent)
        for g in [exponent == e]
    ]
    return np.concatenate([points for points, _ in groups]), np.concatenate([volumes for _, volumes in groups])


def _fill_segments(
    begins: Array,
    ends: Array,
    near: Array,
    far: Array,
    flatten: Array,
    rings: int,
    step: float,
) -> Cloud:
    run = ends - begins
    length = np.sqrt((run * run).sum(axis=1))
    tangent = _unit(run)
    steep = np.abs(tangent[:, 2:]) > 0.9
    sideways = _unit(_cross(tangent, np.where(steep, np.array([[1.0, 0, 0]]), np.array([[0, 0, 1.0]]))))
    upward = _cross(sideways, tangent)
    count = np.maximum(1, np.ceil(length / step).astype(int))
    which = np.repeat(np.arange(len(count)), count)
    order = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    share = (order + 0.5) / count[which]
    centres = begins[which] + share[:, None] * run[which]
    radius = near[which] + share * (far - near)[which]
    golden = (np.arange(rings) + np.arange(len(which))[:, None]) * np.pi * (3 - np.sqrt(5))
    spread = np.sqrt((np.arange(rings) + 0.5) / rings)
    wide = (radius * flatten[which])[:, None] * (spread * np.cos(golden))
    high = radius[:, None] * (spread * np.sin(golden))
    points = centres[:, None] + wide[:, :, None] * sideways[which, None] + high[:, :, None] * upward[which, None]
    volumes = np.pi * flatten[which] * radius**2 * length[which] / count[which] / rings
    return points.reshape(-1, 3), np.repeat(volumes, rings)


def splat(grid: Grid, *clouds: Cloud) -> Array:
    """Share of each voxel (Z, Y, X) filled by clouds of small volumes, each spread over its eight nearest voxels."""
    points = np.concatenate([cloud[0] for cloud in clouds])
    volumes = np.concatenate([cloud[1] for cloud in clouds]) * (grid.scale**3 / float(np.prod(grid.spacing)))
    index = grid.to_index(points)
    floor = np.floor(index)
    inner = np.all((floor >= 0) & (floor < np.array(grid.shape) - 1), axis=1)
    high = (index - floor)[inner]
    low = 1 - high
    z, y, x = floor[inner].astype(np.int64).T
    _, rows, columns = grid.shape
    first = (z * rows + y) * columns + x
    at_z = (volumes[inner] * low[:, 0], volumes[inner] * high[:, 0])
    at_yx = [(sy * sx) for sy in (low[:, 1], high[:, 1]) for sx in (low[:, 2], high[:, 2])]
    offsets = [(dz * rows + dy) * columns + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]
    flat = np.concatenate([first + offset for offset in offsets])
    weights = np.concatenate([sz * syx for sz in at_z for syx in at_yx])
    filled = np.bincount(flat, weights, minlength=int(np.prod(grid.shape)))
    return np.minimum(filled, 1.0).astype(np.float32).reshape(grid.shape)
