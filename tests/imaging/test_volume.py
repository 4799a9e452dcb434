from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from embedprior.errors import BadInput
from embedprior.imaging.audit import to_int16
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import CODES, UnusableExam
from embedprior.imaging.image_files import write_npz
from embedprior.imaging.readers import read_volume
from embedprior.imaging.volume import Volume, canonical, to_sitk

from .conftest import chest, from_sitk

TURN = np.array([[0, 0, -1.0], [-1, 0, 0], [0, 1, 0]])


def some_volume() -> Volume:
    return Volume(chest()[:, :50, :60].copy(), (5.0, 4.0, 6.0), (-10.0, 20.0, 30.0), TURN)


def test_affine_is_simpleitks_own_map() -> None:
    volume = some_volume()
    image = to_sitk(volume)
    for index in ((0, 0, 0), (3, 7, 11), (59, 49, 39)):
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], image.TransformIndexToPhysicalPoint(index))
        assert int(volume.hu[index[::-1]]) == image[index]


def test_canonical_is_lps_keeps_every_voxel_in_its_place_and_copies_nothing() -> None:
    volume = some_volume()
    upright = canonical(volume)
    assert upright.orientation == "LPS"
    assert np.shares_memory(upright.hu, volume.hu)
    back = np.linalg.inv(upright.affine)
    for index in ((0, 0, 0), (59, 0, 3), (10, 40, 39)):
        place = volume.affine @ [*index, 1]
        x, y, z = np.rint((back @ place)[:3]).astype(int)
        assert upright.hu[z, y, x] == volume.hu[index[::-1]]


def test_orientation_agrees_with_simpleitk_for_every_code() -> None:
    image = to_sitk(Volume(chest(), (5.0, 5.0, 6.0)))
    for code in ("LPS", "RAS", "LAS", "SRA", "AIL", "PIR"):
        turned = from_sitk(sitk.DICOMOrient(image, code))
        assert turned.orientation == code
        straight = canonical(turned)
        np.testing.assert_array_equal(straight.hu, chest())
        np.testing.assert_allclose(straight.origin_mm, (0, 0, 0), atol=1e-9)


def test_crop_moves_the_origin() -> None:
    volume = some_volume()
    part = volume.crop((slice(4, 20), slice(2, 30), slice(5, None)))
    np.testing.assert_allclose(part.affine @ [0, 0, 0, 1], volume.affine @ [5, 2, 4, 1])
    with pytest.raises(BadInput, match="empty"):
        volume.crop((slice(4, 4), slice(None), slice(None)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".npz"])
def test_every_format_gives_the_same_volume(tmp_path: Path, suffix: str) -> None:
    volume = Volume(chest(), (5.0, 5.0, 6.0), (-10.0, 20.0, 30.0), np.diag([-1.0, -1.0, 1.0]))
    path = tmp_path / f"v{suffix}"
    if suffix == ".npz":
        write_npz(volume, path)
    else:
        sitk.WriteImage(to_sitk(volume), str(path))
    read, findings = read_volume(path)
    np.testing.assert_array_equal(read.hu, volume.hu)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-4)
    assert "reoriented" in {f.code for f in findings}


def test_float_hu_are_rounded_and_said_to_be(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(chest() + np.float32(0.25)), str(tmp_path / "v.mha"))
    read, findings = read_volume(tmp_path / "v.mha")
    np.testing.assert_array_equal(read.hu, chest())
    assert "fractional-hu" in {f.code for f in findings}


def test_values_beyond_int16_are_clipped_and_said_to_be(tmp_path: Path) -> None:
    hu = chest().astype(np.int32)
    hu[20, 30, 32] = 40_000
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "v.mha"))
    read, findings = read_volume(tmp_path / "v.mha")
    assert read.hu[20, 30, 32] == 32767
    assert "hu-clipped" in {f.code for f in findings}


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float32"])
def test_values_of_every_type_become_int16_and_nothing_wraps(kind: str) -> None:
    """The type's own ends, as Python's whole numbers, between air and the end of int16."""
    dtype = np.dtype(kind)
    ends = [-70_000, 70_000] if dtype.kind == "f" else [int(end) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max)]
    given = [*ends, 0, 100]
    found, findings = to_int16(np.array(given, dtype))
    assert found.tolist() == [min(max(value, -1024), 32767) for value in given]
    assert ("hu-clipped" in {f.code for f in findings}) == (ends[1] > 32767)


def test_sheared_nifti_is_refused_as_tilted(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    sitk.WriteImage(sitk.GetImageFromArray(chest()), str(path))
    raw = bytearray(path.read_bytes())
    raw[252:254] = bytes(2)
    # srow_y: y grows with z, as a tilted gantry leaves it
    raw[296:312] = np.array([0, -1, 0.3, 0], "<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(UnusableExam, match="gantry-tilt: the affine is sheared"):
        read_volume(path)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    hu = chest().astype(np.float32)
    hu[3, 4, 5] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "v.mha"))
    with pytest.raises(UnusableExam, match="1 voxels are not finite"):
        read_volume(tmp_path / "v.mha")


def test_wrong_scale_is_refused(tmp_path: Path) -> None:
    bright = np.where(chest() > -100, chest().astype(np.int32) * 200, chest()).clip(-1024, 32767).astype(np.int16)
    for name, hu in (("unit", chest() / 1000), ("flat", np.full_like(chest(), -1000)), ("bright", bright)):
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / f"{name}.mha"))
        with pytest.raises(UnusableExam, match="hu-range"):
            read_volume(tmp_path / f"{name}.mha")


def test_air_far_from_minus_1000_is_a_warning(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray((chest() + 110).astype(np.int16)), str(tmp_path / "v.mha"))
    assert "hu-offset" in {f.code for f in read_volume(tmp_path / "v.mha")[1]}


def test_nifti_without_orientation_codes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    sitk.WriteImage(sitk.GetImageFromArray(chest()), str(path))
    raw = bytearray(path.read_bytes())
    raw[252:256] = bytes(4)
    path.write_bytes(raw)
    with pytest.raises(UnusableExam, match="left and right are not known"):
        read_volume(path)


def test_colour_and_time_series_are_no_volumes(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8, 3), np.uint8), isVector=True), str(tmp_path / "c.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 8, 8, 8), np.int16)), str(tmp_path / "t.nii"))
    for name in ("c.mha", "t.nii"):
        with pytest.raises(UnreadableExam, match="expected one 3D volume"):
            read_volume(tmp_path / name)


def test_npz_without_spacing_and_unknown_suffix_say_what_is_wanted(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", ct=chest())
    with pytest.raises(UnreadableExam, match=r"no array 'hu'; it has ct\. Expected hu"):
        read_volume(tmp_path / "v.npz")
    (tmp_path / "v.txt").write_text("")
    with pytest.raises(UnreadableExam, match="Allowed: a DICOM folder"):
        read_volume(tmp_path / "v.txt")


@pytest.mark.parametrize(
    "fields", [{"spacing_mm": (1.0, 0.0, 1.0)}, {"direction": np.ones((3, 3))}, {"hu": np.zeros((2, 2, 2))}]
)
def test_volume_refuses_what_has_no_geometry(fields: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Volume(**({"hu": chest(), "spacing_mm": (1.0, 1.0, 1.0)} | fields))  # type: ignore[arg-type]


def test_codes_say_what_they_mean() -> None:
    assert all(severity in ("note", "warning", "error") and text for severity, text in CODES.values())
