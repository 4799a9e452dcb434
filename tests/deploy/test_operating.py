"""Calibration and rates of an operating point, against hand counts, SciPy's optimiser and Wilson's formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

from embedprior.deploy.files import scored_before
from embedprior.deploy.operating import fit_calibration, held_out_rates
from embedprior.errors import BadInput


def rows_of(scores: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    ids = [f"p{n}" for n in range(len(scores))]
    return pd.DataFrame({"exam_id": ids, "patient_id": ids, "label": labels, "score": scores})


def test_calibration_is_platts_likelihood_at_its_maximum() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 3 == 0).astype(int)
    scores = special.expit(-0.5 + 2.0 * labels + rng.normal(size=200))
    found, reason = fit_calibration(rows_of(scores, labels))
    assert reason == ""
    assert found is not None
    positives, negatives = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(beta: np.ndarray) -> float:
        z = beta[0] + beta[1] * special.logit(scores)
        return float((np.logaddexp(0, z) - target * z).sum())

    best = optimize.minimize(loss, [0.0, 1.0], tol=1e-12).x
    assert (found.intercept, found.slope) == pytest.approx(best, abs=1e-4)
    assert (found.n_pos, found.n_neg) == (67, 133)
    # a maximum of the likelihood with an intercept reproduces the mean of the targets
    assert found.apply(scores).mean() == pytest.approx(target.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        (np.linspace(0.1, 0.9, 40), np.arange(40) < 9, "9 positive and 31 negative validation patients; 10 of each"),
        (np.linspace(0.1, 0.9, 40), np.arange(40) < 20, "score no higher than the others"),
        (np.linspace(-2, 2, 40), np.arange(40) >= 20, "scores run from -2 to 2"),
        (np.full(40, 0.5), np.arange(40) >= 20, "every validation patient has the same score"),
    ],
)
def test_no_calibration_is_made_up(scores: np.ndarray, labels: np.ndarray, reason: str) -> None:
    found, said = fit_calibration(rows_of(scores, labels.astype(int)))
    assert found is None
    assert reason in said


def test_separated_classes_keep_a_finite_calibration() -> None:
    found, _ = fit_calibration(rows_of(np.repeat([0.0, 1.0], 20), np.repeat([0, 1], 20)))
    assert found is not None
    # targets 21/22 and 1/22: the fit goes through them
    assert found.apply(np.array([0.0, 1.0])) == pytest.approx([1 / 22, 21 / 22], abs=1e-4)


def test_rates_are_those_of_the_held_out_cases_at_the_validation_threshold() -> None:
    validation = rows_of(np.array([0.1, 0.2, 0.6, 0.7]), np.array([0, 0, 1, 1])).assign(split="val")
    validation[["exam_id", "patient_id"]] = "v" + validation[["exam_id", "patient_id"]]
    # Youden's point is .6: 8 of 10 positives reach it, 3 of 20 negatives do
    scores = np.array([0.9] * 8 + [0.3] * 2 + [0.8] * 3 + [0.1] * 17)
    held = rows_of(scores, np.repeat([1, 0], [10, 20])).assign(split="test")
    rows = pd.concat([validation, held]).assign(method="m", fold=0, seed=1, resample=0, design="d")
    found = held_out_rates(rows, "patient", None)
    for name, successes, n in (("sensitivity", 8, 10), ("specificity", 17, 20), ("ppv", 8, 11), ("npv", 17, 19)):
        p, z = successes / n, 1.959963984540054
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert found[name]["value"] == pytest.approx(p)
        assert (found[name]["ci_low"], found[name]["ci_high"]) == pytest.approx(
            (middle - half, middle + half), abs=1e-6
        )
    declared = held_out_rates(rows, "patient", 0.85)
    assert declared["specificity"]["value"] == 1.0


def test_an_earlier_table_is_known_by_a_bundle_id_that_looks_like_a_number(tmp_path: Path) -> None:
    """482448e92749 is hexadecimal, and infinite as a decimal number; 0012 is a file, not 12."""
    table = tmp_path / "scores.csv"
    table.write_text("image,score,bundle\n0012,0.5,482448e92749\n0013,,482448e92749\n")
    assert scored_before(table, "482448e92749" + 52 * "0") == {"0012": False, "0013": True}
    with pytest.raises(BadInput, match="another bundle"):
        scored_before(table, "482448e92740" + 52 * "0")
