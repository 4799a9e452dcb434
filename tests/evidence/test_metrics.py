"""Metrics and calibration against scikit-learn, scipy and hand counts; the bootstrap against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics as sk

from embedprior.evidence import calibration
from embedprior.evidence.delong import delong
from embedprior.evidence.intervals import wilson
from embedprior.evidence.method_metrics import ThresholdRule, choose_threshold
from embedprior.evidence.metrics import (
    Cases,
    average_precision,
    interval,
    patient_strata,
    replicate_values,
    roc_auc,
    stream,
    threshold_metrics,
    weights,
)


def make(seed: int = 0, n: int = 160, seeds: int = 1, decimals: int = 2) -> Cases:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    scores = 1 / (1 + np.exp(-(1.2 * labels - 0.5 + rng.normal(size=(seeds, n)))))
    return Cases(labels, np.clip(np.round(scores, decimals), 0.01, 0.99), np.arange(n), n, None)


def estimates(cases: Cases, threshold: float) -> dict[str, float]:
    found = threshold_metrics(cases, np.full(cases.scores.shape, threshold))
    return {m.name: float(m.estimate(cases.n_patients)[0]) for m in found}


def test_threshold_metrics_equal_scikit_learn() -> None:
    cases = make()
    y, called = cases.labels, cases.scores[0] >= 0.5
    found = estimates(cases, 0.5)
    assert found["sensitivity"] == pytest.approx(sk.recall_score(y, called))
    assert found["specificity"] == pytest.approx(sk.recall_score(~y, ~called))
    assert found["ppv"] == pytest.approx(sk.precision_score(y, called))
    assert found["npv"] == pytest.approx(sk.precision_score(~y, ~called))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, called))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, called))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, called, average="macro"))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(y, called))


def test_a_classifier_that_calls_everything_positive_has_no_mcc_and_no_npv() -> None:
    found = estimates(make(), 0.0)
    assert np.isnan(found["mcc"])
    assert np.isnan(found["npv"])
    assert found["balanced_accuracy"] == 0.5


def test_average_precision_and_auc_equal_scikit_learn_with_ties_and_weights() -> None:
    cases = make(decimals=1)
    rng = np.random.default_rng(4)
    drawn = rng.integers(0, 4, size=(3, cases.n_patients)).astype(float)
    for metric, reference in ((average_precision, sk.average_precision_score), (roc_auc, sk.roc_auc_score)):
        values = metric(cases).values(drawn)[:, 0]
        expected = [reference(cases.labels, cases.scores[0], sample_weight=w) for w in drawn]
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_fold_average_precision_never_compares_scores_of_different_folds() -> None:
    cases = make(5)
    fold = np.arange(cases.labels.size) % 3
    shifted = Cases(cases.labels, cases.scores + fold, cases.patient, cases.n_patients, fold)
    parts = [(sk.average_precision_score(cases.labels[fold == f], cases.scores[0][fold == f])) for f in range(3)]
    n_pos = [cases.labels[fold == f].sum() for f in range(3)]
    found = average_precision(shifted).estimate(cases.n_patients)[0]
    assert found == pytest.approx(np.average(parts, weights=n_pos))


def test_repeated_patients_weigh_with_all_their_exams() -> None:
    base = make(6, n=90)
    patient = np.arange(90) // 3
    cases = Cases(base.labels, base.scores, patient, 30, None)
    drawn = np.random.default_rng(1).integers(0, 3, size=(2, 30)).astype(float)
    repeated = [np.repeat(np.arange(90), w[patient].astype(int)) for w in drawn]
    for metric in threshold_metrics(cases, np.full((1, 90), 0.5)):
        if metric.name == "balanced_accuracy":
            expected = [sk.balanced_accuracy_score(base.labels[r], base.scores[0][r] >= 0.5) for r in repeated]
            np.testing.assert_allclose(metric.values(drawn)[:, 0], expected)
    expected = [sk.brier_score_loss(base.labels[r], base.scores[0][r]) for r in repeated]
    np.testing.assert_allclose(calibration.brier(cases).values(drawn)[:, 0], expected)


def test_ece_by_a_loop_over_bins() -> None:
    cases = make(7, decimals=3)
    y, s = cases.labels, cases.scores[0]
    expected = 0.0
    for b in range(10):
        inside = (s >= b / 10) & (s < (b + 1) / 10)
        if inside.any():
            expected += inside.mean() * abs(y[inside].mean() - s[inside].mean())
    assert calibration.ece(cases).estimate(cases.n_patients)[0] == pytest.approx(expected)


def test_slope_and_intercept_minimise_the_logistic_loss() -> None:
    cases = make(8)
    x, y = np.log(cases.scores[0] / (1 - cases.scores[0])), cases.labels

    def loss(a: float, b: float) -> float:
        return float(np.logaddexp(0, np.where(y, -1, 1) * (a + b * x)).sum())

    both = optimize.minimize(
        lambda t: loss(*t), [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    )
    alone = optimize.minimize_scalar(lambda a: loss(a, 1.0))
    (slope, intercept), errors, reason = calibration.logistic_recalibration(cases)
    assert reason is None
    assert errors is not None
    assert slope.estimate(160)[0] == pytest.approx(both.x[1], abs=1e-5)
    assert intercept.estimate(160)[0] == pytest.approx(alone.x, abs=1e-5)
    drawn = weights(patient_strata(cases.labels, cases.patient, 160), 400, stream(0, "slope"))
    values = replicate_values([slope], drawn)[0]
    assert errors[0][0] == pytest.approx(values.std(), rel=0.25)


def test_slope_of_separated_classes_is_undefined() -> None:
    labels = np.repeat([True, False], 10)
    cases = Cases(labels, np.where(labels, 0.8, 0.2)[None] + np.linspace(0, 0.1, 20), np.arange(20), 20, None)
    (slope, _), _, _ = calibration.logistic_recalibration(cases)
    assert np.isnan(slope.estimate(20)).all()


def test_calibration_refuses_scores_outside_zero_to_one() -> None:
    assert calibration.refusal(np.array([0.2, 0.9])) is None
    assert "[0, 1]" in str(calibration.refusal(np.array([0.2, 1.9])))
    cases = make()
    saturated = Cases(cases.labels, np.where(cases.labels, 1.0, cases.scores), cases.patient, cases.n_patients, None)
    assert "exactly 0 or 1" in str(calibration.logistic_recalibration(saturated)[2])


def test_wilson_against_a_published_value() -> None:
    """Newcombe (Stat. Med. 1998), Table I: 81 of 263 gives .2553 to .3662; 0 of 20 gives 0 to .1611."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert all(map(np.isnan, wilson(0, 0)))


