"""Damaged files end in a reason, never in a crash, and no header text comes out with it."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image, PngImagePlugin
from pydicom.uid import RLELossless

from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_radiograph
from embedprior.imaging.readers import read_volume

from .conftest import SECRET, chest, slice_dataset
from .test_dicom_series import _recompress
from .test_enhanced_ct import enhanced

ROUNDS = 40


def damaged(content: bytes, rng: np.random.Generator, header: int) -> bytes:
    """Cut, flip, repeat or blow up a few bytes, mostly in the header."""
    raw = bytearray(content)
    for _ in range(int(rng.integers(1, 8))):
        place = int(rng.integers(0, min(header, len(raw)) if rng.random() < 0.8 else len(raw)))
        match int(rng.integers(0, 5)):
            case 0:
                raw[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                raw[place : place + 4] = b"\xff\xff\xff\x7f"
            case 2:
                raw[place : place + 2] = bytes(rng.integers(0, 256, 2, dtype=np.uint8))
            case 3:
                raw[place:place] = raw[place : place + int(rng.integers(1, 40))]
            case _:
                if rng.random() < 0.3:
                    del raw[int(rng.integers(1, len(raw))) :]
        if len(raw) < 2:
            break
    return bytes(raw)


def outcome(read: Callable[[], Any], folder: Path, seen: Any) -> str:
    """What came of it: "read", or the refusal's text, after checking that nothing leaked."""
    cause = ""
    try:
        read()
        text = "read"
    except (UnreadableExam, BadInput) as error:
        text, cause = str(error), repr(error.__cause__)
    assert text
    printed = seen.readouterr()
    for said in (text, cause, printed.out, printed.err):
        assert "SECRET" not in said
        assert "DOE^" not in said
        assert str(folder) not in said
    return text


def _slices() -> list[bytes]:
    files = []
    for index, plane in enumerate(chest()[12:22]):
        target = io.BytesIO()
        data = slice_dataset((plane + 1024).astype(np.int16), index, "1.2.3")
        pydicom.dcmwrite(target, data, enforce_file_format=True)
        files.append(target.getvalue())
    return files


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("packing, rounds", [("plain", 40), ("rle", 20), ("jpeg2000", 10), ("jpeg", 4)])
def test_damaged_dicom_slice(tmp_path: Path, capfd: pytest.CaptureFixture[str], packing: str, rounds: int) -> None:
    for number, content in enumerate(_slices()):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    victim = tmp_path / "5.dcm"
    if packing == "rle":
        data = pydicom.dcmread(victim)
        data.compress(RLELossless)
        data.save_as(victim)
    elif packing != "plain":
        _recompress(victim, packing.upper())
    whole = victim.read_bytes()
    rng = np.random.default_rng([1, len(packing)])
    results = set()
    for _ in range(rounds):
        victim.write_bytes(damaged(whole, rng, len(whole) if packing == "jpeg2000" else 1400))
        results.add(outcome(lambda: read_volume(tmp_path), tmp_path, capfd)[:60])
    assert len(results) > 1


@pytest.mark.filterwarnings("error")
def test_damaged_enhanced_ct(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = enhanced(tmp_path / "ct.dcm")
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    results = set()
    for _ in range(ROUNDS // 2):
        path.write_bytes(damaged(whole, rng, 8000))
        results.add(outcome(lambda: read_volume(path), tmp_path, capfd)[:60])
    assert len(results) > 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".npz"])
def test_damaged_volume_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, hu=chest()[12:22], spacing_mm=[5.0, 5.0, 6.0], note=np.array(SECRET))
    else:
        image = sitk.GetImageFromArray(chest()[12:22])
        image.SetMetaData("descrip", SECRET)
        image.SetMetaData("ITK_FileNotes", SECRET)
        sitk.WriteImage(image, str(path))
    whole = path.read_bytes()
    rng = np.random.default_rng([2, len(suffix)])
    results = set()
    for _ in range(ROUNDS // 2):
        path.write_bytes(damaged(whole, rng, 348))
        results.add(outcome(lambda: read_volume(path), tmp_path, capfd)[:60])
    assert len(results) > 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["png", "dcm"])
