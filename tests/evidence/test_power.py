"""Planning figures against closed forms and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.power import (
    Design,
    auc_se,
    detectable_difference,
    difference_se,
    patients_needed,
    power_of,
)


def simulated(m: int, n: int, aucs: tuple[float, float], r: float, trials: int, seed: int) -> np.ndarray:
    """(trials, 2) AUCs of binormal scores with correlation r, by counting pairs."""
    rng = np.random.default_rng(seed)
    shift = np.sqrt(2) * stats.norm.ppf(aucs)
    found = np.empty((trials, 2))
    for t in range(trials):
        own = np.sqrt(r) * rng.normal(size=m + n) + np.sqrt(1 - r) * rng.normal(size=(2, m + n))
        x, y = own[:, :m] + shift[:, None], own[:, m:]
        found[t] = (x[:, :, None] > y[:, None, :]).mean(axis=(1, 2))
    return found


@pytest.mark.parametrize(("m", "n", "auc"), [(8, 22, 0.8), (30, 60, 0.7), (12, 88, 0.9)])
def test_standard_error_is_that_of_simulated_binormal_scores(m: int, n: int, auc: float) -> None:
    spread = simulated(m, n, (auc, auc), 0.0, 3000, 1).std()
    assert auc_se(auc, [(m, n)]) == pytest.approx(spread, rel=0.03)


def test_folds_form_fewer_pairs_and_have_a_larger_standard_error() -> None:
    whole, folds = auc_se(0.8, [(40, 90)]), auc_se(0.8, [(8, 18)] * 5)
    assert folds == pytest.approx(auc_se(0.8, [(8, 18)]) / np.sqrt(5))
    assert whole < folds
    assert auc_se(0.8, [(1, 18)] * 8) > 0


def test_power_at_the_detectable_difference_is_the_one_asked_for() -> None:
    folds = [(30, 60)]
    found = detectable_difference(folds, 0.75, 0.6, power=0.9)
    assert power_of(found, folds, 0.75, 0.6) == pytest.approx(0.9)
    aucs = simulated(30, 60, (0.75, 0.75 + found), 0.6, 2000, 2)
    observed = np.corrcoef(aucs.T)[0, 1]
    se = (aucs[:, 1] - aucs[:, 0]).std()
    assert difference_se(0.75, 0.75 + found, observed, folds) == pytest.approx(se, rel=0.05)


def test_too_few_patients_can_show_no_difference() -> None:
    assert detectable_difference([(3, 4)], 0.9, 0.0) > 0.1
    assert Design(3, 4, 0.9).minimum_detectable() > 0.1


def test_patients_needed_is_the_smallest_number_that_suffices() -> None:
    design = Design(40, 90, 0.8, 0.5)
    n_pos, n_neg = patients_needed(design, 0.05)
    assert n_pos / (n_pos + n_neg) == pytest.approx(40 / 130, abs=0.01)
    assert Design(n_pos, n_neg, 0.8, 0.5).minimum_detectable() <= 0.05
    assert Design(n_pos - 2, n_neg - 4, 0.8, 0.5).minimum_detectable() > 0.05


def test_exams_of_one_patient_count_by_their_correlation() -> None:
    one = Design(40, 90, 0.8).se()
    assert Design(40, 90, 0.8, exams_per_patient=5, icc=1.0).se() == pytest.approx(one)
    assert Design(40, 90, 0.8, exams_per_patient=5, icc=0.0).se() == pytest.approx(Design(200, 450, 0.8).se())
    assert Design(200, 450, 0.8).se() < Design(40, 90, 0.8, exams_per_patient=5, icc=0.5).se() < one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_pos": 1}, "n_pos"),
        ({"auc": 1.0}, "auc"),
        ({"auc": 0.3}, "auc"),
        ({"corr": 1.0}, "corr"),
        ({"icc": 2.0}, "icc"),
        ({"power": 0.2}, "power"),
    ],
)
def test_impossible_designs_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        Design(**({"n_pos": 20, "n_neg": 30, "auc": 0.8} | change))


def test_a_difference_beyond_a_perfect_auc_is_refused() -> None:
    with pytest.raises(EvidenceError, match="difference"):
        patients_needed(Design(20, 30, 0.8), 0.3)