def test_decision_curve_by_hand() -> None:
    labels = np.array([True, True, False, False, False])
    cases = Cases(labels, np.array([[0.9, 0.4, 0.6, 0.2, 0.1]]), np.arange(5), 5, None)
    at = {round(p["threshold"], 2): p for p in calibration.decision_curve(cases)}[0.5]
    assert at["net_benefit"] == pytest.approx(1 / 5 - 1 / 5 * 1.0)
    assert at["treat_all"] == pytest.approx(2 / 5 - 3 / 5)


def test_reliability_counts_every_case_once() -> None:
    cases = make(9)
    rows = calibration.reliability(cases)
    assert sum(r["n"] for r in rows) == cases.labels.size
    inside = (cases.scores[0] >= 0.3) & (cases.scores[0] < 0.4)
    assert rows[3]["observed"] == pytest.approx(cases.labels[inside].mean())


def test_bootstrap_standard_error_of_the_auc_agrees_with_delong() -> None:
    cases = make(10, n=300, decimals=3)
    chunks = weights(patient_strata(cases.labels, cases.patient, 300), 3000, stream(1, "auc"))
    values = replicate_values([roc_auc(cases)], chunks)[0]
    exact = delong(cases.labels, cases.scores)
    found = interval(exact.auc, values, 0, 1, 0.05)
    assert found.se == pytest.approx(np.sqrt(exact.covariance[0, 0]), rel=0.08)


def test_bootstrap_draws_whole_patients_within_their_class() -> None:
    labels = np.array([1, 1, 0, 0, 1, 0], dtype=bool)
    patient = np.array([0, 0, 1, 2, 3, 3])
    strata = patient_strata(labels, patient, 4)
    assert strata[0] != strata[1] == strata[2] != strata[3]
    drawn = np.concatenate(list(weights(strata, 50, stream(0, "x"))))
    assert (drawn[:, 0] == 1).all()
    assert (drawn[:, 1] + drawn[:, 2] == 2).all()


def test_streams_of_different_purposes_share_no_numbers() -> None:
    first, second = stream(0, "data").random(1000), stream(0, "weights").random(1000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.12
    np.testing.assert_array_equal(first, stream(0, "data").random(1000))


def test_interval_is_withheld_when_replicates_are_often_undefined() -> None:
    values = np.random.default_rng(0).random((100, 1))
    values[:10] = np.nan
    found = interval(np.array([0.5]), values, 0, 1, 0.05)
    assert np.isnan(found.low)
    assert "10%" in str(found.reason)


def test_thresholds_by_enumeration() -> None:
    cases = make(11)
    y, s = cases.labels, cases.scores[0]
    candidates = np.unique(s)
    sensitivity = np.array([(s[y] >= t).mean() for t in candidates])
    specificity = np.array([(s[~y] < t).mean() for t in candidates])
    gain = sensitivity + specificity
    assert choose_threshold(y, s, ThresholdRule("youden")) == candidates[np.flatnonzero(gain >= gain.max() - 1e-12)[0]]
    assert choose_threshold(y, s, ThresholdRule("specificity", 0.9)) == candidates[specificity >= 0.9].min()
    assert choose_threshold(y, s, ThresholdRule("sensitivity", 0.95)) == candidates[sensitivity >= 0.95].max()
    assert choose_threshold(y[y], s[y], ThresholdRule("youden")) is None
    assert choose_threshold(np.array([True, False]), np.array([0.1, 0.9]), ThresholdRule("specificity", 0.5)) == np.inf
