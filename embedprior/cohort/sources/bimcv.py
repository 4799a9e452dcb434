"""BIMCV-COVID19+ (de la Iglesia Vayá et al., arXiv 2006.01174): radiographs and CTs of the same people.

``sub-*/ses-*/mod-*/`` holds pictures (``_cr.png``, ``_dx.png``) and volumes (``_ct.nii.gz``), each with its header in a
``.json``; tables give dates, labels of the reports and laboratory tests. See ``docs/sources/bimcv-covid19.md``.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort, MissingImages, flow_step
from embedprior.cohort.build import pair_in_window
from embedprior.cohort.sources.published import Selection, published_cohort, published_table
from embedprior.errors import BadInput
from embedprior.imaging.radiographs import normal_view
from embedprior.tables import LABEL_PREFIX

NAME = re.compile(r"(?P<exam>(?P<patient>sub-[^_]+)_(?P<session>ses-[^_]+)_.*_(?P<kind>cr|dx|ct))\.(?:png|nii\.gz)")
VIEW = re.compile(r"_vp-([a-z]+)")
WINDOW_HOURS, TEST_DAYS = 24.0, 7.0
"""A radiograph and a CT further apart are no pair; a test further from the images tells nothing of them."""
UNSURE = " uncertain"
VIEW_POSITION = "00185101"
RESULTS = {"positivo": 1.0, "negativo": 0.0, "indeterminado": np.nan}


def read_bimcv(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return BIMCV-COVID19+ (or −) as unpacked: the folder that holds ``sub-*`` and ``derivatives``.

    Labels are those of a session's report (``label:COVID 19``, ``label:pneumonia`` …): 1 when named, unknown when only
    its ``… uncertain`` is, 0 when the report names neither, unknown without a report. ``label:test`` is the laboratory
    test nearest in time, at most 7 days from the session. Pairs are frontal radiographs and CTs at most 24 hours apart
    (see ``cohort.build.pair_in_window``).

    Raises:
        BadInput: no exam, no table of labels, or a table or cell of another form.
    """
    root = Path(root)
    rows = pd.DataFrame(_exams(root), columns=["exam_id", "patient_id", "session", "modality", "path", "view"])
    if rows.empty:
        raise BadInput(
            f"{root}: no sub-*/ses-*/mod-*/*_cr.png, _dx.png or _ct.nii.gz. Next: unpack the archives, and give the "
            "folder that holds sub-* and derivatives with --data."
        )
    chosen = Selection(rows, "images and volumes found")
    chosen.keep(~rows["exam_id"].duplicated(), "one file an exam", "a file of the same name (first kept)")
    rows = chosen.rows
    dates = _session_dates(root)
    rows["acquired_at"] = pd.to_datetime(rows["session"].map(dates))
    reports, where = _reports(root)
    rows = rows.join(reports, on="session")
    tests = _tests(root)
    if tests is not None:
        rows[LABEL_PREFIX + "test"] = [
            _nearest_test(tests.get(patient), time)
            for patient, time in zip(rows["patient_id"], rows["acquired_at"], strict=True)
        ]
    people = _people(root)
    if people is not None:
        rows = rows.join(people, on="patient_id")
    table = rows.drop(columns="session").assign(source="BIMCV-COVID19")
    untimed = int(table["acquired_at"].isna().sum())
    step = f"labelled by {where.name} ({untimed} of unknown date)"
    flow = [*chosen.flow, flow_step(step, table[table[list(reports.columns)].notna().any(axis=1)], 0)]
    pairs, steps, _ = pair_in_window(table, WINDOW_HOURS, ("PA", "AP"))
    return published_cohort(root, table, pairs, [*flow, *steps], missing_images, where)


def _exams(root: Path) -> list[tuple[str, str, str, str, str, str]]:
    """Return exam, patient, session, modality, path and view of every file of an exam."""
    found = []
    for place in sorted(root.glob("sub-*/ses-*/mod-*/*")):
        name = NAME.fullmatch(place.name)
        if name is not None:
            modality = "CT" if name["kind"] == "ct" else "CXR"
            view = "" if modality == "CT" else _view(place, name["exam"])
            path = place.relative_to(root).as_posix()
            found.append((name["exam"], name["patient"], name["session"], modality, path, view))
    return found


def _view(place: Path, exam: str) -> str:
    """Return the view of a radiograph; lateral where either its name or its header says so, as names err there."""
    said = VIEW.search(exam)
    named, header = normal_view(said[1]) if said else "", normal_view(_tag(place.with_name(f"{exam}.json")))
    return "LATERAL" if "LATERAL" in (named, header) else named or header


