"""From a predictions table to case-aligned arrays, refusing whatever would distort a comparison.

A *row* is one score; a *case* is what the AUC counts (an exam or a patient); a *cell* is one method trained
with one seed. A *block* is one label in one resample: the same cases for every cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.evidence.delong import Bools, Floats, Ints, first_rows, n_distinct, renumber
from embedprior.evidence.errors import EvidenceError, nearest

REQUIRED = ("exam_id", "patient_id", "label", "method", "score")
OPTIONAL = ("fold", "resample", "seed", "split", "label_name")
SPLITS = ("train", "val", "test")
ENSEMBLE = " (seed ensemble)"
Unit = Literal["patient", "exam"]
PatientLabel = Literal["max", "index"]


@dataclass(frozen=True)
class Block:
    """One label in one resample: scores of every cell on one case list.

    Attributes:
        label_name, resample: None when the table has no such column.
        case_ids: (N,) exam ids (unit patient: the first exam of each).
        patients: (N,) codes, shared by all blocks. labels: (N,) True = positive.
        folds: (N,) fold codes, or None when there is one fold. fold_names: what the codes stand for.
        methods: names, in order of appearance. seeds: per method, its seeds. scores: per method, (R, N).
        n_unknown: cases left out because their label is unknown.
    """

    label_name: str | None
    resample: str | None
    case_ids: NDArray[np.object_]
    patients: Ints
    labels: Bools
    folds: Ints | None
    fold_names: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: dict[str, tuple[str, ...]]
    scores: dict[str, Floats]
    n_unknown: int

    @cached_property
    def n_patients(self) -> int:
        """Patients behind the cases."""
        return n_distinct(self.patients)

    @property
    def repeats_patients(self) -> bool:
        """Whether some patient has more than one case."""
        return self.n_patients < self.patients.size


def check_columns(frame: pd.DataFrame) -> None:
    """Raise EvidenceError when a required column is missing or the table is empty."""
    for column in REQUIRED:
        if column not in frame.columns:
            given = ", ".join(map(str, frame.columns))
            hint = nearest(column, map(str, frame.columns))
            raise EvidenceError(
                f"the predictions table has no column {column!r}; it has: {given}.{hint} "
                f"Long form needs {', '.join(REQUIRED)} (optional: {', '.join(OPTIONAL)}); "
                "for one column per method use the wide form."
            )
    if frame.empty:
        raise EvidenceError("the predictions table has no rows.")


def select_split(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of one split; a table without that column is all test."""
    if "split" not in frame.columns:
        return frame if split == "test" else frame.iloc[:0]
    given = frame["split"].astype("category")
    unknown = [c for c in given.cat.categories if c not in SPLITS]
    if unknown or given.isna().any():
        bad = frame[given.isna() | given.isin(unknown)]
        hint = nearest(str(unknown[0]), SPLITS) if unknown else ""
        raise EvidenceError(f"split must be one of {', '.join(SPLITS)}; see {_rows(bad)}.{hint}")
    return frame if bool((given == split).all()) else frame[given == split]


def blocks_of(frame: pd.DataFrame, unit: Unit, patient_label: PatientLabel | None = None) -> list[Block]:
    """Return the blocks of the rows given (one split), validated and aligned.

    Args:
        frame: long form. unit: ``patient`` averages the scores of a patient's exams.
        patient_label: how exams of one patient with different labels become one label: ``max`` (any
            positive; the mean score) or ``index`` (label and score of the first exam listed); None refuses them.

    Raises:
        EvidenceError: naming the rows with missing ids, NaN or infinite scores, labels other than 0/1,
            duplicate (exam, method, seed) rows, exams scored by some methods only, or attributes that
            contradict each other.
    """
    if unit not in ("patient", "exam"):
        raise EvidenceError(f"unit must be 'patient' or 'exam', got {unit!r}.")
    if patient_label not in (None, "max", "index"):
        raise EvidenceError(f"patient_label must be 'max' or 'index', got {patient_label!r}.")
    table = _coded(frame)
    outer = table.label_name * (table.resample.max(initial=0) + 1) + table.resample
    found = []
    for key in renumber(outer)[0]:
        rows = np.flatnonzero(outer == key)
        block = _block(frame, table, rows)
        found.append(_by_patient(block, patient_label) if unit == "patient" else block)
    return found


