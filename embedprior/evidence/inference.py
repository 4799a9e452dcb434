"""From one comparison to many: Holm's family, several training seeds, several Monte-Carlo resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from embedprior.evidence.delong import Floats
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import ZERO_VARIANCE, Test, quantile, two_sided_p


def holm(p: ArrayLike, family_size: int | None = None) -> Floats:
    """Return Holm's step-down adjusted p values (Scand. J. Statist. 1979), valid under any dependence.

    Args:
        p: raw p values; NaN (test undefined) stays NaN but still counts towards the family that was declared.
        family_size: comparisons declared beforehand, at least ``len(p)``; default ``len(p)``.

    Raises:
        EvidenceError: a p outside [0, 1], or a family smaller than the list.
    """
    raw = np.asarray(p, dtype=np.float64)
    size = raw.size if family_size is None else family_size
    defined = np.flatnonzero(~np.isnan(raw))
    if size < raw.size:
        raise EvidenceError(f"a family of {size} cannot hold {raw.size} p values.")
    if ((raw[defined] < 0) | (raw[defined] > 1)).any():
        raise EvidenceError("p values must lie in [0, 1].")
    order = defined[np.argsort(raw[defined], kind="stable")]
    steps = size - np.arange(order.size)
    adjusted = np.full(raw.size, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps * raw[order]))
    return adjusted


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds, its variance over patients *and* seeds, and the components of that variance."""

    mean: float
    variance: float
    df: float
    between_seeds: float
    shared_cases: float


def mean_over_seeds(values: Floats, covariance: Floats) -> SeedMean:
    """Obuchowski-Rockette analysis (Commun. Stat. 1995) with one modality and seeds as random readers.

    Args:
        values: (R,) AUC, or difference of AUCs, of each seed.
        covariance: (R, R) their covariance over patients (joint DeLong).

    Returns:
        Var = MS / R + max(Cov2, 0) with MS the sample variance over seeds and Cov2 the mean covariance of two
        seeds; df = (MS + R max(Cov2, 0))^2 / (MS^2 / (R - 1)) (Hillis, Stat. Med. 2007). One seed: its own
        variance, infinite df.
    """
    r = values.size
    mean = float(values.mean())
    if r == 1:
        return SeedMean(mean, float(covariance[0, 0]), np.inf, np.nan, np.nan)
    between = float(values.var(ddof=1))
    shared = float((covariance.sum() - np.trace(covariance)) / (r * (r - 1)))
    shared_positive = max(shared, 0.0) if not np.isnan(shared) else np.nan
    numerator = between + r * shared_positive
    df = np.inf if between == 0 else (r - 1) * numerator**2 / between**2
    return SeedMean(mean, between / r + shared_positive, float(df), between, shared)


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
