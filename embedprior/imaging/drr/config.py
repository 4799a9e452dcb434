"""Settings of ``embedprior drr`` and of the displayed image (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from embedprior.config import Config
from embedprior.imaging.drr.geometry import VIEWS, Geometry, chest_geometry
from embedprior.imaging.drr.physics import CT_EFFECTIVE_KEV, ENERGIES_KEV
from embedprior.imaging.drr.renderers import RENDERERS


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


class DrrConfig(Config):
    """What a set of DRRs is made by.

    Attributes:
        renderer: planesweep, diffdrr-siddon, diffdrr-trilinear or nanodrr.
        view: PA, AP or LATERAL.
        poses: images of each CT. The first is straight; pose k is the same whatever the number.
        size: pixels along each side.
        field_mm: side of the detector.
        centre: what the central beam goes through, the middle of the lungs or of the volume.
        overhang_mm: tissue beyond the scan's first and last slice is taken to continue it by this much, so that the
            image does not end where the scan did.
        max_angle_deg: the jittered poses turn by up to this about each axis.
        max_shift_mm: and move by up to this along each axis.
        energy_kev: of the beam, for bone and water.
        series: of a DICOM folder that holds several: only (then it is an error), most-slices, or the short id of one.
        seed: of poses and quantum noise; each CT has streams of its own.
        appearance: how line integrals become grey values.
    """

    renderer: str = "planesweep"
    view: Literal["PA", "AP", "LATERAL"] = "PA"
    poses: int = Field(default=1, ge=1, le=1000)
    size: int = Field(default=224, ge=16, le=4096)
    field_mm: float = Field(default=403.2, gt=0)
    centre: Literal["lungs", "volume"] = "lungs"
    overhang_mm: float = Field(default=0.0, ge=0, le=300)
    max_angle_deg: float = Field(default=5.0, ge=0, le=30)
    max_shift_mm: float = Field(default=10.0, ge=0, le=200)
    energy_kev: float = Field(default=CT_EFFECTIVE_KEV, ge=ENERGIES_KEV[0], le=ENERGIES_KEV[-1])
    series: str = "only"
    seed: int = Field(default=42, ge=0)
    appearance: Appearance = Appearance()

    @field_validator("renderer")
    @classmethod
    def _known(cls, name: str) -> str:
        from embedprior.errors import nearest

        if name not in RENDERERS:
            raise ValueError(f"unknown renderer, allowed: {', '.join(RENDERERS)}.{nearest(name, RENDERERS)}")
        return name

    @property
    def geometry(self) -> Geometry:
        """Source, detector and view."""
        assert self.view in VIEWS
        return chest_geometry(self.view, self.size, self.field_mm)
