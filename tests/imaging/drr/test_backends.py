"""The plane sweep against DiffDRR and nanodrr, which share only the volume and the geometry's numbers with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.errors import BadInput
from embedprior.imaging.drr import Poses, chest_geometry, get_renderer, lps_affine

SHAPE, SPACING = (72, 96, 112), (2.9, 3.1, 4.0)


def _phantom() -> torch.Tensor:
    """Smooth, nowhere symmetric: an off-centre trunk with unequal blobs in different corners; attenuation in mm⁻¹."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")

    def blob(cx: float, cy: float, cz: float, width: float) -> np.ndarray:
        return np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * width**2))

    trunk = 1 / (1 + np.exp(((x / 0.8) ** 2 + ((y - 0.05) / 0.7) ** 2 + (z / 0.85) ** 2 - 1) * 8))
    mu = 0.02 * trunk + 0.03 * blob(0.4, -0.3, 0.5, 0.15) + 0.02 * blob(-0.5, 0.4, -0.2, 0.1)
    return torch.from_numpy(mu.astype(np.float32))


def _affine() -> np.ndarray:
    counts = np.array(SHAPE[::-1])
    origin = -(counts - 1) / 2 * np.array(SPACING)
    return lps_affine(SPACING, (float(origin[0]) + 30, float(origin[1]) - 12, float(origin[2]) + 400))


def _poses() -> Poses:
    """Straight, and three turns and shifts up to 10 degrees and 20 mm."""
    angles = [[0, 0, 0], [10, -4, 7], [-6, 10, -10], [3, -9, 5]]
    shifts = [[0, 0, 0], [-20, 8, 15], [11, -20, -9], [20, 4, -20]]
    return Poses(torch.tensor(angles, dtype=torch.float64), torch.tensor(shifts, dtype=torch.float64))


def _ncc(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().flatten() - a.double().mean(), b.double().flatten() - b.double().mean()
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
@pytest.mark.parametrize(
    ("name", "package", "least"),
    [
        ("diffdrr-siddon", "diffdrr", 0.9995),
        ("diffdrr-trilinear", "diffdrr", 0.9999),
        ("nanodrr", "nanodrr", 0.9999),
    ],
)
def test_agrees_with_the_peer(name: str, package: str, least: float, view: str) -> None:
    pytest.importorskip(package)
    geometry = chest_geometry(view, size=64)
    poses = _poses() if view == "PA" else Poses(_poses().angles_deg[:2], _poses().shift_mm[:2])
    own = get_renderer()(_phantom(), _affine(), geometry, poses)
    theirs = get_renderer(name)(_phantom(), _affine(), geometry, poses)
    for one, other in zip(own, theirs, strict=True):
        assert _ncc(one, other) >= least
        assert float(one.mean() / other.mean()) == pytest.approx(1.0, abs=1e-3)
        # the phantom tells a mirrored or upside-down picture from a right one
        assert _ncc(one.flip(1), other) < 0.99
        assert _ncc(one.flip(0), other) < 0.99


def test_poses_differ_enough_to_notice_an_ignored_one() -> None:
    images = get_renderer()(_phantom(), _affine(), chest_geometry("PA", size=64), _poses())
    assert all(_ncc(images[0], image) < 0.995 for image in images[1:])


def test_unknown_renderer_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'planesweep'"):
        get_renderer("plainsweep")
