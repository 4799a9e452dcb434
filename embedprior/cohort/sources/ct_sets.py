"""Public sets of CTs as they are published: RSPECT, INSPECT, CT-RATE (with DRR-RATE beside it), RAD-ChestCT, LIDC-IDRI.

``docs/sources/`` has a page for each: how to get it, its layout, its licence and its traps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, MissingImages, flow_step
from embedprior.cohort.sources.published import (
    NO_PAIRS,
    Selection,
    binary_labels,
    files_by_name,
    find_table,
    published_cohort,
    published_table,
)
from embedprior.errors import BadInput
from embedprior.imaging.readers import discover
from embedprior.tables import LABEL_PREFIX, require_columns

RSPECT_COLUMNS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "pe_present_on_image",
    "negative_exam_for_pe",
    "indeterminate",
)
RSPECT_LABELS = (
    "rv_lv_ratio_gte_1", "leftsided_pe", "rightsided_pe", "central_pe", "chronic_pe", "acute_and_chronic_pe",
)  # fmt: skip
INSPECT_PATIENT = ("person_id", "PatientID", "patient_id")
INSPECT_LABELS = {
    "pe_positive_nlp": "pe", "pe_acute": "pe_acute", "pe_subsegmentalonly": "pe_subsegmentalonly",
    **{name: name for name in (
        "1_month_mortality", "6_month_mortality", "12_month_mortality", "1_month_readmission", "6_month_readmission",
        "12_month_readmission", "12_month_PH",
    )},
}  # fmt: skip
"""Columns of INSPECT's label table → label; the first is read from the report's impression by a language model."""
CT_NAME = r"(?P<part>train|valid)_(?P<patient>\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)"
RAD_LABELS = "img*_Abnormality_and_Location_Labels.csv"


def read_rspect(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return RSPECT (the RSNA pulmonary embolism challenge): ``train.csv`` + ``train/STUDY/SERIES/IMAGE.dcm``.

    ``label:pe`` is 1 where any image of a study shows an embolus. Indeterminate studies are left out: 1 −
    ``negative_exam_for_pe`` would call them positive. There is no patient id, so a study is a patient.

    Raises:
        BadInput: no ``train.csv``, a missing column, or (unless they are dropped) missing series.
    """
    root = Path(root)
    source = root / "train.csv"
    rows = published_table(source, RSPECT_COLUMNS)
    names = ["negative_exam_for_pe", "indeterminate", *(c for c in RSPECT_LABELS if c in rows)]
    rows[["pe_present_on_image", *names]] = rows[["pe_present_on_image", *names]].apply(pd.to_numeric)
    series = rows.groupby(["StudyInstanceUID", "SeriesInstanceUID"], sort=True)
    exams = series[["pe_present_on_image", *names]].max().assign(images=series.size()).reset_index()
    exams = exams.sort_values(["StudyInstanceUID", "images"], ascending=[True, False], kind="stable")
    exams = exams.rename(columns={"StudyInstanceUID": "patient_id"})
    chosen = Selection(exams, f"series of train.csv ({len(rows)} images)")
    chosen.keep(~exams["patient_id"].duplicated(), "one series a study", "fewer images than the study's other series")
    exams = chosen.keep(chosen.rows["indeterminate"] != 1, "determinate", "indeterminate for embolism")
    table = pd.DataFrame(
        {
            "exam_id": exams["patient_id"],
            "patient_id": exams["patient_id"],
            "modality": "CT",
            "path": "train/" + exams["patient_id"] + "/" + exams["SeriesInstanceUID"],
            "source": "RSPECT",
            LABEL_PREFIX + "pe": exams["pe_present_on_image"].astype(int),
            **{LABEL_PREFIX + c: exams[c].astype(int) for c in names[2:]},
        }
    )
    return published_cohort(root, table, NO_PAIRS, chosen.flow, missing_images, source)


