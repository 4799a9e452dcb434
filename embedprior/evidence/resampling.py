"""Monte-Carlo resamples: a corrected test over resamples, and how steady the ranking is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedprior.evidence.delong import Floats
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import ZERO_VARIANCE, Test, quantile, two_sided_p


def nadeau_bengio(
    differences: Floats, test_train_ratio: float, *, alpha: float = 0.05, zero_is_equal: bool = True
) -> Test:
    """Corrected resampled t test (Nadeau & Bengio, Machine Learning 2003).

    Args:
        differences: (J,) difference of each resample (or a metric itself, to get its interval).
        test_train_ratio: test cases / training cases.
        zero_is_equal: differences that are all 0 mean equal methods (p = 1). Switch off for a metric itself,
            which may be 0 everywhere without being known to be.

    Returns:
        Mean with variance (1/J + ratio) s^2 and t on J - 1 df: the second term pays for resamples sharing
        training patients, which the naive s^2 / J ignores.
    """
    if not test_train_ratio > 0:
        raise EvidenceError(f"test/train ratio must be positive, got {test_train_ratio}.")
    j = differences.size
    mean = float(differences.mean()) if j else np.nan
    if j < 2:
        return Test(mean, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, f"{j} resample(s): no variance")
    spread = float(differences.var(ddof=1))
    if spread <= ZERO_VARIANCE:
        if zero_is_equal and not np.any(differences):
            return Test(0.0, 0.0, 0.0, 0.0, 0.0, j - 1, 1.0, "no resample shows a difference")
        return Test(mean, np.nan, np.nan, np.nan, np.nan, j - 1, np.nan, "no variance over resamples")
    se = float(np.sqrt((1 / j + test_train_ratio) * spread))
    half = quantile(1 - alpha / 2, j - 1) * se
    return Test(mean, se, mean - half, mean + half, mean / se, j - 1, two_sided_p(mean / se, j - 1))


def rank_stability(values: Floats, methods: Sequence[str]) -> dict[str, Any]:
    """Say how the ranking of methods moves over resamples.

    Args:
        values: (J, M) metric of each resample and method, higher is better; rows with NaN are left out.

    Returns:
        Per method its mean rank (1 = best, ties shared) and the share of resamples it is (jointly) best in; the
        mean Kendall tau-b over pairs of resamples (None when fewer than 2 resamples or 2 methods, or all tied).
    """
    from scipy import stats  # a second to import, needed for resamples only

    complete = values[~np.isnan(values).any(axis=1)]
    if not len(complete):
        return {"n_resamples": 0, "mean_kendall_tau": None, "methods": [], "reason": "no resample scores every method"}
    ranks = stats.rankdata(-complete, axis=1)
    best = complete == complete.max(axis=1, keepdims=True)
    taus = [
        float(stats.kendalltau(complete[i], complete[k]).statistic)
        for i in range(len(complete))
        for k in range(i + 1, len(complete))
        if complete.shape[1] > 1
    ]
    defined = [t for t in taus if not np.isnan(t)]
    return {
        "n_resamples": len(complete),
        "mean_kendall_tau": float(np.mean(defined)) if defined else None,
        "methods": [
            {"method": m, "mean_rank": float(ranks[:, i].mean()), "share_best": float(best[:, i].mean())}
            for i, m in enumerate(methods)
        ],
        "reason": None if defined else "fewer than two resamples or methods, or every ranking is tied",
    }
