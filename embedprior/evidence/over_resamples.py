"""Rows for a design with several Monte-Carlo resamples: means over resamples, Nadeau-Bengio tests, rank stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.delong import Floats
from embedprior.evidence.intervals import Test
from embedprior.evidence.panel import Settings, point_metrics
from embedprior.evidence.predictions import Block, select_split
from embedprior.evidence.resampling import nadeau_bengio, rank_stability
from embedprior.evidence.rows import Joint, Rules, comparison, method_row, value

NO_RATIO = "training-set size unknown: give train_size (cases) for the Nadeau-Bengio correction"
TEST = "Nadeau-Bengio corrected resampled t"


def training_size(frame: pd.DataFrame, given: float | None, unit: str) -> float | None:
    """Return the mean number of training cases: as given, else counted from rows with split ``train``."""
    if given is not None:
        return given
    rows = select_split(frame, "train")
    if rows.empty:
        return None
    column = "patient_id" if unit == "patient" else "exam_id"
    by = [c for c in ("resample", "fold") if c in rows.columns]
    return float(rows.groupby(by)[column].nunique().mean()) if by else float(rows[column].nunique())


def resample_rows(
    blocks: Sequence[Block],
    joints: Sequence[Joint],
    methods: Sequence[str],
    oracles: Sequence[str],
    rules: Rules,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Return one row per resample and method: AUC with its own interval, counts and the other metrics' values."""
    rows = []
    for block, joint in zip(blocks, joints, strict=True):
        for m in methods:
            row = method_row(block, joint, m, m in oracles, rules)
            rows.append({"resample": block.resample, **row, "metrics": point_metrics(block, m, settings)})
    return rows


def mean_rows(
    rows: Sequence[dict[str, Any]], methods: Sequence[str], train_size: float | None, rules: Rules
) -> list[dict[str, Any]]:
    """Return one row per method: the mean AUC over the resamples that define it, with its corrected interval."""
    found = []
    for m in methods:
        mine = [r for r in rows if r["method"] == m]
        aucs = _column(mine, "auc")
        test = _corrected(aucs, mine, train_size, rules, zero_is_equal=False)
        lost = f"AUC undefined in {np.isnan(aucs).sum()} of {aucs.size} resamples" if np.isnan(aucs).any() else None
        reasons = [r for r in (lost, test.reason) if r]
        found.append(
            {
                "method": m,
                "label_name": mine[0]["label_name"],
                "oracle": mine[0]["oracle"],
                "auc": value(test.delta),
                "se": value(test.se),
                "ci_low": None if np.isnan(test.low) else max(0.0, test.low),
                "ci_high": None if np.isnan(test.high) else min(1.0, test.high),
                "ci_method": "Nadeau-Bengio t over resamples" if not np.isnan(test.low) else None,
                "df": value(test.df),
                **{k: float(np.mean([r[k] for r in mine])) for k in ("n_pos", "n_neg", "n_cases", "n_patients")},
                "n_folds": mine[0]["n_folds"],
                "n_seeds": mine[0]["n_seeds"],
                "n_resamples": len(mine),
                "n_resamples_defined": int((~np.isnan(aucs)).sum()),
                "auc_per_seed": None,
                "against_half": {"z": None, "p": None, "reason": "see the interval over resamples"},
                "reason": "; ".join(reasons) or None,
                "metrics": {name: _spread(_column([r["metrics"] for r in mine], name)) for name in mine[0]["metrics"]},
                "operating_point": None,
                "reliability": None,
                "decision_curve": None,
            }
        )
    return found


def resampled_comparison(
    rows: Sequence[dict[str, Any]], a: str, b: str, train_size: float | None, rules: Rules, family_size: int
) -> dict[str, Any]:
    """Return AUC a - AUC b over resamples, each resample being one paired difference."""
    first, second = ([r for r in rows if r["method"] == m] for m in (a, b))
    differences = _column(first, "auc") - _column(second, "auc")
    test = _corrected(differences, first, train_size, rules, zero_is_equal=True)
    row = comparison(a, b, first[0]["label_name"], test, TEST, rules, family_size, np.nan)
    row["per_resample"] = [value(d) for d in differences]
    row["n_resamples_defined"] = int((~np.isnan(differences)).sum())
    return row


def ranks(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Return the rank stability of the methods given (leave oracles out)."""
    values = np.stack([_column([r for r in rows if r["method"] == m], "auc") for m in methods], axis=1)
    return {"label_name": rows[0]["label_name"], **rank_stability(values, methods)}


def _corrected(
    values: Floats, rows: Sequence[dict[str, Any]], train_size: float | None, rules: Rules, *, zero_is_equal: bool
) -> Test:
    defined = values[~np.isnan(values)]
    if train_size is None:
        mean = float(defined.mean()) if defined.size else np.nan
        return Test(mean, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, NO_RATIO)
    ratio = float(np.mean([r["n_cases"] for r in rows])) / train_size
    return nadeau_bengio(defined, ratio, alpha=rules.alpha, zero_is_equal=zero_is_equal)


def _column(rows: Sequence[dict[str, Any]], name: str) -> Floats:
    return np.array([np.nan if r[name] is None else r[name] for r in rows], dtype=np.float64)


def _spread(values: Floats) -> dict[str, Any]:
    defined = values[~np.isnan(values)]
    n = int(defined.size)
    low, high = np.quantile(defined, [0.025, 0.975]) if n > 1 else (np.nan, np.nan)
    return {
        "value": value(float(defined.mean())) if n else None,
        "se": None,
        "ci_low": None,
        "ci_high": None,
        "ci_method": None,
        "sd": value(float(defined.std(ddof=1))) if n > 1 else None,
        "quantile_low": value(float(low)),
        "quantile_high": value(float(high)),
        "n_resamples_defined": n,
        "reason": "spread over resamples that share patients: no interval" if n else "undefined in every resample",
    }