def test_damaged_radiograph(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    grey = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    if kind == "png":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Patient", SECRET)
        Image.fromarray(grey).save(path, pnginfo=notes)
    else:
        data = slice_dataset(grey.astype(np.int16), 0, "1.2.3", Modality="DX", WindowCenter="2048", WindowWidth="4096")
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    whole = path.read_bytes()
    rng = np.random.default_rng([3, len(kind)])
    results = set()
    for _ in range(ROUNDS):
        path.write_bytes(damaged(whole, rng, 1400 if kind == "dcm" else 200))
        results.add(outcome(lambda: read_radiograph(path), tmp_path, capfd)[:60])
    assert len(results) > 1


def test_header_that_claims_more_voxels_than_the_file_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    sitk.WriteImage(sitk.GetImageFromArray(chest()[:8]), str(path))
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(raw)
    with pytest.raises(UnreadableExam, match="more than the file can hold"):
        read_volume(path)


SOUND = chest()[12:24]
"""What every container below holds: 12 slices of 64 x 64."""


def container(folder: Path, kind: str) -> tuple[Path, Path]:
    """Write the sound volume; return what is read, and the file to damage."""
    if kind.startswith("dicom"):
        for index, plane in enumerate(SOUND):
            data = slice_dataset((plane.astype(np.int32) + 1024).astype(np.int16), index, "1.2.3")
            pydicom.dcmwrite(folder / f"{index:02d}.dcm", data, enforce_file_format=True)
        if kind == "dicom":
            return folder, folder / "05.dcm"
        with zipfile.ZipFile(folder / "v.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(folder.glob("*.dcm")):
                packed.write(file, file.name)
                file.unlink()
        return folder / "v.zip", folder / "v.zip"
    if kind.startswith("npz"):
        save = np.savez_compressed if kind == "npz-packed" else np.savez
        save(folder / "v.npz", hu=SOUND, spacing_mm=[5.0, 5.0, 6.0])
        return folder / "v.npz", folder / "v.npz"
    image = sitk.GetImageFromArray(SOUND)
    image.SetSpacing((5.0, 5.0, 6.0))
    ending, _, packing = kind.partition("-")
    path = folder / f"v.{ending}"
    sitk.WriteImage(image, str(path), packing == "packed")
    victim = next((f for f in folder.iterdir() if f != path), path)
    return path, victim


def is_sound_or_said(path: Path, usual: set[str]) -> bool:
    """Whether what comes back is refused, or named by a finding, or the sound volume voxel by voxel."""
    try:
        volume, findings = read_volume(path)
    except (UnreadableExam, BadInput):
        return True
    return np.array_equal(volume.hu, SOUND) or bool({f.code for f in findings} - usual)


CONTAINERS = ["nii", "nii.gz", "mha", "mha-packed", "mhd", "nrrd", "nrrd-packed", "nhdr", "npz", "npz-packed", "dicom",
              "dicom-zip"]  # fmt: skip
CHECKED = ["nii.gz", "nrrd-packed", "mha-packed", "npz", "npz-packed", "dicom-zip"]
"""Containers with a checksum over their voxels. In the others no reader can tell a flipped bit from a sound one."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_is_cut_short_is_never_a_wrong_volume(tmp_path: Path, kind: str) -> None:
    path, victim = container(tmp_path, kind)
    volume, findings = read_volume(path)
    np.testing.assert_array_equal(volume.hu, SOUND)
    whole, usual = victim.read_bytes(), {f.code for f in findings}
    rng = np.random.default_rng(len(kind))
    for size in {0, 1, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 12).tolist()}:
        victim.write_bytes(whole[:size])
        assert is_sound_or_said(path, usual), f"{size} of {len(whole)} bytes"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", CHECKED)
def test_a_flipped_bit_is_never_a_wrong_volume_where_a_checksum_lies(tmp_path: Path, kind: str) -> None:
    path, victim = container(tmp_path, kind)
    whole, usual = victim.read_bytes(), {f.code for f in read_volume(path)[1]}
    rng = np.random.default_rng(len(kind))
    for _ in range(40):
        raw = bytearray(whole)
        for place in rng.integers(600 if len(raw) > 4000 else 0, len(raw), int(rng.integers(1, 4))):
            raw[place] ^= 1 << int(rng.integers(0, 8))
        victim.write_bytes(raw)
        assert is_sound_or_said(path, usual)


NIFTI_EDITS = [(40, "<h", v) for v in (2, 4, 7)] + [
    (at, "<h", v) for at in (42, 44, 46) for v in (1, 11, 63, 65, 128)
] + [(70, "<h", v) for v in (2, 8, 16, 64, 256, 512, 768)] + [(72, "<h", v) for v in (8, 32)] + [
    (108, "<f", v) for v in (0.0, 348.0, 351.0, 353.0, 356.0)
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["nii", "nii.gz"])
@pytest.mark.parametrize("place, layout, value", NIFTI_EDITS)
def test_an_edited_nifti_header_is_never_a_wrong_volume(
    tmp_path: Path, kind: str, place: int, layout: str, value: float
) -> None:
    path, _ = container(tmp_path, kind)
    usual = {f.code for f in read_volume(path)[1]}
    content = path.read_bytes()
    raw = bytearray(gzip.decompress(content) if kind == "nii.gz" else content)
    struct.pack_into(layout, raw, place, value)
    path.write_bytes(gzip.compress(bytes(raw)) if kind == "nii.gz" else bytes(raw))
    assert is_sound_or_said(path, usual)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["mha", "mha-packed", "mhd", "nrrd", "nrrd-packed", "nhdr"])
@pytest.mark.parametrize(
    "old, new",
    [
        (b"64 64 12", b"64 64 11"), (b"64 64 12", b"64 64 13"), (b"64 64 12", b"63 64 12"), (b"64 64 12", b"64 12"),
        (b"64 64 12", b"64 -4 12"), (b"MET_SHORT", b"MET_CHAR"), (b"MET_SHORT", b"MET_INT"),
        (b"MET_SHORT", b"MET_FLOAT"), (b"type: short", b"type: int8"), (b"type: short", b"type: float"),
        (b"type: short", b"type: none"), (b"NDims = 3", b"NDims = 2"), (b"dimension: 3", b"dimension: 2"),
        (b"encoding: raw", b"encoding: gzip"), (b"encoding: gzip", b"encoding: raw"),
        (b"CompressedData = True", b"CompressedData = False"), (b"CompressedData = False", b"CompressedData = True"),
    ],
)  # fmt: skip
def test_an_edited_text_header_is_never_a_wrong_volume(tmp_path: Path, kind: str, old: bytes, new: bytes) -> None:
    path, _ = container(tmp_path, kind)
    usual = {f.code for f in read_volume(path)[1]}
    content = path.read_bytes()
    if old in content[:1000]:
        path.write_bytes(content.replace(old, new, 1))
        assert is_sound_or_said(path, usual)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize(
    "tag, value",
    [
        ("Rows", 32), ("Rows", 65), ("Columns", 63), ("Columns", 128), ("BitsAllocated", 8), ("BitsAllocated", 32),
        ("BitsStored", 0), ("BitsStored", 17), ("SamplesPerPixel", 3), ("NumberOfFrames", 2), ("PixelSpacing", [0, 0]),
        ("ImagePositionPatient", [0, 0]), ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), ("RescaleSlope", "100"),
        ("RescaleIntercept", "30000"), ("Modality", "MR"), ("PatientID", "other"), ("SeriesInstanceUID", "1.2.4"),
    ],
)  # fmt: skip
def test_an_edited_dicom_header_is_never_a_wrong_volume(tmp_path: Path, tag: str, value: Any, every: bool) -> None:
    path, victim = container(tmp_path, "dicom")
    usual = {f.code for f in read_volume(path)[1]}
    for file in sorted(path.iterdir()) if every else [victim]:
        data = pydicom.dcmread(file)
        pixels = data.PixelData
        setattr(data, tag, value)
        data.PixelData = pixels
        pydicom.dcmwrite(file, data)
    if every and tag in ("PatientID", "SeriesInstanceUID"):
        assert np.array_equal(read_volume(path)[0].hu, SOUND)
    else:
        assert is_sound_or_said(path, usual)
