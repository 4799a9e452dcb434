"""Bones as clouds of small volumes: ribs, spine, breastbone, collar bones, shoulder blades."""

from __future__ import annotations

import numpy as np

from .anatomy import Anatomy, dome_share, spine_x, spine_y
from .space import Array, Cloud, Grid, Tube, inside

VERTEBRA_MM = 25.0
RIB_ANTERIOR_DROP = (30, 44, 56, 66, 74, 82, 90, 92, 88, 80, 50, 30)
RIB_BONY_DEGREES = (118, 126, 132, 134, 134, 132, 128, 122, 116, 108, 84, 62)
"""Ribs 1 to 12: how far the front end hangs below the back end (mm), and how far round the bone goes from the spine."""


def vertebra_z(a: Anatomy, number: int) -> float:
    """Level of thoracic vertebra 1 to 12 (and beyond), from the lung's apex downwards."""
    return a.apex + 4 - VERTEBRA_MM * (number - 1)


def rib_path(a: Anatomy, number: int, side: int) -> tuple[Array, int]:
    """Centre line (K, 3) of rib 1 to 12 with its cartilage, and the number of leading points that are bone."""
    bony = np.deg2rad(RIB_BONY_DEGREES[number - 1])
    full = np.deg2rad(168) if number <= 7 else bony
    angle = np.linspace(0, full, 48)
    start = vertebra_z(a, number)
    drop = RIB_ANTERIOR_DROP[number - 1] * a.rib_drop
    z = start + 6 * np.sin(np.minimum(angle, 0.8) / 0.8 * np.pi) - drop * (angle / bony) ** 1.35
    cartilage = angle > bony
    z[cartilage] = z[~cartilage][-1] + 22 * (angle[cartilage] - bony) / max(full - bony, 1e-6)
    up, breadth = dome_share(a, z.astype(np.float32))
    breadth = np.maximum(breadth, 0.42)
    width = (
        a.lung_x * (1 - 0.14 * np.minimum(up, 1) ** 2) + a.lung_width * breadth - a.lung_x * (1 - breadth) * 0.35 + 5
    )
    depth = a.lung_depth * breadth + 5
    # exponent below 1 squares the ring off, as the lungs' outline is
    across = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.85 * width
    back = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.85 * depth + 16 * np.minimum(up, 1) ** 2
    head_x = np.clip(across, 17, None)
    # near the spine the rib leaves from the vertebra, in front of the ring's own back
    from_spine = np.clip((across - 17) / 40, 0, 1)
    joint = spine_y(a, start).item() + 12
    y = joint * (1 - from_spine) + back * from_spine
    y = np.where(angle > np.pi / 2, back, y)
    path = np.stack([side * head_x + spine_x(a, start).item(), y, z], axis=1)
    return path, int((~cartilage).sum())


def ribs(a: Anatomy) -> tuple[list[Tube], list[Tube]]:
    """Bony ribs, and rib cartilage."""
    bone, cartilage = [], []
    for number in range(1, 13):
        for side in (-1, 1):
            path, bony = rib_path(a, number, side)
            bone.append(Tube(path[:bony], 5.2 if number > 1 else 6.5, flatten=0.62))
            if bony < len(path) - 2:
                cartilage.append(Tube(path[bony - 1 :], 5.0, flatten=0.8))
    return bone, cartilage


def vertebral_bodies(a: Anatomy, grid: Grid) -> tuple[tuple[slice, slice, slice], Array, Array]:
    """Box of voxels, share of body or disc in it, and HU: marrow with a dense rim, discs softer."""
    front, back = 24.0, 84.0
    box = grid.box((-34, front, -200), (34, back, 200))
    x, y, z = grid.at(box)
    across, deep = (x - spine_x(a, z)) / 18, (y - spine_y(a, z)) / 15
    radial = np.sqrt(across * across + deep * deep) + np.float32(1e-6)
    distance = 16 * (radial - 1)
    phase = (z - (a.apex + 4)) / VERTEBRA_MM
    from_disc = (0.5 - np.abs(phase - np.round(phase))) * VERTEBRA_MM
    in_disc = inside(from_disc - 2.5, grid.edge)
    rim = np.maximum(np.exp(-((distance + 1.5) ** 2) / 8), np.exp(-((from_disc - 4) ** 2) / 6))
    marrow = (190 + 330 * rim) * a.bone
    return box, inside(distance, grid.edge), np.asarray(marrow + in_disc * (80 - marrow), np.float32)


