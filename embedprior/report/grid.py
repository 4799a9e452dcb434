"""Tables as lists of text cells, the same for HTML and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from embedprior.report.words import MINUS, UNDEFINED

#: A longer table is cut, and says so: its file holds the rest.
MOST_ROWS = 200


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        header: column names.
        rows: cells.
        numeric: per column, whether it is set to the right.
        cut: what was left out, or an empty string.
    """

    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    cut: str


def cell(value: Any, digits: int = 3) -> str:
    """Return one value as text: undefined as an en dash, booleans as yes/no, numbers with a true minus sign."""
    if value is None or value is pd.NA or value is pd.NaT:
        return UNDEFINED
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", MINUS)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return UNDEFINED if np.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
        small = value != 0 and abs(value) < 10**-digits
        return (f"{value:.1e}" if small else f"{value:.{digits}f}").replace("-", MINUS)
    return str(value)


def grid(frame: pd.DataFrame) -> Grid:
    """Return a data frame as texts; a float column of whole numbers is shown without decimals."""
    shown = frame.head(MOST_ROWS)
    columns, numeric = [], []
    for position in range(shown.shape[1]):
        column = shown.iloc[:, position]
        values = column.tolist()
        is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        numeric.append(bool(is_number))
        whole = is_number and all(float(v).is_integer() for v in values if not pd.isna(v))
        columns.append([cell(int(v)) if whole and not pd.isna(v) else cell(v) for v in values])
    cut = f"The first {len(shown)} of {len(frame)} rows." if len(frame) > len(shown) else ""
    return Grid([str(c) for c in frame.columns], [list(row) for row in zip(*columns, strict=True)], numeric, cut)


def provenance(run: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (short entries, long entries as indented JSON) of a run description."""
    short, long = [], []
    for name, value in run.items():
        if isinstance(value, Mapping) and any(isinstance(v, (Mapping, list, tuple)) for v in value.values()):
            long.append((name, json.dumps(value, indent=2, default=str, ensure_ascii=False)))
        elif isinstance(value, Mapping):
            short.append((name, ", ".join(f"{k} {cell(v)}" for k, v in value.items())))
        elif isinstance(value, (list, tuple)):
            short.append((name, ", ".join(cell(v) for v in value)))
        else:
            short.append((name, str(value) if isinstance(value, int) and not isinstance(value, bool) else cell(value)))
    return short, long
