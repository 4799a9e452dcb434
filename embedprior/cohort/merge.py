"""Several cohorts as one: tables of different folders, ids that meet, and files that both have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, FlowStep, flow_step
from embedprior.cohort.duplicates import join_groups, same_files, union_find
from embedprior.cohort.sources.tables import read_tables
from embedprior.errors import BadInput


def merge_cohorts(folders: Sequence[Path], out: Path) -> tuple[Cohort, list[str]]:
    """Return the exams and pairs of several cohorts as one cohort, and sentences about it.

    Folders that name one exam alike, with the same id, patient and file, speak of the same patients: a cohort, and the
    DRRs that ``embedprior drr`` made of its CTs. Such exams are kept once, each column from the first folder that fills
    it. Of all other folders exam, pair and patient ids bear their name where two use the same; so does ``site`` where
    it is not given. Patients who share a file, by the column ``sha256``, become one group. A label that a cohort lacks
    is unknown there.

    Args:
        folders: each with ``exams.csv`` and perhaps ``pairs.csv``.
        out: folder of the merged cohort, which paths will be relative to.

    Raises:
        BadInput: fewer than two folders, two of one name, or a broken table.
    """
    names = [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise BadInput(f"merging needs two folders or more, each of another name; got {', '.join(names) or 'none'}.")
    cohorts = [_with_places(read_tables(folder), out) for folder in folders]
    cohorts, names, flow, notes = _same_patients(cohorts, names)
    if len(cohorts) == 1:
        whole, pairs = cohorts[0].exams, cohorts[0].pairs
        return Cohort(out, whole, pairs, (*flow, flow_step("merged", whole, 0))).checked(str(out)), notes
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
        site = own["site"].fillna(name) if "site" in own else name
        exams.append(own.assign(group_id=name + "/" + own["group_id"], site=site))
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
    flow.append(flow_step("merged", whole, 0))
    return Cohort(out, whole, pairs, tuple(flow)).checked(str(out)), notes


def _with_places(cohort: Cohort, out: Path) -> Cohort:
    """The same cohort with paths as they are from the merged folder."""
    path = [
        os.path.relpath((cohort.root / str(p)).resolve(), out.resolve()) if str(p) else "" for p in cohort.exams["path"]
    ]
    return replace(cohort, exams=cohort.exams.assign(path=path))


def _same_patients(
    cohorts: Sequence[Cohort], names: Sequence[str]
) -> tuple[list[Cohort], list[str], list[FlowStep], list[str]]:
    """Join the folders that name one exam alike; return what is left, its names, the flow and sentences."""
    flow = [flow_step(f"exams of {n}", c.exams, 0) for c, n in zip(cohorts, names, strict=True)]
    keys = [set(c.exams[["exam_id", "patient_id", "path"]].itertuples(index=False, name=None)) for c in cohorts]
    alike = [(a, b) for a, b in combinations(range(len(cohorts)), 2) if keys[a] & keys[b]]
    root = union_find([f"{n:06d}" for n in range(len(cohorts))], [(f"{a:06d}", f"{b:06d}") for a, b in alike])
    left, kept_names, notes = [], [], []
    for first in dict.fromkeys(root.values()):
        members = [int(n) for n, of in root.items() if of == first]
        own = [cohorts[n] for n in members]
        kept_names.append(names[members[0]])
        if len(own) == 1:
            left += own
            continue
        every = pd.concat([c.exams for c in own], ignore_index=True)
        exams = every.groupby("exam_id", sort=False).first().reset_index()
        clash = every.groupby("exam_id")[["patient_id", "path"]].nunique().max(axis=1)
        if (clash > 1).any():
            raise BadInput(
                f"{', '.join(names[n] for n in members)}: exam '{clash.idxmax()}' is another patient or file in one of "
                "them, though other exams are the same. Next: rename it in one of the folders."
            )
        pairs = pd.concat([c.pairs for c in own], ignore_index=True).drop_duplicates("pair_id", ignore_index=True)
        joined = union_find(sorted(set(every["group_id"])), _edges(every))
        exams = exams.assign(group_id=exams["group_id"].map(joined))[list(every.columns)]
        notes.append(f"{', '.join(names[n] for n in members)}: {len(every) - len(exams)} exams are the same in them, "
                     "so are the patients; each exam stands once.")  # fmt: skip
        left.append(Cohort(own[0].root, exams, pairs, ()))
    return left, kept_names, flow, notes


def _edges(exams: pd.DataFrame) -> list[tuple[str, str]]:
    """Groups that one patient has in several tables."""
    groups = exams.groupby("patient_id")["group_id"].unique()
    return [(own[0], other) for own in groups for other in own[1:]]


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