def read_inspect(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return INSPECT (Stanford): a label and a mapping table joined on ``impression_id``, volumes ``CTPA/*.nii.gz``.

    ``label:pe`` is ``pe_positive_nlp``; a censored outcome is unknown. The time of an exam is its procedure's, or its
    note's where that is missing, or unknown. A patient has several exams, and none of them a radiograph.

    Raises:
        BadInput: no table of labels or of studies, several of one kind, a missing column, a cell that is no answer,
            or (unless they are dropped) missing volumes.
    """
    root = Path(root)
    source = find_table(root, ("labels_*.tsv", "*labels*.csv"), "INSPECT")
    labels = published_table(source, ("impression_id", "pe_positive_nlp")).drop_duplicates("impression_id")
    mapping = find_table(root, ("study_mapping_*.tsv", "*metadata*.csv"), "INSPECT")
    studies = published_table(mapping, ("impression_id", "image_id"))
    patient = next((name for name in INSPECT_PATIENT if name in studies), INSPECT_PATIENT[0])
    require_columns(studies, (patient,), str(mapping))
    rows = studies[["impression_id", "image_id", patient, *_dates(studies)]].rename(columns={patient: "patient_id"})
    chosen = Selection(rows.merge(labels, on="impression_id", how="inner", suffixes=("", "_label")), "labelled studies")
    known = chosen.rows["patient_id"].notna() & chosen.rows["image_id"].notna()
    chosen.keep(known, "patient and image named", "no patient or no image in the mapping")
    rows = chosen.keep(~chosen.rows["image_id"].duplicated(), "one row an image", "image named again (first row kept)")
    files = files_by_name(root, "*.nii.gz")
    image = rows["image_id"].str.removesuffix(".nii.gz")
    time = pd.Series(pd.NaT, rows.index)
    for column in _dates(rows):
        time = time.fillna(pd.to_datetime(rows[column], errors="coerce", format="ISO8601"))
    table = pd.DataFrame(
        {
            "exam_id": image,
            "patient_id": rows["patient_id"].str.removesuffix(".0"),
            "modality": "CT",
            "path": [files.get(f"{name}.nii.gz", f"CTPA/{name}.nii.gz") for name in image],
            "acquired_at": time,
            "source": "INSPECT",
            **{
                LABEL_PREFIX + label: binary_labels(rows[column], ("Censored", "Censor"), str(source))
                for column, label in INSPECT_LABELS.items()
                if column in rows
            },
        }
    )
    return published_cohort(root, table, NO_PAIRS, chosen.flow, missing_images, source)


def _dates(rows: pd.DataFrame) -> list[str]:
    return [name for name in ("procedure_DATETIME", "StudyTime", "note_DATETIME") if name in rows]


def read_ct_rate(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return CT-RATE: ``*predicted_labels.csv`` + ``train_P_S_R.nii.gz`` at any depth; DRR-RATE's pictures beside them.

    P is the patient, S the scan, R the reconstruction; the first reconstruction of a scan that is there is kept.
    Volumes that ``no_chest_*.txt`` lists are left out. A picture named as a volume (``train_1_a_1.png``) is its DRR and
    makes a pair; those in a folder ``LATERAL`` are not taken.

    Raises:
        BadInput: no table of labels, a missing column or a name of another form, or (unless they are dropped) missing
            volumes.
    """
    root = Path(root)
    tables = sorted(root.rglob("*predicted_labels.csv"))
    if not tables:
        raise BadInput(f"{root}: no *predicted_labels.csv. Next: download the labels of CT-RATE into this folder.")
    rows = pd.concat([published_table(table, ("VolumeName",)) for table in tables], ignore_index=True)
    labels = [column for column in rows.columns if column != "VolumeName"]
    parts = rows["VolumeName"].str.extract(f"^{CT_NAME}\\.nii\\.gz$")
    odd = rows.loc[parts["patient"].isna(), "VolumeName"]
    if len(odd):
        raise BadInput(f"{tables[0]}: '{odd.iloc[0]}' is no name of CT-RATE, such as train_1_a_1.nii.gz.")
    # of the folders train and train_fixed the second holds the corrected volumes
    files = files_by_name(root, "*.nii.gz")
    rows = rows.assign(
        exam_id=rows["VolumeName"].str.removesuffix(".nii.gz"),
        patient_id=parts["part"] + "_" + parts["patient"],
        scan=parts["part"] + "_" + parts["patient"] + "_" + parts["scan"],
        number=parts["reconstruction"].astype(int),
        path=[files.get(name, name) for name in rows["VolumeName"]],
        absent=~rows["VolumeName"].isin(files),
    )
    rows = rows.sort_values(["scan", "absent", "number"], kind="stable").reset_index(drop=True)
    chosen = Selection(rows, "volumes of the label tables")
    if other := set(_not_chests(root)):
        chosen.keep(~chosen.rows["exam_id"].isin(other), "a chest", "listed in no_chest_*.txt")
    first = chosen.keep(~chosen.rows["scan"].duplicated(), "one reconstruction a scan", "another of the same scan")
    table = first[["exam_id", "patient_id", "path"]].assign(modality="CT", source="CT-RATE")
    for name in labels:
        table[LABEL_PREFIX + name] = pd.to_numeric(first[name])
    # DRR-RATE has a frontal and a lateral picture of one name, in folders AP and LATERAL
    places = [place.relative_to(root) for place in sorted(root.rglob("*.png"))]
    pictures = {place.stem: place for place in places if "LATERAL" not in place.parts}
    drawn = table[table["exam_id"].isin(pictures)]
    found = [pictures[name] for name in drawn["exam_id"]]
    drrs = drawn.assign(
        exam_id=drawn["exam_id"] + "-drr", modality="DRR", path=[place.as_posix() for place in found],
        view=["AP" if "AP" in place.parts else "" for place in found],
    )  # fmt: skip
    pairs = pd.DataFrame(
        {"pair_id": drawn["exam_id"] + "-drr|" + drawn["exam_id"], "patient_id": drawn["patient_id"],
         "cxr_exam_id": drawn["exam_id"] + "-drr", "ct_exam_id": drawn["exam_id"], "offset_days": 0, "label_agree": 1}
    )  # fmt: skip
    whole = pd.concat([table, drrs], ignore_index=True) if len(drrs) else table
    return published_cohort(root, whole, pairs, chosen.flow, missing_images, tables[0])


def _not_chests(root: Path) -> Iterator[str]:
    for listed in sorted(root.rglob("no_chest_*.txt")):
        for line in listed.read_text(encoding="utf-8").splitlines():
            yield line.strip().replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".nii.gz")


def read_rad_chestct(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return RAD-ChestCT (Duke): a volume ``trn00001.npz`` a report, findings × locations, patients in the metadata.

    A finding is present where any of its columns ``finding*location`` is 1. With ``Summary_*.csv`` in the folder,
    reports that this release has no volume of are left out.

    Raises:
        BadInput: no label or metadata table, a missing column, a report without a patient, or (unless they are
            dropped) missing volumes.
    """
    root = Path(root)
    tables = sorted(root.rglob(RAD_LABELS))
    if not tables:
        raise BadInput(f"{root}: no {RAD_LABELS}. Next: download the three label tables of RAD-ChestCT there.")
    findings = pd.concat([_over_locations(table) for table in tables])
    source = find_table(root, ("CT_Scan_Metadata_Complete_*.csv",), "RAD-ChestCT")
    metadata = published_table(source, ("NoteAcc_DEID", "MRN_DEID")).drop_duplicates("NoteAcc_DEID")
    patients = metadata.set_index("NoteAcc_DEID")["MRN_DEID"].reindex(findings.index)
    if patients.isna().any():
        raise BadInput(f"{source}: no patient (MRN_DEID) of report '{patients.index[patients.isna()][0]}'.")
    rows = findings.assign(patient_id=patients).reset_index(names="exam_id")
    chosen = Selection(rows, "reports of the label tables")
    summaries = sorted(root.rglob("Summary_*.csv"))
    if summaries:
        listed = {name for file in summaries for name in published_table(file, ("NoteAcc_DEID",))["NoteAcc_DEID"]}
        chosen.keep(rows["exam_id"].isin(listed), "in this release", f"not in {summaries[0].name}")
    files = files_by_name(root, "*.npz")
    table = chosen.rows.assign(
        modality="CT", path=[files.get(f"{name}.npz", f"{name}.npz") for name in chosen.rows["exam_id"]],
        source="RAD-ChestCT",
    ).rename(columns={name: LABEL_PREFIX + name for name in findings.columns})  # fmt: skip
    return published_cohort(root, table, NO_PAIRS, chosen.flow, missing_images, source)


def _over_locations(path: Path) -> pd.DataFrame:
    """Return report × finding, 1 where any location has it; by the whole name, as ``nodulegr1cm`` is no ``nodule``."""
    rows = published_table(path, ("NoteAcc_DEID",)).set_index("NoteAcc_DEID")
    located = [column for column in rows.columns if "*" in column]
    if not located:
        raise BadInput(f"{path}: no column such as 'nodule*right_upper_lobe'. Next: download it again.")
    numbers = rows[located].apply(pd.to_numeric)
    anywhere: pd.DataFrame = numbers.T.groupby([column.partition("*")[0] for column in located]).max().T
    return anywhere


def read_lidc(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return LIDC-IDRI: ``LIDC-IDRI-XXXX/STUDY/SERIES/*.dcm``; what an exam is, its header says, not its folder.

    There is no label: nodules lie in XML files that need a reading of one's own. CT and radiograph of one patient are
    not paired, as the dates were changed.

    Raises:
        BadInput: nothing to read, or no folder of a patient.
    """
    root = Path(root)
    found = discover(root)
    rows = [
        {"exam_id": exam.name.replace("/", "_"), "patient_id": exam.path.relative_to(root).parts[0],
         "modality": "CT" if exam.kind == "volume" else "CXR", "path": exam.path.relative_to(root).as_posix(),
         "source": "LIDC-IDRI"}
        for exam in found.exams
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    flow = [flow_step(f"exams found ({len(found.skipped)} localizers and other images left out)", table, 0)]
    of_patient = table["patient_id"].str.startswith("LIDC-IDRI-")
    if not of_patient.any():
        raise BadInput(f"{root}: no folder LIDC-IDRI-0001 and so on. Next: give the folder that holds them.")
    flow.append(flow_step("of a patient", table[of_patient], int((~of_patient).sum()), "not in a patient's folder"))
    return published_cohort(root, table[of_patient], NO_PAIRS, flow, missing_images, root)
