"""Predictions tables and declared families from files as users have them, whatever the separator or encoding."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.decision import Claim, parse_claim
from embedprior.evidence.errors import EvidenceError, nearest
from embedprior.evidence.predictions import OPTIONAL, REQUIRED

#: Columns of a wide table that are not methods.
NOT_METHODS = ("exam_id", "patient_id", "label", *OPTIONAL, "view", "sex", "age", "site")
#: Names of other tools, read as ours where ours is missing.
ALIASES = {"y_true": "label", "y_score": "score"}
#: What an empty number may look like. In ids and names of methods only an empty cell is empty: "NA" is a name.
NO_NUMBER = ("", "NA", "N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL", "None")
TEXTS = ("exam_id", "patient_id", "method", *OPTIONAL)
_DECIMAL_COMMA = re.compile(r"^\s*-?\d+,\d+(e[+-]?\d+)?\s*$", re.IGNORECASE)
_DECIMAL_POINT = re.compile(r"^\s*-?\d*\.\d+(e[+-]?\d+)?\s*$", re.IGNORECASE)
_QUOTED_FORMULA = re.compile(r"'+[=+\-@\t\r]")
#: Beyond this no logit of a probability that differs from 0 and 1 in float64 lies.
MAX_LOGIT = 40.0


def read_predictions(
    path: Path | str, *, wide: bool = False, not_methods: Sequence[str] = (), methods: Sequence[str] = (),
    positive: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return a predictions table in long form, indexed by ``line`` (the header is line 1).

    Args:
        path: CSV (comma, semicolon or tab; decimal point or comma; UTF-8 or UTF-16) or parquet. Ids are kept as text.
        wide: one column per method beside ``patient_id, label``.
        not_methods: further columns of a wide table that hold no scores (site, scanner, ...).
        methods: the columns of a wide table that are methods; default: all others, if they look like scores.
        positive: the label that means 1, where labels are words; the one other label then means 0.

    Raises:
        EvidenceError: no such file, no table in it, a column twice, labels that don't fit ``positive``, or (wide) no
            method, columns that may not be methods, or a patient listed twice without exams.
    """
    path = Path(path)
    if not path.is_file():
        raise EvidenceError(f"{path} does not exist; give a CSV of predictions.")
    frame = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    frame = renamed(frame, wide)
    frame.index = pd.RangeIndex(2, len(frame) + 2, name="line")
    if positive is not None:
        frame = with_positive(frame, positive)
    return from_wide(frame, not_methods, methods) if wide else frame


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise EvidenceError(f"{path}: parquet needs pyarrow. Next: pip install pyarrow, or save a CSV.") from error
    except (ValueError, OSError) as error:
        raise EvidenceError(f"{path} is not a parquet table: {error}") from error


def _csv(path: Path) -> pd.DataFrame:
    text = _decoded(path)
    header = text.partition("\n")[0]
    if not header.strip():
        raise EvidenceError(f"{path} is not a CSV table: it has no header.")
    separator = max(",;\t", key=header.count)
    names = [n.strip() for n in next(csv.reader([header.rstrip("\r")], delimiter=separator))]
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise EvidenceError(f"{path} has the column {', '.join(map(repr, twice))} twice; give each its own name.")
    decimal = "," if separator != "," and _has_decimal_comma(text, separator) else "."
    known = {n.lower(): n for n in names}
    texts = [known[t] for t in TEXTS if t in known]
    ids = (known.get("exam_id"), known.get("patient_id"))
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, decimal=decimal, low_memory=False, keep_default_na=False,
            na_values={n: ("",) if n in texts else NO_NUMBER for n in names},
            dtype={n: object if n in ids else "category" for n in texts},
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise EvidenceError(f"{path} is not a CSV table: {error}") from error
    return frame.assign(**{n: _without_quote(frame[n]) for n in texts})