def back_of_spine(a: Anatomy) -> list[Tube]:
    """Arches, spinous and transverse processes of every vertebra in reach."""
    parts = []
    for number in range(-1, 15):
        z = vertebra_z(a, number)
        x, y = spine_x(a, z).item(), spine_y(a, z).item()
        for side in (-1, 1):
            pedicle = np.array([[x + side * 13, y + 10, z + 3], [x + side * 14, y + 22, z + 2], [x, y + 32, z - 4]])
            parts.append(Tube(pedicle, 4.0))
            if 1 <= number <= 12:
                parts.append(Tube(np.array([[x + side * 13, y + 23, z + 2], [x + side * 32, y + 32, z + 4]]), 4.2))
        parts.append(Tube(np.array([[x, y + 30, z - 4], [x, y + 46, z - 20]]), 4.0))
    return parts


def collar_bones(a: Anatomy) -> list[Tube]:
    """Both collar bones: an S from the breastbone up and back to the shoulder."""
    share = np.linspace(0, 1, 16)
    reach = a.lung_x + a.lung_width
    x = 15 + (reach - 13) * share
    y = -a.lung_depth + 14 + 72 * share - 10 * np.sin(2 * np.pi * share)
    z = a.apex - 27 + 24 * share + 5 * np.sin(np.pi * share)
    radius = np.interp(share, [0, 0.2, 1], [8.0, 5.5, 6.5])
    return [Tube(np.stack([side * x, y, z], axis=1), radius) for side in (-1, 1)]


def breastbone(a: Anatomy) -> list[Tube]:
    """Manubrium and body of the sternum."""
    front = -a.lung_depth - 7
    path = np.array([[0, front + 16, a.apex - 22], [0, front + 6, a.apex - 58], [0, front, a.apex - 140]])
    return [Tube(path, np.array([7.0, 6.0, 5.0]), flatten=2.6)]


def shoulder_blades(a: Anatomy, step: float) -> tuple[list[Tube], Cloud]:
    """Thick borders and ridge, and the thin plates between them as a cloud of small volumes."""
    reach = a.lung_x + a.lung_width
    rims, plates = [], []
    count = max(6, int(100 / step))
    down, along = (
        part.ravel()[:, None] for part in np.meshgrid(*[(np.arange(count) + 0.5) / count] * 2, indexing="ij")
    )
    for side in (-1, 1):
        inner = np.array([side * (reach - 45), a.lung_depth + 9, a.apex - 22])
        low = np.array([side * (reach - 28), a.lung_depth + 9, a.apex - 116])
        socket = np.array([side * (reach + 8), a.lung_depth - 38, a.apex - 18])
        rims.append(Tube(np.stack([socket, 0.5 * (socket + low) + np.array([side * 3.0, 2, 0]), low]), 4.0))
        rims.append(Tube(np.stack([inner + np.array([0, 4, -14]), socket + np.array([0, 22, 8])]), 4.0))
        edge, far = inner + down * (low - inner), socket + down * (low - socket)
        plates.append(edge + along * (far - edge))
        area = 0.5 * float(np.linalg.norm(np.cross(low - inner, socket - inner)))
        thickness_mm = 2.5
        # strips shorten towards the lower tip, so the points crowd there: weigh them by what is left of the width
        weights = 2 * (1 - down[:, 0]) * area * thickness_mm / count**2
    return rims, (np.concatenate(plates), np.concatenate([weights, weights]))
