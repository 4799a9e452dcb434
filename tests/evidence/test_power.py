"""Planning figures against published ones, closed forms and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from embedprior.evidence.delong import delong
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import paired_test
from embedprior.evidence.power import Design, detectable, hanley_mcneil_se, patients_needed


def test_hanley_mcneil_published_example() -> None:
    """Radiology 1982: AUC .893 with 51 abnormal and 58 normal images has SE .032 as printed."""
    assert hanley_mcneil_se(0.893, 51, 58) == pytest.approx(0.032, abs=0.001)
    assert round(hanley_mcneil_se(0.824, 23, 63), 3) == 0.057


@pytest.mark.parametrize(
    ("n_pos", "n_neg", "alone", "in_nine"),
    [(23, 63, 0.167, 0.216), (305, 593, 0.047, 0.060), (1000, 2000, 0.026, 0.033)],
)
def test_detectable_difference_at_auc_080(n_pos: int, n_neg: int, alone: float, in_nine: float) -> None:
    design = Design(n_pos, n_neg, 0.80, 0.5, comparisons=9)
    assert design.minimum_detectable() == pytest.approx(alone, abs=0.001)
    assert design.minimum_detectable(first_holm_step=True) == pytest.approx(in_nine, abs=0.001)


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


def test_detectable_difference_is_detected_in_eight_of_ten_simulated_studies() -> None:
    """Binormal scores, AUC .75 against the AUC that the observed standard error calls detectable."""
    rng = np.random.default_rng(5)
    m, n = 60, 90
    labels = np.repeat([1, 0], [m, n])
    shift = 0.9539  # sqrt(2) * Phi^-1(.75)

    def draw(second: float) -> tuple[float, float, float]:
        shared = rng.normal(size=m + n)
        noise = rng.normal(size=(2, m + n))
        scores = np.sqrt(0.5) * shared + np.sqrt(0.5) * noise + labels * np.array([[shift], [second]])
        found = paired_test(delong(labels, scores))
        return found.p, found.se, found.delta

    trials = np.array([draw(1.51) for _ in range(1500)])
    planned = detectable(float(np.sqrt((trials[:, 1] ** 2).mean())))
    assert abs(trials[:, 2].mean()) == pytest.approx(planned, rel=0.05)
    assert (trials[:, 0] < 0.05).mean() == pytest.approx(0.8, abs=0.05)


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
