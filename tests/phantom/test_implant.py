"""A lesion planted in a CT: where it says, as big as it says, and nothing else touched."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from embedprior.imaging.drr import chest_geometry, get_renderer
from embedprior.imaging.drr.physics import hu_to_mu
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.lungs import find_lungs
from embedprior.imaging.volume import Volume
from embedprior.phantom import PhantomConfig, virtual_patient
from embedprior.phantom.implant import ImplantConfig, implant


@cache
def _chest() -> Volume:
    patient = virtual_patient(PhantomConfig(shape=(80, 88, 88), spacing_mm=(3.9, 3.8, 3.8), noise_hu=0), 3, 0)
    x, y, z = (float(v) for v in patient.affine[:3, 3])
    return Volume(patient.volume, (3.8, 3.8, 3.9), (x, y, z))


ROUND = ImplantConfig(radius_mm=(14.0, 14.0), texture_hu=0.0, lobulation=0.0)


def _distance(volume: Volume, centre: tuple[float, float, float]) -> np.ndarray:
    grid = np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij")
    index = np.stack([*grid[::-1], np.ones(volume.shape)])
    world = np.tensordot(volume.affine[:3], index, axes=1)
    return np.sqrt(((world - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0))


def test_only_the_lesion_changes_and_it_is_soft_tissue_in_the_lung() -> None:
    volume = _chest()
    planted, where = implant(volume, 5, ROUND)
    distance = _distance(volume, where.centre_mm)
    assert (planted.hu == volume.hu)[distance > 14 + 4].all()
    core = distance < 14 - 4
    lung = core & (volume.hu < -500)
    assert lung.sum() > 20
    assert planted.hu[lung] == pytest.approx(35, abs=1)
    assert (planted.hu >= volume.hu).all()
    assert where.volume_ml == pytest.approx(4 / 3 * np.pi * 1.4**3, rel=0.05)


def test_vessels_and_calcifications_denser_than_the_lesion_stay() -> None:
    volume = _chest()
    _, where = implant(volume, 5, ROUND)
    dense = volume.hu.copy()
    dense[_distance(volume, where.centre_mm) < 6] = 300
    again, there = implant(volume.with_hu(dense), 5, ROUND, find_lungs(volume))
    assert there.centre_mm == where.centre_mm
    assert (again.hu[_distance(volume, where.centre_mm) < 6] == 300).all()


def test_same_seed_same_lesion_and_other_seeds_spread_over_both_lungs() -> None:
    volume = _chest()
    one, again = implant(volume, 1), implant(volume, 1)
    assert (one[0].hu == again[0].hu).all()
    assert one[1] == again[1]
    found = [implant(volume, seed)[1] for seed in range(12)]
    left = [f.centre_mm[0] > 0 for f in found]
    assert 0 < sum(left) < 12
    assert all(8 <= f.radius_mm <= 16 for f in found)
    assert len({round(f.radius_mm, 3) for f in found}) == 12


def test_orientation_of_the_file_moves_nothing() -> None:
    volume = _chest()
    flipped = replace(
        volume, hu=volume.hu[::-1, ::-1], direction=np.diag([1.0, -1.0, -1.0]),
        origin_mm=tuple((volume.affine @ [0, volume.shape[1] - 1, volume.shape[0] - 1, 1])[:3]),
    )  # fmt: skip
    planted, where = implant(volume, 4)
    other, there = implant(flipped, 4)
    assert there.centre_mm == pytest.approx(where.centre_mm)
    assert (planted.hu == other.hu).all()


def test_radiograph_shows_it_at_its_projection() -> None:
    volume = _chest()
    planted, where = implant(volume, 5, ROUND)
    geometry = chest_geometry("PA", 112)
    centre = np.array([0.0, 0.0, 0.0])

    def image(v: Volume) -> torch.Tensor:
        return get_renderer()(hu_to_mu(torch.from_numpy(v.hu).float()), v.affine, geometry, isocentre=centre)[0]

    extra = image(planted) - image(volume)
    x, y, z = where.centre_mm
    scale = 1800 / (1600 - y) / geometry.pitch
    row, column = np.unravel_index(int(extra.argmax()), extra.shape)
    assert (row, column) == pytest.approx((55.5 - z * scale, 55.5 + x * scale), abs=2)


def test_no_lungs_and_no_room_are_said() -> None:
    volume = _chest()
    with pytest.raises(UnreadableExam, match="no lungs"):
        implant(volume.with_hu(np.full_like(volume.hu, -1000)), 0)
    with pytest.raises(UnreadableExam, match="no place"):
        implant(volume, 0, ImplantConfig(radius_mm=(150.0, 160.0)))


def test_radii_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="smallest <= largest"):
        ImplantConfig(radius_mm=(10.0, 5.0))
