"""Split tables: who trains and who is held out. Pure: the same cohort and seed give the same table."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from embedprior.errors import BadInput
from embedprior.tables import SPLIT_REQUIRED, check_splits

RESAMPLE_SEED = 1000


def group_kfold(
    exams: pd.DataFrame, labels: pd.Series, design: str, folds: int, seed: int, validation: bool = False
) -> pd.DataFrame:
    """Return a stratified k-fold in which no group is in two folds (``sklearn.StratifiedGroupKFold``).

    Args:
        exams: with ``exam_id, patient_id, group_id``; each exam counts once in the stratification.
        labels: 1 or 0 by ``exam_id``.
        design: name written to the table.
        folds: how many.
        seed: of the shuffle.
        validation: while fold k is held out, the patients of fold k + 1 choose the checkpoint (part ``val``).

    Returns:
        Split table: per fold every patient has one part.

    Raises:
        BadInput: fewer groups with one of the labels than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y = labels.loc[exams["exam_id"]].to_numpy(dtype=int)
    for value in (0, 1):
        groups = exams.loc[y == value, "group_id"].nunique()
        if groups < folds:
            raise BadInput(
                f"{folds} folds need {folds} groups of patients with label {value}; there are {groups}. "
                "Next: fewer folds in the study's configuration."
            )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    group_of = _group_of(exams)
    held = [
        set(exams["patient_id"].iloc[rows]) for _, rows in splitter.split(np.zeros(len(y)), y, exams["group_id"])
    ]
    rows = []
    for fold, test in enumerate(held):
        parts = dict.fromkeys(group_of, "train")
        if validation:
            parts |= dict.fromkeys(held[(fold + 1) % folds], "val")
        rows += _rows(design, 0, fold, parts | dict.fromkeys(test, "test"), group_of)
    return _table(rows, "group k-fold")


def pilot_resamples(
    exams: pd.DataFrame,
    patient_label: Mapping[str, int],
    design: str,
    resamples: int,
    positives: int = 4,
    negatives: int = 1,
) -> pd.DataFrame:
    """Return the pilot study's patient-level resamples, exactly.

    For k = 1..resamples, ``numpy.random.default_rng(1000 + k)`` draws min(4, n₊ − 1) positive and then
    min(1, n₋ − 1) negative patients without replacement from the patients in ascending (integer) order.
    Everyone else trains, except patients of a held-out group, who have no row.

    Args:
        exams: with ``patient_id, group_id``: everyone who may train, CT-only patients included.
        patient_label: the paired patients, the highest label of each one's target X-rays.
        design: name written to the table.
        resamples: how many.
        positives: positive patients to hold out, at most.
        negatives: negative patients to hold out, at most.

    Returns:
        Split table, resample k = 1..resamples.

    Raises:
        BadInput: fewer than two paired patients of one label.
    """
    ordered = sorted(patient_label, key=natural)
    classes = [[p for p in ordered if patient_label[p] == value] for value in (1, 0)]
    if min(map(len, classes)) < 2:
        raise BadInput(
            f"resampling by label needs two positive and two negative paired patients; there are "
            f"{len(classes[0])} and {len(classes[1])}."
        )
    group_of = _group_of(exams)
    rows = []
    for k in range(1, resamples + 1):
        generator = np.random.default_rng(RESAMPLE_SEED + k)
        held: set[str] = set()
        for members, wanted in zip(classes, (positives, negatives), strict=True):
            size = min(wanted, len(members) - 1)
            drawn = generator.choice(np.arange(len(members)), size=size, replace=False)
            held |= {members[i] for i in drawn}
        groups = {group_of[p] for p in held}
        parts = {p: "train" for p in group_of if group_of[p] not in groups} | dict.fromkeys(held, "test")
        rows += _rows(design, k, 0, parts, group_of)
    return _table(rows, "pilot resamples")


def fixed_split(
    exams: pd.DataFrame, patient_label: Mapping[str, int], design: str, train: float = 0.8, seed: int = 42
) -> pd.DataFrame:
    """Return the pilot study's fixed split.

    Patients in string order, label 0 first; one ``random.Random(seed)`` shuffles each label's list; the first
    round(train · n) of each, at least 1 and at most n − 1, train.

    Returns:
        Split table. A training patient whose group is held out has no row.

    Raises:
        BadInput: fewer than two patients of one label.
    """
    generator = random.Random(seed)
    parts: dict[str, str] = {}
    for value in (0, 1):
        members = sorted(p for p, label in patient_label.items() if label == value)
        if len(members) < 2:
            raise BadInput(f"a fixed split needs two patients of label {value}; there is {len(members)}.")
        generator.shuffle(members)
        cut = min(max(round(train * len(members)), 1), len(members) - 1)
        parts |= dict.fromkeys(members[:cut], "train") | dict.fromkeys(members[cut:], "test")
    group_of = _group_of(exams)
    held = {group_of[p] for p, part in parts.items() if part == "test"}
    kept = {p: part for p, part in parts.items() if part == "test" or group_of[p] not in held}
    return _table(_rows(design, 0, 0, kept, group_of), "fixed split")


def natural(patient_id: str) -> tuple[int, int, str]:
    """Return the sort key "ascending integer order": numbers by value, then everything else by text."""
    return (0, int(patient_id), "") if patient_id.isdigit() else (1, 0, patient_id)


def patient_labels(exams: pd.DataFrame, labels: pd.Series) -> dict[str, int]:
    """Return the highest known label of each patient's exams."""
    known = labels.loc[exams["exam_id"]].to_numpy()
    highest = pd.Series(known, index=exams["patient_id"].to_numpy()).groupby(level=0).max().dropna()
    return {str(patient): int(value) for patient, value in highest.items()}


def _group_of(exams: pd.DataFrame) -> dict[str, str]:
    return dict(zip(exams["patient_id"], exams["group_id"], strict=True))


def _rows(
    design: str, resample: int, fold: int, parts: Mapping[str, str], group_of: Mapping[str, str]
) -> list[dict[str, str | int]]:
    patients: Iterable[str] = sorted(parts, key=natural)
    where: dict[str, str | int] = {"design": design, "resample": resample, "fold": fold}
    return [{"patient_id": p, "group_id": group_of[p], **where, "part": parts[p]} for p in patients]


def _table(rows: list[dict[str, str | int]], where: str) -> pd.DataFrame:
    return check_splits(pd.DataFrame(rows, columns=list(SPLIT_REQUIRED)), where)
