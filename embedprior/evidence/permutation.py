"""Exact tests for few cases: two AUCs by swapping ranks, one AUC against 0.5 by permuting labels.

The paired test is that of Bandos, Rockette & Gur (Stat. Med. 2005): if two methods are equally good, exchanging their
ranks within a case changes nothing. The difference of AUCs is linear in these exchanges, so that its distribution over
all 2^N of them is the sum of N independent signs times a weight, which is counted exactly.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import special, stats

from embedprior.evidence.delong import Bools, Floats, Ints, other_class_below

#: Largest (cases x different sums) that is counted exactly; beyond, random swaps.
MAX_EXACT = 40_000_000
RANDOM_SWAPS = 20_000
#: More cases than this, none of which weighs much (squared weight under this share of all), are normal in sum.
MIN_FOR_NORMAL, MAX_SHARE = 2_000, 0.01
#: Cases up to which the test against 0.5 counts all labelings.
MAX_LABELINGS_OF = 60


def rank_swap_test(
    labels: Bools, a: Floats, b: Floats, clusters: Ints | None = None, strata: Ints | None = None
) -> tuple[float, str]:
    """Test that two methods have one AUC by swapping their ranks within cases (patients, where cases share one).

    Args:
        labels: (N,) True = positive.
        a, b: (R, N) scores of either method; row r of both is one seed. All seeds of a case are swapped together, so
            that the trained models count as fixed.
        clusters: (N,) patient codes; whole patients are swapped.
        strata: (N,) fold codes; ranks are those within the fold.

    Returns:
        Two-sided p, and how it was found: all swaps counted; 20,000 of them drawn at random from a fixed seed, where
        they are too many; or their normal limit, for thousands of cases of like weight.

    Example:
        >>> import numpy as np
        >>> y = np.repeat([True, False], 5)
        >>> good, poor = np.arange(10.0)[None, ::-1], np.tile([0.0, 1.0], 5)[None]
        >>> p, how = rank_swap_test(y, good, poor)
        >>> round(p, 4), how
        (0.0215, 'exact')
    """
    signed = swap_weights(labels, a, b, clusters, strata)
    observed, weights = abs(int(signed.sum())), np.abs(signed)
    weights = np.sort(weights[weights > 0])
    if not weights.size:
        return 1.0, "exact"
    divisor = int(np.gcd.reduce(weights))
    weights, observed = weights // divisor, observed // divisor
    total = int(weights.sum())
    if weights.size * total <= MAX_EXACT:
        return _exact_tail(weights, total, observed), "exact"
    squares = weights.astype(np.float64) ** 2
    if weights.size > MIN_FOR_NORMAL and squares.max() < MAX_SHARE * squares.sum():
        return float(2 * special.ndtr(-observed / np.sqrt(squares.sum()))), "normal sum of swaps"
    return _random_tail(weights, observed), "random swaps"


def swap_weights(labels: Bools, a: Floats, b: Floats, clusters: Ints | None = None, strata: Ints | None = None) -> Ints:
    """Return whole numbers g with AUC a - AUC b proportional to sum(g), and to sum(sign * g) after swaps.

    A positive counts 2 (negatives of either method below its rank by a, minus those below its rank by b); a negative
    the same the other way round. One number per patient (without clusters: per case).
    """
    weights = np.zeros(labels.size)
    fold = np.zeros(labels.size, dtype=np.int64) if strata is None else strata
    for f in np.unique(fold):
        inside = np.flatnonzero(fold == f)
        positive = labels[inside]
        if not positive.any() or positive.all():
            continue
        for row_a, row_b in zip(*np.broadcast_arrays(a, b), strict=True):
            ranks = np.concatenate([stats.rankdata(row_a[inside]), stats.rankdata(row_b[inside])])
            other_below = other_class_below(ranks, np.tile(positive, 2))
            by_a, by_b = np.split(other_below, 2)
            weights[inside] += np.where(positive, 1, -1) * 2 * (by_a - by_b)
    whole = np.rint(weights).astype(np.int64)
    if clusters is None:
        return whole
    return np.rint(np.bincount(clusters, weights=whole)).astype(np.int64)


def _exact_tail(weights: Ints, total: int, observed: int) -> float:
    """Return P(|sum of signs times weights| >= observed): the chance of every sum of the weights with a plus sign."""
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    reach = 0
    for w in weights:
        chance[w : reach + w + 1] += chance[: reach + 1].copy()
        chance[: reach + w + 1] *= 0.5
        reach += int(w)
    distance = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, chance[distance >= observed].sum()))


def _random_tail(weights: Ints, observed: int) -> float:
    """Return the same from random signs, (1 + hits) / (1 + draws); the seed is made of the weights."""
    digest = hashlib.sha256(weights.tobytes()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    chunk = max(1, MAX_EXACT // 4 // weights.size)
    hits, drawn = 0, 0
    while drawn < RANDOM_SWAPS:
        n = min(chunk, RANDOM_SWAPS - drawn)
        signs = 2 * generator.integers(0, 2, size=(n, weights.size), dtype=np.int8) - 1
        hits += int((np.abs(signs @ weights) >= observed).sum())
        drawn += n
    return (1 + hits) / (1 + drawn)


def half_test(labels: Bools, scores: Floats, clusters: Ints | None = None, strata: Ints | None = None) -> float:
    """Return the two-sided p of AUC = 0.5 over all labelings of the cases within folds (Mann-Whitney, ties counted).

    With several seeds the mean of their AUCs is tested. NaN where it can't be counted: more than 60 cases, unless the
    classes are separated perfectly; patients with cases of both classes.

    Args:
        labels: (N,) True = positive. scores: (R, N). strata: (N,) fold codes.
        clusters: (N,) patient codes. With several cases a patient only perfect separation has a p: that of one case
            a patient.

    Example:
        >>> import numpy as np
        >>> y = np.repeat([True, False], [8, 22])
        >>> float(half_test(y, y[None] * 1.0))  # 2 / C(30, 8)
        3.417...e-07
    """
    fold = np.zeros(labels.size, dtype=np.int64) if strata is None else strata
    groups = [np.flatnonzero(fold == f) for f in np.unique(fold)]
    groups = [g for g in groups if labels[g].any() and not labels[g].all()]
    if not groups:
        return np.nan
    if all(_separated(labels[g], scores[:, g]) for g in groups):
        return _perfect_p(labels, groups, clusters)
    repeated = clusters is not None and np.unique(clusters).size < clusters.size
    if repeated or sum(g.size for g in groups) > MAX_LABELINGS_OF:
        return np.nan
    chance, observed, middle = np.ones(1), 0, 0.0
    for g in groups:
        doubled = np.rint(2 * stats.rankdata(scores[:, g], axis=1)).astype(np.int64).sum(axis=0)
        m = int(labels[g].sum())
        chance = np.convolve(chance, _rank_sums(doubled, m))
        observed += int(doubled[labels[g]].sum())
        middle += m * doubled.sum() / g.size
    far = np.abs(np.arange(chance.size) - middle) >= abs(observed - middle) - 1e-9
    return float(min(1.0, chance[far].sum()))


def _separated(positive: Bools, scores: Floats) -> bool:
    up = (scores[:, positive].min(axis=1) > scores[:, ~positive].max(axis=1)).all()
    down = (scores[:, positive].max(axis=1) < scores[:, ~positive].min(axis=1)).all()
    return bool(up or down)


def _perfect_p(labels: Bools, groups: list[Ints], clusters: Ints | None) -> float:
    logarithm = 0.0
    for g in groups:
        positive = labels[g]
        if clusters is not None:
            of_pos, of_neg = np.unique(clusters[g][positive]), np.unique(clusters[g][~positive])
            if np.intersect1d(of_pos, of_neg).size:
                return np.nan
            m, n = of_pos.size, of_neg.size
        else:
            m, n = int(positive.sum()), int((~positive).sum())
        logarithm += float(special.gammaln(m + n + 1) - special.gammaln(m + 1) - special.gammaln(n + 1))
    return float(min(1.0, 2 * np.exp(-logarithm)))


def _rank_sums(doubled: Ints, m: int) -> Floats:
    """Return the distribution of the sum of ``m`` of the doubled ranks, all choices being equally likely."""
    top = int(np.sort(doubled)[-m:].sum())
    ways = np.zeros((m + 1, top + 1))
    ways[0, 0] = 1.0
    for rank in doubled:
        ways[1:, rank:] += ways[:-1, : top + 1 - rank].copy()
    return np.asarray(ways[m] / ways[m].sum())
