"""The tone curve fitted to radiographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

from embedprior.errors import BadInput
from embedprior.imaging.drr import Appearance
from embedprior.imaging.drr.physics import tone_curve
from embedprior.imaging.drr.tone_fit import fit_tone, read_references, reference_files

from ..conftest import slice_dataset


def _attenuations(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [np.sort(generator.gamma(4.0, 0.8, 60 * 60)).reshape(60, 60) + 0.4 for _ in range(count)]


def test_a_known_tone_curve_is_found_again() -> None:
    truth = Appearance(window=None, gamma=0.6, contrast=2.5, levels=(0.12, 0.9))
    pictures = _attenuations(6)
    references = [tone_curve(torch.from_numpy(a)[None], truth)[0].numpy() for a in pictures]
    found = fit_tone(pictures, references, Appearance())
    assert found.appearance.gamma == pytest.approx(0.6, abs=0.05)
    assert found.appearance.levels == pytest.approx((0.12, 0.9), abs=0.03)
    assert found.after < 0.01 < 0.05 < found.before
    assert found.appearance.window is None


def test_rest_of_the_appearance_is_kept() -> None:
    given = Appearance(scatter_fraction=0.3, photons_per_mm2=900.0, polarity="bone_black")
    found = fit_tone(_attenuations(2), _attenuations(2), given).appearance
    assert (found.scatter_fraction, found.photons_per_mm2, found.polarity) == (0.3, 900.0, "bone_white")


def test_table_beside_the_pictures_chooses_the_view(tmp_path: Path) -> None:
    views = ["PA"] * 6 + ["L"] * 3 + ["PA"]
    (tmp_path / "images").mkdir()
    for k in range(len(views)):
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{k}.png")
    pd.DataFrame(
        {"filename": [f"{k}.png" for k in range(10)], "view": views, "modality": ["X-ray"] * 9 + ["CT"]}
    ).to_csv(tmp_path / "metadata.csv", index=False)
    assert [p.name for p in reference_files(tmp_path / "images", "PA")] == [f"{k}.png" for k in range(6)]
    # no AP among them: any frontal view serves
    assert len(reference_files(tmp_path / "images", "AP")) == 6
    with pytest.raises(BadInput, match="LATERAL"):
        reference_files(tmp_path / "images", "LATERAL")
    (tmp_path / "metadata.csv").unlink()
    assert len(reference_files(tmp_path / "images", "PA")) == 10


def test_dicom_radiographs_are_references_too_shown_with_bright_bone(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.int16)
    for k in range(5):
        data = slice_dataset(4095 - stored, 0, "1.2.3", Modality="DX", PhotometricInterpretation="MONOCHROME1")
        pydicom.dcmwrite(tmp_path / f"{k}.dcm", data, enforce_file_format=True)
    pictures = read_references(reference_files(tmp_path, "PA"))
    assert len(pictures) == 5
    expected = (stored - stored.min()) / np.ptp(stored)
    np.testing.assert_allclose(pictures[0], expected, atol=1e-3)


def test_real_radiographs_give_a_better_tone_than_the_default(shared_data: Path) -> None:
    files = reference_files(shared_data / "covid_chestxray" / "images", "PA")
    assert len(files) > 50
    found = fit_tone(_attenuations(3), read_references(files[::10]), Appearance())
    assert found.after < found.before / 3
