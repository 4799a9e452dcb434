"""Plant a synthetic soft-tissue lesion in the lung of a real CT: real anatomy with a truth that is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int16
from pydantic import Field, model_validator
from scipy import ndimage

from embedprior.config import Config
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.lungs import MIN_ML, Lungs, find_lungs
from embedprior.imaging.volume import Volume, canonical


class ImplantConfig(Config):
    """What a planted lesion looks like.

    Attributes:
        radius_mm: smallest and largest mean radius.
        hu: soft tissue without contrast medium.
        texture_hu: standard deviation of the smooth variation inside.
        lobulation: how far the surface swings about the mean radius, as a share of it.
        clearance: distance from the lung's border to the centre, in radii; below 1 it may touch the pleura.
    """

    radius_mm: tuple[float, float] = (8.0, 16.0)
    hu: float = 35.0
    texture_hu: float = Field(default=15.0, ge=0)
    lobulation: float = Field(default=0.2, ge=0, le=0.5)
    clearance: float = Field(default=0.9, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> ImplantConfig:
        if not 0 < self.radius_mm[0] <= self.radius_mm[1]:
            raise ValueError(f"radius_mm is {self.radius_mm}; allowed: 0 < smallest <= largest")
        return self


@dataclass(frozen=True)
class Implant:
    """Where a lesion was planted.

    Attributes:
        centre_mm: LPS position.
        radius_mm: mean radius.
        volume_ml: lesion volume, partial voxels counted by their share.
    """

    centre_mm: tuple[float, float, float]
    radius_mm: float
    volume_ml: float


def implant(
    volume: Volume, seed: int, config: ImplantConfig | None = None, lungs: Lungs | None = None
) -> tuple[Volume, Implant]:
    """Return the volume, upright (LPS), with one lesion in a lung, and where it is; the same seed, the same lesion.

    The centre is drawn uniformly over the lung voxels that are far enough from the lung's border. Voxels are mixed by
    the share the lesion has of them, and one that was denser before (a vessel, a calcification) stays as it was.

    Args:
        volume: a CT, in any orientation.
        seed: of place, size, surface and texture.
        config: the lesion's making.
        lungs: of ``canonical(volume)``, when they are known.

    Raises:
        UnreadableExam: no lungs, or none wide enough for the smallest lesion.
    """
    config = ImplantConfig() if config is None else config
    upright = canonical(volume)
    lungs = find_lungs(upright) if lungs is None else lungs
    if lungs.ml < MIN_ML:
        raise UnreadableExam(f"no lungs to plant a lesion in ({lungs.ml:.0f} ml found)")
    generator = np.random.default_rng(seed)
    depth = ndimage.distance_transform_edt(np.pad(lungs.mask, 1), sampling=lungs.voxel_mm)[1:-1, 1:-1, 1:-1]
    largest = min(config.radius_mm[1], float(depth.max()) / max(config.clearance, 1e-6))
    if largest < config.radius_mm[0]:
        raise UnreadableExam(f"no place in the lungs for a lesion of {config.radius_mm[0]:g} mm")
    radius = float(generator.uniform(config.radius_mm[0], largest))
    places = np.argwhere(depth >= config.clearance * radius)
    coarse = places[generator.integers(len(places))] + generator.uniform(0, 1, 3)
    middle = coarse * lungs.factors - 0.5
    hu, ml = _planted(upright, middle, radius, config, generator)
    x, y, z = (float(v) for v in (upright.affine @ np.array([*middle[::-1], 1.0]))[:3])
    return upright.with_hu(hu), Implant((x, y, z), radius, ml)


def _planted(
    volume: Volume, middle: Float[np.ndarray, " 3"], radius: float, config: ImplantConfig,
    generator: np.random.Generator,
) -> tuple[Int16[np.ndarray, "z y x"], float]:  # fmt: skip
    spacing = np.array(volume.spacing_mm[::-1])
    reach = np.ceil(radius * (1 + 2 * config.lobulation) / spacing).astype(int) + 1
    first = np.maximum(np.floor(middle).astype(int) - reach, 0)
    last = np.minimum(np.floor(middle).astype(int) + reach + 2, volume.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    axes = [(np.arange(a, b) - m) * s for a, b, m, s in zip(first, last, middle, spacing, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"))
    distance = np.sqrt((offsets**2).sum(axis=0))
    share = np.clip(0.5 + (_surface(offsets, distance, radius, config, generator) - distance) / spacing.max(), 0, 1)
    grain = ndimage.gaussian_filter(generator.normal(size=distance.shape), 2.0 / spacing)
    inside = config.hu + config.texture_hu * grain / max(float(grain.std()), 1e-9)
    before = volume.hu[box].astype(np.float64)
    hu = np.array(volume.hu)
    hu[box] = np.round(before + share * np.maximum(inside - before, 0)).astype(np.int16)
    return hu, float(share.sum() * np.prod(spacing) / 1000)


def _surface(
    offsets: Float[np.ndarray, "3 z y x"], distance: Float[np.ndarray, "z y x"], radius: float, config: ImplantConfig,
    generator: np.random.Generator,
) -> Float[np.ndarray, "z y x"]:  # fmt: skip
    """Radius of a lobulated ball in each voxel's direction: a few cosine bumps about random axes."""
    unit = offsets / np.maximum(distance, 1e-6)
    swing = np.zeros_like(distance)
    for _ in range(6):
        axis = generator.normal(size=3)
        along = np.tensordot(axis / np.linalg.norm(axis), unit, axes=1)
        swing += generator.uniform(-1, 1) * np.cos(generator.integers(2, 5) * np.arccos(np.clip(along, -1, 1)))
    return np.asarray(radius * (1 + config.lobulation * np.clip(swing / 1.5, -1, 1)))
