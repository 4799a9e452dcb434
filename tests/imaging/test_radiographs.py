from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import UnusableExam
from embedprior.imaging.radiograph_audit import audit_radiograph, cues
from embedprior.imaging.radiographs import (
    RadiographProfile,
    normal_view,
    prepare_radiograph,
    read_image,
    read_radiograph,
)
from embedprior.imaging.voi import Voi, apply_voi

from .conftest import SECRET, slice_dataset


def frontal(side: int = 128) -> np.ndarray[Any, Any]:
    """A drawn frontal view, 12 bits: two dark lungs, bright midline and shoulders, values 0 to 4095."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    grey = 0.75 + 0.05 * np.sin(7 * y)
    for centre in (0.3, 0.7):
        grey -= 0.5 * np.exp(-((((x - centre) / 0.16) ** 2 + ((y - 0.45) / 0.33) ** 2) ** 3))
    grey += 0.1 * np.exp(-(((x - 0.55) / 0.1) ** 2 + ((y - 0.6) / 0.15) ** 2))
    grey += np.random.default_rng(0).normal(0, 0.02, grey.shape)
    return np.clip(np.rint(grey * 4095), 0, 4095).astype(np.uint16)


def write(path: Path, stored: np.ndarray[Any, Any], **changes: Any) -> Path:
    data = slice_dataset(stored, 0, "1.2.3", Modality="DX", BitsStored=12, HighBit=11, PixelRepresentation=0)
    for name in ("RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    data.PixelData = stored.astype(np.uint16).tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def codes(findings: Any) -> set[str]:
    return {f.code for f in findings}


def test_monochrome1_is_shown_with_bright_bone(tmp_path: Path) -> None:
    window = {"WindowCenter": "2048", "WindowWidth": "4096"}
    two, _ = read_radiograph(write(tmp_path / "two.dcm", frontal(), **window))
    one, findings = read_radiograph(
        write(tmp_path / "one.dcm", 4095 - frontal(), PhotometricInterpretation="MONOCHROME1", **window)
    )
    np.testing.assert_allclose(one.grey, two.grey, atol=1e-3)
    assert "inverted" not in codes(findings)
    wrong, findings = read_radiograph(write(tmp_path / "wrong.dcm", 4095 - frontal(), **window))
    assert "inverted" in codes(findings)
    assert one.grey.mean() > wrong.grey.mean()


def test_windows_follow_the_standards_formulas() -> None:
    values = np.array([[0.0, 1000.0, 2000.0, 2500.0, 4095.0]])
    low, width = 2000 - 0.5 - 999 / 2, 999
    np.testing.assert_allclose(apply_voi(values, Voi(2000, 1000)), np.clip((values - low) / width, 0, 1), atol=1e-6)
    exact = np.clip((values - 1500) / 1000, 0, 1)
    np.testing.assert_allclose(apply_voi(values, Voi(2000, 1000, "LINEAR_EXACT")), exact, atol=1e-6)
    sigmoid = 1 / (1 + np.exp(-4 * (values - 2000) / 1000))
    np.testing.assert_allclose(apply_voi(values, Voi(2000, 1000, "SIGMOID")), sigmoid, atol=1e-6)


def test_windows_agree_with_pydicom(tmp_path: Path) -> None:
    from pydicom.pixels import apply_voi_lut

    stored = frontal()
    path = write(tmp_path / "w.dcm", stored, WindowCenter=["1800", "900"], WindowWidth=["2100", "300"])
    theirs = apply_voi_lut(stored, pydicom.dcmread(path)) / 4095
    np.testing.assert_allclose(read_radiograph(path)[0].grey, theirs, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_table_is_applied(tmp_path: Path, bits: int) -> None:
    table = Dataset()
    curve = np.rint((2**bits - 1) * (np.arange(4096) / 4095) ** 2)
    table.LUTDescriptor = [4096, 0, bits]
    table.LUTData = curve.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    path = write(tmp_path / "lut.dcm", frontal(), VOILUTSequence=[table])
    expected = curve[frontal()] / (2**bits - 1)
    np.testing.assert_allclose(read_radiograph(path)[0].grey, expected, atol=1e-6)


def test_no_window_uses_the_range_without_padding_and_says_so(tmp_path: Path) -> None:
    stored = frontal()
    stored[:, :10] = 4000
    stored[:, 10:] = np.minimum(stored[:, 10:], 3500)
    radiograph, findings = read_radiograph(write(tmp_path / "p.dcm", stored, PixelPaddingValue=4000))
    kept = stored[:, 10:].astype(float)
    np.testing.assert_allclose(radiograph.grey[:, 10:], (kept - kept.min()) / np.ptp(kept), atol=1e-6)
    assert (radiograph.grey[:, :10] == 0).all()
    assert "no-voi" in codes(findings)


def test_encoders_reader_gives_the_same_pixels(tmp_path: Path) -> None:
    write(tmp_path / "x.dcm", frontal())
    np.testing.assert_array_equal(read_image(tmp_path, "x.dcm"), read_radiograph(tmp_path / "x.dcm")[0].grey)


@pytest.mark.parametrize(
    "header, table, view, code",
    [
        ("PA", "", "PA", None), ("AP", "", "AP", None), ("LL", "", "LATERAL", None), ("", "AP Supine", "AP", None),
        ("PA", "L", "LATERAL", "view-differs"), ("", "", "", "view-unknown"), (SECRET, "", "", "view-unknown"),
    ],
)  # fmt: skip
def test_view_of_header_and_table(tmp_path: Path, header: str, table: str, view: str, code: str | None) -> None:
    path = tmp_path / "x.dcm"
    with pydicom.config.disable_value_validation():
        write(path, frontal(), ViewPosition=header)
    radiograph, findings = read_radiograph(path, table)
    assert radiograph.view == view
    assert codes(findings) & {"view-differs", "view-unknown"} == ({code} if code else set())
    assert SECRET not in "".join(map(str, findings))
    assert SECRET not in repr(radiograph)


def test_view_spellings() -> None:
    assert [normal_view(t) for t in ("pa", "ap_supine", " Lateral ", "RL", "sagittal", None)] == [
        "PA", "AP", "LATERAL", "LATERAL", "", "",
    ]  # fmt: skip


def test_ct_slice_and_multiframe_are_no_radiographs(tmp_path: Path) -> None:
    with pytest.raises(UnusableExam, match="not-radiograph: the modality is CT"):
        read_radiograph(write(tmp_path / "ct.dcm", frontal(), Modality="CT"))
    with pytest.raises(UnusableExam, match="several-frames: 3 frames"):
        read_radiograph(write(tmp_path / "cine.dcm", frontal(), NumberOfFrames=3))
    (tmp_path / "no.dcm").write_bytes(b"not dicom")
    with pytest.raises(UnreadableExam, match=r"no\.dcm: header can't be decoded"):
        read_radiograph(tmp_path / "no.dcm")


def test_sixteen_bit_png_and_colour_photo(tmp_path: Path) -> None:
    Image.fromarray(frontal() * 16).save(tmp_path / "x.png")
    grey = read_radiograph(tmp_path / "x.png")[0].grey
    np.testing.assert_allclose(grey, frontal() * 16 / 65535, atol=1e-6)
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "photo.jpg")
    assert "not-chest-like" in codes(read_radiograph(tmp_path / "photo.jpg")[1])


@pytest.mark.parametrize("geometry", ["letterbox", "crop"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (224, 224), (100, 90)])
def test_letterbox_keeps_all_and_crop_fills(geometry: Any, shape: tuple[int, int]) -> None:
    side = 56
    made = prepare_radiograph(np.ones(shape, np.float32), RadiographProfile(side=side, geometry=geometry))
    assert made.shape == (side, side)
    short = round(min(shape) * side / max(shape))
    assert int((made > 0.5).sum()) == (side * short if geometry == "letterbox" else side * side)


def test_values_are_those_of_a_plain_resize_in_the_middle_then_normalised() -> None:
    grey = np.random.default_rng(0).random((300, 220)).astype(np.float32)
    boxed = prepare_radiograph(grey, RadiographProfile(geometry="letterbox", mean=0.5, std=0.25))
    small = np.asarray(Image.fromarray(grey).resize((164, 224), Image.Resampling.BICUBIC)).clip(0, 1)
    np.testing.assert_allclose(boxed[:, 30:194], (small - 0.5) / 0.25, atol=1e-6)
    assert (boxed[:, :30] == -2).all()
    assert (boxed[:, 194:] == -2).all()
    cut = prepare_radiograph(grey, RadiographProfile(geometry="crop"))
    large = np.asarray(Image.fromarray(grey).resize((224, 305), Image.Resampling.BICUBIC)).clip(0, 1)
    np.testing.assert_allclose(cut, large[40:264], atol=1e-6)


def test_every_field_of_the_profile_is_recorded_and_used() -> None:
    base = RadiographProfile(side=32)
    grey = np.random.default_rng(0).random((40, 60)).astype(np.float32)
    for change in ({"side": 40}, {"geometry": "crop"}, {"mean": 0.5}, {"std": 0.5}):
        other = base.model_copy(update=change)
        one, two = prepare_radiograph(grey, base), prepare_radiograph(grey, other)
        assert one.shape != two.shape or not np.allclose(one, two)
    with pytest.raises((BadInput, ValueError)):
        RadiographProfile(side=0)


def test_warnings_about_a_drawn_chest() -> None:
    grey = frontal() / 4095
    assert audit_radiograph(grey, "PA") == []
    assert codes(audit_radiograph(1 - grey, "PA")) == {"inverted"}
    boxed = np.full((180, 180), 0.0)
    boxed[26:154, 26:154] = grey
    assert "collimated" in codes(audit_radiograph(boxed, "PA"))
    assert "not-chest-like" in codes(audit_radiograph(grey[:20], "PA"))
    y = np.linspace(0, 1, 64)
    bands = np.repeat((0.5 + 0.5 * np.sin(40 * y))[:, None], 64, axis=1) + np.linspace(0, 0.01, 64)
    assert codes(audit_radiograph(bands, "")) & {"not-chest-like", "lateral"}


def test_cues_ignore_brightness_and_contrast() -> None:
    grey = frontal() / 4095
    one, two = cues(grey), cues(0.2 + 0.3 * grey**2)
    assert one.midline == pytest.approx(two.midline, abs=0.02)


@pytest.mark.slow
def test_real_frontal_radiographs_raise_few_false_alarms_and_their_negatives_many_true_ones(shared_data: Path) -> None:
    """Patients whose radiographs set no bar; the rates themselves are in docs/imaging.md."""
    import zlib

    import pandas as pd

    folder = shared_data / "covid_chestxray"
    exams = pd.read_csv(folder / "metadata.csv")
    held = exams["patientid"].map(lambda patient: zlib.crc32(str(patient).encode()) % 2 == 1)
    exams = exams[(exams["modality"] == "X-ray") & held]
    frontal, negative = [], []
    for name, view in zip(exams["filename"], exams["view"], strict=True):
        if view != "L":
            radiograph, found = read_radiograph(folder / "images" / name, view)
            frontal.append(codes(found))
            negative.append(codes(audit_radiograph(1 - radiograph.grey, view)))
    alarms = sum(bool(found & {"inverted", "lateral", "not-chest-like"}) for found in frontal)
    assert len(frontal) == 181
    assert alarms / len(frontal) < 0.05
    assert sum("inverted" in found for found in frontal) <= 2
    assert sum("inverted" in found for found in negative) / len(negative) > 0.8
