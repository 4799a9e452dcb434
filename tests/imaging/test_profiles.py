from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from embedprior.config import config_folder
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.image_files import read_mask
from embedprior.imaging.lungs import find_lungs
from embedprior.imaging.preprocess import (
    WINDOWS,
    VolumeProfile,
    load_profile,
    on_grid,
    prepare,
    profile_key,
    profile_record,
    windowed,
)  # fmt: skip
from embedprior.imaging.volume import Volume, to_sitk

from .conftest import chest, from_sitk

SHIPPED = sorted(p.stem for p in config_folder("profile").glob("*.yaml"))


@pytest.fixture(scope="module")
def volume() -> Volume:
    return Volume(chest(), (5.0, 5.0, 6.0), (-160.0, -160.0, -100.0))


def test_windows_of_the_papers() -> None:
    assert WINDOWS["pe"] == (-100, 900)
    for level, width, name in ((-600, 1500, "lung"), (40, 400, "mediastinum"), (400, 1000, "pe")):
        assert WINDOWS[name] == (level - width / 2, level + width / 2)
    np.testing.assert_allclose(windowed(np.array([-500, -100, 400, 900, 3000], np.int16), -100, 900), [0, 0, 0.5, 1, 1])


def test_shapes_of_the_shipped_profiles(volume: Volume) -> None:
    shapes = {name: prepare(volume, load_profile(name)).shape for name in SHIPPED}
    assert shapes["pe_paper"][0] == 1
    assert shapes["pe_paper"][2:] == (128, 128)
    assert shapes["slices_224"][0] == 3
    assert shapes["slices_224"][2:] == (224, 224)
    assert shapes["penet"] == (1, 40, 208, 208)
    assert shapes["merlin"] == (1, 160, 224, 224)


@pytest.mark.parametrize("name, first_moments", [("pe_paper", (0.0578, 0.0811)), ("slices_128", (0.2311, 0.2435))])
def test_golden_moments_hold_while_the_transform_version_does(
    volume: Volume, name: str, first_moments: tuple[float, float]
) -> None:
    profile = load_profile(name)
    prepared = prepare(volume, profile)
    assert profile_record(profile)["transform_version"] == 2, "numbers changed on purpose: new golden values too"
    assert (float(prepared.mean()), float(prepared.std())) == pytest.approx(first_moments, abs=2e-4)


def test_result_does_not_depend_on_the_stored_orientation(volume: Volume) -> None:
    turned = from_sitk(sitk.DICOMOrient(to_sitk(volume), "SRA"))
    profile = load_profile("slices_128")
    np.testing.assert_allclose(prepare(turned, profile), prepare(volume, profile), atol=1e-6)


def test_ras_profile_turns_left_and_front_the_other_way(volume: Volume) -> None:
    lps = VolumeProfile(spacing_mm=None, crop="none", side=None, windows=("wide",))
    ras = lps.model_copy(update={"axes": "RAS"})
    np.testing.assert_array_equal(prepare(volume, ras), prepare(volume, lps)[..., ::-1, ::-1])


def test_lung_crop_holds_all_of_the_lungs(volume: Volume) -> None:
    cropped = on_grid(volume, VolumeProfile(spacing_mm=None, margin_mm=0.0))
    assert cropped.size_mm < volume.size_mm
    assert find_lungs(cropped).ml == pytest.approx(find_lungs(volume).ml, rel=0.02)


def test_mask_decides_the_crop_and_must_lie_on_the_grid(volume: Volume) -> None:
    mask = np.zeros_like(volume.hu)
    mask[10:20, 20:30, 5:15] = 1
    profile = VolumeProfile(spacing_mm=None, margin_mm=10.0)
    cropped = on_grid(volume, profile, volume.with_hu(mask))
    assert cropped.shape == (10 + 2 * 2, 10 + 2 * 2, 10 + 2 * 2)
    np.testing.assert_array_equal(cropped.hu, volume.hu[8:22, 18:32, 3:17])
    turned = Volume(mask, volume.spacing_mm, volume.origin_mm, np.diag([-1.0, 1.0, 1.0]))
    with pytest.raises(BadInput, match="does not lie on the volume's grid"):
        on_grid(volume, profile, turned)
    with pytest.raises(BadInput, match="empty"):
        on_grid(volume, profile, volume.with_hu(np.zeros_like(mask)))


def test_mask_of_another_tool_is_read_and_ct_is_no_mask(volume: Volume, tmp_path: Path) -> None:
    labels = np.zeros_like(volume.hu)
    labels[10:20, 20:30, 5:15] = 2
    sitk.WriteImage(sitk.Cast(to_sitk(volume.with_hu(labels)), sitk.sitkUInt8), str(tmp_path / "mask.nii.gz"))
    mask = read_mask(tmp_path / "mask.nii.gz")
    profile = VolumeProfile(spacing_mm=None, margin_mm=10.0)
    assert on_grid(volume, profile, mask).shape == (14, 14, 14)
    sitk.WriteImage(to_sitk(volume), str(tmp_path / "ct.nii.gz"))
    for name in ("ct.nii.gz", "gone.nii.gz"):
        with pytest.raises(UnreadableExam, match="mask"):
            read_mask(tmp_path / name)


def test_crop_without_lungs_is_refused_not_skipped() -> None:
    belly = Volume(np.where(chest() < -300, 30, chest()).astype(np.int16), (5.0, 5.0, 6.0))
    with pytest.raises(UnreadableExam, match="no lungs"):
        prepare(belly, VolumeProfile())


def test_every_field_changes_the_key_and_the_numbers(volume: Volume) -> None:
    base = VolumeProfile(spacing_mm=(4.0, 4.0, 4.0), side=48)
    changes: dict[str, Any] = {
        "spacing_mm": (4.0, 4.0, 5.0), "axes": "RAS", "crop": "none", "margin_mm": 40.0, "windows": ("lung",),
        "side": 40, "fit": "stretch", "centre": 40, "slices": 20, "mean": 0.1, "std": 2.0,
    }  # fmt: skip
    # 'lungs' needs a weight file: test_lung_network.py has the same for it
    assert {*changes, "lungs"} == set(VolumeProfile.model_fields)
    plain = prepare(volume, base)
    for name, value in changes.items():
        changed = base.model_copy(update={name: value})
        assert profile_key(changed) != profile_key(base)
        result = prepare(volume, changed)
        assert result.shape != plain.shape or not np.array_equal(result, plain), name


def test_unknown_window_and_profile_name_the_allowed_ones(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("windows: [lungs]")
    with pytest.raises(BadInput, match="unknown window 'lungs', allowed: pe, lung"):
        load_profile(str(tmp_path / "p.yaml"))
    with pytest.raises(BadInput, match="Did you mean 'pe_paper'"):
        load_profile("pe_papr")
