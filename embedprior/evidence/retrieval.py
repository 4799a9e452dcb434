"""Retrieval between two sets of embeddings: recall@k and label overlap@k, ties counted by their exact expectation.

A query is an exam of one kind (a radiograph), the gallery holds exams of another (CTs). An exam of the gallery is a
*target* of a query when both bear the same key: the patient, or the scan. The patient is the unit: queries are averaged
within a patient, and patients are averaged with equal weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from embedprior.evidence.delong import Floats, Ints
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import bounded_mean, square_and_add

TIE = 1e-12
"""Similarities this close are equal: more than the rounding of float64, less than any real difference."""
BLOCK = 4_000_000
"""Similarities held in memory at a time."""


@dataclass(frozen=True)
class Ranks:
    """Where the best target of each query stands in the gallery.

    Attributes:
        above: (Q,) exams of the gallery that are more similar than the best target.
        tied: (Q,) exams exactly as similar as the best target, itself counted.
        tied_targets: (Q,) how many of these are targets.
        targets: (Q,) targets in the gallery; 0 = the query can't be answered.
        gallery: exams in the gallery.

    Example:
        >>> found = Ranks(np.array([0, 1]), np.array([1, 4]), np.array([1, 2]), np.array([1, 2]), 6)
        >>> found.hits(1).tolist(), found.hits(2).tolist()  # of 4 equals 2 are targets, one of the 4 comes second
        ([1.0, 0.0], [1.0, 0.5])
    """

    above: Ints
    tied: Ints
    tied_targets: Ints
    targets: Ints
    gallery: int

    def hits(self, k: int) -> Floats:
        """Return (Q,) the probability that a target is among the first ``k``, equals in random order.

        NaN where there is no target. With G above, E equals of which T are targets, and G < k < G + E, it is
        1 − C(E − T, k − G) / C(E, k − G).
        """
        drawn = np.clip(k - self.above, 0, self.tied)
        found = 1 - _none_among(self.tied, self.tied_targets, drawn)
        return np.where(self.targets > 0, found, np.nan)

    def chance(self, k: int) -> Floats:
        """Return (Q,) the same probability for a random order of the whole gallery: 1 − C(N − t, k) / C(N, k)."""
        whole = np.full(self.targets.shape, self.gallery)
        found = 1 - _none_among(whole, self.targets, np.minimum(k, whole))
        return np.where(self.targets > 0, found, np.nan)

    @property
    def expected(self) -> Floats:
        """(Q,) expected rank of the first target, 1 = best; NaN where there is no target."""
        found = self.above + (self.tied + 1) / (self.tied_targets + 1)
        return np.where(self.targets > 0, found, np.nan)


def unit_rows(embeddings: ArrayLike, what: str) -> Floats:
    """Return rows of length 1 (float64).

    Raises:
        EvidenceError: not a matrix, a number that is not finite, or a row of zeros.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise EvidenceError(f"the embeddings of the {what} have shape {rows.shape}; give (exams, dim), 1 exam or more.")
    if not np.isfinite(rows).all():
        raise EvidenceError(f"an embedding of the {what} holds NaN or infinity (row {_first(~np.isfinite(rows))}).")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (length > 0).all():
        raise EvidenceError(f"an embedding of the {what} is zero (row {_first(length == 0)}): it has no direction.")
    return np.asarray(rows / length)