def _without_quote(column: pd.Series) -> pd.Series:
    """Return texts without the ``'`` that keeps a spreadsheet from taking them for formulas."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.rename_categories([_unquoted(name) for name in column.cat.categories])
    return column.map(_unquoted, na_action="ignore")


def _unquoted(text: object) -> object:
    return text[1:] if isinstance(text, str) and _QUOTED_FORMULA.match(text) else text


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise EvidenceError(
            f"{path} is not {encoding.removesuffix('-sig').upper()} text (byte {raw[error.start]:#04x} at position "
            f"{error.start}). Next: save it as UTF-8."
        ) from error


def _has_decimal_comma(text: str, separator: str) -> bool:
    lines = text.splitlines()[1:51]
    cells = [c for row in csv.reader(lines, delimiter=separator) for c in row]
    return any(map(_DECIMAL_COMMA.match, cells)) and not any(map(_DECIMAL_POINT.match, cells))


def renamed(frame: pd.DataFrame, wide: bool = False) -> pd.DataFrame:
    """Return the table with our column names where they differ in case alone, or are ``y_true`` and ``y_score``.

    What was read as what is kept in ``attrs["read_as"]``, for a warning.
    """
    ours = ("patient_id", "exam_id", "label", *OPTIONAL) if wide else (*REQUIRED, *OPTIONAL)
    changed: dict[str, str] = {}
    for column in map(str, frame.columns):
        target = ALIASES.get(column.strip().lower(), column.strip().lower())
        if column not in ours and target in ours and target not in frame.columns and target not in changed.values():
            changed[column] = target
    found = frame.rename(columns=changed)
    found.attrs["read_as"] = changed
    return found


def with_positive(frame: pd.DataFrame, positive: str) -> pd.DataFrame:
    """Return the table with ``positive`` as 1 and the one other label as 0; empty labels stay unknown.

    Raises:
        EvidenceError: ``positive`` does not occur, or there is more than one other label.
    """
    given = frame["label"].astype("string").str.strip()
    values = [str(v) for v in given.dropna().unique() if str(v) not in NO_NUMBER]
    others = [v for v in values if v != positive]
    if positive not in values or len(others) > 1:
        raise EvidenceError(
            f"labels are {', '.join(map(repr, values[:6]))}: the positive one, {positive!r}, "
            + (f"is not among them.{nearest(positive, values)}" if positive not in values else "leaves more than one.")
        )
    known = given.notna() & ~given.isin(NO_NUMBER)
    return frame.assign(label=np.where(known, (given == positive).fillna(False), np.nan).astype(np.float64))


def from_wide(frame: pd.DataFrame, not_methods: Sequence[str] = (), methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return the long form of a table with one column per method; without ``exam_id`` a patient is one case."""
    columns = [str(c) for c in frame.columns]
    for column in ("patient_id", "label"):
        if column not in columns:
            hint = nearest(column, columns)
            raise EvidenceError(
                f"a wide table needs patient_id, label and one column per method; it has: {', '.join(columns)}.{hint}"
            )
    kept = [c for c in columns if c in NOT_METHODS or c in not_methods]
    others = [c for c in columns if c not in kept]
    for name in methods:
        if name not in others:
            raise EvidenceError(f"no column {name!r} of scores; there are: {', '.join(others)}.{nearest(name, others)}")
    if not methods:
        _refuse_unclear(frame, others)
    chosen = list(methods) or others
    if not chosen:
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
    parts = [base.assign(method=m, score=frame[m]) for m in chosen]
    found = pd.concat(parts)
    found.attrs["read_as"] = frame.attrs.get("read_as", {})
    return found


def _refuse_unclear(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse columns that may be no scores: neither probabilities nor logits, or without a name."""
    unclear = {c: why for c in columns if (why := _not_a_score(frame[c], c)) is not None}
    if unclear:
        clear = [c for c in columns if c not in unclear]
        said = "; ".join(f"{c!r} {why}" for c, why in unclear.items())
        example = " ".join(f"--method {m}" for m in clear or list(unclear)[:1])
        raise EvidenceError(f"which columns are methods? {said}. Next: name them, e.g. {example}.")


def _not_a_score(column: pd.Series, name: str) -> str | None:
    if name.startswith("Unnamed:") or not name.strip():
        return "has no name (an index that pandas wrote?)"
    values = pd.to_numeric(column, errors="coerce")
    if values.isna().any() or not np.isfinite(values).all():
        return None  # refused with its line, as in a long table
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return None
    if low < 0 < high and max(-low, high) <= MAX_LOGIT:
        return None
    return f"runs from {low:g} to {high:g}: neither probabilities nor logits"


def read_family(path: Path | str) -> list[Claim]:
    """Return the declared claims of a CSV or a JSON list.

    A CSV has columns ``a, b`` (and, where they apply, ``kind, margin``), or one column ``claim``; a JSON list holds
    pairs ``["a", "b"]`` or texts such as ``"prior >= direct-head - .03"``.

    Raises:
        EvidenceError: the file is missing or holds no claims.
    """
    path = Path(path)
    if not path.is_file():
        raise EvidenceError(f"{path} does not exist; a family is a CSV with columns a,b or a JSON list of pairs.")
    if path.suffix == ".json":
        claims = _json_family(path)
    else:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "claim" in table.columns:
            claims = [parse_claim(text) for text in table["claim"] if text]
        elif {"a", "b"} <= set(table.columns):
            claims = [_claim_of(row) for row in table.to_dict("records") if row["a"] and row["b"]]
        else:
            raise EvidenceError(f"{path} needs columns a,b or claim; it has: {', '.join(map(str, table.columns))}.")
    if not claims:
        raise EvidenceError(f"{path} declares no comparison.")
    return claims


def _claim_of(row: Mapping[Hashable, Any]) -> Claim:
    kind, margin = row.get("kind") or "superior", row.get("margin") or None
    if kind not in ("superior", "non-inferior", "equivalent"):
        allowed = ("superior", "non-inferior", "equivalent")
        raise EvidenceError(f"kind {kind!r} of a claim is not one of {', '.join(allowed)}.{nearest(kind, allowed)}")
    return Claim(row["a"], row["b"], kind, None if margin is None else float(margin))  # type: ignore[arg-type]


def _json_family(path: Path) -> list[Claim]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvidenceError(f"{path} is not valid JSON: {error}") from error
    fits = isinstance(given, list) and all(isinstance(p, str) or (isinstance(p, list) and len(p) == 2) for p in given)
    if not fits:
        raise EvidenceError(f'{path} must be a list of pairs such as [["prior", "cxr_only"]], or of claims in words.')
    return [parse_claim(p) if isinstance(p, str) else Claim(str(p[0]), str(p[1])) for p in given]
