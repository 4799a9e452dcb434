"""Settings of ``embedprior drr`` (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from embedprior.config import Config

from .geometry import VIEWS, Geometry, chest_geometry
from .physics import CT_EFFECTIVE_KEV, ENERGIES_KEV
from .renderers import RENDERERS
from .style import Appearance


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
