"""Great vessels, airways, and branching lung vessels grown towards random points of the lung."""

from __future__ import annotations

import numpy as np

from .anatomy import Anatomy, heart_frame, lung_box, lung_distance, spine_x, spine_y
from .space import Array, Sections, Tube

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
