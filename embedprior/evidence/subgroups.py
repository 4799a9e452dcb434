"""The same AUCs within view, sex, age band, site or any other column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.errors import EvidenceError, nearest
from embedprior.evidence.predictions import PatientLabel, Unit, blocks_of
from embedprior.evidence.rows import Rules, joint_aucs, method_row

AGE_EDGES = (40, 60, 80)


def subgroup_values(column: pd.Series, name: str) -> pd.Series:
    """Return the subgroup of each row as text; ages become bands, missing values ``unknown``."""
    if name == "age" and column.dtype.kind in "if":
        labels = [f"<{AGE_EDGES[0]}"]
        labels += [f"{a}-{b - 1}" for a, b in pairwise(AGE_EDGES)]
        labels += [f">={AGE_EDGES[-1]}"]
        edges = [-np.inf, *AGE_EDGES, np.inf]
        column = pd.Series(pd.cut(column, edges, right=False, labels=labels), index=column.index)
    return column.astype("object").where(column.notna(), "unknown").astype(str)


def subgroup_rows(
    test_rows: pd.DataFrame,
    columns: Sequence[str],
    unit: Unit,
    patient_label: PatientLabel | None,
    oracles: Sequence[str],
    rules: Rules,
) -> list[dict[str, Any]]:
    """Return AUC rows per subgroup. Exams are selected first, then averaged per patient: a patient with AP and PA
    exams counts in both. No tests: subgroups are described, not compared.

    Raises:
        EvidenceError: a column is not in the table.
    """
    found = []
    for name in columns:
        if name not in test_rows.columns:
            given = ", ".join(map(str, test_rows.columns))
            hint = nearest(name, map(str, test_rows.columns))
            raise EvidenceError(f"subgroup column {name!r} is not in the table; columns: {given}.{hint}")
        of_row = subgroup_values(test_rows[name], name)
        for subgroup in sorted(of_row.unique()):
            for block in blocks_of(test_rows[of_row == subgroup], unit, patient_label):
                joint = joint_aucs(block, clustered=unit == "exam" and block.repeats_patients)
                found += [
                    {
                        "column": name,
                        "subgroup": subgroup,
                        "resample": block.resample,
                        **method_row(block, joint, m, m in oracles, rules),
                    }
                    for m in block.methods
                ]
    return found