def _tag(sidecar: Path) -> str:
    """Return ViewPosition of a sidecar in DICOM's JSON form; empty where there is none that can be read."""
    try:
        values: Any = json.loads(sidecar.read_text(encoding="utf-8"))[VIEW_POSITION]["Value"]
        return str(values[0])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _session_dates(root: Path) -> dict[str, pd.Timestamp]:
    dates: dict[str, pd.Timestamp] = {}
    for file in sorted(root.glob("sub-*/sub-*_sessions.tsv")):
        rows = published_table(file, ("session_id", "study_date"), others=False)
        days = rows["study_date"].str.removesuffix(".0")
        times = pd.to_datetime(days, format="%Y%m%d", errors="coerce")
        dates |= dict(zip(rows["session_id"], times, strict=True))
    return dates


def _reports(root: Path) -> tuple[pd.DataFrame, Path]:
    """Return session × label of the reports, and the table they stand in."""
    files = sorted(file for file in root.glob("derivatives/labels/*.tsv") if "labels" in file.name.lower())
    if not files:
        raise BadInput(f"{root}: no derivatives/labels/*.tsv. Next: unpack covid19_posi_head.tar.gz (in later releases "
                       "covid19_posi_derivative.tar.gz) there.")  # fmt: skip
    rows = pd.concat([published_table(file, ("ReportID", "Labels"), others=False) for file in files], ignore_index=True)
    rows = rows.drop_duplicates("ReportID").set_index("ReportID")
    named = [_listed(text, files[0]) for text in rows["Labels"]]
    names = sorted({label.removesuffix(UNSURE) for labels in named for label in labels})
    values = [[_answer(name, labels) for name in names] for labels in named]
    return pd.DataFrame(values, index=rows.index, columns=[LABEL_PREFIX + name for name in names]), files[0]


def _listed(text: object, where: Path) -> list[str]:
    """Return the labels of a cell, written as a Python list; none for an empty cell."""
    if not isinstance(text, str) or not text.strip():
        return []
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list):
        raise BadInput(f"{where}: column 'Labels' holds '{text[:40]}'. Allowed: a list such as ['normal', 'COVID 19'].")
    return [" ".join(str(value).split()) for value in values if str(value).strip()]


def _answer(name: str, labels: Sequence[str]) -> float:
    if name in labels:
        return 1.0
    return np.nan if name + UNSURE in labels or not labels else 0.0


def _tests(root: Path) -> dict[str, pd.DataFrame] | None:
    """Return patient → times and results of the laboratory tests; None where their table is not there."""
    files = sorted(file for file in root.glob("derivatives/EHR/*") if file.name.lower().startswith("sil_reg_covid"))
    if not files:
        return None
    rows = published_table(files[0], ("participant", "date", "result"))
    results = rows["result"].fillna("").str.strip().str.lower()
    odd = results[~results.isin([*RESULTS, ""])]
    if len(odd):
        raise BadInput(f"{files[0]}: result '{odd.iloc[0]}'. Allowed: {', '.join(RESULTS)}.")
    tests = pd.DataFrame(
        {"patient_id": rows["participant"], "result": results.map(RESULTS),
         "time": pd.to_datetime(rows["date"], format="%d.%m.%Y", errors="coerce")}
    )  # fmt: skip
    return {str(patient): part for patient, part in tests.dropna(subset="time").groupby("patient_id")}


def _nearest_test(tests: pd.DataFrame | None, time: pd.Timestamp) -> float:
    if tests is None or pd.isna(time):
        return np.nan
    far = (tests["time"] - time).abs() / pd.Timedelta(days=1)
    near = tests.assign(far=far)[far <= TEST_DAYS].sort_values("far", kind="stable")
    return float(near["result"].iloc[0]) if len(near) else np.nan


def _people(root: Path) -> pd.DataFrame | None:
    """Return sex and mean age by patient; None where ``participants.tsv`` is not there."""
    file = root / "participants.tsv"
    if not file.is_file():
        return None
    rows = published_table(file, ("participant", "age", "gender")).drop_duplicates("participant")
    years = [[float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)] for text in rows["age"].fillna("")]
    ages = [float(np.mean(own)) if own else np.nan for own in years]
    sex = rows["gender"].where(rows["gender"].isin(["M", "F"]))
    return pd.DataFrame({"sex": sex.to_numpy(), "age": ages}, index=rows["participant"])
