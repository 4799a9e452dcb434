"""AUCs and covariances against naive double loops, scikit-learn and published examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from embedprior.evidence.delong import delong, influence
from embedprior.evidence.errors import EvidenceError


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(m, n) matrix of 1, 1/2, 0 for a positive above, level with, below a negative."""
    return (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])


def naive(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong 1988 by the definition, O(k m n)."""
    psi = np.stack([kernel(s[labels == 1], s[labels == 0]) for s in scores])
    auc = psi.mean(axis=(1, 2))
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    s10, s01 = np.cov(v10), np.cov(v01)
    return auc, np.atleast_2d(s10 / v10.shape[1] + s01 / v01.shape[1])


def naive_obuchowski(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Obuchowski 1997 with explicit loops over patients."""
    k = len(scores)
    psi = np.stack([kernel(s[labels == 1], s[labels == 0]) for s in scores])
    auc, v10, v01 = psi.mean(axis=(1, 2)), psi.mean(axis=2), psi.mean(axis=1)
    m, n = v10.shape[1], v01.shape[1]
    ids = np.unique(patients)
    a, b = np.zeros((k, ids.size)), np.zeros((k, ids.size))
    for i, patient in enumerate(ids):
        for r in range(k):
            a[r, i] = sum(v10[r][patients[labels == 1] == patient] - auc[r])
            b[r, i] = sum(v01[r][patients[labels == 0] == patient] - auc[r])
    i10 = np.unique(patients[labels == 1]).size
    i01 = np.unique(patients[labels == 0]).size
    i = ids.size
    cov = np.empty((k, k))
    for r in range(k):
        for s in range(k):
            s10 = i10 / ((i10 - 1) * m) * (a[r] * a[s]).sum()
            s01 = i01 / ((i01 - 1) * n) * (b[r] * b[s]).sum()
            s11 = i / (i - 1) * ((a[r] * b[s]).sum() + (a[s] * b[r]).sum())
            cov[r, s] = s10 / m + s01 / n + s11 / (m * n)
    return cov


def cohort(seed: int, size: int = 120, k: int = 3, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(size) < 0.35).astype(int)
    scores = rng.normal(size=(k, size)) + labels * np.linspace(0.3, 1.5, k)[:, None]
    return labels, scores if decimals is None else np.round(scores, decimals)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_auc_and_covariance_equal_the_double_loop(decimals: int | None) -> None:
    labels, scores = cohort(3, decimals=decimals)
    result = delong(labels, scores)
    auc, covariance = naive(labels, scores)
    np.testing.assert_allclose(result.auc, auc, atol=1e-12)
    np.testing.assert_allclose(result.covariance, covariance, rtol=1e-10, atol=1e-16)
    for row, value in zip(scores, result.auc, strict=True):
        assert abs(value - roc_auc_score(labels, row)) < 1e-12


def test_rating_example_of_hanley_and_mcneil() -> None:
    """109 CT images rated 1-5 (Radiology 1982): AUC .8932; the DeLong SE .0307 is that of Stata's roctab."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    scores = np.repeat([1, 2, 3, 4, 5] * 2, normal + abnormal)
    labels = np.repeat([0, 1], [sum(normal), sum(abnormal)])
    result = delong(labels, scores)
    se = float(np.sqrt(result.covariance[0, 0]))
    assert round(float(result.auc[0]), 4) == 0.8932
    assert round(se, 4) == 0.0307
    assert round(float(result.auc[0]) - 1.959964 * se, 5) == 0.83295
    assert round(float(result.auc[0]) + 1.959964 * se, 5) == 0.95339


@pytest.mark.parametrize("decimals", [None, 0])
def test_clustered_covariance_equals_the_loop_over_patients(decimals: int | None) -> None:
    labels, scores = cohort(5, decimals=decimals)
    patients = np.random.default_rng(8).integers(0, 40, labels.size)
    result = delong(labels, scores, clusters=patients)
    np.testing.assert_allclose(result.covariance, naive_obuchowski(labels, scores, patients), rtol=1e-10)
    assert result.n_clusters == np.unique(patients).size
    assert result.independent_pairs == min(np.unique(patients[labels == c]).size for c in (0, 1))


def pooled(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fold-stratified AUC with placement variances pooled within folds, by explicit loops over pairs and folds."""
    names = np.unique(folds)
    psi = [
        np.stack([kernel(s[(folds == f) & (labels == 1)], s[(folds == f) & (labels == 0)]) for s in scores])
        for f in names
    ]
    pairs = sum(p.shape[1] * p.shape[2] for p in psi)
    auc = sum(p.sum(axis=(1, 2)) for p in psi) / pairs
    own = [p.mean(axis=(1, 2)) for p in psi]
    m, n = sum(p.shape[1] for p in psi), sum(p.shape[2] for p in psi)
    s10, s01 = np.zeros((2, len(scores), len(scores)))
    for p, a in zip(psi, own, strict=True):
        for i in range(p.shape[1]):
            d = p[:, i].mean(axis=1) - a
            s10 += np.outer(d, d) / (m - len(names))
        for i in range(p.shape[2]):
            d = p[:, :, i].mean(axis=1) - a
            s01 += np.outer(d, d) / (n - len(names))
    over_pos = sum(p.shape[1] * (p.shape[2] / pairs) ** 2 for p in psi)
    over_neg = sum(p.shape[2] * (p.shape[1] / pairs) ** 2 for p in psi)
    return auc, over_pos * s10 + over_neg * s01


def test_fold_stratified_auc_counts_pairs_within_folds_only() -> None:
    labels, scores = cohort(6)
    folds = np.random.default_rng(1).integers(0, 4, labels.size)
    result = delong(labels, scores + 100.0 * folds, strata=folds)
    auc, covariance = pooled(labels, scores, folds)
    np.testing.assert_allclose(result.auc, auc, atol=1e-12)
    np.testing.assert_allclose(result.covariance, covariance, rtol=1e-10)
    assert (result.df_pos, result.df_neg) == ((labels == 1).sum() - 4, (labels == 0).sum() - 4)


def test_equal_folds_have_the_weighted_sum_of_their_own_variances() -> None:
    labels, scores = cohort(7, size=90)
    labels = np.tile([1, 1, 1, 0, 0, 0, 0, 0, 0], 10)
    folds = np.repeat(np.arange(5), 18)
    each = [naive(labels[folds == f], scores[:, folds == f])[1] for f in range(5)]
    np.testing.assert_allclose(delong(labels, scores, strata=folds).covariance, sum(each) / 25, rtol=1e-10)


def test_one_positive_in_a_fold_leaves_variance_and_auc_defined() -> None:
    """8 positives in 5 folds: a fold of one positive once voided every interval."""
    labels, scores = cohort(8, size=100, k=2)
    labels = np.r_[np.ones(8, int), np.zeros(92, int)]
    folds = np.r_[np.arange(8) % 5, np.arange(92) % 5]
    result = delong(labels, scores, strata=folds)
    auc, covariance = pooled(labels, scores, folds)
    np.testing.assert_allclose(result.auc, auc, atol=1e-12)
    np.testing.assert_allclose(result.covariance, covariance, rtol=1e-10)
    assert (result.df_pos, result.reason) == (3, None)


def test_as_many_folds_as_positives_centres_at_the_auc_over_all_folds() -> None:
    labels, scores = cohort(9, size=60, k=1)
    labels = np.r_[np.ones(5, int), np.zeros(55, int)]
    folds = np.r_[np.arange(5), np.arange(55) % 5]
    result = delong(labels, scores, strata=folds)
    psi = [kernel(scores[0][(folds == f) & (labels == 1)], scores[0][(folds == f) & (labels == 0)]) for f in range(5)]
    v10 = np.array([p.mean() for p in psi])
    assert result.auc[0] == pytest.approx(v10.mean())
    assert result.positive_part[0, 0] == pytest.approx(v10.var(ddof=1) / 5)
    assert result.df_pos == 4


def test_variance_of_a_contrast_has_its_parts_and_satterthwaites_df() -> None:
    labels, scores = cohort(10)
    patients = np.random.default_rng(8).integers(0, 40, labels.size)
    result = delong(labels, scores, clusters=patients)
    w = np.array([1.0, -1.0, 0.0])
    found = result.variance(w)
    assert found.total == pytest.approx(w @ result.covariance @ w)
    p, n = w @ result.positive_part @ w, w @ result.negative_part @ w
    units = [np.unique(patients[labels == c]).size for c in (1, 0)]
    assert found.df == pytest.approx((p + n) ** 2 / (p**2 / (units[0] - 1) + n**2 / (units[1] - 1)))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(12, 60), decimals=st.sampled_from([None, 0, 1]))
