"""What a population of virtual patients looks like: settings only."""

from __future__ import annotations

from pydantic import Field, model_validator

from embedprior.config import Config


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
