"""One patient's build, and the surfaces of wall, lungs, diaphragm and heart in body millimetres.

Proportions are those of adult chests in textbooks of radiographic anatomy (inner thoracic width about 25 cm,
cardiothoracic ratio 0.40 to 0.55, right dome above the left), varied from patient to patient.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from embedprior.phantom.space import Array, Grid, ellipsoid, inside

LUNG_SHOULDER_Z = -5.0
"""Level (mm) above which the lungs taper to the apex."""

SHOULDER_Z = 100.0
"""Level (mm) above which the trunk narrows to the neck."""


@dataclass(frozen=True)
class Anatomy:
    """The numbers a patient is built from (mm, radians, HU)."""

    scale: float
    turn: float
    fat: float
    lung_x: float
    lung_width: float
    lung_depth: float
    apex: float
    dome_right: float
    dome_left: float
    recess: float
    heart_size: float
    heart_lie: float
    aorta_radius: float
    arch: float
    uncoiling: float
    mediastinum: float
    kyphosis: float
    scoliosis: float
    vessel_calibre: float
    lung_hu: float
    lung_gradient: float
    blood_hu: float
    bone: float
    rib_drop: float
    breast: float
    stomach_gas: float


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""

    def normal(mean: float, sd: float, low: float, high: float) -> float:
        return float(np.clip(rng.normal(mean, sd), low, high))

    dome_right = normal(-50, 11, -72, -28)
    return Anatomy(
        scale=normal(0.97, 0.035, 0.89, 1.03),
        turn=normal(0, 0.05, -0.12, 0.12),
        fat=float(np.clip(np.exp(rng.normal(np.log(12), 0.4)), 5, 26)),
        lung_x=normal(61, 2, 57, 65),
        lung_width=normal(66, 3, 60, 72),
        lung_depth=normal(86, 5, 75, 97),
        apex=normal(113, 5, 103, 122),
        dome_right=dome_right,
        dome_left=dome_right - normal(10, 6, -4, 24),
        recess=normal(-114, 6, -126, -102),
        heart_size=normal(0.93, 0.09, 0.76, 1.2),
        heart_lie=normal(0.0, 0.12, -0.25, 0.25),
        aorta_radius=normal(13, 1.5, 10, 18),
        arch=normal(58, 5, 48, 68),
        uncoiling=normal(0, 4, -4, 12),
        mediastinum=normal(1.0, 0.12, 0.8, 1.3),
        kyphosis=normal(8, 4, 0, 18),
        scoliosis=normal(0, 3, -8, 8),
        vessel_calibre=normal(1.0, 0.12, 0.75, 1.3),
        lung_hu=normal(-850, 25, -900, -790),
        lung_gradient=normal(0.45, 0.2, 0.0, 0.9),
        blood_hu=normal(170, 50, 45, 300),
        bone=normal(1.0, 0.12, 0.7, 1.3),
        rib_drop=normal(1.0, 0.12, 0.75, 1.25),
        breast=float(rng.uniform(0.75, 1.25)) if rng.uniform() < 0.45 else 0.0,
        stomach_gas=max(0.0, normal(18, 12, 0, 34)),
    )


def as_attributes(anatomy: Anatomy) -> dict[str, float]:
    """The patient's numbers by name."""
    return {field.name: float(getattr(anatomy, field.name)) for field in fields(anatomy)}


def spine_y(a: Anatomy, z: Array | float) -> Array:
    """Front-to-back position of the vertebral bodies' centres."""
    return np.asarray(52 - a.kyphosis * (np.asarray(z, np.float32) / 110) ** 2 + a.kyphosis, np.float32)


def spine_x(a: Anatomy, z: Array | float) -> Array:
    """Sideways position of the spine."""
    return np.asarray(a.scoliosis * np.sin((np.asarray(z, np.float32) + 30) / 60), np.float32)


def dome_share(a: Anatomy, z: Array) -> tuple[Array, Array]:
    """(height above the lung's shoulder as a share of the way to the apex, remaining share of the lung's breadth)."""
    up = np.clip((z - LUNG_SHOULDER_Z) / (a.apex - LUNG_SHOULDER_Z), 0, None)
    return up, np.sqrt(np.clip(1 - np.minimum(up, 1) ** 2.25, 0, 1))


def _rounded_square(*parts: Array) -> Array:
    """(Σ |part|^2.25)^(1/2.25): 1 on a surface between an ellipse and a box."""
    total: Array = np.full(1, 1e-9, np.float32)
    for part in parts:
        squared = part * part
        total = total + squared * np.sqrt(np.sqrt(np.sqrt(squared)))
    return np.asarray(np.power(total, np.float32(1 / 2.25)))


