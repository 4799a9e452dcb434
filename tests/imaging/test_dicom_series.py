"""Every defect has a file that provokes it and the message a user reads."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import RLELossless, generate_uid

from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import UnusableExam
from embedprior.imaging.readers import read_volume
from embedprior.imaging.resampling import grid_of, resample_onto
from embedprior.imaging.volume import Volume, canonical, to_sitk

from .conftest import ORIGIN, SECRET, SPACING, STEP, chest


def codes(findings: Any) -> set[str]:
    return {f.code for f in findings}


def refused(path: Path, series: str = "only") -> UnusableExam:
    with pytest.raises(UnusableExam) as caught:
        read_volume(path, series)
    assert SECRET not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return caught.value


def test_slices_are_ordered_by_position_not_by_name_or_number(make_series: Callable[..., Path]) -> None:
    volume, findings = read_volume(make_series())
    np.testing.assert_array_equal(volume.hu, chest())
    assert volume.hu.dtype == np.int16
    assert volume.spacing_mm == pytest.approx((SPACING[1], SPACING[0], STEP))
    assert volume.origin_mm == pytest.approx(ORIGIN)
    assert volume.orientation == "LPS"
    assert volume.patient_id == SECRET + "-ID"
    assert SECRET not in repr(volume)
    assert not codes(findings) & {"below-air", "padding", "hu-offset"}


def test_folder_and_zip_and_simpleitk_agree(make_series: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_series()
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for file in folder.iterdir():
            packed.write(file, f"a/b/{file.name}")
    ours, _ = read_volume(folder)
    zipped, _ = read_volume(tmp_path / "series.zip")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(ours.hu, sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(ours.hu, zipped.hu)
    assert ours.origin_mm == zipped.origin_mm == pytest.approx(image.GetOrigin())


@pytest.mark.parametrize("slope, intercept", [(1, -1024), (2, -2000), (0.5, -1024)])
def test_rescale_is_applied_exactly_once(make_series: Callable[..., Path], slope: float, intercept: int) -> None:
    hu = (chest() // 2) * 2

    def store(index: int, data: Any) -> None:
        data.PixelData = np.rint((hu[index] - intercept) / slope).astype(np.int16).tobytes()

    volume, _ = read_volume(make_series(hu, store, RescaleSlope=slope, RescaleIntercept=intercept))
    np.testing.assert_array_equal(volume.hu, hu)


@pytest.mark.parametrize(
    "wrong, words", [(lambda hu: hu.astype(int) - 1024, "applied twice"), (lambda hu: hu.astype(int) + 1024, "never")]
)
def test_rescale_applied_twice_or_never_is_refused_with_the_numbers_seen(
    tmp_path: Path, wrong: Callable[[Any], Any], words: str
) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(wrong(chest()).astype(np.int16)), str(tmp_path / "v.nrrd"))
    error = refused(tmp_path / "v.nrrd")
    assert codes(error.findings) >= {"hu-range"}
    assert words in str(error)
    assert "values from" in str(error)


def test_every_slice_is_rescaled_by_its_own_numbers(make_series: Callable[..., Path]) -> None:
    hu = (chest() // 2) * 2

    def store(index: int, data: Any) -> None:
        data.RescaleSlope, data.RescaleIntercept = ((1, -1024), (2, -2000), (0.5, 10))[index % 3]
        stored = (hu[index] - float(data.RescaleIntercept)) / float(data.RescaleSlope)
        data.PixelData = np.rint(stored).astype(np.int16).tobytes()

    np.testing.assert_array_equal(read_volume(make_series(hu, store))[0].hu, hu)


def test_signed_values_of_twelve_bits_keep_their_sign(make_series: Callable[..., Path]) -> None:
    def store(index: int, data: Any) -> None:
        # bits above the twelve stored ones are zero, also where the number is negative
        data.PixelData = (chest()[index].clip(-1024, 2047).astype(np.int16) & 0x0FFF).tobytes()

    volume, _ = read_volume(make_series(edit=store, BitsStored=12, HighBit=11, RescaleIntercept=0))
    np.testing.assert_array_equal(volume.hu, chest().clip(-1024, 2047))


@pytest.mark.parametrize("head_first", [True, False])
def test_rows_and_columns_keep_their_own_spacing_and_the_head_stays_up(
    make_series: Callable[..., Path], head_first: bool
) -> None:
    hu = np.ascontiguousarray(chest()[:, 4:54])
    sign = 1 if head_first else -1

    def place(index: int, data: Any) -> None:
        # feet first, the patient is turned about the left-right axis: rows grow to the front, slices to the feet
        data.ImageOrientationPatient = [1, 0, 0, 0, sign, 0]
        data.ImagePositionPatient = [-100.0, 30.0, index * 6.0]

    folder = make_series(hu, place, name=f"anisotropic{sign}", PixelSpacing=[4.0, 5.5])
    volume, _ = read_volume(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert volume.spacing_mm == pytest.approx((5.5, 4.0, 6.0)) == image.GetSpacing()
    for index in ((0, 0, 0), (3, 40, 7), (63, 0, 39)):
        place_mm = (volume.affine @ [*index, 1])[:3]
        assert int(volume.hu[index[::-1]]) == image[image.TransformPhysicalPointToIndex(place_mm.tolist())]
    up = canonical(volume)
    assert up.orientation == "LPS"
    # the slice written at 39 x 6 mm is the topmost, whichever way rows ran
    np.testing.assert_array_equal(up.hu[39], hu[39] if head_first else hu[39, ::-1])


def test_missing_slice_names_the_gap(make_series: Callable[..., Path]) -> None:
    error = refused(make_series(edit=lambda i, _: i not in (11, 12)))
    assert codes(error.findings) == {"missing-slice"}
    assert "2 missing" in str(error)
    assert "18 mm between slices 11 and 12" in str(error)


def test_uneven_spacing_is_refused_but_rounded_positions_are_not(make_series: Callable[..., Path]) -> None:
    def drift(index: int, data: Any) -> None:
        data.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + (index * 2.5 if index < 20 else 50 + (index - 20) * 3)]

    assert codes(refused(make_series(edit=drift, name="drift")).findings) == {"uneven-spacing"}

    def rounded(index: int, data: Any) -> None:
        data.ImagePositionPatient = [*ORIGIN[:2], round(ORIGIN[2] + index * 0.625, 1)]

    volume, _ = read_volume(make_series(edit=rounded, name="rounded"))
    assert volume.spacing_mm[2] == pytest.approx(0.625, abs=0.003)


def test_slice_copied_twice_is_dropped_and_two_slices_at_one_place_are_refused(
    make_series: Callable[..., Path],
) -> None:
    folder = make_series()
    copied = sorted(folder.iterdir())[7]
    (folder / "copy.dcm").write_bytes(copied.read_bytes())
    volume, findings = read_volume(folder)
    np.testing.assert_array_equal(volume.hu, chest())
    assert "repeated-slice" in codes(findings)
    data = pydicom.dcmread(folder / "copy.dcm")
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(folder / "copy.dcm")
    assert "duplicate-slice" in codes(refused(folder).findings)


@pytest.mark.parametrize("degrees", [20.0, -12.0])
@pytest.mark.parametrize("stored_upwards", [True, False])
def test_tilted_gantry_is_straightened_every_voxel_in_its_place(
    make_series: Callable[..., Path], degrees: float, stored_upwards: bool
) -> None:
    """Slices tilted about the left-right axis, as a scanner takes them while the table moves along z."""
    truth = Volume(chest(), (5.0, 5.0, 6.0), ORIGIN)
    angle = np.radians(degrees)
    rows = np.array([0.0, np.cos(angle), np.sin(angle)])
    # the far rows lie higher or lower than the near ones, so the table starts early or ends late
    steps = np.arange(-24, 50) if degrees > 0 else np.arange(-2, 66)
    starts = np.array(ORIGIN) + steps[:, None] * [0.0, 0.0, 5.0]
    taken = []
    for start in starts:
        direction = np.stack([[1, 0, 0], rows, np.cross([1, 0, 0], rows)], axis=1)
        one = sitk.Resample(
            to_sitk(truth), [64, 64, 1], sitk.Transform(), sitk.sitkLinear, start.tolist(), [5.0, 5.0, 5.0],
            direction.ravel().tolist(), -1000,
        )  # fmt: skip
        taken.append(sitk.GetArrayFromImage(one)[0])

    def place(index: int, data: Any) -> None:
        data.ImageOrientationPatient = [1, 0, 0, *rows.tolist()]
        data.ImagePositionPatient = starts[index if stored_upwards else -1 - index].tolist()

    planes = np.array(taken if stored_upwards else taken[::-1])
    volume, findings = read_volume(make_series(planes, place, name=f"tilt{degrees}{stored_upwards}"))
    assert f"tilt of {abs(degrees):.1f}°" in next(f.message for f in findings if f.code == "straightened")
    assert {"oblique", "straightened"} <= codes(findings)
    assert volume.spacing_mm[2] == pytest.approx(5 * np.cos(angle), abs=1e-3)
    found = resample_onto(volume, grid_of(truth)).hu
    inside = np.s_[4:-4, 4:-4]
    likeness = np.corrcoef(found[inside].ravel(), truth.hu[inside].ravel())[0, 1]
    assert likeness > 0.985
    blurred = np.abs(found[inside].astype(int) - truth.hu[inside])
    assert np.median(blurred) < 15


def test_shear_that_no_gantry_makes_is_refused(make_series: Callable[..., Path]) -> None:
    for name, sideways, turn in (("sideways", 15.0, 0.0), ("steep", 0.0, 50.0)):

        def place(index: int, data: Any, x: float = sideways, y: float = turn) -> None:
            up = index * STEP
            shift = up * np.tan(np.radians([x, y]))
            data.ImagePositionPatient = [ORIGIN[0] + shift[0], ORIGIN[1] + shift[1], ORIGIN[2] + up]

        error = refused(make_series(edit=place, name=name))
        assert "gantry-tilt" in codes(error.findings)
        assert f"sheared by {max(sideways, turn):.1f}°, which no gantry does" in str(error)
        assert "dcm2niix" in str(error)


def test_oblique_but_straight_series_is_no_tilt(make_series: Callable[..., Path]) -> None:
    angle = np.radians(8)
    up = np.array([0, -np.sin(angle), np.cos(angle)])

    def turn(index: int, data: Any) -> None:
        data.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(angle)), float(np.sin(angle))]
        data.ImagePositionPatient = [round(float(v), 4) for v in np.array(ORIGIN) + index * STEP * up]

    volume, findings = read_volume(make_series(edit=turn))
    assert "oblique" in codes(findings)
    np.testing.assert_allclose(volume.direction[:, 2], up, atol=1e-3)


def test_several_series_are_an_error_until_a_rule_or_a_name_decides(make_series: Callable[..., Path]) -> None:
    folder = make_series(series=generate_uid(entropy_srcs=["one"]))
    make_series(chest(slices=30), series=generate_uid(entropy_srcs=["two"]))
    error = refused(folder)
    assert codes(error.findings) >= {"several-series"}
    assert "most-slices" in str(error)
    volume, findings = read_volume(folder, "most-slices")
    assert volume.shape[0] == 40
    assert "other-series" in codes(findings)
    short = next(word for word in str(error).replace(",", "").split() if len(word) == 8 and word.isalnum() and
                 "30 slices" in str(error).split(word)[1][:15])  # fmt: skip
    assert read_volume(folder, short)[0].shape[0] == 30
    with pytest.raises(BadInput, match="Did you mean 'most-slices'"):
        read_volume(folder, "most-slice")


def test_localizer_and_report_beside_the_series_are_left_out(make_series: Callable[..., Path]) -> None:
    folder = make_series()
    make_series(chest(slices=2), series=generate_uid(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (folder / "readme.txt").write_text(SECRET)
    volume, findings = read_volume(folder)
    assert volume.shape[0] == 40
    assert codes(findings) >= {"other-series", "other-files"}


@pytest.mark.parametrize(
    "code, changes",
    [
        ("missing-position", {"ImagePositionPatient": None}),
        ("missing-position", {"PixelSpacing": None}),
        ("not-ct", {"Modality": "MR"}),
        ("not-ct", {"Modality": SECRET}),
        ("mixed-frames", {"SamplesPerPixel": 3}),
        ("spacing-implausible", {"PixelSpacing": [50.0, 50.0]}),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_header_defects(make_series: Callable[..., Path], code: str, changes: dict[str, Any]) -> None:
    assert code in codes(refused(make_series(**changes)).findings)


def test_mixed_orientations_and_sizes_are_refused(make_series: Callable[..., Path]) -> None:
    def turn(index: int, data: Any) -> None:
        if index == 5:
            data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    assert "2 different orientations" in str(refused(make_series(edit=turn, name="turned")))

    def halve(index: int, data: Any) -> None:
        if index == 5:
            data.Rows = 32

    assert "2 different sizes" in str(refused(make_series(edit=halve, name="halved")))


def test_too_few_slices(make_series: Callable[..., Path]) -> None:
    error = refused(make_series(chest(slices=4)))
    assert "4 slices; a volume needs 8" in str(error)


def test_truncated_and_damaged_slices_are_named(make_series: Callable[..., Path]) -> None:
    folder = make_series()
    victim = sorted(folder.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-500])
    with pytest.raises(UnreadableExam, match=rf"{victim.name}: (.*bytes of pixels|pixels can't)") as caught:
        read_volume(folder)
    assert SECRET not in str(caught.value)


def test_padding_becomes_air_but_tissue_of_the_same_value_stays(make_series: Callable[..., Path]) -> None:
    hu = chest()
    y, x = np.mgrid[:64, :64] - 31.5
    outside = y**2 + x**2 > 31**2
    expected = hu.copy()
    expected[:, outside] = -1024
    hu[:, outside] = -2000
    low, findings = read_volume(make_series(hu, name="low", PixelPaddingValue=-2000 + 1024))
    np.testing.assert_array_equal(low.hu, expected)
    assert "padding" in codes(findings)
    undeclared, findings = read_volume(make_series(hu, name="undeclared"))
    np.testing.assert_array_equal(undeclared.hu, expected)
    assert "below-air" in codes(findings)
    hu[:, outside] = 0
    hu[:, 30:34, 30:34] = 0
    expected[:, 30:34, 30:34] = 0
    water, _ = read_volume(make_series(hu, name="water", PixelPaddingValue=1024))
    np.testing.assert_array_equal(water.hu, expected)


def test_overlay_bits_above_the_stored_ones_are_cleared(make_series: Callable[..., Path]) -> None:
    def overlay(index: int, data: Any) -> None:
        stored = np.frombuffer(data.PixelData, np.uint16) | np.uint16(0x8000)
        data.PixelData = stored.tobytes()

    changes = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    volume, _ = read_volume(make_series(edit=overlay, **changes))
    np.testing.assert_array_equal(volume.hu, chest())


def _rle(index: int, data: Any) -> None:
    data.compress(RLELossless)


@pytest.mark.parametrize("syntax", ["rle", "jpeg2000", "jpeg-lossless", "deflated", "implicit", "big-endian"])
def test_compressed_syntaxes_decode_to_the_same_numbers(
    make_series: Callable[..., Path], tmp_path: Path, syntax: str
) -> None:
    hu = chest()[10:20]
    folder = make_series(hu, edit=_rle if syntax == "rle" else None)
    for file in sorted(folder.iterdir()):
        if syntax in ("jpeg2000", "jpeg-lossless"):
            _recompress(file, "JPEG2000" if syntax == "jpeg2000" else "JPEG")
        elif syntax != "rle":
            data = pydicom.dcmread(file)
            tails = {"deflated": ".1.99", "implicit": "", "big-endian": ".2"}
            if syntax == "big-endian":
                data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
            data.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2" + tails[syntax])
            options = {"implicit_vr": syntax == "implicit", "little_endian": syntax != "big-endian"}
            pydicom.dcmwrite(file, data, force_encoding=True, **options)
    volume, findings = read_volume(folder)
    np.testing.assert_array_equal(volume.hu, hu)
    assert ("compressed" in codes(findings)) == (syntax in ("rle", "jpeg2000", "jpeg-lossless"))


def _recompress(file: Path, compressor: str) -> None:
    """Let GDCM encode the pixels, and put its bitstream under the original header."""
    from pydicom.encaps import encapsulate, generate_frames

    stored = np.frombuffer(pydicom.dcmread(file).PixelData, np.int16).reshape(64, 64)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.SetFileName(str(file.with_suffix(".tmp.dcm")))
    writer.Execute(sitk.GetImageFromArray(stored))
    packed = pydicom.dcmread(file.with_suffix(".tmp.dcm"))
    file.with_suffix(".tmp.dcm").unlink()
    data = pydicom.dcmread(file)
    data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    data.PixelData = encapsulate([next(generate_frames(packed.PixelData, number_of_frames=1))])
    data["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(file, data)


def test_undecodable_compression_names_the_syntax_and_the_way_out(make_series: Callable[..., Path]) -> None:
    from pydicom.encaps import encapsulate

    folder = make_series()
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
        data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(100)])
        data["PixelData"].is_undefined_length = True
        pydicom.dcmwrite(file, data)
    with pytest.raises(UnreadableExam, match=r"High-Throughput JPEG 2000.*no decoder.*pip install pylibjpeg") as caught:
        read_volume(folder)
    assert SECRET not in str(caught.value)


def test_empty_folder_missing_path_and_bad_zip(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 not really")
    for name, words in (("empty", "no DICOM images"), ("gone.nii.gz", "no such file"), ("bad.zip", "not a zip")):
        with pytest.raises(UnreadableExam, match=words):
            read_volume(tmp_path / name)


def test_lossy_syntax_is_a_warning(make_series: Callable[..., Path]) -> None:
    folder = make_series(chest()[10:20])
    for file in sorted(folder.iterdir()):
        _recompress(file, "JPEG2000")
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000
        pydicom.dcmwrite(file, data)
    assert {"lossy", "compressed"} <= codes(read_volume(folder)[1])
