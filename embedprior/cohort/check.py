"""A cohort before anything is learned from it: files, copies, labels, ids, splits and what gives the label away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from embedprior.cohort.base import Cohort, missing_files
from embedprior.cohort.duplicates import (
    fingerprints,
    first_of_each,
    join_groups,
    near_duplicates,
    near_embeddings,
    same_files,
)
from embedprior.errors import BadInput
from embedprior.imaging.contact_sheet import check_exam
from embedprior.imaging.dicom_header import quiet_pydicom, read_dataset
from embedprior.imaging.files import UnreadableExam, is_dicom, source_hash
from embedprior.imaging.findings import lungs_complete, worst
from embedprior.imaging.readers import ExamSource, is_volume
from embedprior.tables import LABEL_PREFIX, SPLIT_REQUIRED, check_splits, label_columns, read_table

COLUMNS = ("check", "severity", "exams", "patients", "message")
METADATA = ("view", "site", "source", "sex")
PROBE_FOLDS, PROBE_SHOWN = 5, 0.6
"""The probe's AUC is a finding when its interval lies above this."""


@dataclass(frozen=True)
class CheckedCohort:
    """What was found.

    Attributes:
        findings: table with ``COLUMNS``; severity is ``decide`` (somebody must), ``note`` or ``ok``.
        duplicates: pairs of exams that are one file or picture (see ``cohort.duplicates.COLUMNS``).
    """

    findings: pd.DataFrame
    duplicates: pd.DataFrame

    @property
    def decide(self) -> int:
        """How many findings need a decision."""
        return int((self.findings["severity"] == "decide").sum())


def check_cohort(
    cohort: Cohort, progress: Callable[[str], None] = lambda _: None,
    embeddings: Mapping[str, tuple[Sequence[str], Float[np.ndarray, "exams dim"]]] | None = None,
) -> CheckedCohort:  # fmt: skip
    """Check a cohort's files and tables; every radiograph and CT is read.

    Args:
        cohort: its tables; ``splits.csv`` in its folder is checked too, where there is one.
        progress: told the name of each step.
        embeddings: by cache, its exams and a row of each: nearly equal ones are copies, which are found so without any
            picture.
    """
    rows: list[tuple[str, str, int, int, str]] = []

    def add(check: str, severity: str, exams: pd.DataFrame, message: str) -> None:
        rows.append((check, severity, len(exams), int(exams["patient_id"].nunique()), message))

    def named(exams: pd.DataFrame) -> str:
        few = ", ".join(exams["exam_id"].astype(str).head(5))
        return few + (f" and {len(exams) - 5} more" if len(exams) > 5 else "")

    exams = cohort.exams
    progress("files")
    gone = exams[exams["path"].isin(missing_files(exams, cohort.root))]
    add("file exists", "decide" if len(gone) else "ok", gone, _left_out(named(gone)))
    there = exams[~exams["exam_id"].isin(gone["exam_id"])]
    sources = {str(e): _hash(cohort.root, str(p)) for e, p in zip(there["exam_id"], there["path"], strict=True)}
    pictures = there[there["modality"].isin(("CXR", "DRR"))]
    progress("pictures")
    prints = fingerprints(pictures, cohort.root)
    broken = pictures[~pictures["exam_id"].isin(prints)]
    add("radiograph can be read", "decide" if len(broken) else "ok", broken, _left_out(named(broken)))
    _volumes(there[there["modality"] == "CT"], cohort.root, progress, add, named)
    progress("copies")
    xrays = pictures[pictures["modality"] == "CXR"]
    alike = [same_files(there, sources), near_duplicates(xrays, prints)]
    for name, (ids, matrix) in (embeddings or {}).items():
        near = near_embeddings(exams, ids, matrix)
        alike.append(near.pairs)
        own = exams[exams["exam_id"].isin(ids)]
        text = near.sentence("by cosine")
        add(f"embeddings of {name}", "note" if near.reason else "ok", own, text[0].lower() + text[1:].rstrip("."))
    duplicates = first_of_each(alike)
    for how, part in duplicates.groupby("how"):
        both = exams[exams["exam_id"].isin([*part["exam_a"], *part["exam_b"]])]
        across = part[~part["same_patient"].astype(bool)]
        group = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
        apart = [(a, b) for a, b in zip(across["patient_a"], across["patient_b"], strict=True) if group[a] != group[b]]
        text = f"{len(part)} pairs, {len(across)} of them of different patients"
        text += f" (first: {part['exam_a'].iloc[0]} and {part['exam_b'].iloc[0]}); studies join these patients" * bool(
            apart
        )
        add(str(how), "decide" if apart else "note", both, text)
    if duplicates.empty:
        add("copies", "ok", exams.iloc[:0], f"{len(prints)} pictures and {len(sources)} files compared")
    joined = join_groups(exams, duplicates)
    progress("labels")
    for name in label_columns(exams):
        _labels(cohort, name, add, named)
    other = _other_patient(there, cohort.root)
    whose = f"{named(other)}: the table and the headers put them together differently" if len(other) else ""
    add("DICOM's patient", "decide" if len(other) else "ok", other, whose)
    for name in label_columns(exams):
        _probe(joined, name, add)
    _splits(cohort.root, joined, add)
    return CheckedCohort(pd.DataFrame(rows, columns=list(COLUMNS)), duplicates)


