"""Several cohorts as one: tables of different folders, ids that meet, and files that both have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, FlowStep, flow_step
from embedprior.cohort.duplicates import join_groups, same_files
from embedprior.cohort.sources.tables import read_tables
from embedprior.errors import BadInput


def merge_cohorts(folders: Sequence[Path], out: Path) -> tuple[Cohort, list[str]]:
    """Return the exams and pairs of several cohorts as one cohort, and sentences about it.

    Exam, pair and patient ids bear the name of their folder where two cohorts use the same; so does ``site`` where it
    is not given. Patients who share a file, by the column ``sha256``, become one group. A label that a cohort lacks is
    unknown there.

    Args:
        folders: each with ``exams.csv`` and perhaps ``pairs.csv``.
        out: folder of the merged cohort, which paths will be relative to.

    Raises:
        BadInput: fewer than two folders, two of one name, or a broken table.
    """
    names = [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise BadInput(f"merging needs two folders or more, each of another name; got {', '.join(names) or 'none'}.")
    cohorts = [read_tables(folder) for folder in folders]
    notes = []
    for column in ("exam_id", "patient_id", "pair_id"):
        tables = [c.pairs if column == "pair_id" else c.exams for c in cohorts]
        seen = pd.concat([pd.Series(table[column].unique()) for table in tables])
        if seen.duplicated().any():
            both = int(seen[seen.duplicated()].nunique())
            notes.append(f"{both} values of '{column}' stand in several cohorts: each now bears its folder's name.")
            cohorts = [_named(c, column, name) for c, name in zip(cohorts, names, strict=True)]
    exams = []
    for cohort, name in zip(cohorts, names, strict=True):
        own = cohort.exams
        path = [os.path.relpath((cohort.root / str(p)).resolve(), out.resolve()) if str(p) else "" for p in own["path"]]
        site = own["site"].fillna(name) if "site" in own else name
        exams.append(own.assign(path=path, group_id=name + "/" + own["group_id"], site=site))
        labels = {c for c in own.columns if c.startswith("label:")}
        lacking = {c for other in cohorts for c in other.exams.columns if c.startswith("label:")} - labels
        notes += [f"{name} has no {column}: unknown there." for column in sorted(lacking)]
    whole = pd.concat(exams, ignore_index=True)
    hashes = whole["sha256"].fillna("").astype(str) if "sha256" in whole else pd.Series("", index=whole.index)
    shared = same_files(whole, dict(zip(whole["exam_id"], hashes, strict=True)))
    across = shared[~shared["same_patient"].astype(bool)]
    if len(across):
        notes.append(f"{len(across)} files stand under two patient ids: these patients are one group.")
    whole = join_groups(whole, shared)
    pairs = pd.concat([c.pairs for c in cohorts], ignore_index=True)
    flow: list[FlowStep] = [flow_step(f"exams of {n}", c.exams, 0) for c, n in zip(cohorts, names, strict=True)]
    flow.append(flow_step("merged", whole, 0))
    return Cohort(out, whole, pairs, tuple(flow)).checked(str(out)), notes


def _named(cohort: Cohort, column: str, name: str) -> Cohort:
    exams, pairs = cohort.exams, cohort.pairs
    if column == "pair_id":
        pairs = pairs.assign(pair_id=name + "/" + pairs["pair_id"].astype(str))
    elif column == "patient_id":
        exams = exams.assign(patient_id=name + "/" + exams["patient_id"])
        pairs = pairs.assign(patient_id=name + "/" + pairs["patient_id"].astype(str))
    else:
        exams = exams.assign(exam_id=name + "/" + exams["exam_id"].astype(str))
        columns = {c: name + "/" + pairs[c].astype(str) for c in ("cxr_exam_id", "ct_exam_id")}
        pairs = pairs.assign(**columns)
    return Cohort(cohort.root, exams, pairs, cohort.flow)
