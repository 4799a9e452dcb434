"""ROC and precision-recall curves of a method, averaged over its folds, seeds and resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedprior.evidence.delong import Bools, Floats
from embedprior.evidence.predictions import Block

GRID = 401


def roc_points(labels: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return (false positive rate, sensitivity) at every distinct threshold, from (0, 0) to (1, 1)."""
    hits, false, _ = _sweep(labels, scores)
    return np.append(0.0, false / (~labels).sum()), np.append(0.0, hits / labels.sum())


def pr_points(labels: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return (recall, precision) at every distinct threshold, from the highest score down."""
    hits, false, _ = _sweep(labels, scores)
    return hits / labels.sum(), hits / (hits + false)


def mean_roc(blocks: Sequence[Block], method: str) -> tuple[Floats, Floats] | None:
    """Return the ROC curve of a method; over folds, seeds and resamples the vertical average.

    Folds weigh as in the fold-stratified AUC, so the area under the average is that AUC. None when no fold holds
    both classes.
    """
    grid = np.linspace(0, 1, GRID)
    return _average(blocks, method, grid, lambda y, s: _sensitivity_at(grid, *roc_points(y, s)), roc_points)


def mean_pr(blocks: Sequence[Block], method: str) -> tuple[Floats, Floats] | None:
    """Return the precision-recall curve of a method; over folds, seeds and resamples the average at equal recall.

    Between thresholds the precision of the next higher recall is taken, as average precision does.
    """
    grid = np.linspace(0, 1, GRID)

    def at_grid(labels: Bools, scores: Floats) -> Floats:
        recall, precision = pr_points(labels, scores)
        return precision[np.minimum(np.searchsorted(recall, grid - 1e-12), recall.size - 1)]

    return _average(blocks, method, grid, at_grid, pr_points)


def _average(
    blocks: Sequence[Block],
    method: str,
    grid: Floats,
    at_grid: Callable[[Bools, Floats], Floats],
    exact: Callable[[Bools, Floats], tuple[Floats, Floats]],
) -> tuple[Floats, Floats] | None:
    weights, parts = [], []
    for block in blocks:
        for scores in block.scores[method]:
            fold = np.zeros(block.labels.size, dtype=np.int64) if block.folds is None else block.folds
            for f in range(int(fold.max(initial=0)) + 1):
                labels = block.labels[fold == f]
                positives = int(labels.sum())
                if 0 < positives < labels.size:
                    parts.append((labels, scores[fold == f]))
                    weights.append(positives * (labels.size - positives))
    if not parts:
        return None
    if len(parts) == 1 and parts[0][0].size <= 10 * GRID:
        return exact(*parts[0])
    curves = [at_grid(*part) for part in parts]
    return grid, np.average(np.stack(curves), axis=0, weights=weights)


def _sensitivity_at(grid: Floats, fpr: Floats, tpr: Floats) -> Floats:
    """Read a ROC polygon at given false positive rates; on a vertical edge, its upper end."""
    here = np.searchsorted(fpr, grid, side="right") - 1
    after = np.minimum(here + 1, fpr.size - 1)
    run = fpr[after] - fpr[here]
    share = np.divide(grid - fpr[here], run, out=np.zeros_like(grid), where=run > 0)
    result: Floats = tpr[here] + share * (tpr[after] - tpr[here])
    return result


def _sweep(labels: Bools, scores: Floats) -> tuple[Floats, Floats, Floats]:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    hits = np.cumsum(labels[order])[ends].astype(np.float64)
    return hits, ends + 1 - hits, ranked[ends]
