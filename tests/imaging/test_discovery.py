"""Which exams lie in a folder: by content, whatever the names; nothing passed over in silence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from embedprior.cli import main
from embedprior.errors import BadInput
from embedprior.imaging.dicom_series import series_rule
from embedprior.imaging.files import UnreadableExam, files_below
from embedprior.imaging.findings import UnusableExam
from embedprior.imaging.readers import discover, find_cts, read_volume

from .conftest import chest, slice_dataset
from .test_radiographs import frontal, write

Maker = Callable[..., Path]
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"


def renamed(folder: Path, name: Callable[[int], str]) -> Path:
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / name(number))
    return folder


def kinds(path: Path) -> dict[str, str]:
    return {exam.name: exam.kind for exam in discover(path).exams}


@pytest.mark.parametrize(
    "name",
    [
        lambda k: f"1.2.826.0.1.3680043.8.498.{k}",
        lambda k: f"{k:03d}.img",
        lambda k: f"{k:03d}.dicom",
        lambda k: f"{k:03d}.IMA",
        lambda k: f"IM{k:04d}",
        lambda k: f"slice {k}.MR.anonymised",
        lambda k: f"{k:03d}.txt",
    ],
)
def test_dicom_is_known_by_its_content(tmp_path: Path, make_series: Maker, name: Callable[[int], str]) -> None:
    folder = renamed(make_series(), name)
    assert kinds(tmp_path) == {"series": "volume"}
    assert [exam.exam_id for exam in find_cts(tmp_path, keep_names=True)[0]] == ["series"]
    np.testing.assert_array_equal(read_volume(folder)[0].hu, chest())


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.1", "x.dcm", "x.dicom", "x.ima", "x.tmp"])
def test_a_radiograph_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, frontal(), WindowCenter="2048", WindowWidth="4096", SOPClassUID=DX)
    assert kinds(tmp_path) == {name: "radiograph"}
    assert main(["images", "check", "--keep-names", str(tmp_path)]) == 0


def test_slices_without_preamble_are_read(tmp_path: Path) -> None:
    for index, plane in enumerate(chest()):
        data = slice_dataset((plane.astype(np.int32) + 1024).astype(np.int16), index, "1.2.3")
        bare = pydicom.Dataset()
        bare.update({element.tag: element for element in data})
        pydicom.dcmwrite(tmp_path / f"{index:03d}", bare, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read_volume(tmp_path)[0].hu, chest())
    assert list(kinds(tmp_path).values()) == ["volume"]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("modality, sop", [("DX", DX), ("CR", CR), ("", DX), ("DR", "")])
def test_radiographs_in_one_folder_are_one_exam_each(tmp_path: Path, count: int, modality: str, sop: str) -> None:
    for number in range(count):
        write(tmp_path / f"{number:02d}.dcm", frontal(32), Modality=modality, SOPClassUID=sop, PatientID=f"p{number}")
    assert list(kinds(tmp_path).values()) == ["radiograph"] * count
    with pytest.raises(BadInput, match="no volume"):
        find_cts(tmp_path, keep_names=True)


def other(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = slice_dataset(chest()[0].astype(np.int16), 0, "1.2.99", **changes)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def report(path: Path) -> Path:
    data = slice_dataset(chest()[0].astype(np.int16), 0, "1.2.98", Modality="SR")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(data, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def test_what_lies_beside_a_ct_is_skipped_with_its_reason(
    tmp_path: Path, make_series: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    make_series()
    other(tmp_path / "scout" / "1.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    other(tmp_path / "dose" / "1.dcm", Modality="OT")
    other(tmp_path / "pet" / "1.dcm", Modality="PT")
    other(tmp_path / "short" / "1.dcm")
    report(tmp_path / "report" / "1.dcm")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "list.json").write_text("{}")
    found = discover(tmp_path)
    assert kinds(tmp_path) == {"series": "volume"}
    assert {name.split("/")[0] for name, _ in found.skipped} == {"scout", "dose", "pet", "short", "report"}
    assert found.notes()[-1] == "2 files were not recognised: 1 .json, 1 .txt"
    assert main(["drr", "--keep-names", "--ct", str(tmp_path), "--out", str(tmp_path / "o"), "--size", "32"]) == 0
    summary = (tmp_path / "o" / "summary.md").read_text()
    shutil.rmtree(tmp_path / "o")
    capsys.readouterr()
    assert main(["images", "check", "--keep-names", str(tmp_path), "--out", str(tmp_path / "t.csv")]) == 0
    assert "1 ok, 0 WARN, 0 FAIL, 5 skipped" in capsys.readouterr().out
    assert (pd.read_csv(tmp_path / "t.csv")["severity"] == "skipped").sum() == 5
    assert "scout/1.dcm: a localizer, beside the CT of its study" in summary
    assert "2 files were not recognised" in summary


def test_a_short_series_alone_fails(tmp_path: Path, make_series: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    make_series(chest()[:5])
    assert main(["images", "check", "--keep-names", str(tmp_path)]) == 3
    printed = capsys.readouterr().out
    assert "FAIL  series  too-few-slices" in printed
    assert "1 FAIL" in printed


def test_a_short_series_of_another_patient_fails_beside_a_ct(tmp_path: Path, make_series: Maker) -> None:
    make_series()
    make_series(chest()[:5], name="second", StudyInstanceUID="1.2.3.9")
    assert kinds(tmp_path) == {"series": "volume", "second": "volume"}


def test_a_series_and_its_subfolders_are_exams_of_their_own(tmp_path: Path, make_series: Maker) -> None:
    parent = make_series()
    child = make_series(chest() // 2 * 2, name="series/second")
    assert kinds(tmp_path) == {"series": "volume", "series/second": "volume"}
    np.testing.assert_array_equal(read_volume(parent)[0].hu, chest())
    np.testing.assert_array_equal(read_volume(child)[0].hu, chest() // 2 * 2)


def test_slices_in_a_folder_each_are_one_exam(tmp_path: Path, make_series: Maker) -> None:
    for file in list(make_series().iterdir()):
        (tmp_path / "scan" / file.stem).mkdir(parents=True)
        file.rename(tmp_path / "scan" / file.stem / "image.dcm")
    (tmp_path / "series").rmdir()
    assert kinds(tmp_path) == {"scan": "volume"}
    np.testing.assert_array_equal(read_volume(tmp_path / "scan")[0].hu, chest())


def test_links_to_folders_are_followed_once(tmp_path: Path, make_series: Maker) -> None:
    real = make_series()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "patient").symlink_to(real)
    (tmp_path / "links" / "again").symlink_to(real)
    (tmp_path / "links" / "up").symlink_to(tmp_path)
    assert len(discover(tmp_path / "links").exams) == 1
    assert kinds(tmp_path) == {"series": "volume"}, "what lies in the tree itself keeps its own name"
    assert len(files_below(tmp_path / "links")) == len(chest())


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "real.dcm", frontal(), SOPClassUID=DX)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.dcm").symlink_to(tmp_path / "real.dcm")
    (tmp_path / "in" / "gone.dcm").symlink_to(tmp_path / "gone.dcm")
    assert kinds(tmp_path / "in") == {"x.dcm": "radiograph"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_that_are_not_utf8_are_printed_and_written(tmp_path: Path, make_series: Maker) -> None:
    source = make_series()
    odd = os.fsencode(tmp_path) + b"/in/M\xfcller"
    os.makedirs(odd)
    for file in source.iterdir():
        shutil.copy(os.fsencode(file), odd)
    out = tmp_path / "o"
    assert main(["images", "check", "--keep-names", str(tmp_path / "in"), "--out", str(tmp_path / "t.csv")]) == 0
    assert main(["drr", "--keep-names", "--ct", str(tmp_path / "in"), "--out", str(out), "--size", "32"]) == 0
    assert set(pd.read_csv(out / "exams.csv")["exam_id"]) == {"M�ller", "M�ller_PA000"}


def test_empty_and_damaged_slices_are_no_mere_other_files(tmp_path: Path, make_series: Maker) -> None:
    folder = make_series()
    last = sorted(folder.iterdir())[-1]
    whole = last.read_bytes()
    for content in (b"", whole[:100], whole[:5000], b"no DICOM at all" * 20):
        last.write_bytes(content)
        with pytest.raises(UnusableExam, match="unreadable-slice"):
            read_volume(folder)
    last.write_bytes(whole)
    (folder / "README").write_text("hello")
    assert "other-files" in {f.code for f in read_volume(folder)[1]}


def test_a_damaged_file_of_another_modality_does_not_fail_the_ct(tmp_path: Path, make_series: Maker) -> None:
    folder = make_series()
    path = other(folder / "broken.dcm", Modality="PR")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00IS\x02\x00"))
    volume, findings = read_volume(folder)
    np.testing.assert_array_equal(volume.hu, chest())
    assert {"other-files", "other-series"} & {f.code for f in findings}


def test_two_patients_in_one_series_are_an_error_that_names_neither(make_series: Maker) -> None:
    def second(index: int, data: Any) -> None:
        data.PatientID = "OTHER-ID" if index > 20 else "FIRST-ID"

    with pytest.raises(UnusableExam, match="mixed-patients: 2 different PatientID") as caught:
        read_volume(make_series(edit=second))
    assert "OTHER" not in str(caught.value)
    assert "FIRST" not in str(caught.value)


def test_candidates_are_told_apart_by_step_kernel_and_plane(tmp_path: Path, make_series: Maker) -> None:
    folder = make_series(ConvolutionKernel="B30f")
    thin = make_series(chest()[::2], name="thin", ConvolutionKernel="B70f")
    for file in thin.iterdir():
        file.rename(folder / f"thin{file.name}")
    with pytest.raises(UnusableExam, match=r"40 slices 64 x 64, 5 mm pixels, every 6 mm, axial, kernel B30f") as caught:
        read_volume(folder)
    assert "20 slices 64 x 64, 5 mm pixels, every 6 mm, axial, kernel B70f" in str(caught.value)


def test_a_series_named_for_one_folder_leaves_the_others_as_they_are(
    tmp_path: Path, make_series: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    several = make_series(series="1.2.3.4444")
    make_series(chest() // 2 * 2, name="single")
    for file in make_series(chest(), name="more", series="1.2.3.5555").iterdir():
        file.rename(several / f"more{file.name}")
    (tmp_path / "more").rmdir()
    assert main(["images", "check", "--keep-names", str(tmp_path)]) == 3
    name = capsys.readouterr().out.split("2 CT series: ")[1][:8]
    assert main(["images", "check", "--keep-names", str(tmp_path), "--series", name]) == 0
    assert "2 ok" in capsys.readouterr().out
    assert series_rule("most-slices", 40) == "most-slices"
    with pytest.raises(BadInput, match="unknown series"):
        read_volume(several, "ffffffff")


def test_a_zip_of_other_things_says_what_to_do(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "n.zip", "w") as packed:
        packed.writestr("ct.nii.gz", b"x")
    with pytest.raises(UnreadableExam, match=r"Next: unpack it, and give the \.nii\.gz file"):
        read_volume(tmp_path / "n.zip")


def test_voxels_beside_their_header_are_no_unknown_file(tmp_path: Path) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(chest())
    image.SetSpacing((5.0, 5.0, 6.0))
    sitk.WriteImage(image, str(tmp_path / "v.mhd"))
    assert not discover(tmp_path).unrecognised
    (tmp_path / "other.raw").write_bytes(b"0")
    assert discover(tmp_path).unrecognised == {".raw": 1}


def test_views_of_a_table_and_of_headers_choose_radiographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, view in (("pa", "PA"), ("ap", "AP"), ("ll", "LL")):
        write(tmp_path / f"{name}.dcm", frontal(), ViewPosition=view, SOPClassUID=DX,
              WindowCenter="2048", WindowWidth="4096")  # fmt: skip
    Image.fromarray((frontal() // 16).astype(np.uint8)).save(tmp_path / "png.png")
    table = pd.DataFrame({"exam_id": ["pa", "ap", "ll", "png"], "patient_id": "p", "modality": "CXR"})
    table["path"] = ["pa.dcm", "ap.dcm", "ll.dcm", "png.png"]
    table["view"] = ["", "", "", "LATERAL"]
    table.to_csv(tmp_path / "exams.csv", index=False)
    assert main(["images", "check", "--cohort", str(tmp_path / "exams.csv"), "--views", "pa,AP"]) == 0
    printed = capsys.readouterr().out
    assert "2 ok, 0 WARN, 0 FAIL, 2 of other views left out" in printed
    assert main(["images", "check", "--cohort", str(tmp_path / "exams.csv"), "--views", "PB"]) == 2
    assert "unknown view 'PB'" in capsys.readouterr().err