def joined_by_file(cohort: Cohort) -> Cohort:
    """Return the cohort with patients who share a file or a picture in one group."""
    exams = cohort.exams
    sources = {str(e): _hash(cohort.root, str(p)) for e, p in zip(exams["exam_id"], exams["path"], strict=True)}
    xrays = exams[exams["modality"] == "CXR"]
    found = first_of_each([same_files(exams, sources), near_duplicates(xrays, fingerprints(xrays, cohort.root))])
    return replace(cohort, exams=join_groups(exams, found))


Add = Callable[[str, str, pd.DataFrame, str], None]


def _left_out(names: str) -> str:
    return f"{names}; studies leave them out and count them" if names else ""


def _volumes(
    exams: pd.DataFrame, root: Path, progress: Callable[[str], None], add: Add,
    named: Callable[[pd.DataFrame], str],
) -> None:  # fmt: skip
    """Read every CT, as ``embedprior images check`` does."""
    if exams.empty:
        return
    progress("CTs")
    states = {}
    for exam_id, path in zip(exams["exam_id"], exams["path"], strict=True):
        states[exam_id] = "broken"
        file = root / str(path)
        if is_volume(root, str(path)) or (file.is_file() and is_dicom(file)):
            findings, _, _ = check_exam(ExamSource(str(exam_id), file, "volume"), draw=False)
            if worst(findings) != "error":
                states[exam_id] = "" if lungs_complete(findings) else "cut"
        # a single slice is read as a picture
        if states[exam_id] == "broken" and fingerprints(exams[exams["exam_id"] == exam_id], root):
            states[exam_id] = ""
    state = exams["exam_id"].map(states)
    broken, cut = exams[state == "broken"], exams[state == "cut"]
    add("CT can be read", "decide" if len(broken) else "ok", broken, _left_out(named(broken)))
    said = cut["complete"].astype(str).str.lower().eq("false") if "complete" in cut else pd.Series(False, cut.index)
    text = f"{named(cut)}; " + (
        "studies leave them out (column 'complete')"
        if said.all()
        else "not all have 'complete' false: studies use them"
    )
    add("CT holds both lungs", "ok" if cut.empty else "note" if said.all() else "decide", cut, text if len(cut) else "")


def _labels(cohort: Cohort, name: str, add: Add, named: Callable[[pd.DataFrame], str]) -> None:
    exams, column = cohort.exams, LABEL_PREFIX + name
    values = cohort.labels(name)
    known = exams[exams[column].notna()]
    counts = {kind: known[known["modality"] == kind][column].value_counts() for kind in known["modality"].unique()}
    text = "; ".join(f"{kind}: {int(n.get(1, 0))} positive, {int(n.get(0, 0))} negative" for kind, n in counts.items())
    poor = any(min(n.get(1, 0), n.get(0, 0)) == 0 for kind, n in counts.items() if kind == "CXR") or "CXR" not in counts
    add(f"label {name}", "decide" if poor else "note", known, text or "no exam has it")
    pairs = cohort.pairs
    a, b = values.reindex(pairs["cxr_exam_id"]).to_numpy(), values.reindex(pairs["ct_exam_id"]).to_numpy()
    differ = pairs[(a != b) & ~np.isnan(a) & ~np.isnan(b)]
    both = exams[exams["exam_id"].isin(differ["cxr_exam_id"])]
    add(f"label {name} within pairs", "decide" if len(both) else "ok", both,
        f"radiograph and CT of a pair disagree: {named(both)}" if len(both) else "")  # fmt: skip
    changing = known.groupby("patient_id")[column].nunique()
    over_time = known[known["patient_id"].isin(changing[changing > 1].index)]
    who = ", ".join(map(str, changing[changing > 1].index[:5]))
    add(
        f"label {name} over time",
        "note" if who else "ok",
        over_time,
        f"patients with both labels: {who}" if who else "",
    )


