"""Damaged files end in a reason, never in a crash, and no header text comes out with it."""

from __future__ import annotations

import io
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
