"""MIMIC-CXR and MIMIC-CXR-JPG (Johnson et al.): radiographs and their reports, by the times of one shifted calendar.

``files/p10/p10000032/s50414267/DICOM_ID.jpg`` (or ``.dcm``), ``files/p10/p10000032/s50414267.txt`` and the tables
``mimic-cxr-2.0.0-*.csv(.gz)``. CTs are not published; the times of their reports are (MIMIC-IV-Note).
``docs/sources/mimic-cxr.md``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort, MissingImages, flow_step
from embedprior.cohort.sources.published import NO_PAIRS, Selection, find_table, published_cohort, published_table
from embedprior.errors import BadInput
from embedprior.imaging.radiographs import normal_view
from embedprior.tables import LABEL_PREFIX

UNCERTAIN = -1.0
WINDOW_HOURS = 24.0
CT_NEAR = "chest_ct_24h"
CHEST_CT = r"\bCTA?\b.*\b(?:CHEST|THORAX|PULMONARY|PE)\b|\b(?:CHEST|THORAX)\b.*\bCTA?\b"


def read_mimic_cxr(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return MIMIC-CXR(-JPG): every picture with its time and view, CheXpert's labels, and the reports that are there.

    A label is 1 or 0 where CheXpert's is; uncertain (−1) and unmentioned (empty) are unknown. ``acquired_at`` is
    StudyDate and StudyTime; a report has its study's. With MIMIC-IV-Note's ``radiology`` and ``radiology_detail`` in
    the folder, ``label:chest_ct_24h`` says whether a chest CT of that patient was charted within 24 hours, before or
    after.

    Raises:
        BadInput: no metadata, a missing column, a cell of another form, or (unless they are dropped) missing pictures.
    """
    root = Path(root)
    source = find_table(root, ("mimic-cxr-2.*-metadata.csv*",), "MIMIC-CXR-JPG")
    needed = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    rows = published_table(source, needed).rename(columns={"subject_id": "patient_id"})
    chosen = Selection(rows, f"pictures of {source.name}")
    chosen.keep(~rows["dicom_id"].duplicated(), "one row a picture", "picture named again (first row kept)")
    rows = chosen.rows
    study = "files/p" + rows["patient_id"].str[:2] + "/p" + rows["patient_id"] + "/s" + rows["study_id"]
    picture = study + "/" + rows["dicom_id"]
    times = _times(rows, source)
    pictures = pd.DataFrame(
        {
            "exam_id": rows["dicom_id"], "patient_id": rows["patient_id"], "modality": "CXR",
            "path": [_either(root, place) for place in picture], "acquired_at": times,
            "view": rows["ViewPosition"].fillna("").map(normal_view), "source": "MIMIC-CXR",
        }
    )  # fmt: skip
    pictures = pictures.join(_labels(root, rows))
    flow = [*chosen.flow, flow_step("of these, frontal", pictures[pictures["view"].isin(["PA", "AP"])], 0)]
    ct_times = _chest_cts(root)
    if ct_times is not None:
        near = [_near(ct_times.get(p), t) for p, t in zip(pictures["patient_id"], times, strict=True)]
        pictures[LABEL_PREFIX + CT_NEAR] = near
        flow.append(flow_step(f"of these, a chest CT within {WINDOW_HOURS:g} h", pictures[np.array(near) == 1], 0))
    reports = _reports(root, rows.assign(acquired_at=times, report=study + ".txt"))
    if len(reports):
        flow.append(flow_step("and reports", reports, 0))
    table = pd.concat([pictures, reports], ignore_index=True)
    return published_cohort(root, table, NO_PAIRS, flow, missing_images, source)


def _either(root: Path, place: str) -> str:
    """Return the path of a picture: the DICOM file where that is there and the JPEG is not."""
    jpeg, dicom = f"{place}.jpg", f"{place}.dcm"
    return dicom if (root / dicom).is_file() and not (root / jpeg).is_file() else jpeg


def _times(rows: pd.DataFrame, where: Path) -> pd.Series:
    """Return StudyDate + StudyTime. The time is a number HHMMSS.fff, and so has lost the zeros that it began with."""
    clock = pd.to_numeric(rows["StudyTime"], errors="coerce")
    whole = clock.fillna(0).astype(int)
    hours, minutes, seconds = whole // 10_000, whole // 100 % 100, clock.fillna(0) % 100
    bad = clock.notna() & ((hours > 23) | (minutes > 59) | (seconds >= 60) | (clock < 0))
    if bad.any():
        raise BadInput(f"{where}: StudyTime '{rows.loc[bad, 'StudyTime'].iloc[0]}' is no time of a day (HHMMSS).")
    days = pd.to_datetime(rows["StudyDate"].str.removesuffix(".0"), format="%Y%m%d", errors="coerce")
    since = pd.to_timedelta(hours * 3600 + minutes * 60, unit="s") + pd.to_timedelta(seconds.round(3), unit="s")
    return (days + since).where(clock.notna()).dt.round("ms")


def _labels(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return CheXpert's labels of each picture's study; none where their table is not there."""
    files = sorted(root.rglob("mimic-cxr-2.*-chexpert.csv*"))
    if not files:
        return pd.DataFrame(index=rows.index)
    table = published_table(files[0], ("subject_id", "study_id")).drop_duplicates("study_id").set_index("study_id")
    names = [column for column in table.columns if column != "subject_id"]
    values = table[names].apply(pd.to_numeric, errors="coerce").replace(UNCERTAIN, np.nan)
    found: pd.DataFrame = values.reindex(rows["study_id"]).set_axis(rows.index)
    return found.rename(columns={name: LABEL_PREFIX + name for name in names})


def _chest_cts(root: Path) -> dict[str, pd.Series] | None:
    """Return patient → times at which chest CTs were charted; None without MIMIC-IV-Note's two tables."""
    notes, details = (sorted(root.rglob(f"{name}.csv*")) for name in ("radiology", "radiology_detail"))
    if not notes or not details:
        return None
    named = published_table(details[0], ("note_id", "field_name", "field_value"), others=False)
    named = named[named["field_name"] == "exam_name"]
    of_chest = named[named["field_value"].str.upper().str.contains(CHEST_CT, regex=True, na=False)]
    table = published_table(notes[0], ("note_id", "subject_id", "charttime"), others=False)
    table = table[table["note_id"].isin(of_chest["note_id"])]
    times = pd.to_datetime(table["charttime"], errors="coerce")
    return {str(patient): part for patient, part in times.groupby(table["subject_id"])}


def _near(times: pd.Series | None, time: object) -> float:
    """Return 1 or 0, and NaN where the picture's own time is unknown."""
    if not isinstance(time, pd.Timestamp):
        return np.nan
    return 0.0 if times is None else float(((times - time).abs() <= pd.Timedelta(hours=WINDOW_HOURS)).any())


def _reports(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return an exam for each study whose report lies there; not all are downloaded with the pictures."""
    studies = rows.drop_duplicates("study_id")
    there = studies[[(root / place).is_file() for place in studies["report"]]]
    return pd.DataFrame(
        {
            "exam_id": "s" + there["study_id"], "patient_id": there["patient_id"], "modality": "REPORT",
            "path": there["report"], "acquired_at": there["acquired_at"], "source": "MIMIC-CXR",
        }
    )  # fmt: skip
