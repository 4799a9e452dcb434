"""Public sets of CTs as they are published: RSPECT, CT-RATE (with DRR-RATE beside it), LIDC-IDRI; docs/sources.md says
how to get each, and its traps."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, FlowStep, MissingImages, flow_step, without_missing
from embedprior.errors import BadInput
from embedprior.imaging.readers import discover
from embedprior.tables import LABEL_PREFIX, PAIR_REQUIRED, require_columns

NO_PAIRS = pd.DataFrame(columns=list(PAIR_REQUIRED))
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
CT_NAME = r"(?P<part>train|valid)_(?P<patient>\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)"


def read_rspect(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return RSPECT (the RSNA pulmonary embolism challenge): ``train.csv`` + ``train/STUDY/SERIES/IMAGE.dcm``.

    ``label:pe`` is 1 where any image of a study shows an embolus. Indeterminate studies are left out: 1 −
    ``negative_exam_for_pe`` would call them positive. There is no patient id, so a study is a patient.

    Raises:
        BadInput: no ``train.csv``, a missing column, or (unless they are dropped) missing series.
    """
    root = Path(root)
    source = root / "train.csv"
    rows = _table(source, RSPECT_COLUMNS)
    images = len(rows)
    names = ["negative_exam_for_pe", "indeterminate", *(c for c in RSPECT_LABELS if c in rows)]
    rows[["pe_present_on_image", *names]] = rows[["pe_present_on_image", *names]].apply(pd.to_numeric)
    series = rows.groupby(["StudyInstanceUID", "SeriesInstanceUID"], sort=True)
    exams = series[["pe_present_on_image", *names]].max().assign(images=series.size()).reset_index()
    exams = exams.sort_values(["StudyInstanceUID", "images"], ascending=[True, False], kind="stable")
    flow = [FlowStep(f"series of train.csv ({images} images)", len(exams), exams["StudyInstanceUID"].nunique(), 0, "")]
    exams = exams.rename(columns={"StudyInstanceUID": "patient_id"})

    def keep(wanted: pd.Series, step: str, reason: str) -> pd.DataFrame:
        left = exams[wanted]
        flow.append(flow_step(step, left, len(exams) - len(left), reason))
        return left

    exams = keep(~exams["patient_id"].duplicated(), "one series a study", "fewer images than the study's other series")
    exams = keep(exams["indeterminate"] != 1, "determinate", "indeterminate for embolism")
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
    ).reset_index(drop=True)
    return _whole(root, table, NO_PAIRS, flow, missing_images, source)


def read_ct_rate(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return CT-RATE: ``*predicted_labels.csv`` + ``train_P_S_R.nii.gz`` at any depth; DRR-RATE's pictures beside them.

    P is the patient, S the scan, R the reconstruction; the first reconstruction of a scan that is there is kept. A
    picture named as a volume (``train_1_a_1.png``) is its DRR and makes a pair.

    Raises:
        BadInput: no table of labels, a missing column or a name of another form, or (unless they are dropped) missing
            volumes.
    """
    root = Path(root)
    tables = sorted(root.rglob("*predicted_labels.csv"))
    if not tables:
        raise BadInput(f"{root}: no *predicted_labels.csv. Next: download the labels of CT-RATE into this folder.")
    rows = pd.concat([_table(table, ("VolumeName",)) for table in tables], ignore_index=True)
    parts = rows["VolumeName"].str.extract(f"^{CT_NAME}\\.nii\\.gz$")
    odd = rows.loc[parts["patient"].isna(), "VolumeName"]
    if len(odd):
        raise BadInput(f"{tables[0]}: '{odd.iloc[0]}' is no name of CT-RATE, such as train_1_a_1.nii.gz.")
    files = {path.name: path.relative_to(root).as_posix() for path in sorted(root.rglob("*.nii.gz"))}
    rows = rows.assign(
        exam_id=rows["VolumeName"].str.removesuffix(".nii.gz"),
        patient_id=parts["part"] + "_" + parts["patient"],
        scan=parts["part"] + "_" + parts["patient"] + "_" + parts["scan"],
        number=parts["reconstruction"].astype(int),
        path=[files.get(name, name) for name in rows["VolumeName"]],
        absent=~rows["VolumeName"].isin(files),
    )
    flow = [flow_step("volumes of the label tables", rows, 0)]
    rows = rows.sort_values(["scan", "absent", "number"], kind="stable")
    first = rows[~rows["scan"].duplicated()]
    flow.append(flow_step("one reconstruction a scan", first, len(rows) - len(first), "another of the same scan"))
    labels = [c for c in _table(tables[0], ("VolumeName",)).columns if c != "VolumeName"]
    table = first[["exam_id", "patient_id", "path"]].assign(modality="CT", source="CT-RATE")
    for name in labels:
        table[LABEL_PREFIX + name] = pd.to_numeric(first[name])
    pictures = {path.stem: path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))}
    drawn = table[table["exam_id"].isin(pictures)]
    drrs = drawn.assign(
        exam_id=drawn["exam_id"] + "-drr", modality="DRR", path=drawn["exam_id"].map(pictures), view="PA"
    )
    pairs = pd.DataFrame(
        {"pair_id": drawn["exam_id"] + "-drr|" + drawn["exam_id"], "patient_id": drawn["patient_id"],
         "cxr_exam_id": drawn["exam_id"] + "-drr", "ct_exam_id": drawn["exam_id"], "offset_days": 0, "label_agree": 1}
    )  # fmt: skip
    whole = pd.concat([table, drrs], ignore_index=True) if len(drrs) else table.reset_index(drop=True)
    return _whole(root, whole, pairs.reset_index(drop=True), flow, missing_images, tables[0])


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
    return _whole(root, table[of_patient].reset_index(drop=True), NO_PAIRS, flow, missing_images, root)


def _table(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise BadInput(f"{path} does not exist. Next: give the folder that holds {path.name} with --data.")
    rows = pd.read_csv(path, dtype=str)
    require_columns(rows, required, str(path))
    return rows


def _whole(
    root: Path, exams: pd.DataFrame, pairs: pd.DataFrame, flow: list[FlowStep], missing_images: MissingImages,
    where: Path,
) -> Cohort:  # fmt: skip
    kept, gone = without_missing(exams, root, missing_images, str(where))
    cohort = Cohort(root, exams, pairs, tuple(flow))
    if gone:
        lost = exams.loc[~exams["exam_id"].isin(kept["exam_id"]), "exam_id"]
        cohort = cohort.drop(list(lost), "image exists", "no such file or folder")
    return cohort.checked(str(where))
