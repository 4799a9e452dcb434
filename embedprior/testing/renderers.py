"""Every promise that a DRR renderer makes: line integrals in the right place and the right way round, and a version."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from embedprior.imaging.drr import Geometry, Poses, chest_geometry, get_renderer, lps_affine
from embedprior.testing.promises import CheckFailed, Promises, furthest, same

if TYPE_CHECKING:
    from torch import Tensor

SPACING = 4.0
SHAPE = (40, 48, 56)
"""Voxels along z, y, x of the made-up volume, of 4 mm."""
MU = 0.02
"""Attenuation of the made-up slab in mm⁻¹, about that of water at 60 keV."""
BEAD = (36.0, -28.0, 44.0)
"""LPS mm of a small dense ball, off centre along every axis: no flip puts its shadow back where it was."""


def check_renderer(renderer: str | Callable[..., Any], tolerance: float = 0.02) -> list[str]:
    """Run every promise of the renderer protocol (``embedprior.imaging.drr.Renderer``) on made-up volumes.

    Args:
        renderer: registry name, or a function.
        tolerance: relative error of a line integral through a uniform slab.

    Returns:
        The promises that were kept, in words.

    Raises:
        CheckFailed: the first promise that was not kept.
        BadInput: unknown name.

    Example:
        >>> check_renderer("planesweep")[0]
        'it states its version'
    """
    render = get_renderer(renderer) if isinstance(renderer, str) else renderer
    name = renderer if isinstance(renderer, str) else getattr(renderer, "__name__", type(renderer).__name__)
    promises = Promises(name)
    version = getattr(render, "version", None)
    promises.require(
        isinstance(version, int) and version >= 1, "it states its version",
        f"version = {version!r}. Next: put @versioned(1) above it (embedprior.imaging.drr.versioned)",
    )  # fmt: skip
    _integrals(promises, render, tolerance)
    _places(promises, render)
    _manners(promises, render)
    return promises.kept


def _volume() -> Float[np.ndarray, "z y x"]:
    return np.zeros(SHAPE, dtype=np.float32)


def _affine() -> Float[np.ndarray, "4 4"]:
    counts = np.array(SHAPE[::-1])
    x, y, z = (float(v) for v in -(counts - 1) / 2 * SPACING)
    return lps_affine((SPACING, SPACING, SPACING), (x, y, z))


def _ball(at: tuple[float, float, float], radius_mm: float = 7.0) -> Float[np.ndarray, "z y x"]:
    affine = _affine()
    z, y, x = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    world = [affine[axis, axis] * index + affine[axis, 3] for axis, index in enumerate((x, y, z))]
    distance = sum((own - centre) ** 2 for own, centre in zip(world, at, strict=True))
    return np.asarray(np.exp(-distance / (2 * (radius_mm / 2) ** 2)), dtype=np.float32) * MU


def _render(
    render: Callable[..., Any], mu: Float[np.ndarray, "z y x"], geometry: Geometry, poses: Poses | None = None,
    affine: np.ndarray[Any, Any] | None = None,
) -> Float[np.ndarray, "poses height width"]:  # fmt: skip
    import torch

    with torch.inference_mode():
        image: Tensor = render(torch.from_numpy(mu), _affine() if affine is None else affine, geometry, poses)
    return np.asarray(image)


def _integrals(promises: Promises, render: Callable[..., Any], tolerance: float) -> None:
    """Line integrals have their closed forms."""
    geometry = chest_geometry("PA", size=32, field_mm=160.0)
    empty = _render(render, _volume(), geometry)
    promises.require(
        empty.shape == (1, 32, 32) and np.issubdtype(empty.dtype, np.floating),
        "it returns floats of shape (poses, height, width)", f"{empty.dtype} of shape {empty.shape}",
    )  # fmt: skip
    promises.require(not empty.any(), "an empty volume gives zeros", f"up to {np.abs(empty).max():.3g}")
    slab = _volume()
    slab[:, 14:34, :] = MU  # 20 planes of 4 mm across the beam
    found = _render(render, slab, geometry)[0]
    # a ray at an angle crosses the slab over thickness / cos(angle)
    offsets = (np.arange(32) - 15.5) * geometry.pitch
    slant = np.sqrt(1 + (offsets[:, None] ** 2 + offsets**2) / geometry.source_to_detector**2)
    expected = MU * 20 * SPACING * slant
    error = float(np.abs(found / expected - 1).max())
    promises.require(
        error <= tolerance, "a slab gives attenuation × thickness / cos(angle)",
        f"relative error {error:.3g} (at most {tolerance:g}); the middle is {found[15, 15]:.4f}, not "
        f"{expected[15, 15]:.4f}",
    )  # fmt: skip
    ball = _ball(BEAD)
    one, other, both = (_render(render, mu, geometry) for mu in (ball, slab, 3 * ball + slab))
    promises.require(
        bool(np.allclose(both, 3 * one + other, rtol=1e-3, atol=1e-4)), "it is linear in the attenuation",
        furthest(both, 3 * one + other),
    )  # fmt: skip


def _places(promises: Promises, render: Callable[..., Any]) -> None:
    """A small ball lands where the geometry says, for every view, motion and order of the voxels."""
    import torch

    ball = _ball(BEAD)
    for view in ("PA", "AP", "LATERAL"):
        geometry = chest_geometry(view, size=64, field_mm=256.0)
        found, expected = _centroid(_render(render, ball, geometry)[0]), _shadow(BEAD, geometry)
        promises.require(
            bool(np.abs(found - expected).max() <= 1.0), f"a ball's shadow lies where it belongs ({view})",
            f"row and column {found.round(1)}, not {expected.round(1)}",
        )  # fmt: skip
    geometry = chest_geometry("PA", size=64, field_mm=256.0)
    shift = np.array([12.0, 0.0, -16.0])
    moved = Poses(torch.zeros(2, 3, dtype=torch.float64), torch.from_numpy(np.stack([0 * shift, shift])))
    images = _render(render, ball, geometry, moved)
    promises.require(images.shape == (2, 64, 64), "it returns one image a pose", f"shape {images.shape} for 2 poses")
    seen = tuple(float(v) for v in np.array(BEAD) - shift)
    found, expected = _centroid(images[1]), _shadow((seen[0], seen[1], seen[2]), geometry)
    promises.require(
        bool(np.abs(found - expected).max() <= 1.0), "a pose moves source and detector together",
        f"row and column {found.round(1)}, not {expected.round(1)}",
    )  # fmt: skip
    flipped = np.ascontiguousarray(ball[::-1, :, ::-1])
    affine = _affine()
    for axis, count in ((0, SHAPE[2]), (2, SHAPE[0])):
        affine[:3, 3] += affine[:3, axis] * (count - 1)
        affine[:3, axis] *= -1
    again = _render(render, flipped, geometry, None, affine)
    promises.require(
        bool(np.abs(_centroid(again[0]) - _shadow(BEAD, geometry)).max() <= 1.0),
        "voxels stored in another order give the same image", f"row and column {_centroid(again[0]).round(1)}",
    )  # fmt: skip


def _manners(promises: Promises, render: Callable[..., Any]) -> None:
    """The same call gives the same image, and the volume is left as it was."""
    geometry, ball = chest_geometry("PA", size=32, field_mm=256.0), _ball(BEAD)
    before = ball.copy()
    one, other = (_render(render, ball, geometry) for _ in range(2))
    promises.require(same(one, other), "the same call gives the same image", furthest(one, other))
    promises.require(same(before, ball), "it leaves the volume as it was", "the volume was written to. Next: copy it")
    if not np.isfinite(one).all():
        raise CheckFailed("a renderer returned a number that is not finite")


def _shadow(at: tuple[float, float, float], geometry: Geometry) -> Float[np.ndarray, " 2"]:
    """Return row and column of a point's shadow: similar triangles from the source through the point."""
    column, row, beam = geometry.axes().T
    point = np.array(at)
    magnification = geometry.source_to_detector / (geometry.source_to_isocentre + point @ beam)
    middle = np.array([(geometry.height - 1) / 2, (geometry.width - 1) / 2])
    return np.asarray(middle + magnification * np.array([point @ row, point @ column]) / geometry.pitch)


def _centroid(image: Float[np.ndarray, "height width"]) -> Float[np.ndarray, " 2"]:
    rows, columns = np.indices(image.shape)
    weight = np.asarray(image, dtype=np.float64) / max(float(image.sum()), 1e-12)
    return np.array([(rows * weight).sum(), (columns * weight).sum()])
