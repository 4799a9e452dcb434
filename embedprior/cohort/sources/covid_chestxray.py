"""The COVID-19 Image Data Collection (Cohen et al., arXiv 2006.11988): ``metadata.csv`` + ``images/``.

Labels are per image: 1 when the row's ``finding`` contains "COVID-19". An X-ray and the CT of one patient can
therefore disagree; the pair keeps both labels apart and says whether they agree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort, FlowStep, MissingImages, flow_step, without_missing
from embedprior.cohort.sources.published import Selection
from embedprior.errors import BadInput
from embedprior.tables import LABEL_PREFIX, PAIR_REQUIRED, require_columns

REQUIRED = ("patientid", "offset", "finding", "view", "modality", "folder", "filename")
LABEL = "covid19"
POSITIVE = "COVID-19"
MODALITY = {"X-ray": "CXR", "CT": "CT"}
SOURCE_COLUMNS = ("doi", "url", "location")
SOURCES = ("Eurorad", "Radiopaedia", "Hannover")


def read_covid_chestxray(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return the collection as a cohort with ``label:covid19``.

    Kept: X-ray and CT rows with a finding (not empty, not ``todo``), the first row of each file name, and the
    rows whose image exists. A pair is one X-ray (the target) with the CT of the same patient that lies nearest
    in time.

    Raises:
        BadInput: no ``metadata.csv``, a missing column, or (unless they are dropped) missing images.
    """
    root = Path(root)
    source = root / "metadata.csv"
    if not source.is_file():
        raise BadInput(f"{source} does not exist. Next: give the folder that holds metadata.csv with --data.")
    rows = pd.read_csv(source, dtype={"patientid": str, "filename": str, "folder": str})
    require_columns(rows, REQUIRED, str(source))
    rows = rows.rename(columns={"patientid": "patient_id"})
    chosen = Selection(rows, "rows of metadata.csv")
    rows = chosen.keep(rows["modality"].isin(MODALITY), "X-ray or CT", "another modality")
    said = rows["finding"].notna() & (rows["finding"].astype(str).str.strip().str.lower() != "todo")
    rows = chosen.keep(said, "finding known", "finding empty or todo")
    named = rows["filename"].notna() & rows["patient_id"].notna()
    rows = chosen.keep(named, "patient and file named", "no patient id or file name")
    rows = chosen.keep(~rows["filename"].duplicated(), "one row per file", "file name repeated (first row kept)")
    flow = chosen.flow
    exams = _exams(rows)
    exams, gone = without_missing(exams, root, missing_images, str(source))
    flow.append(flow_step("image exists", exams, gone, "image file does not exist"))
    pairs = pair_nearest(exams, LABEL)
    targets = exams[exams["exam_id"].isin(pairs["cxr_exam_id"])]
    unpaired = int((exams["modality"] == "CXR").sum()) - len(targets)
    flow.append(
        FlowStep(
            "of these, paired X-rays (targets)", len(targets), int(targets["patient_id"].nunique()),
            unpaired, "X-ray of a patient without CT",
        )
    )  # fmt: skip
    return Cohort(root, exams, pairs, tuple(flow)).checked(str(source))


def _exams(rows: pd.DataFrame) -> pd.DataFrame:
    finding = rows["finding"].astype(str)
    exams = pd.DataFrame(
        {
            "exam_id": rows["filename"],
            "patient_id": rows["patient_id"],
            "modality": rows["modality"].map(MODALITY),
            "path": rows["folder"].fillna("images") + "/" + rows["filename"],
            "offset_days": pd.to_numeric(rows["offset"], errors="coerce"),
            "view": rows["view"],
            "source": image_source(rows),
            LABEL_PREFIX + LABEL: finding.str.contains(POSITIVE, regex=False).astype(int),
        }
    )
    for name in ("sex", "age"):
        if name in rows.columns:
            exams[name] = rows[name]
    return exams


def image_source(rows: pd.DataFrame) -> pd.Series:
    """Return where each picture was published (Eurorad, Radiopaedia, Hannover, other), from doi, url, location."""
    have = [name for name in SOURCE_COLUMNS if name in rows.columns]
    text = pd.Series("", rows.index)
    for name in have:
        text = text + " " + rows[name].astype(object).fillna("").astype(str).str.lower()
    found = pd.Series("other", rows.index)
    for name in SOURCES:
        found[text.str.contains(name.lower(), regex=False)] = name
    return found


def pair_nearest(exams: pd.DataFrame, label: str) -> pd.DataFrame:
    """Pair each X-ray of a patient who has CT with the CT nearest in time.

    The distance is |difference of ``offset_days``|, 0 where either is unknown; ties go to the first CT by view,
    then by exam id. The X-ray is the target: ``label:NAME`` of the pair is the X-ray's, ``ct_label:NAME`` the
    CT's own, ``label_agree`` whether they are equal.

    Returns:
        Pair table; ``offset_days`` (CT minus X-ray) is empty where it is unknown.
    """
    ct_of = {str(patient): part for patient, part in exams[exams["modality"] == "CT"].groupby("patient_id")}
    column = LABEL_PREFIX + label
    pairs = []
    for xray in exams[exams["modality"] == "CXR"].to_dict("records"):
        if xray["patient_id"] not in ct_of:
            continue
        ct = ct_of[xray["patient_id"]]
        difference = ct["offset_days"] - xray["offset_days"]
        view = ct["view"].astype(object).fillna("").astype(str)
        order = ct.assign(difference=difference, far=difference.abs().fillna(0), view=view)
        best = order.sort_values(["far", "view", "exam_id"]).iloc[0].to_dict()
        own, other = float(xray[column]), float(best[column])
        pairs.append(
            {
                "pair_id": f"{xray['exam_id']}|{best['exam_id']}",
                "patient_id": xray["patient_id"],
                "cxr_exam_id": xray["exam_id"],
                "ct_exam_id": best["exam_id"],
                "offset_days": best["difference"],
                "label_agree": np.nan if np.isnan(own) or np.isnan(other) else int(own == other),
                column: own,
                "ct_" + column: other,
            }
        )
    return pd.DataFrame(pairs, columns=[*PAIR_REQUIRED, column, "ct_" + column])
