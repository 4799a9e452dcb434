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
        positive_part, negative_part: (k, k) shares of the covariance owed to sampling positives and negatives
            (unclustered: they add up to ``covariance``).
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
    n_pos: int
    n_neg: int
    n_clusters: int
    independent_pairs: int
    reason: str | None


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
        strata: (N,) fold of each case; pairs are formed within a fold only, A = sum_f w_f A_f and
            Cov = sum_f w_f^2 Cov_f with w_f proportional to m_f n_f. A patient must lie in one fold.

    Raises:
        EvidenceError: non-binary labels, NaN or infinite scores, unequal lengths, a cluster in two strata.
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
        return _one_stratum(positive, matrix, patient)
    fold = _codes(strata, positive.size, "strata")
    if patient is not None:
        first_fold = np.full(int(patient.max(initial=-1)) + 1, -1)
        first_fold[patient] = fold
        if (first_fold[patient] != fold).any():
            raise EvidenceError(
                "a cluster (patient) lies in more than one stratum (fold): folds must not share patients."
            )
    parts = [
        _one_stratum(positive[fold == f], matrix[:, fold == f], None if patient is None else patient[fold == f])
        for f in range(int(fold.max(initial=-1)) + 1)
    ]
    return _combine(parts, len(matrix))


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


def _one_stratum(positive: Bools, matrix: Floats, patient: Ints | None) -> Delong:
    k = len(matrix)
    m = int(np.count_nonzero(positive))
    n = positive.size - m
    n_units = positive.size if patient is None else n_distinct(patient)
    undefined = np.full((k, k), np.nan)
    if m == 0 or n == 0:
        present = "no cases" if m + n == 0 else f"only {'negatives' if m == 0 else 'positives'} ({m + n})"
        reason = f"AUC undefined: {present}"
        return Delong(np.full(k, np.nan), undefined, undefined, undefined, m, n, n_units, 0, reason)
    v10, v01 = placements(positive, matrix)
    auc = v10.mean(axis=1)
    v10 -= auc[:, None]
    v01 -= auc[:, None]
    if patient is None:
        if min(m, n) < 2:
            return Delong(auc, undefined, undefined, undefined, m, n, n_units, min(m, n), _too_few(m, n, "case"))
        from_positives: Floats = v10 @ v10.T / ((m - 1) * m)
        from_negatives: Floats = v01 @ v01.T / ((n - 1) * n)
        both = from_positives + from_negatives
        return Delong(auc, both, from_positives, from_negatives, m, n, n_units, min(m, n), None)
    size = int(patient.max()) + 1
    with_positive = n_distinct(patient[positive])
    with_negative = n_distinct(patient[~positive])
    pairs = min(with_positive, with_negative)
    if pairs < 2:
        reason = _too_few(with_positive, with_negative, "patient")
        return Delong(auc, undefined, undefined, undefined, m, n, n_units, pairs, reason)
    sums_pos: Floats = np.stack([np.bincount(patient[positive], weights=row, minlength=size) for row in v10])
    sums_neg: Floats = np.stack([np.bincount(patient[~positive], weights=row, minlength=size) for row in v01])
    from_positives = np.asarray(sums_pos @ sums_pos.T) * (with_positive / ((with_positive - 1) * m * m))
    from_negatives = np.asarray(sums_neg @ sums_neg.T) * (with_negative / ((with_negative - 1) * n * n))
    mixed = np.asarray(sums_pos @ sums_neg.T) * (n_units / ((n_units - 1) * m * n))
    covariance = from_positives + from_negatives + mixed + mixed.T
    return Delong(auc, covariance, from_positives, from_negatives, m, n, n_units, pairs, None)


def _combine(parts: list[Delong], k: int) -> Delong:
    m, n = sum(p.n_pos for p in parts), sum(p.n_neg for p in parts)
    units = sum(p.n_clusters for p in parts)
    paired = [p for p in parts if p.n_pos and p.n_neg]
    undefined = np.full((k, k), np.nan)
    if not paired:
        reason = "AUC undefined: no fold holds both classes"
        return Delong(np.full(k, np.nan), undefined, undefined, undefined, m, n, units, 0, reason)
    weights = np.array([p.n_pos * p.n_neg for p in paired], dtype=np.float64)
    weights /= weights.sum()
    squares = weights**2
    lacking = [p for p in paired if p.reason is not None]
    return Delong(
        auc=np.einsum("f,fk->k", weights, np.stack([p.auc for p in paired])),
        covariance=np.einsum("f,fij->ij", squares, np.stack([p.covariance for p in paired])),
        positive_part=np.einsum("f,fij->ij", squares, np.stack([p.positive_part for p in paired])),
        negative_part=np.einsum("f,fij->ij", squares, np.stack([p.negative_part for p in paired])),
        n_pos=m,
        n_neg=n,
        n_clusters=units,
        independent_pairs=sum(p.independent_pairs for p in paired),
        reason=f"{len(lacking)} of {len(parts)} folds: {lacking[0].reason}" if lacking else None,
    )


def _too_few(m: int, n: int, unit: str) -> str:
    return f"no variance: {m} positive and {n} negative {unit}s; at least 2 of each are needed"


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
