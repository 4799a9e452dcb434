"""Predictions and families from CSV files, with line numbers kept for error messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.evidence.errors import EvidenceError, nearest
from embedprior.evidence.predictions import OPTIONAL

IDS = ("exam_id", "patient_id", "method", *OPTIONAL)
#: Columns of a wide table that are not methods.
NOT_METHODS = ("exam_id", "patient_id", "label", *OPTIONAL, "view", "sex", "age", "site")


def read_predictions(path: Path, *, wide: bool = False, not_methods: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return a predictions CSV in long form, indexed by ``line`` (the header is line 1).

    Args:
        path: CSV. Ids are kept as text. wide: one column per method beside ``patient_id, label``.
        not_methods: further columns of a wide table that hold no scores (site, scanner, ...).

    Raises:
        EvidenceError: no such file, no table in it, or (wide) no method or a patient listed twice without exams.
    """
    if not path.is_file():
        raise EvidenceError(f"{path} does not exist; give a CSV of predictions.")
    try:
        header = pd.read_csv(path, nrows=0).columns
        dtypes = {c: object if c in ("exam_id", "patient_id") else "category" for c in IDS if c in header}
        frame = pd.read_csv(path, dtype=dtypes, low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise EvidenceError(f"{path} is not a CSV table: {error}") from error
    frame.index = pd.RangeIndex(2, len(frame) + 2, name="line")
    return from_wide(frame, not_methods) if wide else frame


def from_wide(frame: pd.DataFrame, not_methods: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return the long form of a table with one column per method; without ``exam_id`` a patient is one case."""
    for column in ("patient_id", "label"):
        if column not in frame.columns:
            given = ", ".join(map(str, frame.columns))
            hint = nearest(column, map(str, frame.columns))
            raise EvidenceError(
                f"a wide table needs patient_id, label and one column per method; it has: {given}.{hint}"
            )
    kept = [c for c in frame.columns if c in NOT_METHODS or c in not_methods]
    methods = [c for c in frame.columns if c not in kept]
    if not methods:
        raise EvidenceError("the wide table has no method column beside " + ", ".join(kept) + ".")
    base = frame[[c for c in kept if c != "method"]]
    if "exam_id" not in base.columns:
        twice = base["patient_id"].duplicated(keep=False)
        if twice.any():
            lines = ", ".join(map(str, base.index[twice][:5]))
            raise EvidenceError(
                f"patients are listed twice (lines {lines}); add an exam_id column to give a patient several rows."
            )
        base = base.assign(exam_id=base["patient_id"])
    parts = [base.assign(method=str(m), score=frame[m]) for m in methods]
    return pd.concat(parts)


def read_family(path: Path) -> list[tuple[str, str]]:
    """Return the declared comparisons of a CSV with columns ``a, b``, or of a JSON list of pairs.

    Raises:
        EvidenceError: the file is missing or holds no pairs.
    """
    if not path.is_file():
        raise EvidenceError(f"{path} does not exist; a family is a CSV with columns a,b or a JSON list of pairs.")
    if path.suffix == ".json":
        try:
            pairs = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise EvidenceError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
            raise EvidenceError(f'{path} must be a list of pairs such as [["prior", "cxr_only"]].')
    else:
        table = pd.read_csv(path, dtype=str)
        if not {"a", "b"} <= set(table.columns):
            raise EvidenceError(f"{path} needs columns a,b; it has: {', '.join(map(str, table.columns))}.")
        pairs = np.asarray(table[["a", "b"]].dropna()).tolist()
    if not pairs:
        raise EvidenceError(f"{path} declares no comparison.")
    return [(str(a), str(b)) for a, b in pairs]
