"""How small a difference of AUCs a cohort can show, and how many patients a difference needs."""

from __future__ import annotations

import numpy as np
from scipy import stats


def detectable(se: float, *, alpha: float = 0.05, power: float = 0.8, df: float = np.inf) -> float:
    """Return the true difference that a two-sided test with standard error ``se`` finds with ``power``.

    Normal quantiles; Student's for finite ``df`` (several seeds or resamples).
    """
    if np.isinf(df):
        return float((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * se)
    return float((stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(power, df)) * se)
