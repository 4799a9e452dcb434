"""Confidence intervals and tests for AUCs and their differences.

Nothing here returns a number where the data carry none: the value is NaN and ``reason`` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from embedprior.evidence.delong import Delong, Floats
from embedprior.evidence.errors import EvidenceError

#: Variances below this are rounding: one discordant pair among 10^6 x 10^6 cases still gives about 1e-24.
ZERO_VARIANCE = 1e-30
CiMethod = Literal["logit", "wald"]


@dataclass(frozen=True)
class Interval:
    """An estimate, its standard error and confidence limits; NaN where undefined, ``reason`` says why."""

    estimate: float
    se: float
    low: float
    high: float
    method: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Test:
    """A difference (or an estimate against its null value) with interval, statistic and two-sided p."""

    __test__ = False  # pytest would take the class for a test case

    delta: float
    se: float
    low: float
    high: float
    statistic: float
    df: float
    p: float
    reason: str | None = None


def quantile(probability: float, df: float = np.inf) -> float:
    """Return the standard normal quantile, or Student's for finite ``df``."""
    return float(special.ndtri(probability) if np.isinf(df) else special.stdtrit(df, probability))


def two_sided_p(statistic: float, df: float = np.inf) -> float:
    """Return the two-sided p value of a normal (``df`` infinite) or t statistic."""
    return 2 * upper_tail(abs(statistic), df)


def upper_tail(statistic: float, df: float = np.inf) -> float:
    """Return the chance of a larger normal (``df`` infinite) or t statistic."""
    return float(special.ndtr(-statistic) if np.isinf(df) else special.stdtr(df, -statistic))


def auc_interval(
    auc: float,
    variance: float,
    independent_pairs: int,
    *,
    method: CiMethod = "logit",
    alpha: float = 0.05,
    df: float = np.inf,
    reason: str | None = None,
) -> Interval:
    """Confidence interval of one AUC.

    Args:
        auc: estimate; NaN when a class is missing.
        variance: its variance; NaN when undefined.
        independent_pairs: see ``Delong.independent_pairs``.
        method: ``logit`` back-transforms log(A / (1 - A)) +- q se / (A (1 - A)) and never leaves (0, 1);
            ``wald`` is A +- q se cut at [0, 1].
        alpha: 1 - confidence.
        df: degrees of freedom of the variance (infinite = normal quantiles).
        reason: why the variance is undefined, when it is.

    An AUC of 0 or 1 has variance 0. It gets the one-sided bound alpha**(1 / independent_pairs): were the true
    AUC lower, that many disjoint pairs would all be ranked rightly with probability below alpha.
    """
    if np.isnan(auc):
        return Interval(auc, np.nan, np.nan, np.nan, None, reason or "AUC undefined")
    if independent_pairs < 2:
        return Interval(auc, np.nan, np.nan, np.nan, None, reason or "fewer than 2 cases of a class")
    if auc in (0.0, 1.0):
        bound = alpha ** (1 / independent_pairs)
        low, high = (bound, 1.0) if auc == 1.0 else (0.0, 1.0 - bound)
        why = f"AUC is exactly {auc:g}: no variance; one-sided bound from {independent_pairs} disjoint pairs"
        return Interval(auc, np.nan, low, high, "one-sided bound", why)
    if np.isnan(variance):
        return Interval(auc, np.nan, np.nan, np.nan, None, reason or "variance undefined")
    if variance <= ZERO_VARIANCE:
        why = "no positive variance: the scores do not vary enough"
        return Interval(auc, np.nan, np.nan, np.nan, None, why)
    se, q = float(np.sqrt(variance)), quantile(1 - alpha / 2, df)
    if method == "wald":
        return Interval(auc, se, max(0.0, auc - q * se), min(1.0, auc + q * se), "wald")
    centre, half = np.log(auc / (1 - auc)), q * se / (auc * (1 - auc))
    low, high = 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
    return Interval(auc, se, float(low), float(high), "logit")


def difference_test(
    delta: float,
    variance: float,
    *,
    same_ranking: bool = False,
    alpha: float = 0.05,
    df: float = np.inf,
    reason: str | None = None,
) -> Test:
    """Test a difference of AUCs against 0, with its Wald interval cut at [-1, 1].

    ``same_ranking`` says that both models order every pair alike: the difference is then 0 and p is 1. A zero
    variance with different rankings leaves the test undefined.
    """
    if np.isnan(delta):
        return Test(delta, np.nan, np.nan, np.nan, np.nan, df, np.nan, reason or "AUC undefined")
    if same_ranking:
        return Test(0.0, 0.0, 0.0, 0.0, 0.0, df, 1.0, "both methods rank the cases identically")
    if np.isnan(variance):
        return Test(delta, np.nan, np.nan, np.nan, np.nan, df, np.nan, reason or "variance undefined")
    if variance <= ZERO_VARIANCE:
        why = "the difference has no variance on these cases: no test"
        return Test(delta, np.nan, np.nan, np.nan, np.nan, df, np.nan, why)
    se = float(np.sqrt(variance))
    half, z = quantile(1 - alpha / 2, df) * se, delta / se
    return Test(delta, se, max(-1.0, delta - half), min(1.0, delta + half), z, df, two_sided_p(z, df))