def held_out_blocks(frame: pd.DataFrame, unit: Unit, patient_label: PatientLabel | None = None) -> list[Block]:
    """Return the blocks of the test rows; see ``blocks_of``.

    Raises:
        EvidenceError: as ``blocks_of``, or no row is a test row.
    """
    check_columns(frame)
    rows = select_split(frame, "test")
    if rows.empty:
        raise EvidenceError("no row has split 'test': nothing to evaluate.")
    return blocks_of(rows, unit, patient_label)


@dataclass(frozen=True)
class _Coded:
    exam: Ints
    patient: Ints
    method: Ints
    seed: Ints
    fold: Ints
    label_name: Ints
    resample: Ints
    label: Floats
    score: Floats
    names: dict[str, NDArray[np.object_]]


def _coded(frame: pd.DataFrame) -> _Coded:
    check_columns(frame)
    codes: dict[str, Ints] = {}
    names: dict[str, NDArray[np.object_]] = {}
    for column in ("exam_id", "patient_id", "method", *(c for c in OPTIONAL if c != "split")):
        if column not in frame.columns or (column in OPTIONAL and bool(frame[column].isna().all())):
            codes[column] = np.zeros(len(frame), dtype=np.int64)
            names[column] = np.array([None], dtype=object)
            continue
        code, values = _factorize(frame[column])
        if (code < 0).any():
            raise EvidenceError(f"column {column!r} is empty in {_rows(frame[code < 0])}.")
        codes[column] = code
        names[column] = values
    label = _numbers(frame, "label")
    bad = ~np.isnan(label) & (label != 0) & (label != 1)
    if bad.any():
        raise EvidenceError(f"labels must be 0, 1 or empty (unknown); see {_rows(frame[bad], 'label')}.")
    score = _numbers(frame, "score")
    bad = ~np.isfinite(score)
    if bad.any():
        raise EvidenceError(
            f"scores must be finite numbers; see {_rows(frame[bad], 'score')}. "
            "A case that a method could not score must be left out for every method."
        )
    return _Coded(
        exam=codes["exam_id"], patient=codes["patient_id"], method=codes["method"], seed=codes["seed"],
        fold=codes["fold"], label_name=codes["label_name"], resample=codes["resample"],
        label=label, score=score, names=names,
    )  # fmt: skip


