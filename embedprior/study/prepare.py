"""Before anything is written: read the cohort, join shared pictures, split, refuse what can't be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort
from embedprior.cohort.duplicates import fingerprints, join_groups, near_duplicates
from embedprior.cohort.sources import read_cohort
from embedprior.cohort.sources.tables import read_splits
from embedprior.cohort.splits import fixed_split, group_kfold, patient_labels, pilot_resamples
from embedprior.errors import BadInput, nearest
from embedprior.study.config import SOURCE_ONLY, Design, StudyConfig
from embedprior.tables import check_splits


@dataclass(frozen=True)
class Prepared:
    """A study that may start: everything that can be refused has been looked at, and nothing was written.

    Attributes:
        cohort: with patients who share a picture in one group (unless they are only to be reported).
        duplicates: the shared pictures (see ``cohort.duplicates.near_duplicates``).
        targets: by design, the X-rays to score: ``exam_id, patient_id, group_id, label, source, ct_exam_id,
            ct_label``.
        splits: split table of all designs.
        given: designs whose splits are the user's.
    """

    cohort: Cohort
    duplicates: pd.DataFrame
    targets: dict[str, pd.DataFrame]
    splits: pd.DataFrame
    given: frozenset[str] = frozenset()

    def input_hashes(self) -> dict[str, str]:
        """Return the hashes of the tables the study starts from."""
        tables = {"exams": self.cohort.exams, "pairs": self.cohort.pairs, "splits": self.splits}
        return {name: hashlib.sha256(t.to_csv(index=False).encode()).hexdigest() for name, t in tables.items()}


def prepare(config: StudyConfig, data: Path, splits_file: Path | None = None) -> Prepared:
    """Read the cohort and make (or read) the splits.

    Raises:
        BadInput: whatever the cohort, the label, the designs or the split file are refused for.
    """
    cohort = read_cohort(config.source, data, config.missing_images)
    labels = cohort.labels(config.label)
    pictures = cohort.exams[cohort.exams["modality"].isin(("CXR", "CT"))]
    duplicates = near_duplicates(pictures, fingerprints(pictures, cohort.root))
    if config.duplicates == "join":
        joined = join_groups(cohort.exams, duplicates)
        cohort = Cohort(cohort.root, joined, cohort.pairs, cohort.flow)
    targets = {d.name: targets_of(cohort, labels, d) for d in config.designs}
    given = read_splits(splits_file) if splits_file else None
    if given is not None:
        assert splits_file is not None
        _refuse_unknown_designs(given, config, splits_file)
    named = frozenset(given["design"].astype(str)) if given is not None else frozenset[str]()
    tables = []
    for design in config.designs:
        own = given[given["design"] == design.name] if given is not None else pd.DataFrame()
        if len(own):
            tables.append(_checked(own, cohort, targets[design.name], str(splits_file)))
        else:
            tables.append(make_splits(cohort, labels, targets[design.name], design, config.seed))
    return Prepared(cohort, duplicates, targets, pd.concat(tables, ignore_index=True), named)


def targets_of(cohort: Cohort, labels: pd.Series, design: Design) -> pd.DataFrame:
    """Return the labelled X-rays of one design, in the order of the exam table.

    Raises:
        BadInput: there is none, one lies in two pairs, or ``source-only`` is asked for without a source column.
    """
    xrays = cohort.of("CXR").assign(label=lambda f: labels.loc[f["exam_id"]].to_numpy())
    xrays = xrays[xrays["label"].notna()]
    if design.cases == "paired":
        repeated = cohort.pairs.loc[cohort.pairs["cxr_exam_id"].duplicated(), "cxr_exam_id"]
        if len(repeated):
            raise BadInput(f"X-rays in more than one pair: {', '.join(repeated[:3])}. Next: keep one pair for each.")
        ct_of = cohort.pairs.set_index("cxr_exam_id")["ct_exam_id"]
        xrays = xrays[xrays["exam_id"].isin(ct_of.index)].assign(ct_exam_id=lambda f: f["exam_id"].map(ct_of))
        xrays = xrays.assign(ct_label=lambda f: labels.loc[f["ct_exam_id"]].to_numpy())
    else:
        xrays = xrays.assign(ct_exam_id="", ct_label=np.nan)
    if xrays.empty:
        raise BadInput(f"design '{design.name}' has no labelled {'paired ' * (design.cases == 'paired')}X-ray.")
    if "source" not in xrays.columns:
        if SOURCE_ONLY in design.methods:
            raise BadInput(f"'{SOURCE_ONLY}' needs a column 'source' in the exam table. Next: add it, or drop the row.")
        xrays = xrays.assign(source="")
    wanted = ["exam_id", "patient_id", "group_id", "label", "source", "ct_exam_id", "ct_label"]
    return xrays[wanted].reset_index(drop=True)


def make_splits(cohort: Cohort, labels: pd.Series, targets: pd.DataFrame, design: Design, seed: int) -> pd.DataFrame:
    """Return the split table of one design.

    Raises:
        BadInput: too few patients of one label.
    """
    if design.split == "kfold":
        return group_kfold(targets, labels, design.name, design.folds, seed, design.validation)
    highest = patient_labels(targets, labels)
    if design.split == "fixed":
        return fixed_split(targets, highest, design.name, seed=seed)
    with_ct = cohort.of("CT") if design.cases == "paired" else targets
    everyone = pd.concat([targets, with_ct[~with_ct["patient_id"].isin(targets["patient_id"])]])
    return pilot_resamples(everyone, highest, design.name, design.resamples, design.positives, design.negatives)


def _refuse_unknown_designs(given: pd.DataFrame, config: StudyConfig, where: Path) -> None:
    names = [d.name for d in config.designs]
    for name in given["design"].astype(str).unique():
        if name not in names:
            raise BadInput(f"{where}: unknown design '{name}'. Allowed: {', '.join(names)}.{nearest(name, names)}")


def _checked(own: pd.DataFrame, cohort: Cohort, targets: pd.DataFrame, where: str) -> pd.DataFrame:
    group = dict(zip(cohort.exams["patient_id"], cohort.exams["group_id"], strict=True))
    strangers = sorted(set(own["patient_id"]) - set(group))
    if strangers:
        raise BadInput(f"{where}: patients who are not in the cohort: {', '.join(strangers[:5])}.")
    joined = own.assign(group_id=own["patient_id"].map(group))
    return check_splits(joined, f"{where} (patients who share a picture are one group)", targets["patient_id"])
