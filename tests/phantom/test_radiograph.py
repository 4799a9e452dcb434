"""Radiographs of virtual patients: orientation, the two styles, and what a film shows of a finding."""

from __future__ import annotations

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.phantom import PhantomConfig, radiograph, virtual_patient

CONFIG = PhantomConfig(scar_rate=0.0, granulomas_mean=0.0)
SEED = 10_000


def _mean(style: str, count: int = 12) -> np.ndarray:
    crowd = (virtual_patient(CONFIG, SEED, index, label=0, secondary_sign=False) for index in range(count))
    return np.mean([radiograph(patient, style, 64, seed=1).astype(float) for patient in crowd], axis=0)


@pytest.mark.parametrize("style", ["drr", "cxr"])
def test_chest_is_upright_with_the_heart_to_the_viewers_right(style: str) -> None:
    mean = _mean(style)
    belly, lungs, neck_side = mean[56:, 16:48], mean[20:34, 12:22], mean[:3, :3]
    assert belly.mean() > lungs.mean() + 60, "belly below, bones and soft tissue white"
    assert neck_side.mean() < belly.mean(), "air beside the neck"
    heart_right, heart_left = mean[34:42, 36:44].mean(), mean[34:42, 20:28].mean()
    assert heart_right > heart_left + 8


def test_styles_differ_and_the_clean_one_ignores_the_seed() -> None:
    patient = virtual_patient(CONFIG, SEED, 0)
    assert np.array_equal(radiograph(patient, "drr", 64, seed=1), radiograph(patient, "drr", 64, seed=2))
    assert np.array_equal(radiograph(patient, "cxr", 64, seed=1), radiograph(patient, "cxr", 64, seed=1))
    assert not np.array_equal(radiograph(patient, "cxr", 64, seed=1), radiograph(patient, "cxr", 64, seed=2))
    assert not np.array_equal(radiograph(patient, "drr", 64, seed=1), radiograph(patient, "cxr", 64, seed=1))


def test_effusion_whitens_its_own_costophrenic_angle() -> None:
    for index in range(3):
        dry = virtual_patient(CONFIG, SEED, index, label=0, secondary_sign=False)
        wet = virtual_patient(CONFIG, SEED, index, label=0, secondary_sign=True)
        gained = radiograph(wet, "drr", 64, 0).astype(int) - radiograph(dry, "drr", 64, 0)
        own, other = (gained[:, 32:], gained[:, :32]) if wet.effusion.side > 0 else (gained[:, :32], gained[:, 32:])
        assert own.sum() > 4 * abs(other.sum())
        assert gained[32:].sum() > 4 * abs(gained[:32].sum())


def test_lesion_is_fainter_in_projection_than_in_ct() -> None:
    shown = []
    for index in range(8):
        healthy = virtual_patient(CONFIG, SEED, index, label=0, secondary_sign=False)
        ill = virtual_patient(CONFIG, SEED, index, label=1, secondary_sign=False)
        in_ct = (ill.volume.astype(int) - healthy.volume).max() / 1000
        films = [radiograph(patient, "cxr", 64, seed=1).astype(int) for patient in (ill, healthy)]
        shown.append((in_ct, np.abs(films[0] - films[1])[8:-8, 8:-8].max() / 255))
    in_ct, in_film = np.array(shown).T
    assert in_ct.min() > 0.6
    assert np.median(in_film) < 0.5 * np.median(in_ct)


@pytest.mark.parametrize("size", [64, 96])
def test_size_and_type(size: int) -> None:
    film = radiograph(virtual_patient(CONFIG, SEED, 2), "cxr", size, seed=0)
    assert film.shape == (size, size)
    assert film.dtype == np.uint8
    assert film.std() > 30


def test_unknown_style_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'cxr'"):
        radiograph(virtual_patient(CONFIG, SEED, 0), "cx", 32, seed=0)