def _factorize(column: pd.Series) -> tuple[Ints, NDArray[np.object_]]:
    """Return codes and distinct values; -1 for missing.

    Tables usually repeat one list of ids for every method: then hashing the first list is enough.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        code, found = pd.factorize(column)
        return code.astype(np.int64, copy=False), np.asarray(found, dtype=object)
    values = column.to_numpy(dtype=object)
    again = np.flatnonzero(values == values[0])
    period = int(again[1]) if again.size > 1 else values.size
    repeats, rest = divmod(values.size, period)
    periodic = repeats > 1 and rest == 0 and bool((values.reshape(repeats, period) == values[:period]).all())
    code, distinct = pd.factorize(values[:period] if periodic else values)
    return np.tile(code.astype(np.int64, copy=False), repeats if periodic else 1), np.asarray(distinct, dtype=object)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _numbers(frame: pd.DataFrame, column: str) -> Floats:
    given = frame[column]
    if given.dtype.kind in "bif":
        return given.to_numpy(dtype=np.float64)
    parsed = pd.to_numeric(given, errors="coerce")
    empty = given.isna() | (given.astype("string").str.strip().str.lower().isin(["nan", "na", ""]))
    bad = parsed.isna() & ~empty
    if bad.any():
        words = [str(v) for v in given[bad].unique()]
        hint = ""
        if column == "label" and len(given.dropna().unique()) == 2:
            hint = f" Next: say which word means 1, e.g. --positive {words[0]!r} (positive=... in Python)."
        elif any("," in w for w in words):
            hint = " Is it a decimal comma? Next: separate columns by ';' or write decimal points."
        raise EvidenceError(f"column {column!r} must hold numbers; see {_rows(frame[bad], column)}.{hint}")
    return parsed.to_numpy(dtype=np.float64)


def _block(frame: pd.DataFrame, table: _Coded, rows: Ints) -> Block:
    exam_codes, exam = renumber(table.exam[rows])
    n = exam_codes.size
    cell_codes, cell = renumber(table.method[rows] * (table.seed.max(initial=0) + 1) + table.seed[rows])
    cells = [divmod(int(c), int(table.seed.max(initial=0)) + 1) for c in cell_codes]
    key = cell * n + exam
    count = np.bincount(key, minlength=len(cells) * n)
    if (count > 1).any():
        twice = rows[count[key] > 1]
        raise EvidenceError(
            f"{int((count > 1).sum())} exams are scored twice by one method: {_rows(frame.iloc[twice])}. "
            "Tell repeated evaluations apart with a seed or resample column."
        )
    first = rows[first_rows(exam, n)]
    _agree(frame, rows, table.label, first[exam], "label")
    _agree(frame, rows, table.patient, first[exam], "patient_id")
    _agree(frame, rows, table.fold, first[exam], "fold")
    if (count == 0).any():
        raise EvidenceError(_unequal(table, cells, count.reshape(len(cells), n), exam_codes))
    flat = np.empty(len(cells) * n)
    flat[key] = table.score[rows]
    matrix = flat.reshape(len(cells), n)
    known = ~np.isnan(table.label[first])
    by_method: dict[int, list[int]] = {}
    for i, (method, _) in enumerate(cells):
        by_method.setdefault(method, []).append(i)
    method_names = table.names["method"]
    fold_codes, fold = renumber(table.fold[first][known])
    return Block(
        label_name=_text(table.names["label_name"][table.label_name[rows[0]]]),
        resample=_text(table.names["resample"][table.resample[rows[0]]]),
        case_ids=table.names["exam_id"][exam_codes][known],
        patients=table.patient[first][known],
        labels=table.label[first][known] == 1,
        folds=fold if fold_codes.size > 1 else None,
        fold_names=tuple(str(table.names["fold"][c]) for c in fold_codes) or ("no known label",),
        methods=tuple(str(method_names[m]) for m in by_method),
        seeds={
            str(method_names[m]): tuple(str(table.names["seed"][cells[i][1]]) for i in at)
            for m, at in by_method.items()
        },
        scores={str(method_names[m]): matrix[at][:, known] for m, at in by_method.items()},
        n_unknown=int((~known).sum()),
    )


def _by_patient(block: Block, patient_label: PatientLabel | None) -> Block:
    if not block.repeats_patients:
        return block
    patients, code = renumber(block.patients)
    n = patients.size
    first = first_rows(code, n)
    size = np.bincount(code, minlength=n)
    positives = np.bincount(code, weights=block.labels, minlength=n)
    mixed = (positives > 0) & (positives < size)
    if mixed.any() and patient_label is None:
        exams = block.case_ids[mixed[code]][:6].tolist()
        raise EvidenceError(
            f"{int(mixed.sum())} patients have exams with different labels, e.g. exams {exams}. "
            "Choose patient_label 'max' (any positive) or 'index' (first exam listed), or unit 'exam'."
        )
    folds = None
    if block.folds is not None:
        folds = block.folds[first]
        if (folds[code] != block.folds).any():
            exams = block.case_ids[(folds[code] != block.folds)][:6].tolist()
            raise EvidenceError(f"exams of one patient lie in different folds, e.g. exams {exams}.")
    if patient_label == "index":
        labels = block.labels[first]
        scores = {m: s[:, first] for m, s in block.scores.items()}
    else:
        labels = positives > 0
        scores = {
            m: np.stack([np.bincount(code, weights=row, minlength=n) for row in s]) / size
            for m, s in block.scores.items()
        }
    return replace(block, case_ids=block.case_ids[first], patients=patients, labels=labels, folds=folds, scores=scores)


def _agree(frame: pd.DataFrame, rows: Ints, values: NDArray[Any], first: Ints, column: str) -> None:
    here, earlier = values[rows], values[first]
    differs = here != earlier
    if values.dtype.kind == "f":
        differs &= ~(np.isnan(here) & np.isnan(earlier))
    if differs.any():
        raise EvidenceError(
            f"one exam has two values of {column!r}: {_rows(frame.iloc[rows[differs]], column)} "
            f"disagree with an earlier row of the same exam."
        )


def _unequal(table: _Coded, cells: list[tuple[int, int]], count: Ints, exam_codes: Ints) -> str:
    worst = int((count == 0).sum(axis=1).argmax())
    method, seed = cells[worst]
    lacking = table.names["exam_id"][exam_codes[count[worst] == 0]]
    name = str(table.names["method"][method])
    if table.names["seed"][seed] is not None:
        name += f" (seed {table.names['seed'][seed]})"
    return (
        f"methods are scored on different cases: {name} lacks {lacking.size} of {exam_codes.size} exams, "
        f"e.g. {', '.join(map(repr, lacking[:5].tolist()))}. Paired comparisons need identical case lists: "
        "score the missing exams, or leave them out for every method."
    )


def _rows(bad: pd.DataFrame, column: str | None = None) -> str:
    """Name up to five rows by index label, exam and method, with the offending value."""
    word = str(bad.index.name or "row")
    parts = []
    for index, row in bad.head(5).iterrows():
        known = [f"{c.removesuffix('_id')} {row[c]!r}" for c in ("exam_id", "method") if c in bad.columns]
        if column is not None:
            known.append(f"{column} {row[column]!r}")
        parts.append(f"{word} {index} ({', '.join(known)})")
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return "; ".join(parts) + more


def with_seed_ensembles(block: Block) -> Block:
    """Add, for every method with several seeds, a row of its mean score over seeds under its own name."""
    several = [m for m in block.methods if len(block.seeds[m]) > 1]
    names = [m + ENSEMBLE for m in several]
    return replace(
        block,
        methods=(*block.methods, *names),
        seeds={**block.seeds, **dict.fromkeys(names, ("ensemble",))},
        scores={
            **block.scores,
            **{n: block.scores[m].mean(axis=0, keepdims=True) for n, m in zip(names, several, strict=True)},
        },
    )


def check_names(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Raise EvidenceError when a method named by the caller is not in the table."""
    names = list(allowed)
    for name in given:
        if name not in names:
            raise EvidenceError(
                f"{what} {name!r} is not in the table; methods: {', '.join(names)}.{nearest(name, names)}"
            )


def refuse_shared_patients(frame: pd.DataFrame) -> None:
    """Refuse patients who choose thresholds (``val``) or train where they are also tested: in one fold and resample.

    Raises:
        EvidenceError: the patients are named.
    """
    if "split" not in frame.columns:
        return
    by = ["patient_id", *(c for c in ("resample", "fold") if c in frame.columns and not frame[c].isna().all())]
    tested = frame.loc[frame["split"].astype(str) == "test", by].drop_duplicates()
    for part, harm in (("val", "their threshold is chosen on the cases it is applied to"), ("train", "they were seen")):
        other = frame.loc[frame["split"].astype(str) == part, by].drop_duplicates()
        both = other.merge(tested, on=by)["patient_id"].drop_duplicates().tolist()
        if both:
            named = ", ".join(map(repr, both[:5]))
            where = " of one fold" if len(by) > 1 else ""
            raise EvidenceError(
                f"{len(both)} patients are in '{part}' and in 'test'{where}, e.g. {named}: {harm}. Next: give each "
                "patient one split in a fold, or leave these rows out."
            )
