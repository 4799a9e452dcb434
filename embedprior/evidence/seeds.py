"""Several training seeds of one method, seen as readers of the same cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedprior.evidence.delong import Floats


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
