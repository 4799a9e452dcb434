"""AUCs of several models on the same cases with their joint covariance.

Placement values and the covariance are DeLong, DeLong & Clarke-Pearson (Biometrics 1988); mid-ranks make
them O(N log N) (Sun & Xu, IEEE SPL 2014); the clustered covariance is Obuchowski (Biometrics 1997). Models
are treated as fixed: the variance says nothing about the choice of training cases (see ``inference``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedprior.evidence.errors import EvidenceError

Ints = NDArray[np.int64]


def n_distinct(codes: Ints) -> int:
    """Return how many different codes occur."""
    return int(np.count_nonzero(np.bincount(codes)))


def renumber(codes: Ints) -> tuple[Ints, Ints]:
    """Return the codes that occur, ascending, and every code's position among them."""
    occurs = np.bincount(codes) > 0
    position = np.cumsum(occurs) - 1
    return np.flatnonzero(occurs), position[codes]


def first_rows(positions: Ints, n: int) -> Ints:
    """Return, for each of ``n`` positions, the first row that has it."""
    first = np.empty(n, dtype=np.int64)
    first[positions[::-1]] = np.arange(positions.size)[::-1]
    return first


Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Delong:
    """Joint AUC estimate of k models.

    Attributes:
        auc: (k,) AUCs; NaN when a class is missing.
        covariance: (k, k) covariance of ``auc``; NaN when undefined.
        positive_part, negative_part: (k, k) shares of the covariance that come from sampling positives and negatives
            (they add up to ``covariance`` unless patients have cases of both classes).
        df_pos, df_neg: degrees of freedom of these parts: patients (without clusters: cases) of the class that form
            pairs, minus the number of means they are centred at (1, or the folds).
        n_pos, n_neg: cases of each class.
        n_clusters: independent units (patients); equals the number of cases without clusters.
        independent_pairs: positive-negative pairs no two of which share a unit: min(m, n) without clusters or
            strata; the exponent of the bound for an AUC of exactly 0 or 1.
        reason: why ``auc`` or ``covariance`` is NaN, else None.
    """

    auc: Floats
    covariance: Floats
    positive_part: Floats
    negative_part: Floats
    df_pos: float
    df_neg: float
    n_pos: int
    n_neg: int
    n_clusters: int
    independent_pairs: int
    reason: str | None

    def variance(self, weights: Floats) -> Variance:
        """Return the variance of a linear combination ``weights @ auc``, in its parts."""
        whole, positive, negative = (
            float(weights @ part @ weights) for part in (self.covariance, self.positive_part, self.negative_part)
        )
        return Variance(positive, negative, self.df_pos, self.df_neg, whole - positive - negative)


@dataclass(frozen=True)
class Variance:
    """Variance of an AUC, or of a difference of AUCs, by where it comes from. Numbers, or arrays of equal shape.

    Attributes:
        positive, negative: shares of sampling positives and negatives. df_pos, df_neg: their degrees of freedom.
        mixed: what patients with cases of both classes add (twice their covariance).
        seeds: what the choice of training seeds adds to it. df_seeds: seeds minus 1.
    """

    positive: Any
    negative: Any
    df_pos: Any
    df_neg: Any
    mixed: Any = 0.0
    seeds: Any = 0.0
    df_seeds: Any = 1.0

    @property
    def total(self) -> Any:
        """The whole variance."""
        return self.positive + self.negative + self.mixed + self.seeds

    @property
    def df(self) -> Any:
        """Degrees of freedom of the whole (Satterthwaite, Biometrics 1946); at least 1."""
        parts = (self.positive, self.df_pos), (self.negative, self.df_neg), (self.seeds, self.df_seeds)
        with np.errstate(divide="ignore", invalid="ignore"):
            df = np.asarray(sum(p for p, _ in parts) ** 2) / sum(p**2 / d for p, d in parts)
        return np.where(np.isfinite(df), np.maximum(df, 1.0), 1.0)[()]


