"""Tests of AUCs: paired, against 0.5, margins, several methods, Holm, seeds and resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from embedprior.evidence import delong_test
from embedprior.evidence.delong import Variance, delong
from embedprior.evidence.intervals import auc_interval
from embedprior.evidence.tests import (
    SMALL,
    against_half,
    holm,
    holm_levels,
    margin_p,
    mean_over_seeds,
    nadeau_bengio,
    omnibus,
    rank_stability,
)


def scored(seed: int, shifts: tuple[float, ...], m: int = 30, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [m, n])
    return labels, rng.normal(size=(len(shifts), m + n)) + labels * np.array(shifts)[:, None]


def test_paired_test_of_many_cases_is_delongs_with_students_t() -> None:
    labels, scores = scored(1, (0.8, 1.3), 60, 90)
    psi = (scores[:, labels == 1][:, :, None] > scores[:, labels == 0][:, None, :]).astype(float)
    d10, d01 = (psi.mean(axis=2)[0] - psi.mean(axis=2)[1]), (psi.mean(axis=1)[0] - psi.mean(axis=1)[1])
    positive, negative = d10.var(ddof=1) / 60, d01.var(ddof=1) / 90
    t = (psi[0].mean() - psi[1].mean()) / math.sqrt(positive + negative)
    df = (positive + negative) ** 2 / (positive**2 / 59 + negative**2 / 89)
    found = delong_test(labels, *scores)
    assert found.p == found.p_delong == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert found.method == "DeLong, t"
    assert (found.ci[0] < 0 < found.ci[1]) == (found.p > 0.05)


def test_the_smaller_class_decides_which_test_counts() -> None:
    few, enough = (delong_test(*_split(scored(1, (0.8, 1.3), m, 200))) for m in (SMALL - 1, SMALL))
    assert few.method.startswith("rank-swap permutation")
    assert few.p == few.p_permutation != few.p_delong
    assert enough.p == enough.p_delong != enough.p_permutation
    assert not math.isnan(enough.p_permutation)


def test_coarse_ratings_take_the_larger_p() -> None:
    labels, scores = scored(1, (0.8, 1.6), 12, 30)
    ratings = np.clip(np.round(scores * 1.5), -2, 2)
    found = delong_test(labels, *ratings)
    c = delong(labels, ratings).covariance
    z = found.delta / math.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    assert found.p == pytest.approx(max(found.p_permutation, 2 * stats.norm.sf(abs(z))))
    assert "the larger p" in found.method
    assert "the larger p" not in delong_test(labels, *scores).method


def _split(drawn: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return drawn[0], drawn[1][0], drawn[1][1]


def test_identical_rankings_differ_by_nothing_with_p_one() -> None:
    labels, scores = scored(2, (0.8,))
    found = delong_test(labels, scores[0], np.exp(scores[0]))
    assert (found.delta, found.p, found.ci) == (0.0, 1.0, (0.0, 0.0))


def test_constant_score_makes_it_a_test_against_half() -> None:
    """8 positives and 22 negatives: the smallest p is 2 / C(30, 8), DeLong's formula once gave 2.5e-33."""
    labels, scores = scored(0, (1.0,), 8, 22)
    found = delong_test(labels, scores[0], np.zeros(30))
    exact = stats.mannwhitneyu(scores[0][labels == 1], scores[0][labels == 0], method="exact").pvalue
    assert found.p == pytest.approx(exact)
    assert found.auc[1] == 0.5
    perfect = delong_test(labels, labels * 1.0, np.zeros(30))
    assert perfect.p == pytest.approx(2 / math.comb(30, 8))
    assert math.isnan(delong_test(labels, np.ones(30), np.zeros(30)).p)


