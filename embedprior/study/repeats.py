"""Evidence of a repeated k-fold: every repeat scores the same patients, so patients are counted once.

A repeat is to the patients what a training seed is: another fit, the same cases. Repeats × seeds are therefore the
readers of an Obuchowski–Rockette analysis. Their AUCs are fold-stratified, each by its own folds; the covariance of
two repeats is the sum over patients of products of influence values, each scaled to its own DeLong variance.
(A corrected resampled t over repeats would not do: repeats hold out everyone, so their spread does not contain the
sampling of patients at all.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.delong import Delong, Floats, delong, influence
from embedprior.evidence.multiplicity import holm
from embedprior.evidence.predictions import Block, PatientLabel, blocks_of
from embedprior.evidence.rows import Joint, Rules, comparison_row, method_row, value, verdict
from embedprior.study.config import Decision


def repeated_evidence(
    frame: pd.DataFrame, methods: Sequence[str], reference: str, family: Sequence[tuple[str, str]],
    oracles: Sequence[str], decision: Decision,
) -> dict[str, Any]:  # fmt: skip
    """Return AUCs and comparisons over repeats, in the form of ``evaluate_predictions``.

    Args:
        frame: held-out rows with ``resample`` = number of the repeat; every method scored every case.
        methods, reference, family, oracles: as there.
        decision: decision rules.
    """
    rules = Rules(decision.alpha, "logit", decision.relevant_delta, None)
    label: PatientLabel | None = "max" if decision.unit == "patient" else None
    blocks = blocks_of(frame[frame["method"].isin(methods)], decision.unit, label)
    block, joint = joined(blocks, decision.unit == "exam")
    pairs = [tuple(pair) for pair in family]
    others = [(m, reference) for m in methods if m != reference and (m, reference) not in pairs]
    rows = [
        {**method_row(block, joint, m, m in oracles, rules), "n_repeats": len(blocks), "n_seeds": len(block.seeds[m])}
        for m in methods
    ]
    comparisons = [
        {**comparison_row(block, joint, a, b, rules, len(pairs)), "in_family": (a, b) in pairs}
        for a, b in [*pairs, *others]
    ]
    members = [c for c in comparisons if c["in_family"]]
    for row, p in zip(members, holm([np.nan if c["p"] is None else c["p"] for c in members]), strict=True):
        row["p_holm"] = value(p)
        row["verdict"] = verdict(row, rules)
    return {
        "schema_version": 1, "unit": decision.unit, "reference": reference, "family": [list(p) for p in pairs],
        "family_declared": True, "oracles": list(oracles), "alpha": decision.alpha,
        "relevant_delta": decision.relevant_delta, "n_patients": block.n_patients, "methods": rows,
        "comparisons": comparisons, "repeats": len(blocks),
    }  # fmt: skip


def joined(blocks: Sequence[Block], by_exam: bool) -> tuple[Block, Joint]:
    """Return the first repeat's block, and the joint AUCs of every method in every repeat and seed.

    Raises:
        ValueError: the repeats hold different cases.
    """
    first = blocks[0]
    order = {str(case): i for i, case in enumerate(first.case_ids)}
    clustered = by_exam and first.repeats_patients
    aucs: list[Floats] = []
    shares: list[Floats] = []
    results: list[Delong] = []
    cells: list[tuple[str, str]] = []
    for number, block in enumerate(blocks):
        if {str(c) for c in block.case_ids} != set(order):
            raise ValueError("the repeats of a k-fold hold different cases")
        to_first = np.array([order[str(case)] for case in block.case_ids])
        scores = np.concatenate([block.scores[m] for m in block.methods])
        clusters = block.patients if clustered else None
        result = delong(block.labels, scores, clusters, block.folds)
        psi = influence(block.labels, scores, block.folds)
        in_order = np.empty_like(psi)
        in_order[:, to_first] = psi
        by_patient = _summed(in_order, first)
        length = np.sqrt((by_patient**2).sum(axis=1))
        wanted = np.sqrt(np.clip(np.diag(result.covariance), 0, None))
        shares.append(by_patient * (wanted / np.where(length > 0, length, 1.0))[:, None])
        aucs.append(result.auc)
        results.append(result)
        cells += [(m, f"{seed}, repeat {number}") for m in block.methods for seed in block.seeds[m]]
    stacked = np.concatenate(shares)
    covariance = stacked @ stacked.T
    reasons = [r.reason for r in results if r.reason]
    undefined = np.full_like(covariance, np.nan)
    whole = Delong(
        auc=np.concatenate(aucs), covariance=undefined if reasons else covariance, positive_part=undefined,
        negative_part=undefined, n_pos=results[0].n_pos, n_neg=results[0].n_neg, n_clusters=results[0].n_clusters,
        independent_pairs=min(r.independent_pairs for r in results), reason=reasons[0] if reasons else None,
    )  # fmt: skip
    at = {m: np.array([i for i, (name, _) in enumerate(cells) if name == m]) for m in first.methods}
    names = {m: tuple(cells[i][1] for i in rows) for m, rows in at.items()}
    test = f"influence over patients, {len(blocks)} repeats, fold-stratified" + (", clustered" if clustered else "")
    return first, Joint(whole, at, names, test)


def _summed(psi: Floats, block: Block) -> Floats:
    codes = np.unique(block.patients, return_inverse=True)[1]
    return np.stack([np.bincount(codes, weights=row) for row in psi])
