"""Tests of AUCs: two methods on the same cases, one against 0.5, a margin, several seeds, resamples and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from embedprior.evidence.delong import Bools, Delong, Floats, Ints, Variance
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import (
    ZERO_VARIANCE,
    agreeing_with,
    auc_interval,
    quantile,
    square_and_add,
)
from embedprior.evidence.permutation import half_test, rank_swap_test

#: Below this many independent cases of a class the rank-swap permutation decides, from it on DeLong's test. Declared
#: before any score is seen; ``tools/bench/coverage.py`` measures both.
SMALL = 50
Limits = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Test:
    """A difference of AUCs (or a mean difference over resamples) with its two-sided p.

    ``limits(alpha)`` returns the 1 - alpha interval. ``p`` is the p that decides; ``p_delong`` and ``p_permutation``
    are both shown. Undefined numbers are NaN (``limits`` None), and ``reason`` says why.
    """

    __test__ = False  # pytest would take the class for a test case

    delta: float
    se: float
    statistic: float
    df: float
    p: float
    limits: Limits | None
    name: str
    p_delong: float = np.nan
    p_permutation: float = np.nan
    reason: str | None = None


@dataclass(frozen=True)
class Estimate:
    """An AUC (mean over seeds) with its variance; ``constant`` = one score for every case of a fold."""

    auc: float
    variance: Variance
    independent_pairs: int
    constant: bool = False

    def limits(self, alpha: float) -> tuple[float, float]:
        """Return its 1 - alpha limits: of a constant score none, of an AUC without a variance all an AUC can be."""
        if self.constant:
            return self.auc, self.auc
        found = auc_interval(self.auc, self.variance, self.independent_pairs, alpha=alpha)
        return (0.0, 1.0) if np.isnan(found.low) else (found.low, found.high)


@dataclass(frozen=True)
class Sample:
    """The cases behind a comparison: labels (N,), scores (R, N) of both methods, patient and fold codes or None."""

    labels: Bools
    a: Floats
    b: Floats
    clusters: Ints | None
    strata: Ints | None


def two_sided_p(statistic: float, df: float = np.inf) -> float:
    """Return the two-sided p value of a normal (``df`` infinite) or t statistic."""
    tail = special.ndtr(-abs(statistic)) if np.isinf(df) else special.stdtr(df, -abs(statistic))
    return float(2 * tail)


def undefined(delta: float, reason: str) -> Test:
    """Return the test that could not be made."""
    return Test(delta, np.nan, np.nan, np.nan, np.nan, None, "none", reason=reason)


def paired_test(
    a: Estimate, b: Estimate, difference: Variance, sample: Sample, joint: Delong, name: str, *, permute: bool = True
) -> Test:
    """Test AUC a - AUC b of two methods on the same cases.

    With fewer than ``SMALL`` independent cases of a class and one seed, the rank-swap permutation decides (for coarse
    scores the larger of its p and that of DeLong's z), else DeLong's test with Student's t. Against a constant score
    the other method is tested against 0.5. The interval adds the distances of both single intervals
    (``square_and_add``) and agrees with the p that decides.

    Args:
        a, b: both AUCs. difference: variance of a - b. sample: the cases. joint: the joint estimate they come from.
        name: how the variance was found, in words.
        permute: whether ``sample`` is all there is to the AUCs, so that ranks can be swapped.
    """
    delta = a.auc - b.auc
    if np.isnan(delta) or np.isnan(difference.total):
        return undefined(delta, joint.reason or "variance undefined")
    if a.constant and b.constant:
        return undefined(0.0, "both methods give every case one score: no test")
    swap = (np.nan, "not defined")
    if permute:
        swap = rank_swap_test(sample.labels, sample.a, sample.b, sample.clusters, sample.strata)
    no_spread = difference.total <= ZERO_VARIANCE
    same = no_spread and abs(delta) < 1e-12 and 0 < a.auc < 1
    if same:
        why = "both methods rank the cases identically"
        return Test(0.0, 0.0, 0.0, np.inf, 1.0, lambda _: (0.0, 0.0), name, 1.0, 1.0, why)
    se = float(np.sqrt(difference.total)) if not no_spread else np.nan
    statistic = delta / se if not no_spread else np.nan
    df = float(difference.df)
    p_delong = two_sided_p(statistic, df) if not no_spread else np.nan
    p, how = _deciding(a, b, sample, joint, p_delong, swap, name, statistic)
    if np.isnan(p):
        return undefined(delta, "the difference has no variance on these cases: no test")
    spread = np.sqrt(a.variance.total * b.variance.total) if not (a.constant or b.constant) else 0.0
    rho = 0.0 if spread <= ZERO_VARIANCE else (a.variance.total + b.variance.total - difference.total) / (2 * spread)

    def limits(alpha: float) -> tuple[float, float]:
        both = square_and_add(a.auc, a.limits(alpha), b.auc, b.limits(alpha), np.clip(rho, -1, 1))
        low, high = agreeing_with(p, delta, both, alpha)
        return float(low), float(high)

    reason = "no standard error: the difference has no variance on these cases" if no_spread else None
    return Test(delta, se, statistic, df, p, limits, how, p_delong, swap[0], reason)


def _deciding(
    a: Estimate, b: Estimate, sample: Sample, joint: Delong, p_delong: float, swap: tuple[float, str], name: str,
    statistic: float,
) -> tuple[float, str]:  # fmt: skip
    """Return the p that decides, by sizes and ties alone, and the name of its test."""
    if a.constant or b.constant:
        scores = sample.b if a.constant else sample.a
        p = half_test(sample.labels, scores, sample.clusters, sample.strata)
        other = b if a.constant else a
        return (p, "against a constant score: exact, all labelings") if not np.isnan(p) else (
            against_half(other.auc, other.variance).p, "against a constant score: AUC against 0.5"
        )  # fmt: skip
    one_seed = len(sample.a) == len(sample.b) == 1
    few = min(joint.df_pos, joint.df_neg) + 1 < SMALL
    if np.isnan(p_delong) or (one_seed and few and not np.isnan(swap[0])):
        whole = "" if sample.clusters is None else " of patients"
        folds = ", within folds" if sample.strata is not None else ""
        name = f"rank-swap permutation{whole} ({swap[1]}{folds})"
        if few and not np.isnan(statistic) and is_coarse(sample.a, sample.b):
            return max(swap[0], two_sided_p(statistic)), f"{name} or DeLong z, the larger p (few different scores)"
        return swap[0], name
    return p_delong, name


def is_coarse(a: Floats, b: Floats) -> bool:
    """Whether one of the methods gives fewer different scores than half of its cases, such as ratings from 1 to 5.

    Their mid-ranks differ between methods by chance, which makes swapping them reject too often (up to .08).
    """
    return any(np.unique(row).size < 0.5 * row.size for row in (*a, *b))


def against_half(auc: float, variance: Variance, exact: float = np.nan, reason: str | None = None) -> Test:
    """Test one AUC against 0.5: exact where ``exact`` is given (see ``half_test``), else t on the logit scale."""
    delta = auc - 0.5
    if not np.isnan(exact):
        return Test(delta, np.nan, np.nan, np.nan, exact, None, "exact, all labelings")
    if np.isnan(variance.total) or variance.total <= ZERO_VARIANCE or auc in (0.0, 1.0):
        return undefined(delta, reason or "no variance: no test against 0.5")
    se, df = float(np.sqrt(variance.total)), float(variance.df)
    z = float(special.logit(auc) * auc * (1 - auc) / se)
    return Test(delta, se, z, df, two_sided_p(z, df), None, "t on the logit scale")


def margin_p(limits: Limits, low: float | None, high: float | None) -> float:
    """Return twice the smallest one-sided error rate at which the interval lies above ``low`` and below ``high``.

    Non-inferiority gives ``low`` = -margin alone, equivalence both. The p is at most alpha exactly when the 1 - alpha
    interval lies inside.
    """

    def inside(alpha: float) -> bool:
        found = limits(alpha)
        return (low is None or found[0] > low) and (high is None or found[1] < high)

    if not inside(1 - 1e-12):
        return 1.0
    smallest, largest = -40.0, 0.0  # powers of 10
    for _ in range(60):
        middle = (smallest + largest) / 2
        smallest, largest = (smallest, middle) if inside(min(10**middle, 1 - 1e-12)) else (middle, largest)
    return float(10**largest)


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


def holm(p: ArrayLike, family_size: int | None = None) -> Floats:
    """Return Holm's step-down adjusted p values (Scand. J. Statist. 1979), valid under any dependence.

    Args:
        p: raw p values; NaN (test undefined) stays NaN but still counts towards the family that was declared.
        family_size: comparisons declared beforehand, at least ``len(p)``; default ``len(p)``.

    Raises:
        EvidenceError: a p outside [0, 1], or a family smaller than the list.

    Example:
        >>> holm([0.01, 0.04, float("nan")]).tolist()
        [0.03, 0.08, nan]
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


def holm_levels(p: ArrayLike, alpha: float) -> Floats:
    """Return the level at which Holm's procedure tests each p: alpha / (family - rank), or at its first failure's.

    A claim behind the first that fails is not reached; its interval is given at the level of that failure.
    """
    raw = np.asarray(p, dtype=np.float64)
    levels = np.full(raw.size, alpha / max(raw.size, 1))
    order = [i for i in np.argsort(raw, kind="stable") if not np.isnan(raw[i])]
    for rank, i in enumerate(order):
        level = alpha / (raw.size - rank)
        levels[order[rank:]] = level
        if raw[i] > level:
            break
    return levels


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds; its variance over patients (``sampling``) and what the seeds add (``seeds``, at least 0)."""

    mean: float
    sampling: float
    seeds: float
    n_seeds: int

    @property
    def variance(self) -> float:
        """The whole variance."""
        return self.sampling + self.seeds

    @property
    def df(self) -> float:
        """Degrees of freedom of the whole, those over patients counted as infinite."""
        return np.inf if self.seeds == 0 else (self.n_seeds - 1) * (self.variance / self.seeds) ** 2


def mean_over_seeds(values: Floats, covariance: Floats) -> SeedMean:
    """Obuchowski-Rockette analysis (Commun. Stat. 1995) with one modality and seeds as random readers.

    Args:
        values: (R,) AUC, or difference of AUCs, of each seed.
        covariance: (R, R) their covariance over patients (joint DeLong).

    Returns:
        Var = MS / R + max(Cov2, 0), MS the sample variance over seeds and Cov2 the mean covariance of two seeds, but
        at least the DeLong variance of the mean: seeds can only add to it, and with two degrees of freedom MS alone
        is often far too small.
    """
    r = values.size
    mean = float(values.mean())
    sampling = float(covariance.sum()) / r**2
    if r == 1:
        return SeedMean(mean, sampling, 0.0, 1)
    shared = float((covariance.sum() - np.trace(covariance)) / (r * (r - 1)))
    whole = float(values.var(ddof=1)) / r + max(shared, 0.0)
    return SeedMean(mean, sampling, max(whole - sampling, 0.0), r)


def nadeau_bengio(differences: Floats, test_train_ratio: float, *, zero_is_equal: bool = True, name: str = "") -> Test:
    """Corrected resampled t test (Nadeau & Bengio, Machine Learning 2003).

    Args:
        differences: (J,) difference of each resample (or a metric itself, to get its interval).
        test_train_ratio: test cases / training cases.
        zero_is_equal: differences that are all 0 mean equal methods (p = 1). Switch off for a metric itself,
            which may be 0 everywhere without being known to be.
        name: of the test.

    Returns:
        Mean with variance (1/J + ratio) s^2 and t on J - 1 df: the second term pays for resamples sharing
        training patients, which the naive s^2 / J ignores.
    """
    if not test_train_ratio > 0:
        raise EvidenceError(f"test/train ratio must be positive, got {test_train_ratio}.")
    j = differences.size
    mean = float(differences.mean()) if j else np.nan
    if j < 2:
        return undefined(mean, f"{j} resample(s): no variance")
    spread = float(differences.var(ddof=1))
    if spread <= ZERO_VARIANCE:
        if zero_is_equal and not np.any(differences):
            why = "no resample shows a difference"
            return Test(0.0, 0.0, 0.0, j - 1, 1.0, lambda _: (0.0, 0.0), name, reason=why)
        return undefined(mean, "no variance over resamples")
    se = float(np.sqrt((1 / j + test_train_ratio) * spread))

    def limits(alpha: float) -> tuple[float, float]:
        half = float(quantile(1 - alpha / 2, j - 1)) * se
        return mean - half, mean + half

    return Test(mean, se, mean / se, j - 1, two_sided_p(mean / se, j - 1), limits, name)


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


def is_constant(scores: Floats, strata: Ints | None) -> bool:
    """Whether (..., N) scores are one value in every fold: they rank nothing."""
    if strata is None:
        return bool((scores == scores[..., :1]).all())
    return all(is_constant(scores[..., strata == f], None) for f in np.unique(strata))
