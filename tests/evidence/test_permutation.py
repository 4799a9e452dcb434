"""Exact tests against the enumeration of every swap and every labeling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from embedprior.evidence import permutation
from embedprior.evidence.permutation import half_test, rank_swap_test


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    above, below = scores[positive][:, None], scores[~positive][None, :]
    return float(((above > below) + 0.5 * (above == below)).mean())


def stratified(ranks: np.ndarray, positive: np.ndarray, folds: np.ndarray) -> float:
    parts = [(positive[folds == f].sum() * (~positive[folds == f]).sum(), folds == f) for f in np.unique(folds)]
    return sum(w * auc(ranks[at], positive[at]) for w, at in parts) / sum(w for w, _ in parts)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("seed", range(3))
def test_p_is_the_share_of_all_swaps_that_differ_as_much(decimals: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.repeat([True, False], [4, 5])
    a, b = (rng.normal(size=9) + shift * y for shift in (1.5, 0.2))
    if decimals is not None:
        a, b = np.round(a, decimals), np.round(b, decimals)
    ranks = stats.rankdata(a), stats.rankdata(b)
    observed = abs(auc(ranks[0], y) - auc(ranks[1], y))
    hits = 0
    for swapped in itertools.product([False, True], repeat=9):
        first, second = np.where(swapped, *ranks[::-1]), np.where(swapped, *ranks)
        hits += abs(auc(first, y) - auc(second, y)) >= observed - 1e-12
    assert rank_swap_test(y, a[None], b[None]) == (pytest.approx(hits / 2**9), "exact")


def test_whole_patients_are_swapped_within_folds_and_all_seeds_of_a_case_together() -> None:
    rng = np.random.default_rng(3)
    y = np.array([1, 1, 0, 0, 1, 0, 1, 0, 0, 1], dtype=bool)
    patients = np.array([0, 0, 1, 1, 2, 3, 4, 5, 5, 6])
    folds = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    a, b = rng.normal(size=(2, 10)) + y, rng.normal(size=(2, 10))

    def ranked(scores: np.ndarray) -> np.ndarray:
        found = np.empty(10)
        for f in (0, 1):
            found[folds == f] = stats.rankdata(scores[folds == f])
        return found

    first, second = [ranked(s) for s in a], [ranked(s) for s in b]

    def difference(swap: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    stratified(np.where(swap, v, u), y, folds) - stratified(np.where(swap, u, v), y, folds)
                    for u, v in zip(first, second, strict=True)
                ]
            )
        )

    observed = abs(difference(np.zeros(10, dtype=bool)))
    flips = [np.array(f)[patients] for f in itertools.product([False, True], repeat=7)]
    share = np.mean([abs(difference(f)) >= observed - 1e-12 for f in flips])
    assert rank_swap_test(y, a, b, patients, folds)[0] == pytest.approx(share)


def test_type_one_error_is_exact_where_delongs_is_not() -> None:
    """5 positives, 95 negatives, two equal methods: DeLong's z rejects in 9 %."""
    rng = np.random.default_rng(5)
    y = np.repeat([True, False], [5, 95])
    p = [rank_swap_test(y, *(rng.normal(size=(2, 1, 100)) + 1.2 * y))[0] for _ in range(1500)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1500)
    assert np.mean(np.array(p) <= 0.05) > 0.02


def test_random_swaps_and_the_normal_limit_agree_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    y = np.repeat([True, False], [40, 160])
    a, b = (rng.normal(size=(1, 200)) + s * y for s in (1.3, 1.0))
    exact, how = rank_swap_test(y, a, b)
    monkeypatch.setattr(permutation, "MAX_EXACT", 10_000)
    drawn, drawn_how = rank_swap_test(y, a, b)
    monkeypatch.setattr(permutation, "MIN_FOR_NORMAL", 100)
    monkeypatch.setattr(permutation, "MAX_SHARE", 1.0)
    normal, normal_how = rank_swap_test(y, a, b)
    assert (how, drawn_how, normal_how) == ("exact", "random swaps", "normal sum of swaps")
    assert drawn == pytest.approx(exact, abs=0.012)
    assert normal == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("decimals", [None, 0])
def test_half_test_counts_every_labeling(decimals: int | None) -> None:
    rng = np.random.default_rng(8)
    y = np.repeat([True, False], [4, 6])
    s = rng.normal(size=10) + y
    s = s if decimals is None else np.round(s, decimals)
    observed = abs(auc(s, y) - 0.5)
    share = np.mean(
        [
            abs(auc(s, np.isin(np.arange(10), chosen)) - 0.5) >= observed - 1e-12
            for chosen in itertools.combinations(range(10), 4)
        ]
    )
    assert half_test(y, s[None]) == pytest.approx(share)


def test_half_test_equals_scipys_exact_mann_whitney() -> None:
    rng = np.random.default_rng(9)
    y = np.repeat([True, False], [8, 22])
    s = rng.normal(size=30) + 0.8 * y
    expected = stats.mannwhitneyu(s[y], s[~y], method="exact").pvalue
    assert half_test(y, s[None]) == pytest.approx(expected)


def test_half_test_permutes_labels_within_folds() -> None:
    rng = np.random.default_rng(10)
    y = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0], dtype=bool)
    folds = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    s = rng.normal(size=9) + y
    observed = abs(stratified(s, y, folds) - 0.5)
    shares = []
    for chosen in itertools.combinations(range(5), 2):
        for one in range(5, 9):
            labels = np.isin(np.arange(9), [*chosen, one])
            shares.append(abs(stratified(s, labels, folds) - 0.5) >= observed - 1e-12)
    assert half_test(y, s[None], strata=folds) == pytest.approx(np.mean(shares))


def test_perfect_separation_has_its_exact_p_at_any_size() -> None:
    y = np.repeat([True, False], [8, 22])
    assert half_test(y, y[None] * 1.0) == pytest.approx(2 / math.comb(30, 8))
    large = np.repeat([True, False], [200, 300])
    assert half_test(large, large[None] * 1.0) == pytest.approx(2 / math.comb(500, 200))
    patients = np.arange(30) // 2
    assert half_test(y, y[None] * 1.0, patients) == pytest.approx(2 / math.comb(15, 4))
    assert math.isnan(half_test(y, y[None] * 1.0, np.arange(30) % 15))
    assert math.isnan(half_test(large, np.random.default_rng(0).normal(size=(1, 500))))