def test_a_method_that_is_perfect_in_one_fold_and_constant_in_the_others_has_a_finite_interval() -> None:
    """Its AUC, .667, has no variance within any fold: all that is known of it is that an AUC lies in 0 to 1."""
    labels, folds = np.tile([1, 0], 30), np.repeat([0, 1, 2], 20)
    odd = np.where(folds == 0, labels, 0.3)
    other = labels + np.random.default_rng(3).normal(size=60)
    found = delong_test(labels, odd, other, folds=folds)
    assert found.auc[0] == pytest.approx(2 / 3)
    assert np.isfinite([found.delta, found.p, *found.ci]).all()
    assert found.ci[0] < found.delta < found.ci[1]


def test_perfect_methods_that_tie_have_an_interval_as_wide_as_their_bounds() -> None:
    labels = np.repeat([1, 0], [8, 22])
    found = delong_test(labels, labels * 1.0, labels * 2 + np.arange(30) / 100)
    one = 1 - 0.05 ** (1 / 8)
    assert (found.delta, found.p) == (0.0, 1.0)
    assert found.ci == pytest.approx((-one, one))
    opposite = delong_test(labels, labels * -1.0, labels * 1.0)
    assert opposite.delta == -1.0
    assert opposite.p == pytest.approx(2 / 2**8)  # ties: exchanging a negative's two ranks moves it past no positive
    assert math.isnan(opposite.p_delong)


def test_folds_and_patients_go_into_the_paired_test() -> None:
    labels, scores = scored(7, (0.8, 1.3), 24, 48)
    folds, patients = np.arange(72) % 3, np.arange(72) // 2
    joint = delong(labels, scores, patients)
    found = delong_test(labels, *scores, groups=patients)
    assert "of patients" in found.method
    assert found.delta == pytest.approx(joint.auc[0] - joint.auc[1])
    shifted = delong_test(labels, *(scores + 10.0 * folds), folds=folds)
    same = delong_test(labels, *scores, folds=folds)
    assert (shifted.p, shifted.ci) == (same.p, pytest.approx(same.ci))
    assert "AUC" in same.summary()


def test_test_against_half_agrees_with_the_logit_interval_of_the_same_variance() -> None:
    for auc in (0.55, 0.62, 0.7):
        for se in (0.03, 0.06, 0.09):
            variance = Variance(se**2 / 2, se**2 / 2, 1e9, 1e9)
            excluded = auc_interval(auc, variance, 30, method="logit").low > 0.5
            assert (against_half(auc, variance).p < 0.05) == excluded


def test_margin_p_is_where_the_interval_touches_the_margin() -> None:
    def limits(alpha: float) -> tuple[float, float]:
        half = 0.02 * stats.norm.ppf(1 - alpha / 2)
        return -0.01 - half, -0.01 + half

    assert margin_p(limits, -0.05, None) == pytest.approx(2 * stats.norm.sf(2.0), rel=1e-6)
    assert margin_p(limits, -0.05, 0.05) == pytest.approx(2 * stats.norm.sf(2.0), rel=1e-6)
    assert margin_p(limits, -0.005, None) == 1.0
    assert margin_p(lambda _: (0.0, 0.0), -0.03, 0.03) < 1e-30


def test_omnibus_of_two_models_is_the_squared_paired_z() -> None:
    labels, scores = scored(5, (0.5, 1.4))
    joint = delong(labels, scores)
    chi2, df, p, reason = omnibus(joint.auc, joint.covariance)
    c = joint.covariance
    z = (joint.auc[0] - joint.auc[1]) / math.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    assert (chi2, df, reason) == (pytest.approx(z**2), 1, None)
    assert p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert math.isnan(omnibus(np.array([0.8, 0.9]), np.full((2, 2), np.nan))[0])


def test_omnibus_drops_a_duplicate_model() -> None:
    labels, scores = scored(6, (0.5, 1.4))
    two, three = (delong(labels, s) for s in (scores, np.concatenate([scores, scores[:1]])))
    assert omnibus(three.auc, three.covariance)[:2] == pytest.approx(omnibus(two.auc, two.covariance)[:2])


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.02, np.nan, 0.5])
    assert adjusted[0] == pytest.approx(0.06)
    assert math.isnan(adjusted[1])


