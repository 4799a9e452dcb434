from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from embedprior.errors import BadInput
from embedprior.imaging.resampling import Grid, covering_grid, resample, resample_onto
from embedprior.imaging.volume import Volume, to_sitk

from .conftest import chest, from_sitk


def by_simpleitk(volume: Volume, grid: Grid) -> np.ndarray:
    image = sitk.Cast(to_sitk(volume), sitk.sitkFloat32)
    turn = np.eye(3).ravel().tolist()
    result = sitk.Resample(
        image, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin_mm, grid.spacing_mm, turn, -1024.0
    )
    return np.asarray(sitk.GetArrayFromImage(result))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.1, 2.7, 1.9), (7.0, 7.0, 9.0), (5.0, 5.0, 6.0)])
@pytest.mark.parametrize("code", ["LPS", "RAS", "SRA"])
def test_agrees_with_simpleitk_on_the_same_grid(spacing: tuple[float, float, float], code: str) -> None:
    image = to_sitk(Volume(chest()[:, 10:40, 5:45].copy(), (5.0, 5.0, 6.0), (-3.0, 7.0, 11.0)))
    volume = from_sitk(sitk.DICOMOrient(image, code))
    grid = covering_grid(volume, spacing)
    ours = resample_onto(volume, grid)
    theirs = by_simpleitk(volume, grid)
    assert ours.hu.dtype == np.int16
    assert np.abs(ours.hu - theirs).max() <= 0.51
    assert ours.spacing_mm == spacing


def test_covers_the_extent_edge_to_edge() -> None:
    volume = Volume(chest(), (5.0, 5.0, 6.0), (-160.0, -160.0, -100.0))
    grid = covering_grid(volume, (1.0, 2.0, 3.0))
    assert grid.size == (320, 160, 80)
    assert grid.origin_mm == pytest.approx((-162.0, -161.5, -101.5))


def test_a_linear_ramp_stays_exactly_where_it_is() -> None:
    ramp = np.broadcast_to((np.arange(60) * 20 - 1000)[:, None, None], (60, 8, 8)).astype(np.int16)
    volume = Volume(ramp, (1.0, 1.0, 0.7), (0.0, 0.0, 0.0))
    result = resample(volume, (1.0, 1.0, 1.0))
    heights = result.origin_mm[2] + np.arange(result.shape[0])
    expected = np.clip(heights / 0.7 * 20 - 1000, ramp.min(), ramp.max())
    np.testing.assert_allclose(result.hu[:, 4, 4], expected, atol=0.5)


def test_outside_the_scan_is_air() -> None:
    volume = Volume(np.full((8, 8, 8), 40, np.int16), (2.0, 2.0, 2.0))
    wide = resample_onto(volume, Grid((24, 8, 8), (2.0, 2.0, 2.0), (-16.0, 0.0, 0.0)))
    assert (wide.hu[:, :, :8] == -1024).all()
    assert (wide.hu[:, :, 8:16] == 40).all()
    assert (wide.hu[:, :, 16:] == -1024).all()


def test_oblique_volume_is_straightened() -> None:
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    volume = Volume(chest(), (5.0, 5.0, 6.0), (0.0, 0.0, 0.0), turn)
    result = resample(volume, (4.0, 4.0, 4.0))
    np.testing.assert_array_equal(result.direction, np.eye(3))
    grid = Grid(result.shape[::-1], result.spacing_mm, result.origin_mm)
    assert np.abs(result.hu - by_simpleitk(volume, grid)).max() <= 1.01


def test_senseless_spacing_is_refused() -> None:
    volume = Volume(chest(), (5.0, 5.0, 6.0))
    for spacing in ((0.0, 1.0, 1.0), (0.001, 0.001, 0.001)):
        with pytest.raises(BadInput):
            resample(volume, spacing)
