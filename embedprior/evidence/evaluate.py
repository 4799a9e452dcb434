"""The whole evaluation of a predictions table: what ``evidence.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import CiMethod, omnibus
from embedprior.evidence.multiplicity import holm
from embedprior.evidence.predictions import (
    Block,
    PatientLabel,
    Unit,
    blocks_of,
    check_columns,
    check_names,
    select_split,
)
from embedprior.evidence.rows import (
    Joint,
    Rules,
    comparison_row,
    joint_aucs,
    method_row,
    value,
    verdict,
)

SCHEMA_VERSION = 1


def evaluate_predictions(
    frame: pd.DataFrame,
    reference: str,
    family: Sequence[tuple[str, str]] | None = None,
    unit: Unit = "patient",
    oracles: Sequence[str] = (),
    bootstrap: int = 0,
    *,
    patient_label: PatientLabel | None = None,
    ci: CiMethod = "logit",
    alpha: float = 0.05,
    relevant_delta: float = 0.05,
    margin: float | None = None,
) -> dict[str, Any]:
    """Evaluate the test rows of a long predictions table.

    Args:
        frame: columns ``exam_id, patient_id, label, method, score`` and, where they apply, ``fold, resample,
            seed, split, label_name``. Only rows with ``split == "test"`` are scored when there is such a
            column.
        reference: the method every other one is compared with.
        family: the comparisons (a, b) = "a scores higher than b" declared beforehand; Holm adjusts over
            these. Default: every method that is no oracle against ``reference``.
        unit: ``patient`` averages a patient's scores; ``exam`` clusters the variance by patient where
            patients repeat.
        oracles: methods that need CT at inference: shown, and left out of the default family.
        bootstrap: patient-level replicates for metrics without a closed form; 0 leaves their intervals
            undefined.
        patient_label: ``max`` or ``index`` for patients whose exams disagree (unit ``patient``).
        ci: interval of an AUC. alpha: two-sided error rate, before adjustment.
        relevant_delta: the smallest difference worth claiming; separates "not supported" from "not
            testable".
        margin: also test non-inferiority against this margin.

    Returns:
        Plain JSON values, described by ``evidence.schema.json``: None wherever a number is undefined, with a
        ``reason`` beside it.

    Raises:
        EvidenceError: the table or the names cannot be used; rows are named.
    """
    _check_options(alpha, relevant_delta, bootstrap)
    check_columns(frame)
    rules = Rules(alpha, ci, relevant_delta, margin)
    test_rows = select_split(frame, "test")
    if test_rows.empty:
        raise EvidenceError("no row has split 'test': nothing to evaluate.")
    blocks = blocks_of(test_rows, unit, patient_label)
    methods = list(dict.fromkeys(m for b in blocks for m in b.methods))
    pairs = _family(methods, reference, family, oracles)
    for block in blocks:
        lacking = [m for m in methods if m not in block.methods]
        if lacking:
            raise EvidenceError(
                f"{', '.join(lacking)} has no scores for {_where(block)}: every method needs every case."
            )
    joints = [joint_aucs(b, clustered=unit == "exam" and b.repeats_patients) for b in blocks]
    n_labels = len({b.label_name for b in blocks})
    family_size = len(pairs) * n_labels
    exploratory = [(m, reference) for m in methods if m != reference and (m, reference) not in pairs]
    rows, comparisons = [], []
    for block, joint in zip(blocks, joints, strict=True):
        rows += [method_row(block, joint, m, m in oracles, rules) for m in methods]
        for pair in [*pairs, *exploratory]:
            row = comparison_row(block, joint, *pair, rules, family_size)
            row["in_family"] = pair in pairs
            comparisons.append(row)
    _adjust(comparisons, rules)
    return {
        "schema_version": SCHEMA_VERSION,
        "unit": unit,
        "reference": reference,
        "family": [list(pair) for pair in pairs],
        "family_declared": family is not None,
        "oracles": list(oracles),
        "alpha": alpha,
        "relevant_delta": relevant_delta,
        "margin": margin,
        "n_patients": int(np.unique(np.concatenate([b.patients for b in blocks])).size),
        "n_unknown_labels": sum(b.n_unknown for b in blocks),
        "methods": rows,
        "comparisons": comparisons,
        "omnibus": [
            _omnibus_row(b, j, [m for m in methods if m not in oracles]) for b, j in zip(blocks, joints, strict=True)
        ],
    }


def _check_options(alpha: float, relevant_delta: float, bootstrap: int) -> None:
    if not 0 < alpha < 0.5:
        raise EvidenceError(f"alpha must be in (0, 0.5), e.g. 0.05; got {alpha}.")
    if not 0 < relevant_delta < 0.5:
        raise EvidenceError(f"relevant_delta must be in (0, 0.5), e.g. 0.05; got {relevant_delta}.")
    if bootstrap < 0:
        raise EvidenceError(f"bootstrap counts replicates and cannot be negative; got {bootstrap}.")


def _family(
    methods: list[str], reference: str, family: Sequence[tuple[str, str]] | None, oracles: Sequence[str]
) -> list[tuple[str, str]]:
    check_names([reference], methods, "the reference")
    check_names(oracles, methods, "the oracle")
    if family is None:
        return [(m, reference) for m in methods if m != reference and m not in oracles]
    pairs = [(str(a), str(b)) for a, b in family]
    check_names([name for pair in pairs for name in pair], methods, "the family's method")
    for a, b in pairs:
        if a == b:
            raise EvidenceError(f"the family compares {a!r} with itself.")
        if (b, a) in pairs or pairs.count((a, b)) > 1:
            raise EvidenceError(f"the family holds the comparison of {a!r} and {b!r} twice.")
    return pairs


def _adjust(comparisons: list[dict[str, Any]], rules: Rules) -> None:
    members = [row for row in comparisons if row["in_family"]]
    adjusted = holm([np.nan if row["p"] is None else row["p"] for row in members])
    for row, p in zip(members, adjusted, strict=True):
        row["p_holm"] = value(p)
        row["verdict"] = verdict(row, rules)


def _omnibus_row(block: Block, joint: Joint, methods: list[str]) -> dict[str, Any]:
    if any(len(joint.at[m]) > 1 for m in methods):
        return {
            "label_name": block.label_name, "methods": methods, "chi2": None, "df": None, "p": None,
            "reason": "omnibus test not defined over several seeds",
        }  # fmt: skip
    at = np.concatenate([joint.at[m] for m in methods])
    chi2, df, p, reason = omnibus(joint.result.auc[at], joint.result.covariance[np.ix_(at, at)])
    return {
        "label_name": block.label_name, "methods": methods, "chi2": value(chi2),
        "df": df if reason is None or df else None, "p": value(p), "reason": reason,
    }  # fmt: skip


def _where(block: Block) -> str:
    parts = [f"label {block.label_name!r}"] if block.label_name is not None else []
    parts += [f"resample {block.resample!r}"] if block.resample is not None else []
    return " and ".join(parts) or "the test cases"
