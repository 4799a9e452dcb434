"""Enhanced CT: a whole series in one file, each frame with its own place and rescale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RLELossless

from embedprior.imaging.drr.render import identities
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import UnusableExam
from embedprior.imaging.readers import discover, find_cts, read_volume

from .conftest import ORIGIN, SECRET, SPACING, STEP, chest, slice_dataset

CLASS = "1.2.840.10008.5.1.4.1.1.2.1"
Edit = Callable[[FileDataset], Any]


def items(**fields: Any) -> Dataset:
    """A data set with these fields; a dict becomes a sequence of one item."""
    made = Dataset()
    for name, value in fields.items():
        setattr(made, name, [items(**value)] if isinstance(value, dict) else value)
    return made


def enhanced(path: Path, edit: Edit | None = None) -> Path:
    """chest() in one file, frames in random order, every second one stored with slope 2 and another intercept."""
    hu = chest().astype(np.int32) // 2 * 2
    order = np.random.default_rng(3).permutation(len(hu))
    data = slice_dataset(np.zeros((64, 64), np.int16), 0, "1.2.3.4", ImagePositionPatient=None, PixelSpacing=None,
                         ImageOrientationPatient=None, RescaleSlope=None, RescaleIntercept=None)  # fmt: skip
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CLASS
    data.NumberOfFrames = len(hu)
    stored, groups = [], []
    for index in order:
        slope, intercept = ((1, -1024), (2, -2000))[index % 2]
        stored.append((hu[index] - intercept) // slope)
        position = {"ImagePositionPatient": [ORIGIN[0], ORIGIN[1], ORIGIN[2] + int(index) * STEP]}
        rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "HU"}
        groups.append(items(PlanePositionSequence=position, PixelValueTransformationSequence=rescale))
    data.PerFrameFunctionalGroupsSequence = groups
    data.SharedFunctionalGroupsSequence = [
        items(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": list(SPACING), "SliceThickness": STEP},
        )
    ]
    data.PixelData = np.stack(stored).astype(np.int16).tobytes()
    if edit is not None:
        edit(data)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def test_frames_are_ordered_by_place_and_rescaled_each_by_its_own_numbers(tmp_path: Path) -> None:
    volume, findings = read_volume(enhanced(tmp_path / "ct.dcm"))
    np.testing.assert_array_equal(volume.hu, np.maximum(chest() // 2 * 2, -1024))
    assert volume.spacing_mm == pytest.approx((SPACING[1], SPACING[0], STEP))
    assert volume.origin_mm == pytest.approx(ORIGIN)
    assert volume.orientation == "LPS"
    assert not [f for f in findings if f.severity != "note"]


def test_file_and_its_folder_are_found_as_one_ct(tmp_path: Path) -> None:
    (tmp_path / "exam").mkdir()
    file = enhanced(tmp_path / "exam" / "ct.dcm")
    for path in (file, tmp_path / "exam"):
        assert [found.kind for found in discover(path).exams] == ["volume"]
        assert len(find_cts(path, keep_names=True)[0]) == 1
        assert len(identities(path)[0]) == 2
        assert read_volume(path)[0].shape == (40, 64, 64)


def shift(data: FileDataset) -> None:
    group = data.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence[0]
    group.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + 1000]


def same_place(data: FileDataset) -> None:
    first, second = (data.PerFrameFunctionalGroupsSequence[i].PlanePositionSequence[0] for i in (5, 6))
    first.ImagePositionPatient = second.ImagePositionPatient


def without_place(data: FileDataset) -> None:
    del data.PerFrameFunctionalGroupsSequence[7].PlanePositionSequence


def without_groups(data: FileDataset) -> None:
    del data.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize(
    "edit, words",
    [
        (shift, "uneven-spacing"),
        (same_place, "duplicate-slice"),
        (without_place, "missing-position: 1 of 40 slices"),
        (without_groups, "40 frames in one file that does not say where each lies"),
        (lambda data: data.compress(RLELossless), "frames compressed as RLE Lossless.*dcm2niix"),
    ],
)
def test_defects_of_frames_are_refused(tmp_path: Path, edit: Edit, words: str) -> None:
    with pytest.raises(UnusableExam, match=words) as caught:
        read_volume(enhanced(tmp_path / "ct.dcm", edit))
    assert SECRET not in str(caught.value)


def test_missing_groups_and_truncated_pixels_are_refused(tmp_path: Path) -> None:
    def fewer(data: FileDataset) -> None:
        del data.PerFrameFunctionalGroupsSequence[3:]

    def shorter(data: FileDataset) -> None:
        data.PixelData = data.PixelData[:-64]

    for edit, words in ((fewer, "header can't be decoded"), (shorter, "bytes of pixels, expected 8192")):
        with pytest.raises(UnreadableExam, match=words) as caught:
            read_volume(enhanced(tmp_path / "ct.dcm", edit))
        assert SECRET not in str(caught.value)
