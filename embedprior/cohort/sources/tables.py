"""The user's own tables: ``exams.csv``, ``pairs.csv``, ``splits.csv`` in one folder (see ``docs/formats.md``)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, MissingImages, flow_step
from embedprior.cohort.sources.published import published_cohort
from embedprior.tables import EXAM_REQUIRED, PAIR_REQUIRED, SPLIT_REQUIRED, check_splits, read_table


def read_tables(root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return the cohort of ``root/exams.csv`` and, where there is one, ``root/pairs.csv``.

    Raises:
        BadInput: a table is missing, unreadable or breaks a rule of its format, or an image does not exist.
    """
    root = Path(root)
    source = root / "exams.csv"
    exams = read_table(source, EXAM_REQUIRED)
    pairs_file = root / "pairs.csv"
    pairs = read_table(pairs_file, PAIR_REQUIRED) if pairs_file.is_file() else pd.DataFrame(columns=PAIR_REQUIRED)
    Cohort(root, exams, pairs, ()).checked(str(source))
    flow = (flow_step("rows of exams.csv", exams, 0),)
    return published_cohort(root, exams, pairs, flow, missing_images, source)


def read_splits(path: Path | str, patients: list[str] | None = None) -> pd.DataFrame:
    """Return a user's split table, checked.

    Raises:
        BadInput: see ``tables.check_splits``.
    """
    path = Path(path)
    splits = read_table(path, SPLIT_REQUIRED)
    return check_splits(splits, str(path), patients)
