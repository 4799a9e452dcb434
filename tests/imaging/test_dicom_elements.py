"""Headers walked once and pydicom's own reading of every file say the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from scipy import ndimage

from embedprior.imaging import dicom_header, dicom_pixels
from embedprior.imaging.dicom_elements import plain_elements
from embedprior.imaging.dicom_header import DicomFiles, Header, UnreadableExam, read_headers
from embedprior.imaging.dicom_series import read_series
from embedprior.imaging.lungs import binary_opening
from tests.imaging.conftest import chest

ROWS = 0x00280010


def headers(folder: Path) -> list[list[Header] | str]:
    found: list[list[Header] | str] = []
    with DicomFiles(folder) as files:
        for name in files.names:
            try:
                found.append(read_headers(files, name))
            except UnreadableExam as error:
                found.append(f"{type(error).__name__}: {error}")
    return found


def both_ways(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    quick = headers(folder)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_header, "plain_elements", lambda head, tags: None)
        return quick, headers(folder)


def nested(index: int, data: Any, undefined: bool) -> None:
    """A private block and a sequence whose item repeats tags of the image, with other values."""
    inner = Dataset()
    inner.Rows, inner.PixelSpacing, inner.SeriesInstanceUID = 3, [9.0, 9.0], "1.2.3"
    data.ReferencedImageSequence = Sequence([inner])
    data["ReferencedImageSequence"].is_undefined_length = undefined
    data.add_new(0x00290010, "LO", "VENDOR")
    data.add_new(0x00291001, "OB", bytes(1001))


EDITS: dict[str, tuple[bool, Callable[[int, Any], Any]]] = {
    "plain": (True, lambda index, data: None),
    "another intercept in every third slice": (
        True, lambda index, data: setattr(data, "RescaleIntercept", -1024 + index % 3)),
    "padding and a kernel": (
        True, lambda index, data: [setattr(data, "PixelPaddingValue", -2000 + 1024), setattr(
            data, "ConvolutionKernel", "B30f")]),
    "a sequence of known length": (True, lambda index, data: nested(index, data, undefined=False)),
    "a sequence of unknown length": (False, lambda index, data: nested(index, data, undefined=True)),
    "a position in exponents": (
        True, lambda index, data: setattr(data, "ImagePositionPatient", ["-1.6e2", "-1.6E+2", f"{index}e0"])),
    "a position of two numbers": (False, lambda index, data: data.__setitem__(0x00200032, pydicom.DataElement(
        0x00200032, "DS", ["1", str(index)]))),
    "a position far away": (
        False, lambda index, data: setattr(data, "ImagePositionPatient", [0, 0, 2_000_000 + index])),
    "no position": (False, lambda index, data: delattr(data, "ImagePositionPatient")),
    "an id with accents": (
        False, lambda index, data: [setattr(data, "SpecificCharacterSet", "ISO_IR 100"), setattr(
            data, "PatientID", "Gärtner")]),
    "a header of 40 KiB": (False, lambda index, data: data.add_new(0x00091001, "OB", bytes(40_000))),
    "one frame, stated": (False, lambda index, data: setattr(data, "NumberOfFrames", 1)),
    "two different slopes": (False, lambda index, data: data.__setitem__(0x00281053, pydicom.DataElement(
        0x00281053, "DS", ["1", "2"]))),
    "no rows": (False, lambda index, data: delattr(data, "Rows")),
    "MR": (True, lambda index, data: setattr(data, "Modality", "MR")),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_quick_headers_are_those_of_pydicom(
    what: str, make_series: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, edit = EDITS[what]
    folder = make_series(chest()[:12], edit)
    quick, whole = both_ways(folder, monkeypatch)
    assert quick == whole
    assert len(quick) == 12
    heads = [file.read_bytes()[: dicom_header.HEAD_BYTES] for file in folder.iterdir()]
    used = [dicom_header._quick_header(DicomFiles(folder), "x", head) is not None for head in heads]
    assert used == [plain] * 12


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_byte_layouts_are_left_to_pydicom(
    syntax: str, make_series: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_series(chest()[:12])
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        pixels = data.pixel_array.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2")
        data.PixelData = pixels.tobytes()
        little = syntax == ImplicitVRLittleEndian
        pydicom.dcmwrite(file, data, implicit_vr=little, little_endian=little)
        assert plain_elements(file.read_bytes(), (ROWS,)) is None
    quick, whole = both_ways(folder, monkeypatch)
    assert quick == whole
    assert all(isinstance(found, list) and len(found) == 1 for found in quick)


def test_a_header_cut_or_turned_anywhere_is_no_plain_one_or_the_same(make_series: Callable[..., Path]) -> None:
    """Cut before PixelData there is none; with two elements exchanged the order is broken."""
    content = next(make_series(chest()[:1]).iterdir()).read_bytes()
    found = plain_elements(content, (ROWS,))
    assert found is not None
    elements, syntax, pixels_at = found
    assert elements == {ROWS: (b"US", (64).to_bytes(2, "little"))}
    assert syntax == "1.2.840.10008.1.2.1"
    assert content[pixels_at : pixels_at + 4] == b"\xe0\x7f\x10\x00"
    assert all(plain_elements(content[:end], (ROWS,)) is None for end in range(0, pixels_at, 7))
    rows, columns = content.index(b"\x28\x00\x10\x00US"), content.index(b"\x28\x00\x11\x00US")
    turned = content[:rows] + content[columns : columns + 10] + content[rows : rows + 10] + content[columns + 10 :]
    assert columns == rows + 10
    assert plain_elements(turned, (ROWS,)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"RescaleIntercept": 0}, {"RescaleIntercept": -1000.5}, {"RescaleSlope": 2},
        {"PixelRepresentation": 0}, {"PixelPaddingValue": 24}, {"RescaleIntercept": -32000},
        {"BitsStored": 12, "HighBit": 11}, {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0},
        {"BitsStored": 10, "HighBit": 9}, {"BitsStored": 10, "HighBit": 9, "PixelRepresentation": 0},
    ],
)  # fmt: skip
def test_pixels_read_into_place_equal_pixels_read_aside(
    changes: dict[str, Any], make_series: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two hold values that need more bits than they say they store: the bits above are cleared."""
    folder = make_series(**changes)
    outcomes: list[Any] = []
    for aside in (False, True):
        with monkeypatch.context() as patch:
            if aside:
                patch.setattr(dicom_pixels, "_read_into", lambda *_: False)
            try:
                volume, findings = read_series(folder, "only")
                outcomes.append((volume.hu.tobytes(), findings))
            except UnreadableExam as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_truncated_pixels_are_named_as_before(make_series: Callable[..., Path]) -> None:
    folder = make_series()
    first = sorted(folder.iterdir())[3]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(UnreadableExam, match=first.name):
        read_series(folder, "only")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("box", [False, True])
def test_opening_by_shifts_is_that_of_scipy(share: float, box: bool) -> None:
    mask = ndimage.uniform_filter(np.random.default_rng(3).random((14, 17, 19)), 3) < share * 0.2 + 0.4
    by = np.ones((3, 3, 3), bool) if box else ndimage.generate_binary_structure(3, 1)
    assert np.array_equal(binary_opening(mask, box), ndimage.binary_opening(mask, by))
    assert np.array_equal(binary_opening(mask[:1], box), ndimage.binary_opening(mask[:1], by))
