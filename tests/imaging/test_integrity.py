"""Files of volumes that are cut short, damaged or no numbers: refused, never read with zeros for what is lost."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from embedprior.cli import main
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import UnusableExam
from embedprior.imaging.readers import read_volume
from embedprior.imaging.volume import Volume, to_sitk

from .conftest import chest

AFFINE = np.diag([-5.0, -5.0, 6.0, 1.0])


def write(path: Path, packed: bool = False) -> Path:
    sitk.WriteImage(to_sitk(Volume(chest(), (5.0, 5.0, 6.0))), str(path), packed)
    return path


def nifti(path: Path, values: np.ndarray[Any, Any] | None = None, version: int = 1) -> Path:
    """A NIfTI written by nibabel, which shares no code with the reader."""
    values = chest().transpose(2, 1, 0) if values is None else values
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(values, AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("name, packed", [
    ("v.nii", False), ("v.nii.gz", True), ("v.mha", False), ("v.mha", True), ("v.nrrd", False), ("v.nrrd", True),
])  # fmt: skip
def test_file_cut_short_is_unreadable(tmp_path: Path, name: str, packed: bool, share: float) -> None:
    path = write(tmp_path / name, packed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableExam, match=r"cut short|damaged"):
        read_volume(path)


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd", "v.nii.gz"])
def test_compressed_voxels_without_the_checksum_after_them_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, packed=True)
    path.write_bytes(path.read_bytes()[:-3])  # every voxel is there; that they are sound is not known
    with pytest.raises(UnreadableExam, match=r"without a checksum|unpacked to its end"):
        read_volume(path)


@pytest.mark.parametrize("name", ["v.mhd", "v.nhdr"])
@pytest.mark.parametrize("damage", ["short", "long", "gone"])
def test_raw_file_beside_its_header_must_hold_every_voxel(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / name)
    (raw,) = (p for p in tmp_path.iterdir() if p != path)
    read_volume(path)
    content = raw.read_bytes()
    if damage == "gone":
        raw.unlink()
    else:
        raw.write_bytes(content[:-1] if damage == "short" else content + b"\0\0")
    with pytest.raises(UnreadableExam, match={"short": "cut short", "long": "longer", "gone": "missing"}[damage]):
        read_volume(path)


def test_byte_skip_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mhd")
    raw = tmp_path / "v.raw"
    raw.write_bytes(b"head" + raw.read_bytes())
    text = path.read_text()
    path.write_text(text.replace("ElementDataFile", "HeaderSize = 4\nElementDataFile"))
    np.testing.assert_array_equal(read_volume(path)[0].hu, chest())
    path.write_text(text.replace("ElementDataFile", "HeaderSize = -1\nElementDataFile"))
    np.testing.assert_array_equal(read_volume(path)[0].hu, chest())


def test_checksum_of_a_gz_is_read(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii.gz")
    plain = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(plain)))
    packed[-8] ^= 1  # of the CRC: every voxel is there, and one may be another
    path.write_bytes(packed)
    with pytest.raises(UnreadableExam, match="can't be unpacked"):
        read_volume(path)


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii.gz")
    plain = gzip.decompress(path.read_bytes())
    half = len(plain) // 2
    path.write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    np.testing.assert_array_equal(read_volume(path)[0].hu, chest())
    path.write_bytes(gzip.compress(plain[:half]))
    with pytest.raises(UnreadableExam, match="cut short"):
        read_volume(path)


def test_bytes_beyond_the_promise_and_a_type_of_other_size_are_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii")
    content = path.read_bytes()
    path.write_bytes(content + bytes(512))
    with pytest.raises(UnreadableExam, match="longer than its header says"):
        read_volume(path)
    fewer = bytearray(content)
    struct.pack_into("<h", fewer, 46, 30)  # dim[3], slices
    path.write_bytes(fewer)
    with pytest.raises(UnreadableExam, match="longer than its header says"):
        read_volume(path)
    other = bytearray(content)
    struct.pack_into("<h", other, 70, 2)  # uint8 of 16 bits
    path.write_bytes(other)
    with pytest.raises(UnreadableExam, match="datatype 2 of 16 bits"):
        read_volume(path)


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["f4", "f8", ">f4"])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_values_that_are_no_numbers_are_an_error_in_nifti(tmp_path: Path, name: str, kind: str, lost: float) -> None:
    values = chest().transpose(2, 1, 0).astype(kind)
    values[3, 4, 5] = lost
    values[-1, -1, -1] = lost
    with pytest.raises(UnusableExam, match="hu-range: 2 voxels are not finite numbers"):
        read_volume(nifti(tmp_path / name, values))


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd"])
def test_values_that_are_no_numbers_are_an_error_in_every_container(tmp_path: Path, name: str) -> None:
    values = chest().astype(np.float32)
    values[0, 0, :3] = np.nan
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((5.0, 5.0, 6.0))
    sitk.WriteImage(image, str(tmp_path / name))
    with pytest.raises(UnusableExam, match="hu-range: 3 voxels are not finite numbers"):
        read_volume(tmp_path / name)


def test_npz_with_nan_is_refused(tmp_path: Path) -> None:
    values = chest().astype(np.float32)
    values[0, 0, 0] = np.nan
    np.savez(tmp_path / "v.npz", hu=values, spacing_mm=[5.0, 5.0, 6.0])
    with pytest.raises(UnusableExam, match="hu-range: 1 voxels are not finite numbers"):
        read_volume(tmp_path / "v.npz")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["i2", ">i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_every_nifti_reads_as_nibabel_reads_it(tmp_path: Path, name: str, kind: str, version: int) -> None:
    path = nifti(tmp_path / name, chest().transpose(2, 1, 0).astype(kind), version)
    volume, _ = read_volume(path)
    image = nib.load(path)
    np.testing.assert_array_equal(volume.hu, np.asarray(image.dataobj).transpose(2, 1, 0))
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(volume.affine, to_lps @ image.affine, atol=1e-5)


@pytest.mark.parametrize("name, to", [("v.nii", ".nii.gz"), ("v.nii.gz", ".nii")])
def test_packing_other_than_the_name_says_names_the_right_name(tmp_path: Path, name: str, to: str) -> None:
    content = nifti(tmp_path / "w.nii").read_bytes()
    (tmp_path / name).write_bytes(content if name.endswith("gz") else gzip.compress(content))
    with pytest.raises(UnreadableExam, match=f"rename it to end in {to}"):
        read_volume(tmp_path / name)


def patched(offset: int, layout: str, *values: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(nifti(path).read_bytes())
        struct.pack_into(layout, content, offset, *values)
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    "change, code",
    [
        (patched(80, "<f", 0.0), "spacing-implausible"),
        (patched(88, "<f", float("nan")), "spacing-implausible"),
        (patched(280, "<f", float("nan")), "no-geometry"),
        (patched(312, "<f", float("inf")), "no-geometry"),
        (patched(256, "<f", float("nan")), "no-geometry"),
        (patched(252, "<2h", 0, 0), "no-geometry"),
    ],
)
def test_one_odd_header_is_that_exam_s_finding_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], None], code: str
) -> None:
    nifti(tmp_path / "good.nii.gz")
    change(tmp_path / "odd.nii")
    with pytest.raises(UnusableExam, match=code):
        read_volume(tmp_path / "odd.nii")
    assert main(["images", "check", "--keep-names", str(tmp_path), "--out", str(tmp_path / "found.csv")]) == 3
    printed = capfd.readouterr()
    assert "1 ok, 0 WARN, 1 FAIL" in printed.out
    assert "good.nii.gz,ok" in (tmp_path / "found.csv").read_text(), "the table lists what was looked at"
    assert "odd.nii" not in printed.err


def metaimage(matrix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        head = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            f"TransformMatrix = {matrix}\nOffset = 0 0 0\nElementSpacing = 5 5 6\nDimSize = 64 64 40\n"
            "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        )
        path.write_bytes(head.encode() + chest().astype("<i2").tobytes())

    return make


@pytest.mark.parametrize(
    "name, make, code",
    [
        ("odd.mha", metaimage("2 0 0 0 2 0 0 0 1"), "skewed-axes"),
        ("odd.mha", metaimage("1 0.3 0 0 1 0 0 0 1"), "skewed-axes"),
        ("odd.mha", metaimage("1 0 0 0 1 0 0.2 0 1"), "skewed-axes"),
        ("odd.npz", lambda p: np.savez(p, hu=chest(), spacing_mm=[0, 5.0, 6.0]), "spacing-implausible"),
        ("odd.npz", lambda p: np.savez(p, hu=chest(), spacing_mm=[np.nan, 5.0, 6.0]), "spacing-implausible"),
        ("odd.npz", lambda p: np.savez(p, hu=chest(), spacing_mm=[-5.0, 5.0, 6.0]), "spacing-implausible"),
        ("odd.npz", lambda p: np.savez(p, hu=chest(), spacing_mm=[5, 5, 6], direction=np.ones((3, 3))), "skewed-axes"),
        ("odd.npz", lambda p: np.savez(p, hu=chest(), spacing_mm=[5, 5, 6], direction=np.eye(2)), "skewed-axes"),
    ],
)
def test_axes_and_sizes_that_are_no_grid(
    tmp_path: Path, name: str, make: Callable[[Path], None], code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    nifti(tmp_path / "good.nii.gz")
    make(tmp_path / name)
    with pytest.raises(UnusableExam, match=code):
        read_volume(tmp_path / name)
    assert main(["images", "check", "--keep-names", str(tmp_path)]) == 3
    assert "1 ok, 0 WARN, 1 FAIL" in capfd.readouterr().out


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed", "scanner-xyz-time", "3DRH"])
def test_nrrd_space_without_anatomy_leaves_left_and_right_unknown(tmp_path: Path, space: str) -> None:
    path = write(tmp_path / "v.nrrd")
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", space.encode()))
    with pytest.raises((UnusableExam, UnreadableExam), match=r"which side is left|damaged"):
        read_volume(path)


def test_clipping_to_a_window_is_noted_and_metal_at_the_top_is_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "window.npz", hu=np.clip(chest(), -1000, 300), spacing_mm=[5.0, 5.0, 6.0])
    assert "window-clipped" in {f.code for f in read_volume(tmp_path / "window.npz")[1]}
    metal = chest()
    metal[20, 30:36, 30:36] = 3071
    np.savez(tmp_path / "metal.npz", hu=metal, spacing_mm=[5.0, 5.0, 6.0])
    assert "window-clipped" not in {f.code for f in read_volume(tmp_path / "metal.npz")[1]}
