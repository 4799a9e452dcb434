from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.students.base import CannotFit, Cases, CtNotAvailable, FitData, Fitted, Stage
from embedprior.study.runner import score_fold


def cases(prefix: str, count: int = 4) -> Cases:
    rng = np.random.default_rng(len(prefix))
    names = [f"{prefix}{i}" for i in range(count)]
    label = np.arange(count) % 2.0
    return Cases(names, names, label, rng.normal(size=(count, 3)), rng.normal(size=(count, 2)), label)


@dataclass(frozen=True)
class Peeker:
    """A student that reads CT at inference."""

    name: str = "peeker"
    needs_ct: bool = False
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        return self

    def scores(self, cases: Cases) -> np.ndarray:
        return cases.paired_ct()[:, 0]


@dataclass(frozen=True)
class Unfit:
    name: str = "unfit"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        raise CannotFit("one class only")


DATA = FitData((Stage(cases("train"), cases("val")),), None, "none")


def test_student_that_reads_ct_fails() -> None:
    with pytest.raises(CtNotAvailable):
        score_fold([Peeker()], DATA, {"test": cases("held")}, 0)


def test_declared_oracle_gets_ct() -> None:
    held = cases("held")
    table, _, _ = score_fold([Peeker(needs_ct=True)], DATA, {"test": held}, 0, fold=2, resample=5)
    np.testing.assert_array_equal(table["score"], held.paired_ct()[:, 0])
    assert (table["fold"].unique().tolist(), table["resample"].unique().tolist()) == ([2], [5])


def test_held_out_patient_seen_in_training_is_refused_with_the_id() -> None:
    leaky = FitData((Stage(cases("held"), cases("val")),), None, "none")
    with pytest.raises(BadInput, match="held0"):
        score_fold([Peeker(needs_ct=True)], leaky, {"test": cases("held")}, 0)


def test_method_that_can_not_be_fitted_is_recorded_and_the_rest_go_on() -> None:
    table, failures, fitted = score_fold([Unfit(), Peeker(needs_ct=True)], DATA, {"test": cases("held")}, 0)
    assert failures[0]["reason"] == "one class only"
    assert set(table["method"]) == set(fitted) == {"peeker"}
