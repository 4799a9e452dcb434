"""Virtual patients: the same for the same seed, anatomy where it belongs, and nothing that leaks the label."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from embedprior.phantom import PhantomConfig, VirtualPatient, virtual_patient
from embedprior.phantom.anatomy import Anatomy, lung_shares
from embedprior.phantom.space import make_grid

CONFIG = PhantomConfig()
SEED = 10_000


@pytest.fixture(scope="module")
def patients() -> list[VirtualPatient]:
    return [virtual_patient(CONFIG, SEED, index) for index in range(12)]


def _at(patient: VirtualPatient, x: float, y: float, z: float) -> float:
    """HU around a body position (LPS mm before the patient's own size and turn), mean of 3 x 3 x 3 voxels."""
    a = patient.attributes
    cos, sin = np.cos(a["turn"]), np.sin(a["turn"])
    world = a["scale"] * np.array([cos * x - sin * y, sin * x + cos * y, z])
    index = np.rint(np.linalg.inv(patient.affine) @ [*world, 1])[:3].astype(int)
    i, j, k = (slice(n - 1, n + 2) for n in index)
    return float(patient.volume[k, j, i].mean())


def test_same_seed_and_index_give_the_same_patient_and_others_differ() -> None:
    first, again = virtual_patient(CONFIG, SEED, 3), virtual_patient(CONFIG, SEED, 3)
    assert np.array_equal(first.volume, again.volume)
    assert not np.array_equal(first.volume, virtual_patient(CONFIG, SEED, 4).volume)
    assert not np.array_equal(first.volume, virtual_patient(CONFIG, SEED + 1, 3).volume)


@pytest.mark.parametrize("index", range(6))
def test_flipping_label_and_sign_changes_nothing_outside_lesion_and_effusion(index: int) -> None:
    healthy = virtual_patient(CONFIG, SEED, index, label=0, secondary_sign=False)
    ill = virtual_patient(CONFIG, SEED, index, label=1, secondary_sign=True)
    assert ill.lesion is not None
    assert ill.lesion_centre_mm is not None
    changed = np.argwhere(healthy.volume != ill.volume)
    assert len(changed) > 20
    positions = changed[:, ::-1] * np.array(CONFIG.spacing_mm[::-1]) + ill.affine[:3, 3]
    from_lesion = np.linalg.norm(positions - np.array(ill.lesion_centre_mm), axis=1)
    in_lesion = from_lesion <= (1.3 * ill.lesion.radius_mm + 2 * max(CONFIG.spacing_mm))
    anatomy = Anatomy(**ill.attributes)
    lung = lung_shares(anatomy, make_grid(CONFIG.shape, CONFIG.spacing_mm, anatomy.turn, anatomy.scale))
    side = np.sign(positions[:, 0]) == ill.effusion.side
    low = positions[:, 2] < (anatomy.recess + CONFIG.effusion_rise_mm[1] + 60) * anatomy.scale
    assert np.all(lung[tuple(changed.T)] > 0)
    assert np.all(in_lesion | (side & low))


def test_only_the_lesion_tells_a_lesion() -> None:
    healthy = virtual_patient(CONFIG, SEED, 1, label=0, secondary_sign=True)
    ill = virtual_patient(CONFIG, SEED, 1, label=1, secondary_sign=True)
    assert healthy.attributes == ill.attributes
    assert healthy.effusion == ill.effusion
    denser = ill.volume.astype(int) - healthy.volume
    assert denser.min() >= 0
    assert denser.max() > 500


def test_heart_and_stomach_are_left_and_liver_is_right(patients: list[VirtualPatient]) -> None:
    for patient in patients:
        assert _at(patient, 42, -32, -50) > 0, "the heart reaches to the left"
        assert _at(patient, -75, -20, 10) < -600, "right lung"
        assert _at(patient, 75, -20, 20) < -600, "left lung"
        assert _at(patient, -60, 0, -125) == pytest.approx(95, abs=25), "liver under the right dome"
        assert patient.attributes["dome_right"] > patient.attributes["dome_left"] - 5


def test_spine_is_behind_and_bony_and_outside_is_air(patients: list[VirtualPatient]) -> None:
    for patient in patients:
        shape = np.array(patient.volume.shape)
        back = patient.volume[:, shape[1] // 2 :].max()
        assert back > 250
        assert patient.volume[:, :2, :2].mean() == pytest.approx(-1000, abs=5)
        assert _at(patient, 0, 52 + patient.attributes["kyphosis"], -20) > 80


def test_lungs_hold_an_adult_volume_of_air(patients: list[VirtualPatient]) -> None:
    litres = []
    for patient in patients:
        inner = patient.volume[:, 8:-8, 8:-8]
        body = (inner > -970) & (inner < -600)
        litres.append(body.sum() * np.prod(patient.spacing_mm) / 1e6)
    assert 2.5 < np.median(litres) < 7.5
    assert np.std(litres) > 0.2


def test_rates_follow_the_configuration() -> None:
    coarse = PhantomConfig(shape=(12, 12, 12), spacing_mm=(25, 28, 28), prevalence=0.3, sign_rate_positive=0.8)
    crowd = [virtual_patient(coarse, SEED, index) for index in range(240)]
    label = np.array([patient.label for patient in crowd])
    sign = np.array([patient.secondary_sign for patient in crowd])
    # four binomial standard deviations
    assert label.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 240))
    assert sign[label == 1].mean() == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / label.sum()))
    negative_rate = coarse.sign_rate_negative
    assert sign[label == 0].mean() == pytest.approx(
        negative_rate, abs=4 * np.sqrt(negative_rate * (1 - negative_rate) / (label == 0).sum())
    )
    hidden = np.mean([patient.lesion.zone != "open" for patient in crowd if patient.lesion])
    assert hidden == pytest.approx(coarse.lesion_hidden_share, abs=4 * np.sqrt(0.25 / label.sum()))
    radii = [patient.lesion.radius_mm for patient in crowd if patient.lesion]
    assert min(radii) >= coarse.lesion_radius_mm[0]
    assert max(radii) <= coarse.lesion_radius_mm[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lesion_radius_mm", (25.0, 26.0)),
        ("effusion_rise_mm", (70.0, 71.0)),
        ("noise_hu", 40.0),
        ("granulomas_mean", 9.0),
        ("scar_rate", 1.0),
        ("lesion_hidden_share", 0.0),
    ],
)
def test_every_appearance_field_changes_the_picture(field: str, value: object) -> None:
    base = PhantomConfig(scar_rate=0.0, lesion_hidden_share=1.0)
    changed = base.model_copy(update={field: value})
    pairs = [
        (virtual_patient(config, SEED, index, label=1, secondary_sign=True).volume for config in (base, changed))
        for index in range(3)
    ]
    assert any(not np.array_equal(one, other) for one, other in pairs)