def rank_targets(queries: ArrayLike, gallery: ArrayLike, query_keys: ArrayLike, gallery_keys: ArrayLike) -> Ranks:
    """Rank the gallery by cosine similarity for every query, and find its best target.

    Args:
        queries: (Q, D), normalised here.
        gallery: (N, D), each exam once.
        query_keys, gallery_keys: what makes an exam of the gallery a target (patient, or scan).

    Raises:
        EvidenceError: embeddings that can't be used, of unequal width, or keys of another number.

    Example:
        >>> eye = np.eye(3)
        >>> rank_targets(eye, eye, ["a", "b", "c"], ["a", "c", "b"]).above.tolist()
        [0, 1, 1]
    """
    left, right = _sides(queries, gallery)
    asked, have = _codes(query_keys, gallery_keys, len(left), len(right))
    above, tied, tied_targets = (np.zeros(len(left), dtype=np.int64) for _ in range(3))
    targets = np.bincount(have, minlength=int(asked.max()) + 1)[asked]
    for rows in _blocks(len(left), len(right)):
        similarity = left[rows] @ right.T
        target = asked[rows, None] == have[None, :]
        best = np.where(target, similarity, -np.inf).max(axis=1, keepdims=True)
        equal = np.abs(similarity - best) <= TIE
        above[rows] = (similarity > best + TIE).sum(axis=1)
        tied[rows] = equal.sum(axis=1)
        tied_targets[rows] = (equal & target).sum(axis=1)
    return Ranks(above, tied, tied_targets, targets, len(right))


def label_overlap(
    queries: ArrayLike, gallery: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike, ks: Sequence[int]
) -> tuple[dict[int, Floats], Floats]:
    """Return the mean Jaccard index of labels among each query's first k, and its expectation by chance.

    |both positive| / |either positive|, over the labels known in both; 1 where neither has a finding. Exams with no
    label known in both are left out. Equals at rank k share the places that are left. X2CT-CLIP (arXiv 2503.02162)
    prints this as "mAP@k".

    Args:
        queries, gallery: (Q, D) and (N, D).
        query_labels, gallery_labels: (Q, L) and (N, L): 1, 0, or NaN where unknown.
        ks: how many are retrieved.

    Returns:
        k → (Q,) mean over the first k; and (Q,) the mean over the whole gallery, which is that of a random order.
        NaN where no label is known in both.

    Raises:
        EvidenceError: as ``rank_targets``, or label tables that do not fit.
    """
    left, right = _sides(queries, gallery)
    asked, have = np.asarray(query_labels, dtype=np.float64), np.asarray(gallery_labels, dtype=np.float64)
    if asked.shape != (len(left), have.shape[-1]) or have.shape[0] != len(right) or not have.shape[-1]:
        raise EvidenceError(
            f"labels have shapes {asked.shape} and {have.shape}; give one row an exam, the same labels."
        )
    found = {k: np.empty(len(left)) for k in ks}
    chance = np.empty(len(left))
    for rows in _blocks(len(left), len(right)):
        overlap, counted = _jaccard(asked[rows], have)
        chance[rows] = _share(overlap.sum(axis=1), counted.sum(axis=1))
        similarity = left[rows] @ right.T
        for k in ks:
            taken = min(k, len(right))
            last = np.partition(similarity, len(right) - taken, axis=1)[:, [len(right) - taken]]
            over, equal = similarity > last + TIE, np.abs(similarity - last) <= TIE
            share = (taken - over.sum(axis=1)) / equal.sum(axis=1)
            place = over + share[:, None] * equal
            found[k][rows] = _share((overlap * place).sum(axis=1), (counted * place).sum(axis=1))
    return found, chance


@dataclass(frozen=True)
class Mean:
    """A mean over patients with its interval (``intervals.bounded_mean``).

    Attributes:
        value: the mean.
        low, high: limits; NaN where fewer than 2 patients take part.
        each: (P,) mean of every patient, for paired differences.
        patients: (P,) that take part, ascending.
    """

    value: float
    low: float
    high: float
    each: Floats
    patients: NDArray[np.str_]


