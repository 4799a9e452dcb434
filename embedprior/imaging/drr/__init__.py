"""Digitally reconstructed radiographs: CT volume → line integrals → radiograph. Importing this loads no torch."""

from __future__ import annotations

from embedprior.imaging.drr.config import Appearance
from embedprior.imaging.drr.geometry import (
    Geometry,
    Poses,
    chest_geometry,
    jittered,
    lps_affine,
    straight,
    volume_centre,
)
from embedprior.imaging.drr.physics import hu_to_mu
from embedprior.imaging.drr.renderers import RENDERERS, Renderer, get_renderer

__all__ = [
    "RENDERERS",
    "Appearance",
    "Geometry",
    "Poses",
    "Renderer",
    "chest_geometry",
    "get_renderer",
    "hu_to_mu",
    "jittered",
    "lps_affine",
    "straight",
    "volume_centre",
]
