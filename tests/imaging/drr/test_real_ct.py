"""A real chest CT: agreement with DiffDRR in jittered poses, upright, heart to the viewer's right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.imaging.drr import Poses, chest_geometry, get_renderer, hu_to_mu, lps_affine


def _read(path: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Attenuation (Z, Y, X) and affine of a NIfTI file."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = lps_affine(image.GetSpacing(), image.GetOrigin(), direction)
    return hu_to_mu(torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float32))), affine


def test_agrees_with_siddon_on_a_real_chest(shared_data: Path) -> None:
    pytest.importorskip("diffdrr")
    mu, affine = _read(shared_data / "ct" / "LIDC-IDRI-0001.nii.gz")
    angles = torch.tensor([[0, 0, 0], [10, -4, 7], [-6, 10, -10], [3, -9, 5]], dtype=torch.float64)
    shifts = torch.tensor([[0, 0, 0], [-20, 8, 15], [11, -20, -9], [20, 4, -20]], dtype=torch.float64)
    geometry = chest_geometry("PA", size=64)
    own, theirs = (
        get_renderer(name)(mu, affine, geometry, Poses(angles, shifts)) for name in ("planesweep", "diffdrr-siddon")
    )
    for one, other in zip(own.double(), theirs.double(), strict=True):
        assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) >= 0.9995
        assert float(one.mean() / other.mean()) == pytest.approx(1.0, abs=1e-3)


def test_real_chest_is_upright_with_the_heart_to_the_viewers_right(shared_data: Path) -> None:
    mu, affine = _read(shared_data / "ct" / "LIDC-IDRI-0001.nii.gz")
    image = get_renderer()(mu, affine, chest_geometry("PA", size=96))[0]
    belly, lungs = image[74:84, 30:66].mean(), image[34:46, 26:36].mean()
    assert float(belly) > float(lungs) + 1.0
    heart_side, other_side = image[50:60, 52:62].mean(), image[50:60, 34:44].mean()
    assert float(heart_side) > float(other_side)