def _probe(exams: pd.DataFrame, name: str, add: Add) -> None:
    """Predict the label of radiographs from metadata alone: what a model could learn without looking at a lung."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    from embedprior.evidence.delong import delong
    from embedprior.evidence.intervals import auc_interval

    column = LABEL_PREFIX + name
    rows = exams[(exams["modality"] == "CXR") & exams[column].notna()]
    have = [c for c in METADATA if c in rows.columns and rows[c].fillna("").astype(str).nunique() > 1]
    y = rows[column].to_numpy(dtype=int)
    fewest = min((rows.loc[y == value, "group_id"].nunique() for value in (0, 1)), default=0)
    check = f"label {name} from metadata"
    if not have or fewest < PROBE_FOLDS:
        why = "no column of " + ", ".join(METADATA) if not have else f"{fewest} groups of one class"
        add(check, "note", rows.iloc[:0], f"not tried: {why}")
        return
    x = pd.get_dummies(rows[have].fillna("").astype(str)).to_numpy(dtype=float)
    scores, fold_of = np.zeros(len(y)), np.zeros(len(y), dtype=int)
    folds = StratifiedGroupKFold(PROBE_FOLDS, shuffle=True, random_state=0)
    for fold, (train, test) in enumerate(folds.split(x, y, rows["group_id"])):
        model = LogisticRegression(max_iter=1000).fit(x[train], y[train])
        scores[test], fold_of[test] = model.predict_proba(x[test])[:, 1], fold
    result = delong(y, scores, clusters=rows["group_id"].to_numpy(), strata=fold_of)
    found = auc_interval(float(result.auc[0]), result.variance(np.ones(1)), result.independent_pairs)
    text = f"{', '.join(have)} alone give an AUC of {found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"
    if found.low > PROBE_SHOWN:
        text += "; a model may learn these: compare within one view or site (views: [PA]), and report it"
    add(check, "decide" if found.low > PROBE_SHOWN else "note", rows, text)


def _splits(root: Path, joined: pd.DataFrame, add: Add) -> None:
    file = root / "splits.csv"
    if not file.is_file():
        return
    group = dict(zip(joined["patient_id"], joined["group_id"], strict=True))
    splits = read_table(file, SPLIT_REQUIRED)
    grouped = splits.assign(group_id=splits["patient_id"].map(group).fillna(splits["group_id"]))
    sides = grouped.groupby(["design", "resample", "fold", "group_id"])["part"].nunique()
    torn = grouped[grouped["group_id"].isin({index[-1] for index in sides[sides > 1].index})]
    own = joined[joined["patient_id"].isin(torn["patient_id"])]
    if len(torn):
        names = sorted(torn["patient_id"].unique())
        add("splits.csv", "decide", own, f"{len(names)} patients, or their files, on two sides of a fold: "
            + ", ".join(names))  # fmt: skip
        return
    try:
        check_splits(grouped, str(file))
    except BadInput as error:
        add("splits.csv", "decide", own, str(error))
        return
    add("splits.csv", "ok", joined.iloc[:0], "no patient, file or picture on two sides")


def _hash(root: Path, path: str) -> str:
    try:
        return source_hash(root, path)
    except (OSError, ValueError, IndexError, UnreadableExam):
        return ""


def _other_patient(exams: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Exams whose DICOM header names one patient for what the table calls several, or the reverse."""
    stated = {}
    for exam_id, path in zip(exams["exam_id"], exams["path"], strict=True):
        file = root / str(path)
        if file.is_dir():
            file = next((member for member in sorted(file.rglob("*")) if member.is_file() and is_dicom(member)), file)
        if file.is_file() and is_dicom(file):
            stated[exam_id] = _patient_of(file)
    own = exams[exams["exam_id"].map(lambda e: bool(stated.get(e))).astype(bool)]
    header = own["exam_id"].map(stated)
    by_patient, by_header = header.groupby(own["patient_id"]).nunique(), own["patient_id"].groupby(header).nunique()
    mixed = own["patient_id"].isin(by_patient[by_patient > 1].index) | header.isin(by_header[by_header > 1].index)
    return own[mixed]


def _patient_of(file: Path) -> str:
    try:
        with file.open("rb") as handle, quiet_pydicom():
            return str(read_dataset(handle, pixels=False, tags=("PatientID",)).get("PatientID", "") or "")
    # as in dicom_header: whatever a damaged header leads to; what reads the exam reports it
    except Exception:
        return ""
