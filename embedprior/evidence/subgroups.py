"""AUCs, and differences of AUCs, within subgroups of the cases: described, never part of the family."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.decision import Rules
from embedprior.evidence.delong import Floats, Ints, influence
from embedprior.evidence.errors import EvidenceError, nearest
from embedprior.evidence.intervals import ZERO_VARIANCE, quantile
from embedprior.evidence.predictions import Block, PatientLabel, Unit, blocks_of
from embedprior.evidence.schema import joint_aucs, method_row, value
from embedprior.evidence.tests import omnibus

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


def subgroup_comparisons(
    test_rows: pd.DataFrame, columns: Sequence[str], unit: Unit, patient_label: PatientLabel | None,
    pairs: Sequence[tuple[str, str]], alpha: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return, by column and pair, the difference of AUCs in every subgroup and the test that they are all the same.

    The interaction is a Wald chi-square over subgroups whose covariance adds up influence values per patient (a patient
    with AP and PA exams is in both). Described, and never part of the family.
    """
    patient_of = dict(zip(test_rows["exam_id"], pd.factorize(test_rows["patient_id"])[0], strict=True))
    found = []
    for name in columns:
        of_row = subgroup_values(test_rows[name], name)
        groups = {g: blocks_of(test_rows[of_row == g], unit, patient_label) for g in sorted(of_row.unique())}
        if any(len({b.resample for b in blocks}) > 1 for blocks in groups.values()):
            continue
        for label in dict.fromkeys(b.label_name for blocks in groups.values() for b in blocks):
            own = {g: b for g, blocks in groups.items() for b in blocks if b.label_name == label}
            found += [_interaction(name, label, own, a, b, unit, alpha, patient_of) for a, b in pairs]
    return found


def _interaction(
    column: str, label: str | None, blocks: dict[str, Block], a: str, b: str, unit: Unit, alpha: float,
    patient_of: dict[Any, int],
) -> dict[str, Any]:  # fmt: skip
    # codes of a block number its own patients: across subgroups they are found by their exams
    codes = {name: np.array([patient_of[e] for e in block.case_ids], dtype=np.int64) for name, block in blocks.items()}
    n_patients = max(patient_of.values()) + 1
    rows, deltas, per_patient = [], [], []
    for name, block in blocks.items():
        joint = joint_aucs(block, clustered=unit == "exam" and block.repeats_patients)
        weights, reason = joint.contrast(a, b)
        reason = reason or joint.result.reason
        row: dict[str, Any] = {
            "subgroup": name, "delta": None, "ci_low": None, "ci_high": None, "n_pos": joint.result.n_pos,
            "n_neg": joint.result.n_neg, "reason": reason,
        }  # fmt: skip
        if weights is not None and reason is None:
            delta, variance = joint.mean(weights)
            if variance.total > ZERO_VARIANCE:
                half = float(quantile(1 - alpha / 2, variance.df)) * float(np.sqrt(variance.total))
                row |= {"delta": delta, "ci_low": max(-1.0, delta - half), "ci_high": min(1.0, delta + half)}
                deltas.append(delta)
                psi = _contrast_influence(block, weights.mean(axis=0), variance.total, codes[name], n_patients)
                per_patient.append(psi)
            else:
                row |= {"delta": value(delta), "reason": "the difference has no variance in this subgroup"}
        rows.append(row)
    if len(deltas) < 2:
        interaction: dict[str, Any] = {
            "chi2": None,
            "df": None,
            "p": None,
            "reason": "fewer than two subgroups have an interval",
        }
    else:
        spread = np.stack(per_patient)
        chi2, df, p, why = omnibus(np.array(deltas), spread @ spread.T)
        interaction = {"chi2": value(chi2), "df": df, "p": value(p), "reason": why}
    return {"column": column, "label_name": label, "a": a, "b": b, "subgroups": rows, "interaction": interaction}


def _contrast_influence(block: Block, weights: Floats, variance: float, patients: Ints, n_patients: int) -> Floats:
    """Return (P,) influence values of a difference, scaled to its variance."""
    scores = np.concatenate([block.scores[m] for m in block.methods])
    psi = weights @ influence(block.labels, scores, block.folds)
    summed = np.bincount(patients, weights=psi, minlength=n_patients)
    length = float(np.sqrt((summed**2).sum()))
    return np.asarray(summed * (np.sqrt(variance) / length if length > 0 else 0.0))
