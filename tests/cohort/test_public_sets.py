"""INSPECT, RAD-ChestCT, BIMCV-COVID19+ and MIMIC-CXR against folders of the published layout, made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.ndimage import zoom

from embedprior.cli import main
from embedprior.cohort.base import Cohort, of_views
from embedprior.cohort.sources import SOURCES, read_cohort
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_image
from embedprior.imaging.readers import read_volume
from tests.imaging.conftest import SPACING, STEP, chest


def flow_of(cohort: Cohort) -> dict[str, tuple[int, int]]:
    return {step.step: (step.exams, step.dropped) for step in cohort.flow}


def write_nifti(path: Path, hu: np.ndarray) -> None:
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((*SPACING, STEP))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_inspect(root: Path) -> Path:
    """Eight studies of six patients: p1 has three. One image is mapped twice, one study has no time, one no label."""
    (root / "CTPA").mkdir(parents=True)
    ids = [f"PE{i:05x}" for i in range(8)]
    for name in ids[1:]:
        (root / "CTPA" / f"{name}.nii.gz").write_bytes(b"volume")
    write_nifti(root / "CTPA" / f"{ids[0]}.nii.gz", chest(20, 32, 32))
    patients = ["p1", "p1", "p1", "p2", "p3", "p4", "p5", "p6"]
    times = [
        "2101-03-04 05:06:07",
        "2101-03-09",
        "",
        "2102-01-01T00:00:00",
        "2103-01-01",
        "2103-01-02",
        "",
        "2104-01-01",
    ]
    mapping = pd.DataFrame(
        {"impression_id": range(100, 108), "image_id": [f"{name}.nii.gz" for name in ids], "person_id": patients,
         "procedure_DATETIME": times, "note_DATETIME": ["", "", "2101-05-05 10:00:00", "", "", "", "", ""]}
    )  # fmt: skip
    again = mapping.iloc[[3]].assign(impression_id=108)
    pd.concat([mapping, again]).to_csv(root / "study_mapping_20250611.tsv", sep="\t", index=False)
    pd.DataFrame(
        {"impression_id": [100, 101, 102, 103, 104, 105, 106, 108],
         "pe_positive_nlp": ["True", "False", "False", "True", "False", "False", "", "False"],
         "12_month_PH": ["Censored", "False", "True", "False", "False", "False", "False", "False"],
         "tte_PH": 1.5, "is_censored_PH": "True"}
    ).to_csv(root / "labels_20250611.tsv", sep="\t", index=False)  # fmt: skip
    splits = pd.DataFrame({"impression_id": range(100, 108), "split": "train"})
    pd.concat([splits, splits.head(2)]).to_csv(root / "splits_20250611.tsv", sep="\t", index=False)
    (root / "impressions_20250611.tsv").write_text("impression_id\timpressions\n100\tnothing of this is read\n")
    return root


def test_inspect_keeps_patients_together_and_takes_censored_outcomes_for_unknown(tmp_path: Path) -> None:
    cohort = read_cohort("inspect", write_inspect(tmp_path))
    exams = cohort.exams.set_index("exam_id")
    # of the nine rows of the mapping two have no label (107, and 108 names the image of 103 again)
    assert flow_of(cohort) == {
        "labelled studies": (8, 0), "patient and image named": (8, 0), "one row an image": (7, 1),
    }  # fmt: skip
    assert (exams.loc[["PE00000", "PE00001", "PE00002"], "group_id"] == "p1").all()
    assert exams["label:pe"].fillna(-1).tolist() == [1, 0, 0, 1, 0, 0, -1]
    assert exams["label:12_month_PH"].fillna(-1).tolist() == [-1, 0, 1, 0, 0, 0, 0]
    assert exams.loc["PE00000", "acquired_at"] == pd.Timestamp("2101-03-04 05:06:07")
    assert exams.loc["PE00002", "acquired_at"] == pd.Timestamp("2101-05-05 10:00:00")  # the note's
    assert exams.loc["PE00006", "acquired_at"] is pd.NaT
    assert not any("tte" in column or "impression" in column for column in exams.columns)
    assert read_volume(tmp_path / exams.loc["PE00000", "path"])[0].shape == (20, 32, 32)


def test_inspect_names_a_cell_that_is_no_answer_and_two_releases_in_one_folder(tmp_path: Path) -> None:
    root = write_inspect(tmp_path)
    labels = root / "labels_20250611.tsv"
    labels.write_text(labels.read_text().replace("True\tCensored", "maybe\tCensored"))
    with pytest.raises(BadInput, match=r"'pe_positive_nlp' holds 'maybe'. Allowed: true, false, 1, 0, empty, Censored"):
        read_cohort("inspect", root)
    labels.with_name("labels_20240101.tsv").write_bytes(labels.read_bytes())
    with pytest.raises(BadInput, match=r"2 tables labels_\*\.tsv: labels_20240101\.tsv, labels_20250611\.tsv"):
        read_cohort("inspect", root)
    labels.unlink()
    labels.with_name("labels_20240101.tsv").unlink()
    with pytest.raises(BadInput, match=r"no labels_\*\.tsv or \*labels\*\.csv. Next: download that table of INSPECT"):
        read_cohort("inspect", root)


def write_rad_chestct(root: Path) -> Path:
    """Six volumes of five patients, and a report in the tables that this release has no volume of."""
    root.mkdir(parents=True, exist_ok=True)
    ids = ["trn00001", "trn00002", "trn00003", "val00001", "tst00001", "tst00002", "tst00009"]
    # resampled to a cube of 0.8 mm, clipped, from apex to base: as the set's own preparation leaves it
    coarse = np.clip(chest(), -1000, 1000)
    fine = np.rint(zoom(coarse, (STEP / 4, SPACING[0] / 4, SPACING[1] / 4), order=1)).astype(np.int16)
    for name in ids[:-1]:
        np.savez_compressed(root / f"{name}.npz", ct=fine[::-1])
    columns = ["nodule*left_upper_lobe", "nodule*right_lung", "nodulegr1cm*right_lung", "pleural_effusion*left_lung"]
    answers = {
        "trn00001": [0, 1, 0, 0], "trn00002": [0, 0, 1, 0], "trn00003": [1, 1, 0, 0], "val00001": [0, 0, 0, 1],
        "tst00001": [0, 0, 0, 0], "tst00002": [0, 0, 0, 0], "tst00009": [1, 0, 0, 0],
    }  # fmt: skip
    for part, prefix in (("train", "trn"), ("valid", "val"), ("test", "tst")):
        own = {name: row for name, row in answers.items() if name.startswith(prefix)}
        pd.DataFrame.from_dict(own, orient="index", columns=columns).rename_axis("NoteAcc_DEID").to_csv(
            root / f"img{part}_Abnormality_and_Location_Labels.csv"
        )
    pd.DataFrame(
        {"NoteAcc_DEID": [*ids, "trn99999"], "VolumeAcc_DEID": [f"{name}.npz" for name in [*ids, "trn99999"]],
         "MRN_DEID": ["m1", "m1", "m2", "m3", "m4", "m5", "m6", "m7"], "final_spacing": 0.8}
    ).to_csv(root / "CT_Scan_Metadata_Complete_35747.csv", index=False)  # fmt: skip
    pd.DataFrame({"NoteAcc_DEID": ids[:-1]}).to_csv(root / "Summary_3630.csv", index=False)
    return root


def test_rad_chestct_takes_a_finding_at_any_location_and_whole_names(tmp_path: Path) -> None:
    cohort = read_cohort("rad-chestct", write_rad_chestct(tmp_path))
    exams = cohort.exams.set_index("exam_id")
    assert flow_of(cohort) == {"reports of the label tables": (7, 0), "in this release": (6, 1)}
    assert exams["label:nodule"].to_dict() == {
        "trn00001": 1, "trn00002": 0, "trn00003": 1, "val00001": 0, "tst00001": 0, "tst00002": 0,
    }  # fmt: skip
    assert exams["label:nodulegr1cm"].sum() == 1
    assert exams.loc["trn00001", "group_id"] == exams.loc["trn00002", "group_id"] == "m1"
    (tmp_path / "Summary_3630.csv").unlink()
    with pytest.raises(BadInput, match=r"1 of 7 images do not exist under .*tst00009\.npz"):
        read_cohort("rad-chestct", tmp_path)
    meta = tmp_path / "CT_Scan_Metadata_Complete_35747.csv"
    meta.write_text(meta.read_text().replace("val00001,val00001.npz,m3", "val00001,val00001.npz,"))
    with pytest.raises(BadInput, match=r"no patient \(MRN_DEID\) of report 'val00001'"):
        read_cohort("rad-chestct", tmp_path)


def test_rad_chestct_volumes_are_read_apex_up_at_their_spacing(tmp_path: Path) -> None:
    write_rad_chestct(tmp_path)
    volume, findings = read_volume(tmp_path / "trn00001.npz")
    assert (volume.spacing_mm, volume.orientation) == ((0.8, 0.8, 0.8), "LPS")
    stored = np.load(tmp_path / "trn00001.npz")["ct"]
    assert np.array_equal(volume.hu[0], stored[-1])  # foot first, as every volume here
    assert "default-axes" in {finding.code for finding in findings}
    # the same array under another name says nothing about itself, and is refused
    np.savez(tmp_path / "scan.npz", ct=stored)
    with pytest.raises(UnreadableExam, match="no array 'hu'; it has ct"):
        read_volume(tmp_path / "scan.npz")
    np.savez(tmp_path / "trn00007.npz", ct=stored[0])
    with pytest.raises(UnreadableExam, match=r"'ct' is int16 \(80, 80\); expected numbers"):
        read_volume(tmp_path / "trn00007.npz")


def write_bimcv(root: Path) -> Path:
    """Seven patients. S1: CT and radiographs of the day, one a lateral by its header alone; S2: the CT two days later;
    S3: a lateral; S4–S6: radiographs; S7: a session without date."""
    shown = {
        ("S1", "E1"): ["run-1_bp-chest_vp-ap_dx", "run-2_bp-chest_vp-pa_dx", "run-3_bp-chest_ct"],
        ("S2", "E2"): ["run-1_bp-chest_vp-pa_cr"], ("S2", "E3"): ["run-1_bp-chest_ct"],
        ("S3", "E4"): ["acq-1_run-1_bp-chest_vp-ll_dx", "acq-2_run-1_bp-chest_vp-ap_dx"],
        ("S4", "E5"): ["run-1_bp-chest_cr"], ("S5", "E6"): ["run-1_bp-chest_vp-ap_cr"],
        ("S6", "E7"): ["run-1_bp-chest_vp-ap_cr"], ("S7", "E8"): ["run-1_bp-chest_vp-ap_cr", "run-2_bp-chest_ct"],
    }  # fmt: skip
    dates = {"E1": "20200401", "E2": "20200402", "E3": "20200404", "E4": "20200405", "E5": "20200406",
             "E6": "20200407.0", "E7": "20200420", "E8": ""}  # fmt: skip
    for (patient, session), names in shown.items():
        for name in names:
            folder = root / f"sub-{patient}" / f"ses-{session}" / ("mod-ct" if name.endswith("_ct") else "mod-rx")
            folder.mkdir(parents=True, exist_ok=True)
            whole = f"sub-{patient}_ses-{session}_{name}"
            header = {"00280004": {"vr": "CS", "Value": ["MONOCHROME2"]}}
            if name.endswith("_ct"):
                (folder / f"{whole}.nii.gz").write_bytes(b"volume")
            else:
                Image.fromarray((np.arange(64, dtype=np.uint16) * 900).reshape(8, 8)).save(folder / f"{whole}.png")
                said = "LL" if (session, name) == ("E1", "run-2_bp-chest_vp-pa_dx") else None
                header |= {"00185101": {"vr": "CS", "Value": [said] if said else []}}
            (folder / f"{whole}.json").write_text(json.dumps(header))
        (root / f"sub-{patient}" / f"ses-{session}" / f"sub-{patient}_ses-{session}_scans.tsv").write_text("filename\n")
        own = [key for key in shown if key[0] == patient]
        pd.DataFrame(
            {"session_id": [f"ses-{s}" for _, s in own], "study_date": [dates[s] for _, s in own],
             "medical_evaluation": "nothing of this is read"}
        ).to_csv(root / f"sub-{patient}" / f"sub-{patient}_sessions.tsv", sep="\t", index=False)  # fmt: skip
    labels = root / "derivatives" / "labels"
    labels.mkdir(parents=True)
    said = {
        "E1": "['COVID 19', 'pneumonia']", "E2": "['COVID 19 uncertain', 'infiltrates']", "E3": "['normal']",
        "E4": "['normal']", "E5": "['pneumonia', 'COVID 19', 'COVID 19 uncertain']", "E6": "[]", "E8": "['normal']",
    }  # fmt: skip
    pd.DataFrame(
        {"PatientID": "x", "ReportID": [f"ses-{s}" for s in said], "Report": "nothing of this is read",
         "Labels": list(said.values()), "Localizations": "[]"}
    ).to_csv(labels / "labels_covid_posi.tsv", sep="\t", index=False)  # fmt: skip
    ehr = root / "derivatives" / "EHR"
    ehr.mkdir()
    pd.DataFrame(
        [("sub-S1", "30.03.2020", "PCR", "NEGATIVO"), ("sub-S1", "02.04.2020", "PCR", "POSITIVO"),
         ("sub-S2", "20.03.2020", "PCR", "POSITIVO"), ("sub-S3", "05.04.2020", "PCR", "INDETERMINADO"),
         ("sub-S4", "06.04.2020", "PCR", "NEGATIVO")],
        columns=["participant", "date", "test", "result"],
    ).to_csv(ehr / "sil_reg_covid_posi.tsv", sep="\t", index=False)  # fmt: skip
    pd.DataFrame(
        {"participant": [f"sub-S{i}" for i in range(1, 8)], "modality_dicom": "['DX']",
         "age": ["[63]", "[40, 41]", "[]", "[70]", "[71]", "[72]", "[73]"],
         "gender": ["M", "F", "None", "M", "F", "M", "F"]}
    ).to_csv(root / "participants.tsv", sep="\t", index=False)  # fmt: skip
    return root


def test_bimcv_pairs_by_date_and_finds_laterals_that_a_name_hides(tmp_path: Path) -> None:
    root = write_bimcv(tmp_path / "covid19_posi")
    cohort = read_cohort("bimcv-covid19", root)
    exams = cohort.exams.set_index("exam_id")
    assert cohort.exams["modality"].value_counts().to_dict() == {"CXR": 9, "CT": 3}
    assert exams.loc["sub-S1_ses-E1_run-2_bp-chest_vp-pa_dx", "view"] == "LATERAL"
    # within 24 hours: S1's frontal alone; S2's CT came two days later, S7's session has no date
    assert cohort.pairs[["cxr_exam_id", "ct_exam_id"]].to_numpy().tolist() == [
        ["sub-S1_ses-E1_run-1_bp-chest_vp-ap_dx", "sub-S1_ses-E1_run-3_bp-chest_ct"]
    ]
    reasons = {step.step: step.reason for step in cohort.flow}
    assert reasons["pairing: of known time"] == "the time is unknown"
    assert reasons["pairing: within 24 h of a CT"] == "no CT within 24 h"
    kept = of_views(cohort, ["PA", "AP"], False, False)
    assert len(kept.of("CXR")) == 7  # two laterals are gone, the one of unknown view stays
    picture = read_image(root, str(exams.loc["sub-S5_ses-E6_run-1_bp-chest_vp-ap_cr", "path"]))
    assert len(np.unique(picture)) > 30  # 16 bits are not cut to the lowest 8


def test_bimcv_labels_come_from_the_report_and_tests_from_the_week(tmp_path: Path) -> None:
    cohort = read_cohort("bimcv-covid19", write_bimcv(tmp_path))
    session = cohort.exams.drop_duplicates("patient_id", keep="first").set_index("patient_id")
    covid = session["label:COVID 19"].fillna(-1).astype(int).to_dict()
    # named; uncertain alone; not named; named beside uncertain; an empty list; no report; not named
    assert covid == {f"sub-S{i}": v for i, v in enumerate([1, -1, 0, 1, -1, -1, 0], start=1)}
    assert "label:COVID 19 uncertain" not in cohort.exams
    test = session["label:test"].fillna(-1).astype(int).to_dict()
    # the nearest of two; 13 days off; indeterminate; negative; none; none; a session without date
    assert test == {f"sub-S{i}": v for i, v in enumerate([1, -1, -1, 0, -1, -1, -1], start=1)}
    assert session["age"].fillna(0).tolist() == [63, 40.5, 0, 70, 71, 72, 73]
    assert session["sex"].fillna("").tolist() == ["M", "F", "", "M", "F", "M", "F"]


def test_bimcv_names_what_is_missing_or_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no sub-\*/ses-\*/mod-\*"):
        read_cohort("bimcv-covid19", tmp_path)
    root = write_bimcv(tmp_path / "b")
    tests = root / "derivatives" / "EHR" / "sil_reg_covid_posi.tsv"
    tests.write_text(tests.read_text().replace("INDETERMINADO", "DUDOSO"))
    with pytest.raises(BadInput, match=r"result 'dudoso'\. Allowed: positivo, negativo, indeterminado"):
        read_cohort("bimcv-covid19", root)
    tests.unlink()
    labels = root / "derivatives" / "labels" / "labels_covid_posi.tsv"
    labels.write_text(labels.read_text().replace("['normal']", "normal"))
    with pytest.raises(BadInput, match=r"'Labels' holds 'normal'. Allowed: a list such as"):
        read_cohort("bimcv-covid19", root)
    labels.unlink()
    with pytest.raises(BadInput, match=r"no derivatives/labels/\*\.tsv. Next: unpack"):
        read_cohort("bimcv-covid19", root)


def write_mimic(root: Path, suffix: str = ".csv") -> Path:
    """Six studies of four patients, eight pictures: a lateral in the first, one of no view, one DICOM, two reports."""
    pictures = [
        ("d1", "10000032", "50414267", "PA", "21800506", "213014.531"),
        ("d2", "10000032", "50414267", "LATERAL", "21800506", "213014.531"),
        ("d3", "10000032", "53911762", "AP", "21800723", "80556.875"),
        ("d4", "11000011", "51000001", "AP", "21500101", "5.0"),
        ("d5", "11000011", "51000002", "", "21500301", "120000.0"),
        ("d6", "12000022", "52000001", "AP", "21600101", "235959.9"),
        ("d7", "13000033", "53000001", "LL", "21700101", ""),
        ("d8", "13000033", "53000002", "PA", "21700102", "90000.0"),
    ]
    for name, patient, study, *_ in pictures:
        folder = root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        if name == "d6":
            (folder / "d6.dcm").write_bytes(b"dicom")
        else:
            Image.new("L", (8, 8)).save(folder / f"{name}.jpg")
    for patient, study in (("10000032", "50414267"), ("12000022", "52000001")):
        (root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt").write_text("a report")
    columns = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    pd.DataFrame(pictures, columns=columns).to_csv(root / f"mimic-cxr-2.0.0-metadata{suffix}", index=False)
    pd.DataFrame(
        [("10000032", "50414267", "", 1.0), ("10000032", "53911762", 0.0, -1.0), ("11000011", "51000001", 1.0, 0.0),
         ("11000011", "51000002", -1.0, ""), ("12000022", "52000001", "", ""), ("13000033", "53000002", 1.0, 1.0)],
        columns=["subject_id", "study_id", "Atelectasis", "Edema"],
    ).to_csv(root / f"mimic-cxr-2.0.0-chexpert{suffix}", index=False)  # fmt: skip
    return root


def test_mimic_reads_times_that_lost_their_zeros_and_labels_that_say_so(tmp_path: Path) -> None:
    cohort = read_cohort("mimic-cxr", write_mimic(tmp_path))
    exams = cohort.exams.set_index("exam_id")
    assert exams.loc["d3", "acquired_at"] == pd.Timestamp("2180-07-23 08:05:56.875")
    assert exams.loc["d4", "acquired_at"] == pd.Timestamp("2150-01-01 00:00:05")
    assert exams.loc["d7", "acquired_at"] is pd.NaT
    assert exams.loc["d6", "path"] == "files/p12/p12000022/s52000001/d6.dcm"
    # uncertain and unmentioned are unknown, never negative
    assert exams["label:Atelectasis"].fillna(-1).loc["d1":"d8"].tolist() == [-1, -1, 0, 1, -1, -1, -1, 1]
    assert exams["label:Edema"].fillna(-1).loc["d1":"d8"].tolist() == [1, 1, -1, 0, -1, -1, -1, 1]
    reports = cohort.of("REPORT").set_index("exam_id")
    assert reports["path"].to_dict() == {
        "s50414267": "files/p10/p10000032/s50414267.txt", "s52000001": "files/p12/p12000022/s52000001.txt",
    }  # fmt: skip
    assert reports.loc["s50414267", "acquired_at"] == pd.Timestamp("2180-05-06 21:30:14.531")
    assert exams["patient_id"].nunique() == 4
    assert flow_of(cohort)["of these, frontal"] == (5, 0)
    kept = of_views(cohort, ["PA", "AP"], False, False)
    assert sorted(kept.of("CXR")["exam_id"]) == ["d1", "d3", "d4", "d5", "d6", "d8"]


def test_mimic_says_which_radiographs_have_a_chest_ct_within_a_day(tmp_path: Path) -> None:
    root = write_mimic(tmp_path, ".csv.gz")
    assert "label:chest_ct_24h" not in read_cohort("mimic-cxr", root).exams
    notes = [
        ("n1", "10000032", "2180-07-24 07:00:00", "CT CHEST W/CONTRAST"),  # d3: 23 hours after
        ("n2", "10000032", "2180-05-05 20:00:00", "CTA CHEST"),  # d1, d2: 25.5 hours before
        ("n3", "11000011", "2150-01-01 09:00:00", "CT HEAD W/O CONTRAST"),  # d4: no chest
        ("n4", "12000022", "2160-01-01 23:00:00", "CTA CHEST W&W/O C&RECONS, NON-CORONARY"),  # d6
        ("n5", "13000033", "2170-01-02 09:00:00", "CHEST (PA & LAT)"),  # d8: no CT
    ]
    pd.DataFrame([note[:3] for note in notes], columns=["note_id", "subject_id", "charttime"]).to_csv(
        root / "radiology.csv.gz", index=False
    )
    pd.DataFrame(
        [(note[0], note[1], "exam_name", note[3], 1) for note in notes]
        + [("n5", "13000033", "exam_code", "CT CHEST", 2)],
        columns=["note_id", "subject_id", "field_name", "field_value", "field_ordinal"],
    ).to_csv(root / "radiology_detail.csv.gz", index=False)
    near = read_cohort("mimic-cxr", root).of("CXR").set_index("exam_id")["label:chest_ct_24h"]
    assert near.fillna(-1).astype(int).to_dict() == {
        "d1": 0, "d2": 0, "d3": 1, "d4": 0, "d5": 0, "d6": 1, "d7": -1, "d8": 0,
    }  # fmt: skip


def test_mimic_refuses_a_time_that_is_none_and_a_table_cut_short(tmp_path: Path) -> None:
    root = write_mimic(tmp_path, ".csv.gz")
    table = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    table.write_bytes(table.read_bytes()[:60])
    with pytest.raises(BadInput, match=r"can't be read as a table \(EOFError\). Next: download it again"):
        read_cohort("mimic-cxr", root)
    table.unlink()
    write_mimic(tmp_path)
    plain = root / "mimic-cxr-2.0.0-metadata.csv"
    plain.write_text(plain.read_text().replace("120000.0", "126100.0"))
    with pytest.raises(BadInput, match=r"StudyTime '126100\.0' is no time of a day"):
        read_cohort("mimic-cxr", root)


def test_help_and_a_wrong_name_list_every_source_and_each_has_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cohort", "import", "--help"]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert [name for name in SOURCES if name not in said] == []
    assert main(["cohort", "import", "--source", "rspct", "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert f"Allowed: {', '.join(SOURCES)}" in told
    assert "Did you mean 'rspect'" in told
    pages = {page.stem for page in (Path(__file__).parents[2] / "docs" / "sources").glob("*.md")}
    assert pages == set(SOURCES)


@pytest.mark.parametrize(
    ("source", "write"),
    [("inspect", write_inspect), ("rad-chestct", write_rad_chestct), ("bimcv-covid19", write_bimcv),
     ("mimic-cxr", write_mimic)],
)  # fmt: skip
def test_an_import_writes_tables_that_are_read_back_as_they_were(
    tmp_path: Path, source: str, write: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(write)
    root = write(tmp_path / "set")
    words = ["cohort", "import", "--source", source, "--data", str(root), "--out", str(tmp_path / "cohort")]
    assert main(words) == 0
    there, back = read_cohort(source, root), read_cohort("tables", tmp_path / "cohort")
    assert back.exams["exam_id"].tolist() == there.exams["exam_id"].tolist()
    assert back.pairs["pair_id"].tolist() == there.pairs["pair_id"].tolist()
    for label in (column for column in there.exams if column.startswith("label:")):
        assert np.array_equal(back.exams[label].to_numpy(float), there.exams[label].to_numpy(float), equal_nan=True)
    if "acquired_at" in there.exams:
        times = pd.to_datetime(back.exams["acquired_at"], format="ISO8601")
        assert list(times.dropna()) == list(there.exams["acquired_at"].dropna())
        assert times.isna().tolist() == there.exams["acquired_at"].isna().tolist()
    said = "".join(
        file.read_text() for file in (tmp_path / "cohort").iterdir() if file.suffix in (".csv", ".json", ".md")
    )
    assert "nothing of this is read" not in said