def test_levels_of_holm_are_those_at_which_each_claim_is_tested() -> None:
    """.01 is tested at .05/3 and rejected, .03 at .05/2 and not: it and the rest stay at .05/2."""
    np.testing.assert_allclose(holm_levels([0.03, 0.01, 0.2], 0.05), [0.025, 0.05 / 3, 0.025])
    np.testing.assert_allclose(holm_levels([0.01, np.nan], 0.05), [0.025, 0.025])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-15).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_seed_mean_by_hand() -> None:
    values = np.array([0.80, 0.84, 0.79])
    covariance = np.full((3, 3), 0.0006) + np.eye(3) * 0.0002
    found = mean_over_seeds(values, covariance)
    ms = ((values - values.mean()) ** 2).sum() / 2
    whole = ms / 3 + 0.0006
    assert found.variance == pytest.approx(whole)
    assert found.sampling == pytest.approx(covariance.mean())
    assert found.df == pytest.approx(2 * whole**2 / (whole - covariance.mean()) ** 2)


def test_seeds_that_agree_by_chance_never_shrink_the_variance_below_that_of_the_patients() -> None:
    """Three equal seeds: the sample variance over seeds is 0, the patients' own variance remains."""
    covariance = np.full((3, 3), 0.0006) + np.eye(3) * 0.0006
    found = mean_over_seeds(np.full(3, 0.8), covariance)
    assert found.variance == pytest.approx(covariance.mean())
    negative = mean_over_seeds(np.array([0.8, 0.801, 0.8]), np.eye(3) * 0.003 - 0.0005)
    assert negative.variance == pytest.approx((0.009 - 0.0045) / 9)


def test_seed_mean_of_one_seed_is_delong() -> None:
    found = mean_over_seeds(np.array([0.8]), np.array([[0.002]]))
    assert (found.variance, found.df) == (0.002, math.inf)


def test_seed_variance_is_right_in_simulation() -> None:
    """Scores = case effect + (seed x case) noise + a seed that is better or worse: compare with the spread seen."""
    rng = np.random.default_rng(12)
    labels = np.repeat([1, 0], [25, 45])
    means, claimed = [], []
    for _ in range(700):
        quality = rng.normal(1.0, 0.25, size=(3, 1))
        scores = 0.8 * rng.normal(size=70) + 0.6 * rng.normal(size=(3, 70)) + quality * labels
        joint = delong(labels, scores)
        found = mean_over_seeds(joint.auc, joint.covariance)
        means.append(found.mean)
        claimed.append(found.variance)
    assert np.mean(claimed) == pytest.approx(np.var(means), rel=0.2)


def test_nadeau_bengio_by_hand_and_wider_than_the_naive_t() -> None:
    d = np.array([0.02, 0.05, -0.01, 0.04])
    found = nadeau_bengio(d, 0.25)
    se = math.sqrt((1 / 4 + 0.25) * d.var(ddof=1))
    assert found.se == pytest.approx(se)
    assert found.p == pytest.approx(2 * stats.t.sf(d.mean() / se, 3))
    assert found.p > stats.ttest_1samp(d, 0).pvalue
    assert nadeau_bengio(np.zeros(4), 0.25).p == 1.0
    assert math.isnan(nadeau_bengio(np.full(4, 0.1), 0.25).p)
    assert math.isnan(nadeau_bengio(d[:1], 0.25).p)


def test_rank_stability_counts_ranks() -> None:
    values = np.array([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7], [0.9, 0.8, 0.7], [np.nan, 0.8, 0.7]])
    found = rank_stability(values, ["a", "b", "c"])
    assert found["n_resamples"] == 3
    assert [m["mean_rank"] for m in found["methods"]] == pytest.approx([4 / 3, 5 / 3, 3])
    assert [m["share_best"] for m in found["methods"]] == pytest.approx([2 / 3, 1 / 3, 0])
    assert found["mean_kendall_tau"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
