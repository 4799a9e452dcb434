"""Renderers by name behind one small protocol; a backend is imported when it is asked for, not before."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from embedprior.errors import choose
from embedprior.imaging.drr.geometry import Geometry, Poses

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

RENDERERS = {
    "planesweep": "embedprior.imaging.drr.planesweep:render",
    "diffdrr-siddon": "embedprior.imaging.drr.peers:render_siddon",
    "diffdrr-trilinear": "embedprior.imaging.drr.peers:render_trilinear",
    "nanodrr": "embedprior.imaging.drr.peers:render_nanodrr",
}


class Renderer(Protocol):
    """(Z, Y, X) attenuation in mm⁻¹ → (P, H, W) line integrals, as `planesweep.render` documents."""

    def __call__(
        self,
        mu_volume: Tensor,
        affine: np.ndarray | Tensor,
        geometry: Geometry,
        poses: Poses | None = None,
        isocentre: np.ndarray | Tensor | None = None,
    ) -> Tensor: ...


def get_renderer(name: str = "planesweep") -> Renderer:
    """The renderer registered under a name.

    Raises:
        BadInput: unknown name, or a backend whose package is not installed.
    """
    module, function = choose("renderer", name, RENDERERS).split(":")
    return cast(Renderer, getattr(importlib.import_module(module), function))
