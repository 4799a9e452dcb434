"""Digitally reconstructed radiographs: CT volume → line integrals → radiograph. Importing this loads no torch."""

from __future__ import annotations

from embedprior.imaging.drr.config import (
    Appearance,
    Geometry,
    Poses,
    Renderer,
    chest_geometry,
    get_renderer,
    identity_poses,
    lps_affine,
    random_poses,
    renderer_version,
    versioned,
    volume_centre,
)

__all__ = [
    "Appearance",
    "Geometry",
    "Poses",
    "Renderer",
    "chest_geometry",
    "get_renderer",
    "identity_poses",
    "lps_affine",
    "random_poses",
    "renderer_version",
    "versioned",
    "volume_centre",
]