def other_class_below(scores: Floats, positive: Bools) -> Floats:
    """Count, for every case, the cases of the other class that score lower, ties counting one half.

    Args:
        scores: (N,) finite scores.
        positive: (N,) True for positives.

    Returns:
        (N,) counts; one sort, the rest is linear.
    """
    order = np.argsort(scores)
    ranked = scores[order]
    ranked_positive = positive[order]
    positives_upto = np.cumsum(ranked_positive)
    starts_group = ranked[1:] != ranked[:-1]
    if starts_group.all():
        below = np.arange(1, scores.size + 1) - positives_upto
        np.copyto(below, positives_upto, where=~ranked_positive)
        counts = np.empty(scores.size)
        counts[order] = below
        return counts
    ends = np.append(np.flatnonzero(starts_group), scores.size - 1)
    sizes = np.diff(ends, prepend=-1)
    group_positives = np.diff(positives_upto[ends], prepend=0)
    positives_below = positives_upto[ends] - 0.5 * group_positives
    negatives_below = (ends + 1 - positives_upto[ends]) - 0.5 * (sizes - group_positives)
    counts = np.empty(scores.size)
    counts[order] = np.where(ranked_positive, np.repeat(negatives_below, sizes), np.repeat(positives_below, sizes))
    return counts


def placements(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return the placement values of positives (k, m) and negatives (k, n) for scores (k, N).

    ``v10[r, i]`` is the share of negatives below positive i, ``v01[r, j]`` the share of positives above
    negative j; the mean of either is the AUC of model r. Both classes must be present.
    """
    at_positive, at_negative = np.flatnonzero(positive), np.flatnonzero(~positive)
    m, n = at_positive.size, at_negative.size
    v10, v01 = np.empty((len(scores), m)), np.empty((len(scores), n))
    for r, row in enumerate(scores):
        below = other_class_below(row, positive)
        np.divide(below[at_positive], n, out=v10[r])
        np.divide(below[at_negative], -m, out=v01[r])
        v01[r] += 1.0
    return v10, v01


def delong(
    labels: ArrayLike, scores: ArrayLike, clusters: ArrayLike | None = None, strata: ArrayLike | None = None
) -> Delong:
    """AUCs of k models on one case list with their k x k covariance.

    Args:
        labels: (N,) 0/1 or bool.
        scores: (N,) or (k, N); higher means more positive. Computed in float64.
        clusters: (N,) patient of each case; the covariance then allows for several cases per patient
            (Obuchowski 1997), and equals DeLong's when every patient has one case.
        strata: (N,) fold of each case; pairs are formed within a fold only, A = sum_f w_f A_f with w_f proportional
            to m_f n_f; the variance of placements is pooled within folds. A patient must lie in one fold.

    Raises:
        EvidenceError: non-binary labels, NaN or infinite scores, unequal lengths, a cluster in two strata.

    Example:
        >>> result = delong([0, 0, 1, 1], [[0.1, 0.4, 0.35, 0.8], [0.1, 0.2, 0.3, 0.4]])
        >>> result.auc.tolist()
        [0.75, 1.0]
    """
    positive = _as_binary(labels)
    matrix = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != positive.size:
        raise EvidenceError(f"scores have shape {matrix.shape}, but there are {positive.size} labels; give (k, N).")
    if not np.isfinite(matrix).all():
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=0))[:5].tolist()
        raise EvidenceError(f"scores must be finite; NaN or infinite at case positions {bad}.")
    patient = None if clusters is None else _codes(clusters, positive.size, "clusters")
    if strata is None:
        return _combine([_stratum(positive, matrix, patient)], len(matrix), "case" if patient is None else "patient")
    fold = _codes(strata, positive.size, "strata")
    if patient is not None:
        first_fold = np.full(int(patient.max(initial=-1)) + 1, -1)
        first_fold[patient] = fold
        if (first_fold[patient] != fold).any():
            raise EvidenceError(
                "a cluster (patient) lies in more than one stratum (fold): folds must not share patients."
            )
    parts = [
        _stratum(positive[fold == f], matrix[:, fold == f], None if patient is None else patient[fold == f])
        for f in range(int(fold.max(initial=-1)) + 1)
    ]
    return _combine(parts, len(matrix), "case" if patient is None else "patient")


def influence(labels: ArrayLike, scores: ArrayLike, strata: ArrayLike | None = None) -> Floats:
    """Return the (k, N) empirical influence of every case on the (fold-stratified) AUC.

    Summed within patients, the outer products estimate covariances between AUCs of *different labels*, whose
    positives differ and for which DeLong's form is not defined. Rows add up to zero.
    """
    positive = _as_binary(labels)
    matrix = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    fold = np.zeros(positive.size, dtype=np.int64) if strata is None else _codes(strata, positive.size, "strata")
    psi = np.zeros(matrix.shape)
    pairs_total = 0.0
    for f in range(int(fold.max(initial=-1)) + 1):
        inside = np.flatnonzero(fold == f)
        here = positive[inside]
        m, n = int(here.sum()), int((~here).sum())
        if m == 0 or n == 0:
            continue
        v10, v01 = placements(here, matrix[:, inside])
        psi[:, inside[here]] = (v10 - v10.mean(axis=1, keepdims=True)) * n
        psi[:, inside[~here]] = (v01 - v01.mean(axis=1, keepdims=True)) * m
        pairs_total += m * n
    return psi / pairs_total


#: Degrees of freedom that centring at every fold's own AUC must leave; below, placements are centred at the AUC over
#: all folds, which is defined from two patients of a class on and can only be larger.
MIN_DF_WITHIN_FOLDS = 3


@dataclass(frozen=True)
class _Stratum:
    """Placement sums of one fold; ``units_*`` are its patients (or cases) with a case of that class.

    ``sums_*`` (k, units) are sums of placements minus the fold's AUC within units, ``cases_*`` (units,) the cases
    behind them. ``mixed`` (k, k) adds up positive sums times negative sums of the same patient.
    """

    n_pos: int
    n_neg: int
    n_units: int
    auc: Floats
    wins: Floats
    sums_pos: Floats
    sums_neg: Floats
    cases_pos: Floats
    cases_neg: Floats
    mixed: Floats


def _stratum(positive: Bools, matrix: Floats, patient: Ints | None) -> _Stratum:
    k = len(matrix)
    m = int(np.count_nonzero(positive))
    n = positive.size - m
    n_units = positive.size if patient is None else n_distinct(patient)
    none, zero = np.zeros((k, 0)), np.zeros((k, k))
    if m == 0 or n == 0:
        return _Stratum(m, n, n_units, np.full(k, np.nan), np.zeros(k), none, none, none[0], none[0], zero)
    v10, v01 = placements(positive, matrix)
    wins = np.rint(2 * n * v10).sum(axis=1) / 2  # ties count one half: exact, so that a perfect AUC is exactly 1
    auc = wins / (m * n)
    v10 -= auc[:, None]
    v01 -= auc[:, None]
    if patient is None:
        return _Stratum(m, n, n_units, auc, wins, v10, v01, np.ones(m), np.ones(n), zero)
    size = int(patient.max()) + 1
    of_pos, of_neg = patient[positive], patient[~positive]
    sums_pos: Floats = np.array([np.bincount(of_pos, weights=row, minlength=size) for row in v10], dtype=np.float64)
    sums_neg: Floats = np.array([np.bincount(of_neg, weights=row, minlength=size) for row in v01], dtype=np.float64)
    cases_pos: Floats = np.bincount(of_pos, minlength=size).astype(np.float64)
    cases_neg: Floats = np.bincount(of_neg, minlength=size).astype(np.float64)
    has_pos, has_neg = cases_pos > 0, cases_neg > 0
    return _Stratum(
        m, n, n_units, auc, wins, sums_pos[:, has_pos], sums_neg[:, has_neg], cases_pos[has_pos], cases_neg[has_neg],
        np.asarray(sums_pos @ sums_neg.T),
    )  # fmt: skip


def _combine(strata: list[_Stratum], k: int, unit: str) -> Delong:
    """Weight the folds' AUCs by their pairs; pool the variance of placements within folds.

    Pooling (one variance for all folds, with patients minus folds degrees of freedom) equals the weighted sum of the
    folds' own variances when folds are alike, and is defined where a fold holds a single positive.
    """
    m, n = sum(s.n_pos for s in strata), sum(s.n_neg for s in strata)
    n_units = sum(s.n_units for s in strata)
    paired = [s for s in strata if s.n_pos and s.n_neg]
    undefined = np.full((k, k), np.nan)
    if not paired:
        if len(strata) > 1:
            reason = "AUC undefined: no fold holds both classes"
        else:
            present = "no cases" if m + n == 0 else f"only {'negatives' if m == 0 else 'positives'} ({m + n})"
            reason = f"AUC undefined: {present}"
        return Delong(np.full(k, np.nan), undefined, undefined, undefined, 0, 0, m, n, n_units, 0, reason)
    pairs = float(sum(s.n_pos * s.n_neg for s in paired))
    auc = np.sum([s.wins for s in paired], axis=0) / pairs
    independent = sum(min(s.cases_pos.size, s.cases_neg.size) for s in paired)
    units_pos, units_neg = sum(s.cases_pos.size for s in paired), sum(s.cases_neg.size for s in paired)
    if min(units_pos, units_neg) < 2:
        reason = f"no variance: {units_pos} positive and {units_neg} negative {unit}s; at least 2 of each are needed"
        return Delong(auc, undefined, undefined, undefined, 0, 0, m, n, n_units, independent, reason)
    positive_part, df_pos = _pooled(
        [(s.sums_pos, s.cases_pos, s.auc, s.n_neg / pairs) for s in paired], auc, units_pos, len(paired)
    )
    negative_part, df_neg = _pooled(
        [(s.sums_neg, s.cases_neg, s.auc, s.n_pos / pairs) for s in paired], auc, units_neg, len(paired)
    )
    taking_part = sum(s.n_units for s in paired)
    mixed = np.sum([s.n_pos * s.n_neg * s.mixed for s in paired], axis=0) / pairs**2
    mixed *= taking_part / max(taking_part - len(paired), 1)
    covariance = positive_part + negative_part + mixed + mixed.T
    return Delong(auc, covariance, positive_part, negative_part, df_pos, df_neg, m, n, n_units, independent, None)


def _pooled(
    folds: list[tuple[Floats, Floats, Floats, float]], auc: Floats, units: int, n_folds: int
) -> tuple[Floats, float]:
    """Return the covariance (k, k) that one class adds and its degrees of freedom.

    Args:
        folds: (sums, cases, AUC of the fold, weight of one case) of every fold.
        auc: (k,) over all folds. units: patients (cases) of the class. n_folds: folds with pairs.
    """
    within = units - n_folds
    if n_folds == 1 or within >= MIN_DF_WITHIN_FOLDS:
        spread = sum((sums @ sums.T for sums, _, _, _ in folds), np.zeros((auc.size, auc.size)))
    else:
        within = units - 1
        shifted = [sums + cases * (own - auc)[:, None] for sums, cases, own, _ in folds]
        spread = sum((sums @ sums.T for sums in shifted), np.zeros((auc.size, auc.size)))
    weight = sum(w**2 * cases.size for _, cases, _, w in folds)
    return np.asarray(spread * (weight / within)), float(within)


def _as_binary(labels: ArrayLike) -> Bools:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise EvidenceError(f"labels have shape {array.shape}; give one label per case.")
    if array.dtype == np.bool_:
        return array
    values: NDArray[Any] = np.asarray(array, dtype=np.float64)
    bad = (values != 0) & (values != 1)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise EvidenceError(f"labels must be 0 or 1; case position {at} has {array[at]!r}.")
    return np.asarray(values == 1, dtype=np.bool_)


def _codes(values: ArrayLike, n: int, name: str) -> Ints:
    array = np.asarray(values)
    if array.shape != (n,):
        raise EvidenceError(f"{name} have shape {array.shape}, but there are {n} labels.")
    if array.dtype.kind == "i" and array.size and array.min() >= 0 and array.max() < 100 * n:
        return renumber(array)[1]
    return np.asarray(np.unique(array, return_inverse=True)[1], dtype=np.int64)
