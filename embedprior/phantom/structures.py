"""What lies inside the phantom's outline: bones, great vessels, airways and branching lung vessels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedprior.phantom.anatomy import Anatomy, dome_share, heart_frame, lung_box, lung_distance, spine_x, spine_y
from embedprior.phantom.space import Array, Cloud, Grid, Sections, Tube, inside

VERTEBRA_MM = 25.0
RIB_ANTERIOR_DROP = (30, 44, 56, 66, 74, 82, 90, 92, 88, 80, 50, 30)
RIB_BONY_DEGREES = (118, 126, 132, 134, 134, 132, 128, 122, 116, 108, 84, 62)
"""Ribs 1 to 12: how far the front end hangs below the back end (mm), and how far round the bone goes from the spine."""


def vertebra_z(a: Anatomy, number: Array | int) -> Array:
    """Level of thoracic vertebra 1 to 12 (and beyond), from the lung's apex downwards."""
    return np.asarray(a.apex + 4 - VERTEBRA_MM * (np.asarray(number) - 1.0))


def rib_paths(a: Anatomy, side: int) -> tuple[Array, NDArray[np.bool_]]:
    """Centre lines (12, 48, 3) of ribs 1 to 12 of one side with cartilage, and which sections (12, 47) are bone."""
    number = np.arange(1.0, 13.0)
    bony = np.deg2rad(np.array(RIB_BONY_DEGREES))[:, None]
    full = np.where(number <= 7, np.deg2rad(168), bony[:, 0])[:, None]
    angle = np.linspace(0, 1, 48) * full
    start = vertebra_z(a, number)[:, None]
    drop = np.array(RIB_ANTERIOR_DROP)[:, None] * a.rib_drop
    beyond = np.clip(angle - bony, 0, None)
    z = start + 6 * np.sin(np.minimum(angle, 0.8) / 0.8 * np.pi) - drop * (np.minimum(angle, bony) / bony) ** 1.35
    z = z + 22 * beyond / np.maximum(full - bony, 1e-6)
    up, breadth = dome_share(a, z)
    breadth = np.maximum(breadth, 0.42)
    up = np.minimum(up, 1)
    width = a.lung_x * (1 - 0.14 * up**2) + a.lung_width * breadth - a.lung_x * (1 - breadth) * 0.35 + 5
    # an exponent below 1 squares the ring off, as the lungs' outline is
    across = np.abs(np.sin(angle)) ** 0.85 * width
    back = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.85 * (a.lung_depth * breadth + 5) + 16 * up**2
    # near the spine the rib leaves from the vertebra, in front of the ring's own back
    from_spine = np.where(angle > np.pi / 2, 1, np.clip((across - 17) / 40, 0, 1))
    y = (spine_y(a, start) + 12) * (1 - from_spine) + back * from_spine
    x = side * np.maximum(across, 17) + spine_x(a, start)
    return np.stack([x, y, z], axis=2), angle[:, 1:] <= bony + 1e-9


def ribs(a: Anatomy) -> tuple[Sections, Sections]:
    """Bony ribs, and rib cartilage."""
    (right, bony_right), (left, bony_left) = rib_paths(a, -1), rib_paths(a, 1)
    paths, bony = np.concatenate([right, left]), np.concatenate([bony_right, bony_left])
    begins, ends = paths[:, :-1], paths[:, 1:]
    height = np.broadcast_to(np.tile(np.where(np.arange(12) > 0, 5.2, 6.5), 2)[:, None], bony.shape)

    def chosen(which: NDArray[np.bool_], flatten: float) -> Sections:
        radius = height[which]
        return Sections(begins[which], ends[which], radius, radius, np.full(len(radius), flatten))

    return chosen(bony, 0.62), chosen(~bony, 0.8)


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
        z = vertebra_z(a, number).item()
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


TWIGS_PER_LUNG = 150
TWIG_RADIUS_MM = 1.3
MURRAY_EXPONENT = 2.8
"""Murray's law of branching: parent radius to this power is the sum of the children's."""


def hilum(side: int) -> Array:
    """Where the vessels enter the lung of one side; the left hilum stands a little higher."""
    return np.array([side * 36.0, 8.0, 14.0 + 6.0 * (side > 0)])


