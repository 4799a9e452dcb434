from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, DigitalXRayImageStorageForPresentation, generate_uid

from embedprior.imaging.files import UnreadableExam, read_array, source_hash, split_path, without_names
from embedprior.imaging.radiographs import read_image, read_radiograph


def test_rows_of_an_array_file(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    np.save(tmp_path / "v.npy", array)
    assert split_path("v.npy#1") == ("v.npy", 1)
    np.testing.assert_array_equal(read_array(tmp_path, "v.npy#1"), array[1])
    assert source_hash(tmp_path, "v.npy#1") == hashlib.sha256(array[1].tobytes()).hexdigest()
    with pytest.raises(UnreadableExam):
        read_array(tmp_path, "v.npy#2")


def test_folder_hash_follows_contents_and_not_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(b"one")
    (tmp_path / "a" / "2").write_bytes(b"two")
    before = source_hash(tmp_path, "a")
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "renamed")
    assert source_hash(tmp_path, "a") == before
    (tmp_path / "a" / "2").write_bytes(b"TWO")
    assert source_hash(tmp_path, "a") != before


def test_pickled_array_is_never_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableExam):
        read_array(tmp_path, "evil.npy#0")


def test_eight_and_sixteen_bit_and_colour_pictures_share_one_scale(tmp_path: Path) -> None:
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    for name in ("8.png", "16.png", "rgb.png"):
        np.testing.assert_allclose(read_image(tmp_path, name), grey / 255, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\nrest"])
def test_damaged_picture_is_unreadable_and_says_no_folder(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableExam) as caught:
        read_image(tmp_path, "x.png")
    assert str(tmp_path) not in str(caught.value)


def deflated(path: Path, pixels: np.ndarray) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.ViewPosition, data.PhotometricInterpretation = "DX", "PA", "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
    data.PixelRepresentation, data.PixelData = 0, pixels.astype("<u2").tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = deflated(tmp_path / "bomb.dcm", np.zeros((4000, 4000)))
    rng = np.random.default_rng(0)
    real = deflated(tmp_path / "real.dcm", rng.integers(0, 4096, (600, 600)))
    assert bomb.stat().st_size < 50_000
    assert read_radiograph(real)[0].grey.shape == (600, 600)
    unpacked = []
    whole = zlib.decompress
    monkeypatch.setattr(zlib, "decompress", lambda *args, **more: unpacked.append(1) or whole(*args, **more))
    with pytest.raises(UnreadableExam, match=r"a deflated file that unpacks to more than 1[67] MiB"):
        read_radiograph(bomb)
    assert not unpacked


def test_a_reason_names_no_file_and_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "DOE_JANE_1961" / "ct"
    folder.mkdir(parents=True)
    (folder / "DOE_003.dcm").write_bytes(b"x")
    for text, path, said in (
        ("DOE_JANE.dcm: header can't be decoded", Path("in/DOE_JANE.dcm"), "header can't be decoded"),
        ("DOE_003.dcm: no DICOM", folder, "no DICOM"),
        (f"{folder}/DOE_003.dcm is too short", folder, "is too short"),
        ("frames: several-frames: 2 frames", Path("a/frames"), "several-frames: 2 frames"),
        ("in/DOE/a.dcm is none", Path("in/DOE/a.dcm"), "is none"),
        ("a slice is missing", Path("a/b.dcm"), "a slice is missing"),
    ):
        assert without_names(text, path) == said
