from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.students.base import (
    SCORING_BLOCK,
    CannotFit,
    Cases,
    CtNotAvailable,
    FitData,
    Fitted,
    Stage,
    score_in_blocks,
)
from embedprior.study.runner import FitJob, FoldId, NoScore, refuse_seen_patients, score_fit


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


@dataclass(frozen=True)
class Constant:
    """A given score for each exam id; CT plays no part."""

    values: Mapping[str, float]
    name: str = "constant"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        return self

    def scores(self, cases: Cases) -> np.ndarray:
        return np.array([self.values[i] for i in cases.exam_ids])


@dataclass(frozen=True)
class OneShort:
    """One score too few."""

    name: str = "one-short"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        return self

    def scores(self, cases: Cases) -> np.ndarray:
        return cases.cxr[1:, 0]


@dataclass(frozen=True)
class RoundsByBatchSize:
    """As a matrix product does: another number of rows, another kernel, another last digit."""

    name: str = "rounds"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        return self

    def scores(self, cases: Cases) -> np.ndarray:
        return cases.cxr[:, 0] * (1 + 2.0**-50 * len(cases))


DATA = FitData((Stage(cases("train"), cases("val")),), None, "none")
UNIT = FitJob(FoldId(0, "d", 5, 2), "d", 7, "row")


def test_student_that_reads_ct_fails() -> None:
    with pytest.raises(CtNotAvailable):
        score_fit(Peeker(), DATA, {"test": cases("held")}, UNIT)


def test_declared_oracle_gets_ct_and_the_table_says_where_it_was_fitted() -> None:
    held = cases("held")
    table, unscored, _ = score_fit(Peeker(needs_ct=True), DATA, {"test": held}, UNIT)
    np.testing.assert_array_equal(table["score"], held.paired_ct()[:, 0])
    found = table[["method", "fold", "resample", "seed", "split"]].drop_duplicates().to_numpy().tolist()
    assert found == [["row", 2, 5, 7, "test"]]
    assert unscored == []


def test_held_out_patient_seen_in_training_validation_or_by_the_teacher_is_refused_with_the_id() -> None:
    held = cases("held")
    for stage in (Stage(cases("held"), cases("val")), Stage(cases("train"), cases("held"))):
        with pytest.raises(BadInput, match="held0"):
            refuse_seen_patients(FitData((stage,), None), held)
    with pytest.raises(BadInput, match="1 held-out patients took part in training: held2"):
        refuse_seen_patients(DATA, held, {"held2", "stranger"})
    refuse_seen_patients(DATA, held, {"stranger"})


def test_case_without_a_finite_score_is_left_out_and_named() -> None:
    method = Constant({"held0": 0.1, "held1": np.nan, "held2": 0.3, "held3": np.inf})
    table, unscored, _ = score_fit(method, DATA, {"test": cases("held")}, UNIT)
    assert table["exam_id"].tolist() == ["held0", "held2"]
    assert unscored == [
        {"exam_id": "held1", "reason": "test case without a finite score"},
        {"exam_id": "held3", "reason": "test case without a finite score"},
    ]


def test_no_score_at_all_and_too_few_scores_are_failures() -> None:
    with pytest.raises(NoScore, match="none of the 4 held-out cases"):
        score_fit(Constant(dict.fromkeys(cases("held").exam_ids, np.nan)), DATA, {"test": cases("held")}, UNIT)
    with pytest.raises(NoScore, match=r"returned \(3,\) scores for 4 test cases"):
        score_fit(OneShort(), DATA, {"test": cases("held")}, UNIT)
    with pytest.raises(NoScore, match=rf"returned \({SCORING_BLOCK - 1},\) scores for 4 test cases"):
        score_fit(OneShort(), DATA, {"test": cases("held")}, UNIT, independent=True)


@pytest.mark.parametrize("count", [1, SCORING_BLOCK - 1, SCORING_BLOCK, 2 * SCORING_BLOCK + 3])
def test_a_score_does_not_depend_on_the_number_of_cases_scored_with_it(count: int) -> None:
    every = cases("held", 3 * SCORING_BLOCK)
    fitted = RoundsByBatchSize()
    whole = score_in_blocks(fitted, every)
    np.testing.assert_array_equal(score_in_blocks(fitted, every.take(range(count))), whole[:count])
    assert whole.tolist() == (every.cxr[:, 0] * (1 + 2.0**-50 * SCORING_BLOCK)).tolist()
    assert not np.array_equal(fitted.scores(every), whole)
    table, _, _ = score_fit(fitted, DATA, {"test": every}, UNIT, independent=True)
    np.testing.assert_array_equal(table["score"], whole)


def test_method_that_can_not_be_fitted_says_why() -> None:
    with pytest.raises(CannotFit, match="one class only"):
        score_fit(Unfit(), DATA, {"test": cases("held")}, UNIT)


def test_a_method_without_ct_finds_none_of_it_in_its_training_data() -> None:
    seen: list[FitData] = []

    @dataclass(frozen=True)
    class Notes(Constant):
        def fit(self, data: FitData, seed: int) -> Fitted:
            seen.append(data)
            return self

    drr = Stage(replace(cases("drr"), source="drr"), replace(cases("drrval"), source="drr"))
    data = FitData((drr, *DATA.stages), object())  # type: ignore[arg-type]
    score_fit(Notes(dict.fromkeys(cases("held").exam_ids, 0.1)), data, {"test": cases("held")}, UNIT)
    score_fit(Notes(dict.fromkeys(cases("held").exam_ids, 0.1), uses_ct=True), data, {"test": cases("held")}, UNIT)
    plain, whole = seen
    assert [s.train.source for s in plain.stages] == ["cxr"]  # a DRR is made from CT
    assert plain.teacher is None
    for part in (plain.target.train, plain.target.val):
        assert part.ct is None
        assert part.ct_mirrored is None
        assert np.isnan(part.ct_label).all()
    np.testing.assert_array_equal(plain.target.train.cxr, DATA.target.train.cxr)
    np.testing.assert_array_equal(plain.target.train.label, DATA.target.train.label)
    assert whole is data
