"""Radiographs as they are displayed, whatever the compression and the header ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import UnusableExam, collect_findings
from embedprior.imaging.radiographs import parse_views, read_image, read_radiograph, stated_view

from .test_radiographs import codes, frontal, write

WINDOW = {"WindowCenter": "2048", "WindowWidth": "4096"}
TRUTH = frontal() / 4095


def compressed(path: Path, how: str) -> Path:
    """Compress in place: RLE by pydicom, the others by GDCM's encoders, under the original header."""
    data = pydicom.dcmread(path)
    if how == "rle":
        data.compress(RLELossless)
        data.save_as(path)
    elif how != "raw":
        stored = data.pixel_array
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetUseCompression(True)
        writer.SetCompressor({"jpeg-lossless": "JPEG", "jpeg2000": "JPEG2000"}[how])
        writer.SetFileName(str(path.with_suffix(".tmp.dcm")))
        writer.Execute(sitk.GetImageFromArray(stored))
        packed = pydicom.dcmread(path.with_suffix(".tmp.dcm"))
        path.with_suffix(".tmp.dcm").unlink()
        data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        data.PixelData = encapsulate([next(generate_frames(packed.PixelData, number_of_frames=1))])
        data["PixelData"].is_undefined_length = True
        pydicom.dcmwrite(path, data)
    return path


@pytest.mark.parametrize("how", ["raw", "rle", "jpeg-lossless", "jpeg2000"])
@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("bits", [12, 16])
def test_monochrome1_is_turned_over_once_in_every_syntax(tmp_path: Path, how: str, window: bool, bits: int) -> None:
    top = 2**bits - 1
    stored = top - np.rint(TRUTH * top).astype(np.uint16)
    width = {"WindowCenter": str((top + 1) // 2), "WindowWidth": str(top + 1)} if window else {}
    path = write(tmp_path / "x.dcm", stored, PhotometricInterpretation="MONOCHROME1", BitsStored=bits,
                 HighBit=bits - 1, **width)  # fmt: skip
    grey = read_radiograph(compressed(path, how))[0].grey
    shown = TRUTH if window else (TRUTH - TRUTH.min()) / np.ptp(TRUTH)
    np.testing.assert_allclose(grey, shown, atol=2e-3)
    np.testing.assert_array_equal(read_image(tmp_path, "x.dcm"), grey)


@pytest.mark.parametrize("how", ["raw", "rle", "jpeg-lossless"])
def test_a_window_of_part_of_the_range_acts_before_the_turn(tmp_path: Path, how: str) -> None:
    stored = np.rint(48000 - TRUTH * 45900).astype(np.uint16)
    path = write(tmp_path / "x.dcm", stored, PhotometricInterpretation="MONOCHROME1", BitsStored=16, HighBit=15,
                 WindowCenter="22429", WindowWidth="43319")  # fmt: skip
    shown = 1 - np.clip((stored - 22428.5) / 43318 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2, then MONOCHROME1
    np.testing.assert_allclose(read_radiograph(compressed(path, how))[0].grey, shown, atol=1e-4)


@pytest.mark.parametrize("how", ["rle", "jpeg-lossless"])
def test_rescale_and_monochrome2_of_compressed_files(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "x.dcm", frontal(), RescaleSlope="-1", RescaleIntercept="4095", **WINDOW)
    np.testing.assert_allclose(read_radiograph(compressed(path, how))[0].grey, 1 - TRUTH, atol=2e-3)


@pytest.mark.parametrize("bits, top", [(8, 255), (10, 1023), (12, 4095)])
def test_fewer_bits_in_a_16_bit_picture_are_stretched_and_noted(tmp_path: Path, bits: int, top: int) -> None:
    Image.fromarray(np.rint(TRUTH * top).astype(np.uint16)).save(tmp_path / "x.png")
    radiograph, findings = read_radiograph(tmp_path / "x.png")
    np.testing.assert_allclose(radiograph.grey, TRUTH, atol=1 / top)
    assert "stretched" in codes(findings)


@pytest.mark.parametrize("top, code", [(65535, None), (9000, "dark"), (20000, None), (13500, "dark"), (5000, "dark")])
def test_a_16_bit_picture_keeps_its_values_and_is_called_dark(tmp_path: Path, top: int, code: str | None) -> None:
    stored = np.rint(TRUTH * top).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "x.png")
    radiograph, findings = read_radiograph(tmp_path / "x.png")
    np.testing.assert_allclose(radiograph.grey, stored / 65535, atol=1e-6)
    expected = "dark" if np.percentile(stored, 99) < 0.2 * 65535 else None
    assert code == expected
    assert codes(findings) & {"dark", "stretched"} == ({code} if code else set())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path: Path, orientation: int) -> None:
    stored = {  # what is stored so that the viewer's turn (EXIF 2.3, tag 0x0112) gives the truth
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, 3),
    }[orientation]  # fmt: skip
    truth = (TRUTH[:, :100] * 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored(truth))).save(tmp_path / "x.png", exif=exif)
    radiograph, findings = read_radiograph(tmp_path / "x.png")
    np.testing.assert_allclose(radiograph.grey, truth / 255, atol=1e-6)
    assert ("turned" in codes(findings)) == (orientation != 1)


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (["L", "F"], lambda a: a),
        (["R", "F"], np.fliplr),
        (["L", "H"], np.flipud),
        (["R", "H"], lambda a: np.rot90(a, 2)),
        (["F", "L"], np.transpose),
        (["H", "L"], lambda a: np.flipud(a).T),
        (["LP", "FP"], lambda a: a),
        (["P", "F"], lambda a: a),
        (["A", "H"], np.flipud),
        (["X", "Y"], lambda a: a),
        (["L", "R"], lambda a: a),
    ],
)
def test_patient_orientation_is_turned_upright(tmp_path: Path, orientation: list[str], turn: Any) -> None:
    stored = np.ascontiguousarray(turn(frontal()[:, :100]))
    radiograph, findings = read_radiograph(write(tmp_path / "x.dcm", stored, PatientOrientation=orientation, **WINDOW))
    np.testing.assert_allclose(radiograph.grey, TRUTH[:, :100], atol=2e-3)
    assert ("turned" in codes(findings)) == (not np.array_equal(stored, frontal()[:, :100]))


