"""What the readers of public sets share: tables as they were published, rows left out with the reason, and images."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort, FlowStep, MissingImages, flow_step, without_missing
from embedprior.errors import BadInput
from embedprior.tables import PAIR_REQUIRED, require_columns

NO_PAIRS = pd.DataFrame(columns=list(PAIR_REQUIRED))
YES, NO = frozenset({"true", "1", "1.0"}), frozenset({"false", "0", "0.0"})


class Selection:
    """Rows of a table, and what was left out of them on the way, for the flow diagram.

    Attributes:
        rows: those that are left, with a column ``patient_id``.
        flow: the steps so far.
    """

    def __init__(self, rows: pd.DataFrame, step: str) -> None:
        self.rows = rows
        self.flow = [flow_step(step, rows, 0)]

    def keep(self, wanted: pd.Series, step: str, reason: str) -> pd.DataFrame:
        """Keep the rows that are wanted, count the others, and return what is left."""
        left = self.rows[wanted].reset_index(drop=True)
        self.flow.append(flow_step(step, left, len(self.rows) - len(left), reason))
        self.rows = left
        return left


def published_table(path: Path, required: Sequence[str], others: bool = True) -> pd.DataFrame:
    """Return a table as text; tab-separated where the name says so (``.tsv``, ``.txt``), packed or not (``.gz``).

    Args:
        path: of the file.
        required: columns that must be there.
        others: read the other columns too. Texts of reports are gigabytes that no reader here needs.

    Raises:
        BadInput: no such file, not a table, or a column is missing.
    """
    if not path.is_file():
        raise BadInput(f"{path} does not exist. Next: give the folder that holds {path.name} with --data.")
    separator = "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".txt")) else ","
    try:
        header = pd.read_csv(path, dtype=str, sep=separator, nrows=0)
        require_columns(header, required, str(path))
        rows = pd.read_csv(path, dtype=str, sep=separator, usecols=None if others else list(required))
    except (ValueError, EOFError, OSError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} can't be read as a table ({type(error).__name__}). Next: download it again.") from None
    return rows


def find_table(root: Path, patterns: Sequence[str], what: str) -> Path:
    """Return the one table of a set that may lie at any depth.

    Args:
        root: folder of the set.
        patterns: of its name; the first that something matches is taken.
        what: the set's name, for the message.

    Raises:
        BadInput: there is none, or there are several of one pattern: which release counts is the user's to say.
    """
    for pattern in patterns:
        found = sorted(path for path in root.rglob(pattern) if path.is_file())
        plain = [path for path in found if path.suffix != ".gz"]
        if len(found) == 1 or len(plain) == 1:
            return (plain or found)[0]
        if found:
            names = ", ".join(path.relative_to(root).as_posix() for path in found[:4])
            raise BadInput(f"{root}: {len(found)} tables {pattern}: {names}. Next: leave that of your release.")
    raise BadInput(f"{root}: no {' or '.join(patterns)}. Next: download that table of {what} into this folder.")


def files_by_name(root: Path, pattern: str) -> dict[str, str]:
    """Return name → path from ``root`` of all files of a pattern; of equal names the last in order of the paths."""
    return {path.name: path.relative_to(root).as_posix() for path in sorted(root.rglob(pattern))}


def binary_labels(values: pd.Series, unknown: Sequence[str], where: str) -> pd.Series:
    """Return 1, 0 or NaN of a column that says true or false in any spelling.

    Args:
        values: text; empty cells are unknown.
        unknown: further words that are no answer.
        where: the file, for messages.

    Raises:
        BadInput: a cell that is neither; the column and the cell are named.
    """
    text = values.fillna("").str.strip().str.lower()
    silent = text.isin(["", *(word.lower() for word in unknown)])
    odd = text[~silent & ~text.isin(YES | NO)]
    if len(odd):
        raise BadInput(
            f"{where}: column '{values.name}' holds '{odd.iloc[0]}'. Allowed: true, false, 1, 0, empty"
            + "".join(f", {word}" for word in unknown) + "."
        )  # fmt: skip
    return pd.Series(np.where(silent, np.nan, text.isin(YES).astype(float)), index=values.index)


def published_cohort(
    root: Path, exams: pd.DataFrame, pairs: pd.DataFrame, flow: Sequence[FlowStep], missing_images: MissingImages,
    where: Path,
) -> Cohort:  # fmt: skip
    """Return the cohort, checked; exams without a file are refused or dropped with a step of the flow.

    Raises:
        BadInput: files are missing and may not be, or a table breaks a rule (see ``tables``).
    """
    cohort = Cohort(root, exams.reset_index(drop=True), pairs.reset_index(drop=True), tuple(flow))
    kept, gone = without_missing(cohort.exams, root, missing_images, str(where))
    if gone:
        lost = cohort.exams.loc[~cohort.exams["exam_id"].isin(kept["exam_id"]), "exam_id"]
        cohort = cohort.drop(list(lost), "image exists", "no such file or folder")
    return cohort.checked(str(where))
