"""Confidence intervals of one AUC, of a difference of two AUCs, and of a proportion.

The default methods are those whose coverage ``tools/bench/coverage.py`` measured at small sizes (docs/evidence.md has
the table). Nothing here returns a number where the data carry none: the value is NaN and ``reason`` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import special

from embedprior.evidence.delong import Variance
from embedprior.evidence.errors import EvidenceError, nearest

#: Variances below this are rounding: one discordant pair among 10^6 x 10^6 cases still gives about 1e-24.
ZERO_VARIANCE = 1e-30
CiMethod = Literal["logit-t", "logit", "wald"]
CI_METHODS: tuple[str, ...] = get_args(CiMethod)
#: Weight of the case at chance that ``logit-t`` adds to either class. Few observed placements near 1 say little about
#: the misses that were not drawn; without it the interval lies too high (coverage .75 to .93).
CHANCE_CASE = 0.25
#: Coverage was measured from this many independent cases of a class on.
MIN_MEASURED = 5


@dataclass(frozen=True)
class Interval:
    """An estimate, its standard error and confidence limits; NaN where undefined, ``reason`` says why.

    ``note`` warns of an interval that is defined but whose coverage was not measured at its size.
    """

    estimate: float
    se: float
    low: float
    high: float
    method: str | None
    reason: str | None = None
    note: str | None = None


def quantile(probability: Any, df: Any = np.inf) -> Any:
    """Return the standard normal quantile, or Student's for finite ``df``; numbers or arrays."""
    normal, student = special.ndtri(probability), special.stdtrit(np.where(np.isinf(df), 1.0, df), probability)
    return np.where(np.isinf(df), normal, student)[()]


def with_chance_case(auc: Any, variance: Variance, weight: float = CHANCE_CASE) -> Variance:
    """Return the variance with a case of ``weight`` at chance (placement 0.5) added to either class.

    With u independent cases of a class, sum of squares S and S / (u (u - 1)) as its share of the variance, the share
    becomes (S + weight (0.5 - auc)^2) / ((u - 1 + weight) (u + weight)).
    """

    def added(part: Any, df: Any) -> Any:
        u = df + 1
        return (part * u * df + weight * (0.5 - auc) ** 2) / ((df + weight) * (u + weight))

    return Variance(
        added(variance.positive, variance.df_pos), added(variance.negative, variance.df_neg), variance.df_pos,
        variance.df_neg, variance.mixed, variance.seeds, variance.df_seeds,
    )  # fmt: skip


