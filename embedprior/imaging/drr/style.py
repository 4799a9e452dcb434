"""How line integrals are turned into a picture: settings only, no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from embedprior.config import Config


class Appearance(Config):
    """A radiograph's making. The defaults are a noiseless digital radiograph, bones white.

    Attributes:
        scatter_fraction: scattered share of all quanta reaching the detector; 0.3 to 0.6 for a chest behind a grid.
        scatter_spread_mm: standard deviation of the scatter's Gaussian spread at the detector.
        photons_per_mm2: quanta per mm² behind an empty field; none draws no noise. Noise is Poisson per pixel.
        blur_mm: standard deviation of focal spot and detector blur together, at the detector.
        window: attenuation (negative log exposure) shown as black and white; none takes exposure_quantiles of the
            middle of each image, where a stand's automatic exposure chambers lie, open field left out.
        exposure_quantiles: the shares of those pixels below black and below white when window is none.
        gamma: power applied to the windowed value; below 1 opens up the lungs.
        contrast: steepness of the S-shaped film curve about mid-grey; 0 leaves the window linear.
        levels: grey values that black and white of the window are shown as; real radiographs seldom use all of them.
        polarity: "bone_white" as read today, or "bone_black" as on an unprocessed exposure (MONOCHROME1).
    """

    scatter_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    scatter_spread_mm: float = Field(default=25.0, gt=0.0)
    photons_per_mm2: float | None = Field(default=None, gt=0.0)
    blur_mm: float = Field(default=0.0, ge=0.0)
    window: tuple[float, float] | None = (0.5, 6.5)
    exposure_quantiles: tuple[float, float] = (0.01, 0.99)
    gamma: float = Field(default=1.0, gt=0.0)
    contrast: float = Field(default=0.0, ge=0.0)
    levels: tuple[float, float] = (0.0, 1.0)
    polarity: Literal["bone_white", "bone_black"] = "bone_white"
