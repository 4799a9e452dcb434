"""Digitally reconstructed radiographs: CT volume → line integrals → radiograph. Importing this loads no torch."""

from __future__ import annotations

from .geometry import Geometry, Poses, chest_geometry, jittered, lps_affine, straight, volume_centre
from .physics import hu_to_mu
from .renderers import RENDERERS, Renderer, get_renderer
from .style import Appearance

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
