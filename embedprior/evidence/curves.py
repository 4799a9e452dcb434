"""ROC and precision-recall curves of a method, averaged over its folds, seeds and resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedprior.evidence.delong import Bools, Floats
from embedprior.evidence.predictions import Block

GRID = 401
Curve = tuple[Floats, Floats]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sweep:
    """True and false positives at every distinct threshold from the highest score down, and the class totals."""

    hits: Floats
    false: Floats
    n_pos: int
    n_neg: int

    def roc(self) -> Curve:
        """Return (false positive rate, sensitivity) from (0, 0) to (1, 1)."""
        return np.append(0.0, self.false / self.n_neg), np.append(0.0, self.hits / self.n_pos)

    def precision_recall(self) -> Curve:
        """Return (recall, precision)."""
        return self.hits / self.n_pos, self.hits / (self.hits + self.false)


def sweep(labels: Bools, scores: Floats) -> Sweep:
    """Sort once and count both classes at every distinct threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    hits = np.cumsum(labels[order])[ends].astype(np.float64)
    n_pos = int(np.count_nonzero(labels))
    return Sweep(hits, ends + 1 - hits, n_pos, labels.size - n_pos)


def sweeps_of(blocks: Sequence[Block], method: str) -> list[Sweep]:
    """Return one sweep per resample, seed and fold that holds both classes."""
    found = []
    for block in blocks:
        fold = np.zeros(block.labels.size, dtype=np.int64) if block.folds is None else block.folds
        for f in range(int(fold.max(initial=0)) + 1):
            inside = fold == f
            labels = block.labels[inside]
            if labels.any() and not labels.all():
                found += [sweep(labels, scores[inside]) for scores in block.scores[method]]
    return found


def mean_roc(sweeps: Sequence[Sweep]) -> Curve | None:
    """Return the ROC curve, several averaged at equal false positive rate; None without any.

    Folds weigh as in the fold-stratified AUC, so the area under the average is that AUC: exactly, or to the width
    of a grid of 401 rates where the curves have thousands of steps.
    """
    curves = [s.roc() for s in sweeps]
    if not curves:
        return None
    if len(curves) == 1 and curves[0][0].size <= 10 * GRID:
        return curves[0]
    exact = sum(fpr.size for fpr, _ in curves) <= 10 * GRID
    grid = np.unique(np.concatenate([fpr for fpr, _ in curves])) if exact else np.linspace(0, 1, GRID)
    share = _shares(sweeps)
    # A step is vertical: each rate stands in the grid twice, once for the foot of the step and once for its head.
    # np.interp takes the last of equal rates, so the feet are read from the other side.
    feet = share @ np.stack([np.interp(-grid, -fpr[::-1], tpr[::-1]) for fpr, tpr in curves])
    heads = share @ np.stack([np.interp(grid, fpr, tpr) for fpr, tpr in curves])
    return np.repeat(grid, 2), np.stack([feet, heads], axis=1).ravel()


def mean_pr(sweeps: Sequence[Sweep]) -> Curve | None:
    """Return the precision-recall curve, several averaged at equal recall; None without any.

    Between thresholds the precision of the next higher recall is taken, as average precision does.
    """
    grid = np.linspace(0, 1, GRID)
    if len(sweeps) == 1 and sweeps[0].hits.size <= 10 * GRID:
        return sweeps[0].precision_recall()
    return _average(sweeps, grid, [_precision_at(grid, *s.precision_recall()) for s in sweeps])


def roc_band(
    parts: Sequence[tuple[Bools, Floats, IntArray]], alpha: float = 0.05, replicates: int = 200, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Return (false positive rate, lower, upper sensitivity): a pointwise band of ``mean_roc`` by resampled patients.

    Patients are drawn with replacement within their class, and keep all their cases in every part. Pointwise: at each
    rate by itself the curve lies inside with probability 1 - alpha, not everywhere at once.

    Args:
        parts: labels, scores and patient number (0, 1, …, the same in every part) of each fold, seed and resample.
        alpha, replicates, seed: of the band.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> labels = np.arange(60) % 2 == 0
        >>> grid, low, high = roc_band([(labels, labels + rng.normal(size=60), np.arange(60))])
        >>> bool((low <= high).all()), grid.size
        (True, 101)
    """
    grid = np.linspace(0, 1, 101)
    both = [part for part in parts if part[0].any() and not part[0].all()]
    count = 1 + max(int(patients.max()) for _, _, patients in parts)
    positive = np.zeros(count, dtype=bool)
    there = np.zeros(count, dtype=bool)
    for labels, _, patients in parts:
        there[patients] = True
        positive[patients[labels]] = True
    rng = np.random.default_rng(seed)
    drawn = np.zeros((replicates, count))
    for group in (np.flatnonzero(there & positive), np.flatnonzero(there & ~positive)):
        if group.size:
            drawn[:, group] = rng.multinomial(group.size, np.full(group.size, 1 / group.size), size=replicates)
    total, weights = np.zeros((replicates, grid.size)), np.zeros(replicates)
    for labels, scores, patients in both:
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), order.size - 1)
        weight = drawn[:, patients[order]]
        hits, false = (np.cumsum(weight * of, axis=1)[:, ends] for of in (labels[order], ~labels[order]))
        share = hits[:, -1] * false[:, -1]
        for i in np.flatnonzero(share):
            fpr, tpr = np.append(0.0, false[i] / false[i, -1]), np.append(0.0, hits[i] / hits[i, -1])
            total[i] += share[i] * np.interp(grid, fpr, tpr)
        weights += share
    curves = total[weights > 0] / weights[weights > 0, None]
    low, high = np.quantile(curves, [alpha / 2, 1 - alpha / 2], axis=0)
    return grid, low, high


def _average(sweeps: Sequence[Sweep], grid: Floats, curves: list[Floats]) -> Curve | None:
    if not curves:
        return None
    return grid, _shares(sweeps) @ np.stack(curves)


def _shares(sweeps: Sequence[Sweep]) -> Floats:
    weights = np.array([s.n_pos * s.n_neg for s in sweeps], dtype=np.float64)
    return np.asarray(weights / weights.sum())


def _precision_at(grid: Floats, recall: Floats, precision: Floats) -> Floats:
    read: Floats = precision[np.minimum(np.searchsorted(recall, grid - 1e-12), recall.size - 1)]
    return read
