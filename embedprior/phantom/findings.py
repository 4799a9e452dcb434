"""What may be wrong with a patient: the labelled lesion, the secondary sign, and harmless distractors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from embedprior.config import Config
from embedprior.phantom.anatomy import Anatomy, heart_frame, lung_distance
from embedprior.phantom.space import Array, Box, Grid, inside, mix
from embedprior.phantom.structures import hilum, points_in_lung


class PhantomConfig(Config):
    """A population of virtual chest patients and how their disease shows.

    Attributes:
        shape: voxels (Z, Y, X) of the CT volume.
        spacing_mm: voxel size (z, y, x); shapes are defined in mm, so any resolution gives the same patients.
        prevalence: share of patients with the labelled lesion.
        sign_rate_positive, sign_rate_negative: share of patients with and without the lesion who have a pleural
            effusion.
        lesion_radius_mm: smallest and largest lesion radius.
        lesion_hidden_share: share of lesions behind the heart, spine, hila, collar bones or a diaphragm dome; the
            rest lie in open lung.
        effusion_rise_mm: smallest and largest height of the fluid above the lowest point of the lung.
        granulomas_mean: mean count of calcified granulomas (harmless, in both classes alike).
        scar_rate: share of patients with a plate-like scar (harmless, in both classes alike).
        noise_hu: standard deviation of the CT noise.
    """

    shape: tuple[int, int, int] = (56, 64, 64)
    spacing_mm: tuple[float, float, float] = (5.5, 5.25, 5.25)
    prevalence: float = Field(default=0.45, ge=0, le=1)
    sign_rate_positive: float = Field(default=0.6, ge=0, le=1)
    sign_rate_negative: float = Field(default=0.1, ge=0, le=1)
    lesion_radius_mm: tuple[float, float] = (14.0, 27.0)
    lesion_hidden_share: float = Field(default=0.6, ge=0, le=1)
    effusion_rise_mm: tuple[float, float] = (25.0, 75.0)
    granulomas_mean: float = Field(default=1.0, ge=0)
    scar_rate: float = Field(default=0.25, ge=0, le=1)
    noise_hu: float = Field(default=12.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> PhantomConfig:
        for name in ("lesion_radius_mm", "effusion_rise_mm"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is ({low}, {high}); allowed: 0 < smallest <= largest")
        if min(self.shape) < 8 or min(self.spacing_mm) <= 0:
            raise ValueError(f"shape {self.shape} and spacing_mm {self.spacing_mm}: at least 8 voxels of positive size")
        return self


LESION_HU = (20.0, 60.0)
EFFUSION_HU = 12.0


@dataclass(frozen=True)
class Lesion:
    """A soft-tissue mass in the lung: centre in body mm, radius, HU, the zone it lies in, and its lobulation."""

    centre: tuple[float, float, float]
    radius_mm: float
    hu: float
    zone: str
    lobes: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Effusion:
    """Free fluid in the recess of one side (+1 the patient's left) up to a level, climbing along the wall."""

    side: int
    rise_mm: float


def hidden_zones(a: Anatomy, points: Array) -> list[str]:
    """What covers each lung point (N, 3) on a frontal radiograph: dome, heart, spine, hilum, collar, or "open"."""
    x, y, z = points.T
    centre, frame = heart_frame(a)
    reach = 60 * a.heart_size * abs(frame[0, 0]) + 12
    left = x > 0
    roots = np.where(left[:, None], hilum(1), hilum(-1))
    tests = {
        "dome": z < np.where(left, a.dome_left, a.dome_right) - 4,
        "heart": (x > -46) & (x < centre[0] + reach) & (np.abs(z - centre[2]) < 40 * a.heart_size) & (y > -10),
        "spine": (np.abs(x) < 42) & (y > 20),
        "hilum": np.hypot(x - roots[:, 0], z - roots[:, 2]) < 34,
        "collar": z > a.apex - 36,
    }
    return [str(zone) for zone in np.select(list(tests.values()), list(tests), "open")]


def sample_lesion(config: PhantomConfig, a: Anatomy, rng: np.random.Generator) -> Lesion:
    """Draw where a lesion is, or would be: the draw does not know the label."""
    hide = rng.uniform() < config.lesion_hidden_share
    low, high = config.lesion_radius_mm
    radius = float(rng.uniform(low, high))
    hu = float(rng.uniform(*LESION_HU))
    lobes = tuple((float(p[0]), float(p[1]), float(p[2])) for p in rng.normal(0, 1, (3, 3)))
    points = np.concatenate([points_in_lung(a, side, 160, 0.5 * radius, rng) for side in (-1, 1)])
    zones = hidden_zones(a, points)
    fitting = [i for i, zone in enumerate(zones) if (zone != "open") == hide] or list(range(len(points)))
    chosen = fitting[int(rng.integers(len(fitting)))]
    centre = points[chosen]
    return Lesion((float(centre[0]), float(centre[1]), float(centre[2])), radius, hu, zones[chosen], lobes)


def sample_effusion(config: PhantomConfig, rng: np.random.Generator) -> Effusion:
    """Draw the side and size of the fluid, present or not."""
    side = 1 if rng.uniform() < 0.5 else -1
    return Effusion(side, float(rng.uniform(*config.effusion_rise_mm)))


def lesion_share(lesion: Lesion, grid: Grid) -> tuple[Box, Array]:
    """Box of voxels and share of lesion in each: a ball with a lobulated surface."""
    centre, reach = np.array(lesion.centre), 1.35 * lesion.radius_mm + grid.edge
    box = grid.box(centre - reach, centre + reach)
    x, y, z = (v - np.float32(c) for v, c in zip(grid.at(box), centre, strict=True))
    distance = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    bumps = sum(
        (
            np.sin((x * lobe[0] + y * lobe[1] + z * lobe[2]) * np.float32(2.2 / lesion.radius_mm))
            for lobe in lesion.lobes
        ),
        np.zeros(1, np.float32),
    )
    return box, inside(distance - lesion.radius_mm * (1 + 0.08 * bumps), grid.edge)


def effusion_share(effusion: Effusion, a: Anatomy, grid: Grid) -> tuple[Box, Array]:
    """Box of voxels and share of fluid in each (to be met with the lung): level, with a meniscus up the outer wall."""
    outer = a.lung_x + a.lung_width
    low_x, high_x = (0.0, outer + 4) if effusion.side > 0 else (-outer - 4, 0.0)
    top = a.recess + effusion.rise_mm + 45
    box = grid.box((low_x, -a.lung_depth - 4, a.recess - 4), (high_x, a.lung_depth + 20, top))
    x, y, z = grid.at(box)
    from_wall = -lung_distance(a, x, y, np.asarray(z * 0, np.float32), effusion.side)
    climb = (10 + 0.5 * effusion.rise_mm) * np.exp(-np.clip(from_wall, 0, None) / 12)
    behind = 0.15 * np.clip(y, -60, 60)
    own_lung = lung_distance(a, x, y, z, effusion.side) < grid.edge
    return box, own_lung * inside(z - (a.recess + effusion.rise_mm + climb + behind), grid.edge)


def add_distractors(
    config: PhantomConfig, a: Anatomy, grid: Grid, hu: Array, lung: Array, rng: np.random.Generator
) -> None:
    """Paint calcified granulomas and a plate-like scar, in both classes alike, in place."""
    for _ in range(int(rng.poisson(config.granulomas_mean))):
        side = 1 if rng.uniform() < 0.5 else -1
        radius = float(rng.uniform(2.0, 4.0))
        found = points_in_lung(a, side, 40, 6.0, rng)
        if len(found):
            box, share = lesion_share(Lesion(tuple(found[0]), radius, 0.0, "", ()), grid)
            volume = 4 / 3 * np.pi * (radius * grid.scale) ** 3 / float(np.prod(grid.spacing))
            share = share * min(1.0, volume / max(float(share.sum()), 1e-6))
            mix(hu[box], share * lung[box], 700.0)
    side = 1 if rng.uniform() < 0.5 else -1
    normal = rng.normal(0, 1, 3) * np.array([0.4, 0.4, 1.0])
    middle, size = points_in_lung(a, side, 40, 15.0, rng), float(rng.uniform(14, 26))
    if rng.uniform() < config.scar_rate and len(middle):
        box = grid.box(middle[0] - size, middle[0] + size)
        x, y, z = (v - np.float32(c) for v, c in zip(grid.at(box), middle[0], strict=True))
        normal /= np.linalg.norm(normal)
        off_plane = np.abs(np.float32(normal[0]) * x + np.float32(normal[1]) * y + np.float32(normal[2]) * z)
        disc = inside(np.sqrt(x * x + y * y + z * z) - size, grid.edge)
        thickness = 2.5
        share = (
            np.clip((thickness + 0.5 * grid.edge - off_plane) / grid.edge, 0, min(1.0, thickness / grid.edge)) * disc
        )
        mix(hu[box], share * lung[box], 20.0)
