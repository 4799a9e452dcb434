"""Differences of two methods beside the AUC: sensitivity, specificity, Brier score, PR-AUC and partial AUC.

Sensitivity and specificity are compared at thresholds that were declared or chosen on validation rows. All of these are
described with interval and p and never enter the family: their p values are not adjusted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from embedprior.evidence import calibration
from embedprior.evidence.delong import Bools, Floats, n_distinct, renumber
from embedprior.evidence.intervals import paired_proportions, quantile
from embedprior.evidence.method_metrics import YOUDEN, Settings, thresholds_of
from embedprior.evidence.metrics import (
    Cases,
    average_precision,
    cases_of,
    partial_auc,
    patient_strata,
    replicate_values,
    stream,
    weights,
)
from embedprior.evidence.predictions import Block
from embedprior.evidence.schema import value
from embedprior.evidence.tests import two_sided_p

CLUSTERED = "patient-clustered t"


def metric_differences(block: Block, a: str, b: str, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return, by metric, the difference a - b on the same cases with interval, p, test, and the reason it lacks one."""
    first, second = cases_of(block, a), cases_of(block, b)
    if not block.labels.any() or block.labels.all():
        return {}
    found = _at_thresholds(block, a, b, settings)
    refused = calibration.refusal(first.scores) or calibration.refusal(second.scores)
    if refused:
        found["brier"] = _row(reason=refused)
    else:
        error_a, error_b = ((c.scores - c.labels) ** 2 for c in (first, second))
        everyone = np.ones(block.labels.size, dtype=np.bool_)
        found["brier"] = _clustered(block, error_a.mean(axis=0) - error_b.mean(axis=0), everyone, settings.alpha)
    return {**found, **_bootstrapped(block, first, second, settings)}


def _at_thresholds(block: Block, a: str, b: str, settings: Settings) -> dict[str, dict[str, Any]]:
    cuts = [thresholds_of(block, m, YOUDEN, settings.validation, settings.threshold) for m in (a, b)]
    reasons = [reason for _, reason in cuts if reason is not None]
    if reasons:
        return {name: _row(reason=reasons[0]) for name in ("sensitivity", "specificity")}
    called = [
        (block.scores[m] >= found.per_case) for m, (found, _) in zip((a, b), cuts, strict=True) if found is not None
    ]
    right = [np.where(block.labels, c, ~c).astype(np.float64) for c in called]
    rows = {}
    for name, inside in (("sensitivity", block.labels), ("specificity", ~block.labels)):
        plain = len(right[0]) == len(right[1]) == 1 and not block.repeats_patients
        if plain:
            rows[name] = mcnemar(right[0][0][inside] == 1, right[1][0][inside] == 1, settings.alpha)
        else:
            difference = right[0].mean(axis=0) - right[1].mean(axis=0)
            rows[name] = _clustered(block, difference, inside, settings.alpha)
    return rows


def mcnemar(right_a: Bools, right_b: Bools, alpha: float = 0.05) -> dict[str, Any]:
    """Compare two proportions of the same cases: exact McNemar test (binomial), interval of Bonett & Price.

    Example:
        >>> import numpy as np
        >>> a, b = np.array([True] * 9 + [False] * 3), np.array([True] * 3 + [False] * 6 + [True] + [False] * 2)
        >>> row = mcnemar(a, b)
        >>> round(row["delta"], 3), round(row["p"], 3)  # 6 against 1 discordant pairs
        (0.417, 0.125)
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    low, high = paired_proportions(only_a, only_b, right_a.size, alpha)
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return _row((only_a - only_b) / right_a.size, low, high, p, "exact McNemar")


def _clustered(block: Block, difference: Floats, inside: Bools, alpha: float) -> dict[str, Any]:
    """Test the mean of a per-case difference over the cases ``inside``, patients being independent."""
    patients = block.patients[inside]
    n = n_distinct(patients) if patients.size else 0
    if n < 2:
        return _row(reason=f"{n} patient(s) of this class: no variance")
    code = renumber(patients)[1]
    mean = float(difference[inside].mean())
    sums = np.bincount(code, weights=difference[inside] - mean)
    se = float(np.sqrt(n / (n - 1) * (sums**2).sum()) / patients.size)
    if se == 0:
        same = mean == 0
        why = "both methods agree in every case" if same else "no variance"
        return _row(mean, p=1.0 if same else np.nan, test=CLUSTERED, reason=why)
    half = float(quantile(1 - alpha / 2, n - 1)) * se
    return _row(mean, mean - half, mean + half, two_sided_p(mean / se, n - 1), CLUSTERED)


def _bootstrapped(block: Block, first: Cases, second: Cases, settings: Settings) -> dict[str, dict[str, Any]]:
    kinds = {"pr_auc": average_precision, f"partial_auc_fpr_{settings.max_fpr:g}": _partial(settings.max_fpr)}
    metrics = {name: (of(first), of(second)) for name, of in kinds.items()}
    found = {}
    drawn: list[Floats] = []
    if settings.bootstrap:
        strata = patient_strata(block.labels, first.patient, first.n_patients)
        generator = stream(settings.seed, "differences", str(block.label_name))
        chunks = weights(strata, settings.bootstrap, generator)
        drawn = replicate_values([m for pair in metrics.values() for m in pair], chunks)
    for i, (name, pair) in enumerate(metrics.items()):
        delta = float(np.subtract(*(m.estimate(first.n_patients).mean() for m in pair)))
        if not settings.bootstrap or np.isnan(delta):
            found[name] = _row(
                delta, reason="no interval: the bootstrap is off" if not np.isnan(delta) else "undefined"
            )
            continue
        values = drawn[2 * i].mean(axis=1) - drawn[2 * i + 1].mean(axis=1)
        se = float(np.nanstd(values, ddof=1))
        low, high = np.nanquantile(values, [settings.alpha / 2, 1 - settings.alpha / 2])
        p = two_sided_p(delta / se) if se > 0 else np.nan
        reason = None if se > 0 else "the bootstrap shows no variation"
        found[name] = _row(delta, float(low), float(high), p, "patient bootstrap", reason)
    return found


def _partial(max_fpr: float) -> Any:
    return lambda cases: partial_auc(cases, max_fpr)


def _row(
    delta: float = np.nan, low: float = np.nan, high: float = np.nan, p: float = np.nan, test: str = "none",
    reason: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "delta": value(delta), "ci_low": value(low), "ci_high": value(high), "p": value(p), "test": test,
        "reason": reason,
    }  # fmt: skip
