"""The exam, pair and split tables: columns, checks, reading and writing (see ``docs/formats.md``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.errors import BadInput, nearest
from embedprior.runs import write_text
from embedprior.runs.integrity import refuse_changed_result

EXAM_REQUIRED = ("exam_id", "patient_id", "modality", "path")
EXAM_OPTIONAL = (
    "offset_days", "acquired_at", "view", "site", "sex", "age", "source", "group_id", "sha256", "complete",
)  # fmt: skip
MODALITIES = ("CT", "CXR", "DRR", "REPORT")
LABEL_PREFIX = "label:"
PAIR_REQUIRED = ("pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree")
SPLIT_REQUIRED = ("patient_id", "group_id", "design", "resample", "fold", "part")
PARTS = ("train", "val", "test")
PREDICTION_REQUIRED = ("exam_id", "patient_id", "label", "method", "score", "fold", "seed", "split")
Hashes = NDArray[np.uint64]
_MAX_RUNS = 24
_TEXT = {
    "exam_id", "patient_id", "group_id", "pair_id", "cxr_exam_id", "ct_exam_id", "path", "modality",
    "image", "bundle", "sha256",
}  # fmt: skip


def read_table(path: Path | str, required: Sequence[str]) -> pd.DataFrame:
    """Read a CSV with identifiers kept as text.

    Raises:
        BadInput: the file is missing or unreadable, lacks a required column, or a run left it and it was changed since.
    """
    path = Path(path)
    (frame,) = read_pieces(path, required, None)
    return frame


def read_pieces(path: Path, required: Sequence[str], rows: int | None) -> Iterator[pd.DataFrame]:
    """Read a CSV with identifiers kept as text, ``rows`` lines at a time; None = all at once.

    Raises:
        BadInput: see ``read_table``.
    """
    if not path.is_file():
        raise BadInput(f"{path} does not exist.")
    refuse_changed_result(path)
    try:
        header = pd.read_csv(path, nrows=0).columns
        text = [name for name in header if name in _TEXT or str(name).endswith("_exam_id")]
        require_columns(pd.DataFrame(columns=header), required, str(path))
        read = pd.read_csv(path, dtype=dict.fromkeys(text, str), chunksize=rows)
        yield from map(from_spreadsheet, [read] if isinstance(read, pd.DataFrame) else read)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise BadInput(f"{path} can't be read as CSV: {error}") from error


def require_columns(frame: pd.DataFrame, required: Sequence[str], where: str) -> None:
    """Check that the columns are there.

    Raises:
        BadInput: the first missing column, what is there, and the nearest match.
    """
    for name in required:
        if name not in frame.columns:
            have = [str(c) for c in frame.columns]
            raise BadInput(f"{where}: missing column '{name}'; it has {', '.join(have)}.{nearest(name, have)}")


def label_columns(exams: pd.DataFrame) -> list[str]:
    """Return the names of the labels (without the ``label:`` prefix)."""
    return [c.removeprefix(LABEL_PREFIX) for c in exams.columns if c.startswith(LABEL_PREFIX)]


def label_column(exams: pd.DataFrame, label: str, where: str) -> str:
    """Return the column of a label.

    Raises:
        BadInput: there is no such label; those that are there are listed, and the nearest.
    """
    names = label_columns(exams)
    if label not in names:
        allowed = ", ".join(names) or "(no label column)"
        raise BadInput(f"{where}: label '{label}'. Allowed: {allowed}.{nearest(label, names)}")
    return LABEL_PREFIX + label


def check_exams(exams: pd.DataFrame, where: str, first_line: int = 2, seen: SeenIds | None = None) -> pd.DataFrame:
    """Return the exam table, checked.

    Args:
        exams: the table, or a piece of it.
        where: the file, for messages.
        first_line: of the table or piece in the file.
        seen: exam ids of the pieces before; None = this is the whole table.

    Raises:
        BadInput: missing or unknown column, empty or repeated ``exam_id``, unknown modality, a label that is
            not 1, 0 or empty.
    """

    def refuse(bad: pd.Series, what: str) -> None:
        _refuse(exams, bad, what, where, first_line)

    require_columns(exams, EXAM_REQUIRED, where)
    known = {*EXAM_REQUIRED, *EXAM_OPTIONAL}
    for column in exams.columns:
        if column not in known and not column.startswith(LABEL_PREFIX):
            raise BadInput(
                f"{where}: unknown column '{column}'. Allowed: {', '.join(sorted(known))} and label:NAME."
                f"{nearest(column, known)}"
            )
    for column in ("exam_id", "patient_id"):
        refuse(exams[column].isna() | (exams[column].astype(str) == ""), f"empty '{column}'")
    refuse_repeated_exams(exams, where, SeenIds() if seen is None else seen, first_line)
    refuse(~exams["modality"].isin(MODALITIES), f"modality not one of {', '.join(MODALITIES)}")
    for name in label_columns(exams):
        values = exams[LABEL_PREFIX + name]
        refuse(values.notna() & ~values.isin([0, 1]), f"label '{name}' not 1, 0 or empty")
    return exams.reset_index(drop=True)


def refuse_repeated_exams(exams: pd.DataFrame, where: str, seen: SeenIds, first_line: int = 2) -> None:
    """Note the exam ids of a table, or of a piece of it: two files under one id would be taken for each other.

    Args:
        exams: with the column ``exam_id``.
        where: the file, for messages.
        seen: ids of the pieces before; these ids are added to it.
        first_line: of the table or piece in the file.

    Raises:
        BadInput: an id that was there before; its lines and the first id are named.
    """
    repeated = pd.Series(seen.add(exams["exam_id"]), index=exams.index)
    if repeated.any():
        first = str(exams["exam_id"][repeated].iloc[0])
        _refuse(exams, repeated, "repeated 'exam_id'", where, first_line, f" ('{first}')")


def check_pairs(pairs: pd.DataFrame, exams: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the pair table, checked against the exams.

    Raises:
        BadInput: missing column, repeated ``pair_id``, an exam that is not in the exam table, of the wrong
            modality, or of another patient.
    """
    require_columns(pairs, PAIR_REQUIRED, where)
    _refuse(pairs, pairs["pair_id"].duplicated(), "repeated 'pair_id'", where)
    by_id = exams.set_index("exam_id")
    for column, modalities in (("cxr_exam_id", ("CXR", "DRR")), ("ct_exam_id", ("CT",))):
        _refuse(pairs, ~pairs[column].isin(by_id.index), f"'{column}' not in the exam table", where)
        found = by_id.loc[pairs[column]]
        wrong = pd.Series(~found["modality"].isin(modalities).to_numpy(), index=pairs.index)
        _refuse(pairs, wrong, f"'{column}' of a modality other than {' or '.join(modalities)}", where)
        other = pd.Series(found["patient_id"].to_numpy() != pairs["patient_id"].to_numpy(), index=pairs.index)
        _refuse(pairs, other, f"'{column}' of another patient", where)
    return pairs.reset_index(drop=True)