def test_finer_grid_is_the_same_patient() -> None:
    quiet = PhantomConfig(noise_hu=0.0, scar_rate=0.0, granulomas_mean=0.0)
    fine = quiet.model_copy(update={"shape": (112, 128, 128), "spacing_mm": (2.75, 2.625, 2.625)})
    coarse_volume = virtual_patient(quiet, SEED, 5).volume.astype(float)
    averaged = virtual_patient(fine, SEED, 5).volume.astype(float).reshape(56, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(coarse_volume.ravel(), averaged.ravel())[0, 1] > 0.99
    assert coarse_volume.mean() == pytest.approx(averaged.mean(), abs=8)


def test_lesion_centre_is_where_the_lesion_is() -> None:
    healthy = virtual_patient(CONFIG, SEED, 7, label=0, secondary_sign=False)
    ill = virtual_patient(CONFIG, SEED, 7, label=1, secondary_sign=False)
    gained = (ill.volume.astype(float) - healthy.volume).clip(min=0)
    index = np.array(
        [(gained.sum(axis=tuple(set(range(3)) - {axis})) @ np.arange(n)) for axis, n in enumerate(gained.shape)]
    )
    centre = (ill.affine @ [*(index / gained.sum())[::-1], 1])[:3]
    assert centre == pytest.approx(ill.lesion_centre_mm, abs=0.6 * ill.lesion.radius_mm)


@pytest.mark.parametrize("bad", [{"lesion_radius_mm": (20.0, 10.0)}, {"shape": (4, 64, 64)}, {"prevalence": 1.5}])
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PhantomConfig(**bad)


def test_import_loads_no_torch() -> None:
    heavy = "{'torch', 'matplotlib'}"
    code = f"import embedprior.phantom, embedprior.imaging.drr, sys; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