def paired_test(joint: Delong, a: int = 0, b: int = 1, *, alpha: float = 0.05) -> Test:
    """Test AUC a - AUC b of two models scored on the same cases (DeLong 1988).

    With zero variance and equal AUCs every placement value is the same: both models rank alike, p = 1.
    """
    c = joint.covariance
    variance = float(c[a, a] + c[b, b] - c[a, b] - c[b, a])
    delta = float(joint.auc[a] - joint.auc[b])
    same = not np.isnan(variance) and abs(variance) <= ZERO_VARIANCE and abs(delta) < 1e-12
    return difference_test(delta, variance, same_ranking=same, alpha=alpha, reason=joint.reason)


def unpaired_test(first: Delong, second: Delong, *, alpha: float = 0.05) -> Test:
    """Test the difference of two AUCs from independent case lists (first model of each).

    The reference distribution is Student's with Welch-Satterthwaite degrees of freedom over the positive and
    negative parts of both variances.
    """
    delta = float(first.auc[0] - second.auc[0])
    variance = float(first.covariance[0, 0] + second.covariance[0, 0])
    parts, sizes = [], []
    for d in (first, second):
        parts += [float(d.positive_part[0, 0]), float(d.negative_part[0, 0])]
        sizes += [d.n_pos, d.n_neg]
    if np.isnan(variance) or variance <= ZERO_VARIANCE:
        return difference_test(delta, variance, alpha=alpha, reason=first.reason or second.reason)
    df = sum(parts) ** 2 / sum(v**2 / (n - 1) for v, n in zip(parts, sizes, strict=True))
    return difference_test(delta, variance, alpha=alpha, df=df)


def against_half(auc: float, variance: float, *, df: float = np.inf, reason: str | None = None) -> Test:
    """Test one AUC against 0.5 on the logit scale, so that it agrees with the logit interval."""
    delta = auc - 0.5
    if np.isnan(variance) or variance <= ZERO_VARIANCE or auc in (0.0, 1.0):
        why = reason or "no variance: no test against 0.5"
        return Test(delta, np.nan, np.nan, np.nan, np.nan, df, np.nan, why)
    se = float(np.sqrt(variance))
    z = float(np.log(auc / (1 - auc)) * auc * (1 - auc) / se)
    return Test(delta, se, np.nan, np.nan, z, df, two_sided_p(z, df))


def non_inferiority(delta: float, se: float, margin: float, df: float = np.inf) -> tuple[float, float]:
    """Return (statistic, one-sided p) of H0: AUC a - AUC b <= -margin; NaN when ``se`` is not positive.

    Raises:
        EvidenceError: ``margin`` is not in (0, 1).
    """
    if not 0 < margin < 1:
        raise EvidenceError(f"the non-inferiority margin must be in (0, 1), e.g. 0.05; got {margin}.")
    if not se > 0:
        return np.nan, np.nan
    z = (delta + margin) / se
    return z, upper_tail(z, df)


def omnibus(auc: Floats, covariance: Floats) -> tuple[float, int, float, str | None]:
    """Test that k models have one AUC: Wald chi-square over k - 1 contrasts (DeLong 1988, eq. 5).

    Returns:
        (chi2, df, p, reason). Models that rank identically reduce ``df``; NaN with a reason when a contrast
        has no variance although the AUCs differ.
    """
    k = auc.size
    if k < 2 or np.isnan(covariance).any():
        return np.nan, 0, np.nan, "omnibus test undefined: fewer than 2 models, or no covariance"
    contrasts = np.hstack([np.ones((k - 1, 1)), -np.eye(k - 1)])
    delta, spread = contrasts @ auc, contrasts @ covariance @ contrasts.T
    values, vectors = np.linalg.eigh(spread)
    kept = values > max(values.max(initial=0.0) * 1e-10, ZERO_VARIANCE)
    if (np.abs(vectors[:, ~kept].T @ delta) > 1e-9).any():
        return np.nan, 0, np.nan, "omnibus test undefined: AUCs differ along a contrast without variance"
    df = int(kept.sum())
    if df == 0:
        return 0.0, 0, 1.0, "all models rank the cases identically"
    chi2 = float(((vectors[:, kept].T @ delta) ** 2 / values[kept]).sum())
    return chi2, df, float(special.chdtrc(df, chi2)), None
