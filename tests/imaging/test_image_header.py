from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from embedprior.imaging.findings import UnusableExam
from embedprior.imaging.readers import read_volume
from embedprior.imaging.volume import Volume, to_sitk

from .conftest import chest

AXES = {
    "LPS": np.diag([-5.0, -5.0, 6.0]),
    "RPS": np.diag([5.0, -5.0, 6.0]),
    "RAS": np.diag([5.0, 5.0, 6.0]),
    "LAI": np.diag([-5.0, 5.0, -6.0]),
    "LPI": np.diag([-5.0, -5.0, -6.0]),
}
"""Voxel axes in NIfTI's RAS mm; the second and the last are left-handed (qfac -1)."""
QUATERNION = {"LPS": (0, 0, 1, 1), "RPS": (1, 0, 0, -1), "RAS": (0, 0, 0, 1), "LAI": (0, 1, 0, 1), "LPI": (0, 0, 1, -1)}
"""b, c, d and qfac of each: half a turn about z, x, none, y, z; qfac -1 turns the third axis round."""


def nifti(path: Path, qform: str, sform: str, codes: tuple[int, int], turn: Any = None) -> Path:
    """Write chest() with these two orientations byte by byte (nifti1.h)."""
    plain = path.with_suffix(".tmp.nii")
    sitk.WriteImage(sitk.GetImageFromArray(chest()), str(plain))
    raw = bytearray(plain.read_bytes())
    b, c, d, qfac = QUATERNION[qform]
    raw[76:92] = np.array([qfac, 5, 5, 6], "<f4").tobytes()
    raw[252:256] = np.array(codes, "<i2").tobytes()
    raw[256:268] = np.array([b, c, d], "<f4").tobytes()
    matrix = np.zeros((3, 4), "<f4")
    matrix[:, :3] = AXES[sform] if turn is None else turn @ AXES[sform]
    raw[280:328] = matrix.tobytes()
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("code", list(AXES))
def test_both_forms_alone_and_together_give_the_same_axes(tmp_path: Path, name: str, code: str) -> None:
    for codes in ((1, 0), (0, 1), (1, 1), (1, 2)):
        other = "LPS" if 0 in codes else code
        qform, sform = (code, other) if codes[0] else (other, code)
        volume, _ = read_volume(nifti(tmp_path / name, qform, sform, codes))
        assert volume.orientation == code
        np.testing.assert_allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, :3], AXES[code], atol=1e-4)


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (1, 4)])
@pytest.mark.parametrize("pair", [("LPS", "RPS"), ("RPS", "LPS"), ("LPS", "RAS")])
def test_forms_that_disagree_are_refused_whichever_a_program_would_read(
    tmp_path: Path, codes: tuple[int, int], pair: tuple[str, str]
) -> None:
    with pytest.raises(UnusableExam, match=rf"two-geometries: qform says {pair[0]}, sform {pair[1]} \(180° apart"):
        read_volume(nifti(tmp_path / "v.nii.gz", *pair, codes))


def test_forms_may_differ_by_rounding_but_not_by_degrees(tmp_path: Path) -> None:
    for degrees, refused in ((0.2, False), (4.0, True)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        path = nifti(tmp_path / "v.nii", "LPS", "LPS", (1, 1), np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))
        if refused:
            with pytest.raises(UnusableExam, match="4° apart"):
                read_volume(path)
        else:
            assert read_volume(path)[0].orientation == "LPS"


def test_nrrd_without_orientation_is_refused_and_metaimage_takes_its_default(tmp_path: Path) -> None:
    image = to_sitk(Volume(chest(), (5.0, 5.0, 6.0)))
    sitk.WriteImage(image, str(tmp_path / "v.nrrd"))
    header, pixels = (tmp_path / "v.nrrd").read_bytes().split(b"\n\n", 1)
    lines = [line for line in header.split(b"\n") if not line.startswith(b"space")]
    (tmp_path / "v.nrrd").write_bytes(b"\n".join([*lines, b"spacings: 5 5 6"]) + b"\n\n" + pixels)
    sitk.WriteImage(image, str(tmp_path / "v.mha"))
    whole = (tmp_path / "v.mha").read_bytes()
    (tmp_path / "v.mha").write_bytes(whole.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""))
    with pytest.raises(UnusableExam, match=r"no-geometry: .*no 'space' field.*left and right are not known"):
        read_volume(tmp_path / "v.nrrd")
    # MetaIO's own documentation gives TransformMatrix a default, NRRD's gives a space none
    volume, findings = read_volume(tmp_path / "v.mha")
    assert volume.orientation == "LPS"
    assert "default-axes" in {f.code for f in findings}
    (tmp_path / "v.mha").write_bytes(whole.replace(b"TransformMatrix", b"Orientation"))
    assert read_volume(tmp_path / "v.mha")[0].orientation == "LPS"


@pytest.mark.parametrize("space, code", [("left-posterior-superior", "LPS"), ("right-anterior-superior", "RAS")])
def test_nrrd_space_is_obeyed(tmp_path: Path, space: str, code: str) -> None:
    sitk.WriteImage(to_sitk(Volume(chest(), (5.0, 5.0, 6.0))), str(tmp_path / "v.nrrd"))
    whole = (tmp_path / "v.nrrd").read_bytes()
    (tmp_path / "v.nrrd").write_bytes(whole.replace(b"left-posterior-superior", space.encode()))
    assert read_volume(tmp_path / "v.nrrd")[0].orientation == code
