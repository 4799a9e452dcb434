"""A real chest CT: agreement with the peers in random poses, upright, heart to the viewer's right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.imaging.drr import Poses, chest_geometry, get_renderer
from embedprior.imaging.drr.physics import hu_to_mu
from embedprior.imaging.drr.render import scan
from embedprior.imaging.readers import find_cts, read_volume
from embedprior.imaging.resampling import resample
from embedprior.imaging.volume import Volume, canonical

STRAIGHT_AND_JITTERED = Poses(
    torch.tensor([[0, 0, 0], [10, -4, 7], [-6, 10, -10], [3, -9, 5]], dtype=torch.float64),
    torch.tensor([[0, 0, 0], [-20, 8, 15], [11, -20, -9], [20, 4, -20]], dtype=torch.float64),
)


def _mu(volume: Volume) -> torch.Tensor:
    return hu_to_mu(torch.from_numpy(np.ascontiguousarray(volume.hu)).float())


def _hold(volume: Volume, name: str, size: int, least: float) -> None:
    geometry = chest_geometry("PA", size=size)
    with torch.inference_mode():
        own, theirs = (
            get_renderer(which)(_mu(volume), volume.affine, geometry, STRAIGHT_AND_JITTERED).double()
            for which in ("planesweep", name)
        )
    for one, other in zip(own, theirs, strict=True):
        assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) >= least
        assert float(one.mean() / other.mean()) == pytest.approx(1.0, abs=1e-3)


@pytest.fixture(scope="module")
def chest(shared_data: Path) -> Volume:
    return read_volume(shared_data / "ct" / "LIDC-IDRI-0001.nii.gz")[0]


@pytest.fixture(scope="module")
def cube(chest: Volume) -> Volume:
    """256 voxels along every axis, each axis with a spacing of its own."""
    fine = resample(chest, tuple(mm / 256 for mm in chest.size_mm))
    assert fine.shape == (256, 256, 256)
    assert len({round(s, 3) for s in fine.spacing_mm}) > 1
    return fine


def test_agrees_with_siddon_on_a_real_chest(chest: Volume) -> None:
    pytest.importorskip("diffdrr")
    _hold(chest, "diffdrr-siddon", 64, 0.9995)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "least"),
    [("diffdrr-siddon", "diffdrr", 0.9995), ("diffdrr-trilinear", "diffdrr", 0.9999), ("nanodrr", "nanodrr", 0.9999)],
)
def test_agrees_with_the_peers_at_256_cubed(cube: Volume, name: str, package: str, least: float) -> None:
    pytest.importorskip(package)
    _hold(cube, name, 128, least)


def test_real_chest_is_upright_with_the_heart_to_the_viewers_right(chest: Volume) -> None:
    image = get_renderer()(_mu(chest), chest.affine, chest_geometry("PA", size=96))[0]
    belly, lungs = image[74:84, 30:66].mean(), image[34:46, 26:36].mean()
    assert float(belly) > float(lungs) + 1.0
    heart_side, other_side = image[50:60, 52:62].mean(), image[50:60, 34:44].mean()
    assert float(heart_side) > float(other_side)


def test_dicom_zip_and_nifti_of_one_scan_give_the_same_radiograph(chest: Volume, shared_data: Path) -> None:
    from embedprior.imaging.drr.render import isocentre

    stored = read_volume(shared_data / "ct" / "LIDC-IDRI-0001_dicom.zip")[0]
    coarse = resample(canonical(stored), (4.0, 4.0, 4.0))
    geometry, centre = chest_geometry("PA", size=96), isocentre(chest, "lungs")
    one, other = (get_renderer()(_mu(v), v.affine, geometry, isocentre=centre)[0] for v in (chest, coarse))
    assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) >= 0.99


def test_every_real_ct_is_one_series(shared_data: Path) -> None:
    found, failures = scan(find_cts(shared_data / "ct", keep_names=True)[0])
    assert len(found) == 18
    assert not failures
    assert not [s for s in found if s.same_as]
