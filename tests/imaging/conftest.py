from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from embedprior.imaging.volume import Volume

SECRET = "DOE^JANE^SECRET"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
SPACING, STEP, ORIGIN = (5.0, 5.0), 6.0, (-160.0, -160.0, -100.0)
SeriesMaker = Callable[..., Path]


def chest(slices: int = 40, rows: int = 64, columns: int = 64) -> np.ndarray[Any, Any]:
    """int16 HU, foot to head, 5 x 5 x 6 mm: body, two lungs that end inside, spine at the back, heart on the left."""
    z, y, x = np.mgrid[:slices, :rows, :columns].astype(float)
    z, y, x = (z - slices / 2) * STEP, (y - rows / 2) * SPACING[0], (x - columns / 2) * SPACING[1]
    hu = np.full((slices, rows, columns), -1000.0)
    hu[(x / 140) ** 2 + (y / 100) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x - side * 65) / 48) ** 2 + (y / 70) ** 2 + (z / 90) ** 2 < 1] = -850
    hu[((x - 25) / 40) ** 2 + ((y + 25) / 35) ** 2 + ((z + 30) / 40) ** 2 < 1] = 45
    hu[(x / 15) ** 2 + ((y - 75) / 15) ** 2 < 1] = 500
    rough = np.random.default_rng(0).normal(0, 12, hu.shape)
    return np.clip(np.rint(hu + rough), -1024, 3000).astype(np.int16)


def slice_dataset(stored: np.ndarray[Any, Any], index: int, series: str, **changes: Any) -> FileDataset:
    """One CT slice; ``changes`` set header fields, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_CLASS
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CT_CLASS, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID = series, generate_uid(entropy_srcs=["study"])
    data.PatientName, data.PatientID, data.PatientBirthDate = SECRET, SECRET + "-ID", "19700101"
    data.SeriesDescription = SECRET + " description"
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelSpacing = [SPACING[0], SPACING[1]]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + index * STEP]
    data.InstanceNumber = 1000 - index
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = np.ascontiguousarray(stored).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


@pytest.fixture
def make_series(tmp_path: Path) -> SeriesMaker:
    """Write a CT series; ``edit(index, dataset)`` changes a slice or returns False to leave it out."""

    def make(
        hu: np.ndarray[Any, Any] | None = None,
        edit: Callable[[int, FileDataset], Any] | None = None,
        name: str = "series",
        series: str | None = None,
        **changes: Any,
    ) -> Path:
        hu = chest() if hu is None else hu
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        series = series or generate_uid(entropy_srcs=[name])
        names = np.random.default_rng(1).permutation(len(hu))
        for index, plane in enumerate(hu):
            data = slice_dataset(plane.astype(np.int32) + 1024, index, series, **changes)
            data.PixelData = (plane.astype(np.int32) + 1024).astype(np.int16).tobytes()
            if edit is not None and edit(index, data) is False:
                continue
            # file names in random order: only positions may decide
            pydicom.dcmwrite(folder / f"{series[-4:]}-{names[index]:03d}.dcm", data, enforce_file_format=True)
        return folder

    return make


def from_sitk(image: sitk.Image) -> Volume:
    """A SimpleITK image as a volume, by SimpleITK's own geometry."""
    x, y, z = image.GetSpacing()
    left, back, up = image.GetOrigin()
    turn = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(sitk.GetArrayFromImage(image), (x, y, z), (left, back, up), turn)