def test_invariances(seed: int, size: int, decimals: int | None) -> None:
    labels, scores = cohort(seed, size, 2, decimals)
    labels[:4] = [0, 0, 1, 1]
    base = delong(labels, scores)
    monotone = delong(labels, np.exp(scores / 3) * 5 - 2)
    swapped = delong(1 - labels, -scores)
    order = np.random.default_rng(seed).permutation(size)
    shuffled = delong(labels[order], scores[:, order])
    alone = delong(labels, scores, clusters=[f"p{i}" for i in range(size)])
    mirrored = delong(1 - labels, scores)
    for other in (monotone, swapped, shuffled, alone):
        np.testing.assert_allclose(other.auc, base.auc, atol=1e-12)
        np.testing.assert_allclose(other.covariance, base.covariance, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(mirrored.auc, 1 - base.auc, atol=1e-12)


def test_influence_has_the_variance_of_the_auc() -> None:
    labels, scores = cohort(11, size=4000, k=2)
    psi = influence(labels, scores)
    np.testing.assert_allclose(psi.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(psi @ psi.T, delong(labels, scores).covariance, rtol=2e-3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [([1, 1, 1], "only positives"), ([0, 0, 0], "only negatives"), ([1, 0, 0], "at least 2 of each")],
)
def test_too_few_cases_give_no_variance_and_a_reason(labels: list[int], words: str) -> None:
    result = delong(labels, [0.1, 0.2, 0.3])
    assert np.isnan(result.covariance).all()
    assert result.reason is not None
    assert words in result.reason
    assert np.isnan(result.auc[0]) == (len(set(labels)) == 1)


@pytest.mark.parametrize(
    ("labels", "scores", "extra", "words"),
    [
        ([0, 1, 2], [1, 2, 3], {}, "case position 2"),
        ([0, 1, 1], [1, np.nan, 3], {}, "finite"),
        ([0, 1, 1], [1, 2], {}, "3 labels"),
        ([0, 1, 1], [1, 2, 3], {"clusters": [1, 2]}, "clusters"),
        ([0, 1, 1], [1, 2, 3], {"clusters": [1, 2, 2], "strata": [0, 0, 1]}, "more than one stratum"),
    ],
)
def test_unusable_input_is_refused(labels: list[int], scores: list[float], extra: dict, words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        delong(labels, scores, **extra)