def great_vessels(a: Anatomy) -> list[Tube]:
    """Aorta from root to belly, upper and lower caval veins, pulmonary trunk and main arteries."""
    heart, _ = heart_frame(a)
    arch, r = a.arch, a.aorta_radius
    z_down = np.linspace(arch - 22, -160, 12)
    bulge = a.uncoiling * np.sin(np.clip((arch - z_down) / 120, 0, 1) * np.pi)
    descending = np.stack([19 + bulge + spine_x(a, z_down), spine_y(a, z_down) - 9, z_down], axis=1)
    root = [[-2, -26, heart[2] + 30], [-13, -28, arch - 32], [-11, -20, arch - 12]]
    ascending = np.array([*root, [2, 0, arch], [18, 20, arch + 1], [24, 36, arch - 10]])
    aorta = np.concatenate([ascending, descending])
    trunk = np.array([[15, -46, heart[2] + 34], [19, -32, 16], [16, -12, 25]])
    tubes = [
        Tube(aorta, r),
        Tube(np.array([[-24, -12, 118], [-27, -14, 60], [-27, -16, heart[2] + 20]]), 9.0),
        Tube(trunk, 13.0 * a.vessel_calibre),
        Tube(np.array([[-14, 4, 118], [-4, -4, arch + 6]]), 5.5),
        Tube(np.array([[16, 12, 118], [12, 14, arch + 4]]), 5.0),
    ]
    for side in (-1, 1):
        root_of_lung = hilum(side)
        lower = root_of_lung + np.array([side * 8, 6, -18])
        path = np.stack([np.array([14, -8, 24]), np.array([side * 14 + 4, 2, 22]), root_of_lung, lower])
        tubes.append(Tube(path, np.array([11.0, 10.0, 8.5, 6.0]) * a.vessel_calibre))
    return tubes


def airways(a: Anatomy) -> list[Tube]:
    """Windpipe and main bronchi."""
    fork = np.array([3.0, 16.0, 38.0])
    windpipe = np.array([[0, 6, 170], [0, 10, 100], fork])
    tubes = [Tube(windpipe, 8.5)]
    for side in (-1, 1):
        root = hilum(side)
        path = np.stack([fork, root + np.array([-side * 4, 4, -2]), root + np.array([side * 12, 8, -14])])
        tubes.append(Tube(path, np.array([6.5, 5.5, 3.5])))
    return tubes


def points_in_lung(a: Anatomy, side: int, count: int, depth: float, rng: np.random.Generator) -> Array:
    """At most count (N, 3) points uniform in the lung of one side, at least depth mm below its surface."""
    low, high = lung_box(a, side)
    points = rng.uniform(low, high, size=(3 * count, 3))
    x, y, z = points.astype(np.float32).T
    return points[lung_distance(a, x, y, z, side) < -depth][:count]


def _grow(targets: Array, root: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Join each target, near ones first, to the closest part of the tree so far; returns nodes (N, 3), parents (N,)."""
    most = 11
    capacity = 1 + len(targets) * most
    nodes, from_root, parents = np.empty((capacity, 3)), np.zeros(capacity), np.full(capacity, -1)
    nodes[0] = root
    sway = rng.normal(0, 1.6, (len(targets), most, 3))
    size = 1
    for number, target in enumerate(targets[np.argsort(((targets - root) ** 2).sum(axis=1))]):
        offset = nodes[:size] - target
        gap = np.sqrt(np.einsum("ij,ij->i", offset, offset))
        parent = int(np.argmin(gap + 0.25 * from_root[:size]))
        pieces = min(most, max(1, int(gap[parent] // 14)))
        share = (np.arange(1, pieces + 1) / pieces)[:, None]
        new = nodes[parent] - share * offset[parent]
        new[:-1] += sway[number, : pieces - 1]
        after = size + pieces
        nodes[size:after] = new
        from_root[size:after] = from_root[parent] + share[:, 0] * gap[parent]
        parents[size] = parent
        parents[size + 1 : after] = np.arange(size, after - 1)
        size = after
    return nodes[:size], parents[:size]


def lung_vessels(a: Anatomy, rng: np.random.Generator) -> Sections:
    """Arteries and veins of both lungs together: thick at the hilum, tapering by Murray's law."""
    begins, ends, radii = [], [], []
    for side in (-1, 1):
        root = hilum(side)
        nodes, parents = _grow(points_in_lung(a, side, TWIGS_PER_LUNG, 4.0, rng), root, rng)
        flow = np.ones(len(nodes))
        flow[parents[1:]] = 0.0
        for node in range(len(nodes) - 1, 0, -1):
            flow[parents[node]] += flow[node]
        begins.append(nodes[parents[1:]])
        ends.append(nodes[1:])
        radii.append(a.vessel_calibre * TWIG_RADIUS_MM * flow[1:] ** (1 / MURRAY_EXPONENT))
    radius = np.concatenate(radii)
    return Sections(np.concatenate(begins), np.concatenate(ends), radius, radius, np.ones(len(radius)))