def wall_distance(a: Anatomy, x: Array, y: Array, z: Array, layer: float) -> Array:
    """Signed distance to the surface lying `layer` mm inside the skin (first order)."""
    half_width = a.lung_x + a.lung_width + 15 + a.fat
    half_depth = a.lung_depth + 27 + 0.9 * a.fat
    shoulder = np.clip((z - SHOULDER_Z) / 40, 0, 1) ** 1.2
    width = half_width * (1 - shoulder) + 60 * shoulder - layer
    depth = half_depth * (1 - shoulder) + 66 * shoulder - layer
    dy = y - 4 - 4 * shoulder
    level = _rounded_square(x / width, dy / depth)
    reach = np.sqrt(x * x + dy * dy) + np.float32(1e-3)
    return np.asarray(reach * (1 - 1 / level), np.float32)


def diaphragm_height(a: Anatomy, x: Array, y: Array, side: int) -> Array:
    """z (mm) of the diaphragm under the lung of one side (+1 the patient's left): a dome, deep recesses outside."""
    top = a.dome_left if side > 0 else a.dome_right
    spread = ((x - side * 56) / 76) ** 2 + ((y + 8) / 99) ** 2
    return np.asarray(a.recess + (top - a.recess) * np.sqrt(np.clip(1 - spread, 0, 1)), np.float32)


def heart_frame(a: Anatomy) -> tuple[Array, Array]:
    """Centre of the ventricles, and their long axis (towards the apex) with two directions across it, as rows."""
    axis = np.array([0.76, -0.42, -0.50 - a.heart_lie])
    axis /= np.linalg.norm(axis)
    across = np.cross(axis, np.array([0, 0, 1.0]))
    across /= np.linalg.norm(across)
    return np.array([22.0, -30.0, max(a.dome_left, -66) + 12.0]), np.stack([axis, across, np.cross(axis, across)])


def heart_distance(a: Anatomy, x: Array, y: Array, z: Array) -> Array:
    """Signed distance to the heart's outline: ventricles, right atrium, left atrium."""
    centre, frame = heart_frame(a)
    size = a.heart_size
    ventricles = ellipsoid(x, y, z, centre, (62 * size, 43 * size, 45 * size), frame)
    right_atrium = ellipsoid(x, y, z, centre + np.array([-39, 6, 14]), (31 * size, 30 * size, 40 * size))
    left_atrium = ellipsoid(x, y, z, centre + np.array([-16, 38, 26]), (36 * size, 22 * size, 24 * size))
    return np.minimum(np.minimum(ventricles, right_atrium), left_atrium)


def mediastinum_half_width(a: Anatomy, y: Array, z: Array) -> Array:
    """Distance from the midline at which the lungs begin: widest at the hila, narrow behind the breastbone."""
    at_hila = np.exp(-(((z - 15) / 55) ** 2))
    return np.asarray(a.mediastinum * (8 + (11 + 10 * at_hila) * np.exp(-(((y - 8) / 42) ** 2))), np.float32)


def lung_distance(a: Anatomy, x: Array, y: Array, z: Array, side: int) -> Array:
    """Signed distance to the lung of one side (+1 the patient's left), first order; needs only broadcastable arrays."""
    up, _ = dome_share(a, z)
    rise = np.minimum(up, 1.4) ** 2
    dx = x - side * a.lung_x * (1 - 0.14 * rise)
    dy = y - 16 * rise
    level = _rounded_square(dx / a.lung_width, dy / a.lung_depth, up)
    lift = np.clip(z - LUNG_SHOULDER_Z, 0, None)
    reach = np.sqrt(dx * dx + dy * dy + lift * lift) + np.float32(1e-3)
    chest = reach * (1 - 1 / level)
    midline = mediastinum_half_width(a, y, z) - side * (x - spine_x(a, z) * 0.5)
    spine = 25 - np.sqrt((x - spine_x(a, z)) ** 2 + (y - spine_y(a, z) - 6) ** 2)
    floor = 0.8 * (diaphragm_height(a, x, y, side) - z)
    soft = np.maximum(np.maximum(midline, spine), np.maximum(floor, 3 - heart_distance(a, x, y, z)))
    return np.asarray(np.maximum(chest, soft))


def lung_box(a: Anatomy, side: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Corners (low, high) of a box around one lung."""
    near, far = 0.0, a.lung_x + a.lung_width + 2
    low_x, high_x = (near, far) if side > 0 else (-far, -near)
    return (low_x, -a.lung_depth - 2, a.recess - 2), (high_x, a.lung_depth + 20, a.apex + 4)


def lung_shares(a: Anatomy, grid: Grid) -> Array:
    """Share of each voxel (Z, Y, X) that is lung."""
    total = np.zeros(grid.shape, np.float32)
    for side in (-1, 1):
        box = grid.box(*lung_box(a, side))
        total[box] += inside(lung_distance(a, *grid.at(box), side), grid.edge)
    return np.minimum(total, 1)