@pytest.mark.parametrize("tag", ["PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"])
@pytest.mark.parametrize("high, wide", [(2, 1), (1, 2)])
def test_pixels_become_square(tmp_path: Path, tag: str, high: int, wide: int) -> None:
    stored = np.repeat(frontal(), 2, axis=1 if high > wide else 0)
    changes = {tag: [high, wide] if tag == "PixelAspectRatio" else [0.1 * high, 0.1 * wide]}
    path = tmp_path / "x.dcm"
    data = pydicom.dcmread(write(path, stored, **WINDOW))
    del data.PixelSpacing
    setattr(data, tag, next(iter(changes.values())))
    data.save_as(path)
    radiograph, findings = read_radiograph(path)
    assert radiograph.grey.shape == frontal().shape
    assert np.corrcoef(radiograph.grey.ravel(), TRUTH.ravel())[0, 1] > 0.995
    assert "resampled" in codes(findings)


def lut(entries: np.ndarray[Any, Any], bits: int, first: int = 0) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", [int(v) for v in entries])
    return item


def test_modality_table_comes_before_the_window(tmp_path: Path) -> None:
    table = lut(np.arange(4095, -1, -1), 12)
    table.ModalityLUTType = "US"
    path = write(tmp_path / "x.dcm", 4095 - frontal(), ModalityLUTSequence=[table], **WINDOW)
    np.testing.assert_allclose(read_radiograph(path)[0].grey, TRUTH, atol=2e-3)


@pytest.mark.parametrize("bits", [12, 16])
def test_voi_table_whose_entries_use_fewer_bits_than_it_declares(tmp_path: Path, bits: int) -> None:
    path = write(tmp_path / "x.dcm", frontal(), VOILUTSequence=[lut(np.arange(4096), bits)])
    np.testing.assert_allclose(read_radiograph(path)[0].grey, TRUTH, atol=2e-3)


@pytest.mark.parametrize("centre, width", [(2048, 1), (127, 255), (-5000, 100), (60000, 1000)])
def test_a_window_that_shows_next_to_nothing_gives_way_to_the_range(tmp_path: Path, centre: int, width: int) -> None:
    path = write(tmp_path / "x.dcm", frontal(), WindowCenter=str(centre), WindowWidth=str(width))
    radiograph, findings = read_radiograph(path)
    assert "unusual-window" in codes(findings)
    assert np.corrcoef(radiograph.grey.ravel(), TRUTH.ravel())[0, 1] > 0.999


def test_a_few_pixels_far_off_do_not_darken_the_rest(tmp_path: Path) -> None:
    hot = frontal()
    hot[0, :3] = 65535
    radiograph, findings = read_radiograph(write(tmp_path / "x.dcm", hot, BitsStored=16, HighBit=15))
    low, high = frontal().min(), frontal().max()
    np.testing.assert_allclose(radiograph.grey[1:], ((frontal() - low) / (high - low))[1:], atol=2e-3)
    assert "stretched" in codes(findings)


@pytest.mark.parametrize(
    "code, view",
    [("R-10214", "PA"), ("272479007", "PA"), ("R-10206", "AP"), ("399348003", "AP"), ("R-10236", "LATERAL"), ("X", "")],
)
def test_view_code_of_the_standard_names_the_view(tmp_path: Path, code: str, view: str) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SRT", "a view"
    path = write(tmp_path / "x.dcm", frontal(), ViewCodeSequence=[item], **WINDOW)
    assert read_radiograph(path)[0].view == view
    assert stated_view(path) == view
    assert stated_view(path, "AP") == "AP"
    assert stated_view(tmp_path / "gone.dcm") == ""


def test_views_are_a_list_of_known_words() -> None:
    assert parse_views("PA, ap supine") == {"PA", "AP"}
    assert parse_views(None) == frozenset()


@pytest.mark.parametrize("changes, words", [
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"), ({"NumberOfFrames": 2}, "2 frames"),
    ({"Modality": "CT"}, "modality is CT"),
])  # fmt: skip
def test_what_the_audit_refuses_is_not_embedded_either(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write(tmp_path / "x.dcm", frontal(), **changes)
    with pytest.raises(UnusableExam, match=words):
        read_image(tmp_path, "x.dcm")


def test_what_the_audit_warns_of_is_handed_to_who_reads_for_an_encoder(tmp_path: Path) -> None:
    write(tmp_path / "x.dcm", 4095 - frontal(), **WINDOW)
    with collect_findings() as found:
        read_image(tmp_path, "x.dcm")
    assert "inverted" in codes(found)


def test_a_large_picture_writes_no_warning_with_its_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10_000
    try:
        Image.fromarray((TRUTH * 255).astype(np.uint8)).save(tmp_path / "x.png")
        read_radiograph(tmp_path / "x.png")
        Image.fromarray(np.zeros((200, 200), np.uint8)).save(tmp_path / "bomb.png")
        with pytest.raises(UnreadableExam, match="more than 150,000,000 pixels"):
            read_radiograph(tmp_path / "bomb.png")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    assert str(tmp_path) not in "".join(capfd.readouterr())