def check_splits(splits: pd.DataFrame, where: str, patients: Iterable[str] | None = None) -> pd.DataFrame:
    """Return the split table, checked: no patient, and no group of patients, on two sides.

    Within one design and resample a patient is held out (``part == "test"``) in one fold at most, and within
    one fold every patient, and every group of patients that belong together, has exactly one part.

    Raises:
        BadInput: one of these is broken (the ids are named), a column is missing, a part is unknown, or
            ``patients`` are given and one of them has no row.
    """
    require_columns(splits, SPLIT_REQUIRED, where)
    _refuse(splits, ~splits["part"].isin(PARTS), f"part not one of {', '.join(PARTS)}", where)
    for unit in ("patient_id", "group_id"):
        parts = splits.groupby(["design", "resample", "fold", unit])["part"].nunique()
        mixed = sorted({str(index[-1]) for index in parts[parts > 1].index})
        if mixed:
            raise BadInput(f"{where}: {unit} on two sides of one fold: {_some(mixed)}.")
    held = splits[splits["part"] == "test"]
    folds = held.groupby(["design", "resample", "patient_id"])["fold"].nunique()
    twice = sorted({str(index[-1]) for index in folds[folds > 1].index})
    if twice:
        raise BadInput(f"{where}: patient held out in two folds: {_some(twice)}.")
    _refuse(
        splits, splits.duplicated(["design", "resample", "fold", "patient_id"]), "repeated patient in a fold", where
    )
    if patients is not None:
        absent = sorted(set(patients) - set(splits["patient_id"]))
        if absent:
            raise BadInput(f"{where}: {len(absent)} patients of the cohort have no row: {_some(absent)}.")
    return splits.reset_index(drop=True)