def patient_mean(values: Floats, patients: ArrayLike, alpha: float = 0.05) -> Mean:
    """Average queries within patients, then patients; NaN queries (without a target) are left out.

    Patients count as independent: that they share a gallery is not in the interval.
    ``tools/bench/transfer_coverage.py`` draws galleries anew, and measures what that costs.

    Args:
        values: (Q,) in [0, 1].
        patients: (Q,) of each query.
        alpha: 1 − confidence.

    Raises:
        EvidenceError: no query has a value.

    Example:
        >>> found = patient_mean(np.array([1.0, 0.0, 1.0]), ["a", "a", "b"])
        >>> found.value
        0.75
    """
    known = ~np.isnan(values)
    if not known.any():
        raise EvidenceError("no query has a target in the gallery: nothing to average.")
    names, codes = np.unique(np.asarray(patients, dtype=object).astype(str)[known], return_inverse=True)
    each = np.bincount(codes, weights=values[known]) / np.bincount(codes)
    return Mean(float(each.mean()), *bounded_mean(each, alpha), each, names)


def difference(first: Mean, second: Mean) -> tuple[float, float, float]:
    """Return first − second with its limits: those of both means and their correlation (``square_and_add``).

    Raises:
        EvidenceError: they are means over different patients.
    """
    if not np.array_equal(first.patients, second.patients):
        raise EvidenceError("the two means are over different patients: a paired difference needs the same.")
    apart = first.value - second.value
    if np.isnan(first.low):
        return apart, np.nan, np.nan
    spreads = first.each.std() * second.each.std()
    covariance = np.mean((first.each - first.value) * (second.each - second.value))
    correlation = float(covariance / spreads) if spreads > 0 else 0.0
    limits = square_and_add(
        first.value, (first.low, first.high), second.value, (second.low, second.high), correlation
    )  # fmt: skip
    return apart, float(limits[0]), float(limits[1])


def _none_among(whole: Ints, targets: Ints, drawn: Ints) -> Floats:
    """C(whole − targets, drawn) / C(whole, drawn): no target among those drawn; 0 where they can't all miss."""
    others = whole - targets
    possible = drawn <= others
    rest = np.where(possible, others - drawn, 0)
    logs = gammaln(others + 1) - gammaln(rest + 1) - gammaln(whole + 1) + gammaln(whole - drawn + 1)
    return np.asarray(np.where(possible, np.exp(np.minimum(logs, 0.0)), 0.0), dtype=np.float64)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0), dtype=np.float64)


def _jaccard(asked: Floats, have: Floats) -> tuple[Floats, Floats]:
    """Jaccard index of every pair, 0 where no label is known in both; and 1 or 0, whether one is."""
    known_asked, known_have = (~np.isnan(asked)).astype(float), (~np.isnan(have)).astype(float)
    one_asked, one_have = np.nan_to_num(asked), np.nan_to_num(have)
    both = one_asked @ one_have.T
    either = one_asked @ known_have.T + known_asked @ one_have.T - both
    counted: Floats = (known_asked @ known_have.T > 0).astype(np.float64)
    found: Floats = np.divide(both, either, out=counted.copy(), where=either > 0)
    return found, counted


def _sides(queries: ArrayLike, gallery: ArrayLike) -> tuple[Floats, Floats]:
    left, right = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    if left.shape[1] != right.shape[1]:
        raise EvidenceError(
            f"queries have {left.shape[1]} numbers and the gallery {right.shape[1]}: they lie in different spaces. "
            "Align them first (train alignment), or generate CT embeddings from the radiographs."
        )
    return left, right


def _codes(query_keys: ArrayLike, gallery_keys: ArrayLike, queries: int, gallery: int) -> tuple[Ints, Ints]:
    asked, have = (np.asarray(keys, dtype=object).astype(str) for keys in (query_keys, gallery_keys))
    if asked.shape != (queries,) or have.shape != (gallery,):
        raise EvidenceError(f"{asked.size} and {have.size} keys for {queries} queries and {gallery} exams: one each.")
    codes = np.unique(np.concatenate([asked, have]), return_inverse=True)[1].astype(np.int64)
    return codes[:queries], codes[queries:]


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(columns, 1))
    yield from (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _first(bad: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(bad.any(axis=1))[0])
