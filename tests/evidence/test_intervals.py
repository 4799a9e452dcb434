"""Intervals, tests, multiplicity, seeds and resamples against hand computations and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from embedprior.evidence.delong import delong
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.inference import holm, mean_over_seeds, nadeau_bengio, rank_stability
from embedprior.evidence.intervals import (
    against_half,
    auc_interval,
    difference_test,
    non_inferiority,
    omnibus,
    paired_test,
    unpaired_test,
)


def scored(seed: int, shifts: tuple[float, ...], m: int = 30, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [m, n])
    return labels, rng.normal(size=(len(shifts), m + n)) + labels * np.array(shifts)[:, None]


def test_logit_interval_is_the_back_transformed_one_and_stays_inside() -> None:
    low, high = (
        1 / (1 + math.exp(-(math.log(0.9 / 0.1) + s * 1.959963984540054 * 0.06 / (0.9 * 0.1)))) for s in (-1, 1)
    )
    found = auc_interval(0.9, 0.06**2, 20)
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)
    wald = auc_interval(0.97, 0.06**2, 20, method="wald")
    assert (wald.low, wald.high) == (pytest.approx(0.97 - 1.959963984540054 * 0.06), 1.0)


@pytest.mark.parametrize(("m", "n"), [(5, 9), (23, 63)])
def test_perfect_auc_gets_a_one_sided_bound_and_a_flag(m: int, n: int) -> None:
    labels = np.repeat([1, 0], [m, n])
    result = delong(labels, labels * 1.0)
    found = auc_interval(float(result.auc[0]), float(result.covariance[0, 0]), result.independent_pairs)
    assert found.low == pytest.approx(0.05 ** (1 / m))
    assert found.high == 1.0
    assert math.isnan(found.se)
    assert "exactly 1" in str(found.reason)
    worst = auc_interval(0.0, 0.0, m)
    assert (worst.low, worst.high) == (0.0, pytest.approx(1 - 0.05 ** (1 / m)))


def test_bound_of_a_perfect_clustered_auc_counts_patients_not_exams() -> None:
    patients = np.repeat(np.arange(10), 4)
    labels = (patients < 4).astype(int)
    result = delong(labels, labels * 1.0, clusters=patients)
    found = auc_interval(1.0, float(result.covariance[0, 0]), result.independent_pairs)
    assert found.low == pytest.approx(0.05 ** (1 / 4))


def test_paired_test_equals_the_textbook_z() -> None:
    labels, scores = scored(1, (0.8, 1.3))
    joint = delong(labels, scores)
    c = joint.covariance
    z = (joint.auc[0] - joint.auc[1]) / math.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    found = paired_test(joint)
    assert found.statistic == pytest.approx(z)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * found.se)


def test_identical_scores_differ_by_nothing_with_p_one() -> None:
    labels, scores = scored(2, (0.8,))
    found = paired_test(delong(labels, np.concatenate([scores, np.exp(scores)])))
    assert (found.delta, found.p) == (0.0, 1.0)


def test_difference_without_variance_is_undefined_not_significant() -> None:
    labels = np.repeat([1, 0], [6, 6])
    found = paired_test(delong(labels, np.stack([labels * 1.0, np.zeros(12)])))
    assert found.delta == 0.5
    assert math.isnan(found.p)
    assert found.reason is not None


def test_unpaired_test_has_welch_degrees_of_freedom() -> None:
    first, second = (delong(*scored(s, (0.9,), m, n)) for s, m, n in ((3, 12, 20), (4, 15, 18)))
    found = unpaired_test(first, second)
    variance = first.covariance[0, 0] + second.covariance[0, 0]
    parts = [
        (d.positive_part[0, 0], d.n_pos - 1) for d in (first, second)
    ] + [(d.negative_part[0, 0], d.n_neg - 1) for d in (first, second)]  # fmt: skip
    df = variance**2 / sum(v**2 / k for v, k in parts)
    assert found.df == pytest.approx(df)
    z = (first.auc[0] - second.auc[0]) / math.sqrt(variance)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(z), df))


def test_test_against_half_agrees_with_the_logit_interval() -> None:
    for auc in (0.55, 0.62, 0.7):
        for se in (0.03, 0.06, 0.09):
            excluded = auc_interval(auc, se**2, 30).low > 0.5
            assert (against_half(auc, se**2).p < 0.05) == excluded


def test_non_inferiority_is_one_sided_at_the_margin() -> None:
    z, p = non_inferiority(-0.01, 0.02, 0.05)
    assert z == pytest.approx(2.0)
    assert p == pytest.approx(stats.norm.sf(2.0))
    assert all(map(math.isnan, non_inferiority(0.0, 0.0, 0.05)))
    with pytest.raises(EvidenceError, match="margin"):
        non_inferiority(0.0, 0.02, 0.0)


def test_omnibus_of_two_models_is_the_squared_paired_z() -> None:
    labels, scores = scored(5, (0.5, 1.4))
    joint = delong(labels, scores)
    chi2, df, p, reason = omnibus(joint.auc, joint.covariance)
    paired = paired_test(joint)
    assert (chi2, df, reason) == (pytest.approx(paired.statistic**2), 1, None)
    assert p == pytest.approx(paired.p)


def test_omnibus_drops_a_duplicate_model() -> None:
    labels, scores = scored(6, (0.5, 1.4))
    two, three = (delong(labels, s) for s in (scores, np.concatenate([scores, scores[:1]])))
    assert omnibus(three.auc, three.covariance)[:2] == pytest.approx(omnibus(two.auc, two.covariance)[:2])


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.02, np.nan, 0.5])
    assert adjusted[0] == pytest.approx(0.06)
    assert math.isnan(adjusted[1])


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
    assert found.variance == pytest.approx(ms / 3 + 0.0006)
    assert found.df == pytest.approx((ms + 3 * 0.0006) ** 2 / (ms**2 / 2))
    negative = mean_over_seeds(values, covariance - 0.001)
    assert negative.variance == pytest.approx(ms / 3)
    assert negative.df == pytest.approx(2)


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
    assert np.mean(claimed) == pytest.approx(np.var(means), rel=0.15)


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


def test_undefined_auc_stays_undefined_through_every_function() -> None:
    assert math.isnan(auc_interval(math.nan, math.nan, 0).low)
    assert math.isnan(difference_test(math.nan, 0.1).p)
    assert math.isnan(omnibus(np.array([0.8, 0.9]), np.full((2, 2), np.nan))[0])