def fold_parts(splits: pd.DataFrame, design: str | None, resample: int, fold: int, where: str) -> pd.Series:
    """Return the part of every patient (index ``patient_id``) in one fold of a checked split table.

    Args:
        splits: the split table.
        design: may be left out (None) when the table has one.
        resample, fold: numbers.
        where: the table, for messages.

    Raises:
        BadInput: the table has no such design, resample or fold.
    """
    designs = sorted(str(name) for name in splits["design"].unique())
    if design is None and len(designs) == 1:
        design = designs[0]
    if design not in designs:
        hint = "" if design is None else nearest(design, designs)
        raise BadInput(f"{where}: design '{design}'. Allowed: {', '.join(designs)}.{hint}")
    rows = splits[splits["design"].astype(str) == design]
    for column, wanted in (("resample", resample), ("fold", fold)):
        allowed = sorted(int(value) for value in rows[column].unique())
        if wanted not in allowed:
            raise BadInput(f"{where}: {column} {wanted}. Allowed: {', '.join(map(str, allowed))}.")
        rows = rows[rows[column] == wanted]
    return rows.set_index("patient_id")["part"]


def write_table(frame: pd.DataFrame, path: Path | str) -> None:
    """Write a table as CSV, atomically, with floats in full precision."""
    write_text(Path(path), spreadsheet_safe(frame).to_csv(index=False, float_format="%.10g"))


_FORMULA_RE = re.compile(r"'*[=+\-@\t\r]")


def spreadsheet_safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts no spreadsheet takes for a formula: those that begin like one get a ``'`` in front.

    ``read_table`` takes it off again. Numbers stay as they are, negative ones too.

    Example:
        >>> spreadsheet_safe(pd.DataFrame({"method": ["=cmd()", "prior"], "delta": ["-0.1", "+3"]})).values.tolist()
        [["'=cmd()", '-0.1'], ['prior', '+3']]
    """

    def safe(text: object) -> object:
        return f"'{text}" if isinstance(text, str) and _FORMULA_RE.match(text) and not _is_number(text) else text

    return _with_texts(frame, safe)


def from_spreadsheet(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the ``'`` that ``spreadsheet_safe`` put before texts."""

    def plain(text: object) -> object:
        return text[1:] if isinstance(text, str) and text[:1] == "'" and _FORMULA_RE.match(text) else text

    return _with_texts(frame, plain)


def _with_texts(frame: pd.DataFrame, change: Callable[[object], object]) -> pd.DataFrame:
    """Return a table with a function applied to its texts; columns that it leaves alone stay the same objects."""
    changed = {}
    for name in frame.columns:
        column = frame[name]
        if not pd.api.types.is_numeric_dtype(column):
            new = [change(value) for value in column]
            if any(one is not other for one, other in zip(new, column, strict=True)):
                changed[name] = pd.Series(new, index=column.index, dtype=object)
    return frame.assign(**changed) if changed else frame


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse(
    frame: pd.DataFrame, bad: pd.Series, what: str, where: str, first_line: int = 2, example: str = ""
) -> None:  # fmt: skip
    if bad.any():
        rows = [str(row + first_line) for row, flag in enumerate(bad) if flag]
        raise BadInput(f"{where}: {what} in line {_some(rows)}{example}.")


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


class HashSet:
    """A set of hashes that grows by sorted runs, which are merged when there are many."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def add(self, hashes: Hashes) -> None:
        """Put hashes in."""
        if len(hashes):
            self._runs.append(np.sort(hashes))
        if len(self._runs) > _MAX_RUNS:
            merged = np.concatenate(self._runs)
            merged.sort()  # in place: a sorted copy would be the peak of a long table's memory
            self._runs = [merged]

    def has(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return of each hash whether it is in."""
        found = np.zeros(len(hashes), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found |= run[at] == hashes
        return found


class SeenIds:
    """The identifiers of a table so far, eight bytes each: a table of millions is checked piece by piece.

    Example:
        >>> seen = SeenIds()
        >>> seen.add(["a", "b"]).tolist(), seen.add(["c", "a", "c"]).tolist()
        ([False, False], [False, True, True])
    """

    def __init__(self) -> None:
        self._hashes = HashSet()

    def add(self, ids: Iterable[object]) -> NDArray[np.bool_]:
        """Add identifiers; return of each whether it was there before.

        Different ones of a million share their eight bytes with odds of 1 in 10⁷.
        """
        names = np.array([str(i) for i in ids], dtype=object)
        hashes: Hashes = pd.util.hash_array(names, categorize=False)
        repeated: NDArray[np.bool_] = self._hashes.has(hashes) | pd.Series(names).duplicated().to_numpy()
        self._hashes.add(hashes)
        return repeated