def auc_limits(auc: Any, variance: Variance, method: CiMethod = "logit-t", alpha: float = 0.05) -> tuple[Any, Any]:
    """Return the limits of AUCs strictly between 0 and 1 with a positive variance; numbers or arrays.

    ``logit-t``: log(A / (1 - A)) +- t se / (A (1 - A)), back-transformed, with the variance of ``with_chance_case`` and
    Student's t on its Satterthwaite degrees of freedom. ``logit``: the same with the plain variance and normal
    quantiles. ``wald``: A +- z se, cut at [0, 1].
    """
    used = with_chance_case(auc, variance) if method == "logit-t" else variance
    q = quantile(1 - alpha / 2, used.df if method == "logit-t" else np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        se = np.sqrt(used.total)
        if method == "wald":
            return np.maximum(0.0, auc - q * se), np.minimum(1.0, auc + q * se)
        centre, half = special.logit(auc), q * se / (auc * (1 - auc))
        return special.expit(centre - half), special.expit(centre + half)


def auc_interval(
    auc: float,
    variance: Variance,
    independent_pairs: int,
    *,
    method: CiMethod = "logit-t",
    alpha: float = 0.05,
    reason: str | None = None,
) -> Interval:
    """Confidence interval of one AUC.

    Args:
        auc: estimate; NaN when a class is missing.
        variance: see ``Delong.variance``; NaN when undefined.
        independent_pairs: see ``Delong.independent_pairs``.
        method: see ``auc_limits``.
        alpha: 1 - confidence.
        reason: why the variance is undefined, when it is.

    An AUC of 0 or 1 has variance 0. It gets the one-sided bound alpha**(1 / independent_pairs): were the true
    AUC lower, that many disjoint pairs would all be ranked rightly with probability below alpha.

    Raises:
        EvidenceError: an unknown method.

    Example:
        >>> found = auc_interval(0.8, Variance(0.006, 0.002, df_pos=11, df_neg=27), 12)
        >>> round(found.low, 3), round(found.high, 3)
        (0.555, 0.928)
    """
    if method not in CI_METHODS:
        raise EvidenceError(f"ci must be one of {', '.join(CI_METHODS)}; got {method!r}.{nearest(method, CI_METHODS)}")
    if np.isnan(auc):
        return Interval(auc, np.nan, np.nan, np.nan, None, reason or "AUC undefined")
    if independent_pairs < 2:
        return Interval(auc, np.nan, np.nan, np.nan, None, reason or "fewer than 2 cases of a class")
    few = min(variance.df_pos, variance.df_neg) + 1 < MIN_MEASURED
    note = f"fewer than {MIN_MEASURED} independent cases of a class: coverage was not measured there" if few else None
    if auc in (0.0, 1.0):
        bound = alpha ** (1 / independent_pairs)
        low, high = (bound, 1.0) if auc == 1.0 else (0.0, 1.0 - bound)
        why = f"AUC is exactly {auc:g}: no variance; one-sided bound from {independent_pairs} disjoint pairs"
        return Interval(auc, np.nan, low, high, "one-sided bound", why)
    if np.isnan(variance.total):
        return Interval(auc, np.nan, np.nan, np.nan, None, reason or "variance undefined")
    if variance.total <= ZERO_VARIANCE:
        why = "no positive variance: the scores do not vary enough"
        return Interval(auc, np.nan, np.nan, np.nan, None, why)
    low, high = auc_limits(auc, variance, method, alpha)
    return Interval(auc, float(np.sqrt(variance.total)), float(low), float(high), method, None, note)


def square_and_add(
    a: Any, limits_a: tuple[Any, Any], b: Any, limits_b: tuple[Any, Any], correlation: Any
) -> tuple[Any, Any]:
    """Return the limits of a - b from the limits of both and their correlation; numbers or arrays.

    Newcombe (Stat. Med. 1998) and Zou & Donner (Stat. Med. 2008): the distances from the estimates to their limits are
    added like standard errors, so that the interval of a difference is as asymmetric as those of its parts.
    """
    (low_a, high_a), (low_b, high_b) = limits_a, limits_b

    def distance(of_a: Any, of_b: Any) -> Any:
        return np.sqrt(np.maximum(of_a**2 + of_b**2 - 2 * correlation * of_a * of_b, 0.0))

    return a - b - distance(a - low_a, high_b - b), a - b + distance(high_a - a, b - low_b)


def agreeing_with(p: Any, delta: Any, limits: tuple[Any, Any], alpha: float) -> tuple[Any, Any]:
    """Move the limit towards 0 to 0, so that the interval holds 0 in its inside exactly when p > alpha.

    The test and the interval come from different distributions; a reader then sees one answer, not two. Limits are cut
    at [-1, 1]. Numbers or arrays.
    """
    low, high = np.maximum(-1.0, limits[0]), np.minimum(1.0, limits[1])
    rejects, up = np.asarray(p <= alpha), np.asarray(delta > 0)
    low = np.where(rejects, np.where(up, np.maximum(low, 0.0), low), np.minimum(low, -np.finfo(float).tiny))
    high = np.where(rejects, np.where(up, high, np.minimum(high, 0.0)), np.maximum(high, np.finfo(float).tiny))
    return low[()], high[()]


def wilson(successes: float, trials: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return Wilson's interval of a proportion (JASA 1927); NaN for no trials."""
    if trials == 0:
        return np.nan, np.nan
    z = float(quantile(1 - alpha / 2))
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def clopper_pearson(successes: float, trials: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return the exact interval of a proportion (Biometrika 1934); NaN for no trials.

    Example:
        >>> low, high = clopper_pearson(10, 10)
        >>> round(low, 4), high
        (0.6915, 1.0)
    """
    if trials == 0:
        return np.nan, np.nan
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, alpha / 2))
    high = 1.0 if successes == trials else float(special.betaincinv(successes + 1, trials - successes, 1 - alpha / 2))
    return low, high


def bounded_mean(values: Any, alpha: float = 0.05) -> tuple[float, float]:
    """Return the interval of the mean of independent values in [0, 1], such as the share of each patient's hits.

    Clopper and Pearson's interval with the effective sample size p (1 - p) / Var(mean), made smaller by the square of
    the normal over Student's quantile (Korn & Graham, Survey Methodology 1998). Where all values are equal the
    variance says nothing, and the number of values stands for it. NaN for fewer than 2 values.

    Example:
        >>> low, high = bounded_mean([1.0] * 10)  # 10 of 10
        >>> round(low, 4), high
        (0.6915, 1.0)
    """
    each = np.asarray(values, dtype=np.float64)
    n = len(each)
    if n < 2:
        return np.nan, np.nan
    mean, variance = float(each.mean()), float(each.var(ddof=1)) / n
    size = float(n)
    if variance > ZERO_VARIANCE:
        size = mean * (1 - mean) / variance
        size *= float(quantile(1 - alpha / 2) / quantile(1 - alpha / 2, n - 1)) ** 2
    return clopper_pearson(mean * size, size, alpha)


def paired_proportions(only_a: float, only_b: float, trials: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return the interval of a difference of paired proportions (Bonett & Price, J. Educ. Behav. Stat. 2012).

    Args:
        only_a, only_b: pairs in which a alone, or b alone, is right. trials: pairs.
    """
    first, second = (only_a + 1) / (trials + 2), (only_b + 1) / (trials + 2)
    half = float(quantile(1 - alpha / 2)) * np.sqrt((first + second - (first - second) ** 2) / (trials + 2))
    return max(-1.0, float(first - second - half)), min(1.0, float(first - second + half))
