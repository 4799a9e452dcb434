"""Cases that lack something: labels in validation, a CT that varies, a number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.registry import Budget, build_method

CT_STUDENTS = (
    "hinton-kd", "direct-head", "fitnets", "proto-kd", "contrastive-kd", "aft-kd", "rkd", "clip-alignment", "discom-kd",
)  # fmt: skip
CT_ROWS = (*CT_STUDENTS, "ridge-head", "kernel-ridge-head", "mlp-head", "knn-head")


def with_val(small: FitData, val: Cases) -> FitData:
    return FitData((Stage(small.target.train, val),), small.teacher)


@pytest.mark.parametrize("name", ["cxr-only", "discom-kd", "proto-kd", "hinton-kd"])
def test_validation_cases_without_a_label_choose_no_step_and_it_is_said(
    name: str, small: FitData, budget: Budget
) -> None:
    val = small.target.val
    bare = replace(val, label=np.full(len(val), np.nan), ct_label=np.full(len(val), np.nan))
    fitted = build_method(name, budget).fit(with_val(small, bare), 1)
    last = build_method(name, budget).fit(with_val(small, val.take([])), 1)
    np.testing.assert_array_equal(fitted.scores(val.without_ct()), last.scores(val.without_ct()))
    notes = fitted.fit_summary.notes  # type: ignore[attr-defined]
    assert notes == ("none of the 16 validation cases has a label: the last step is kept",)
    assert not build_method(name, budget).fit(small, 1).fit_summary.notes  # type: ignore[attr-defined]


def test_an_objective_without_labels_is_still_validated_on_unlabelled_cases(small: FitData, budget: Budget) -> None:
    val = small.target.val
    bare = replace(val, label=np.full(len(val), np.nan))
    found, expected = (build_method("direct-head", budget).fit(with_val(small, v), 1) for v in (bare, val))
    np.testing.assert_array_equal(found.scores(val.without_ct()), expected.scores(val.without_ct()))
    assert not found.fit_summary.notes  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CT_ROWS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_ct_that_is_not_finite_is_refused_with_its_exam(name: str, part: str, small: FitData, budget: Budget) -> None:
    cases = getattr(small.target, part)
    ct = cases.paired_ct().copy()
    ct[4, 2] = np.nan
    stage = replace(small.target, **{part: replace(cases, ct=ct)})
    with pytest.raises(BadInput, match=rf"exam '{cases.exam_ids[4]}': its CT's embedding .*not finite \(1 such"):
        build_method(name, budget).fit(FitData((stage,), small.teacher), 0)


@pytest.mark.parametrize("name", ["cxr-only", "logistic", "hinton-kd", "ridge-head", "knn-head"])
def test_a_radiograph_that_is_not_finite_is_refused_with_its_exam(name: str, small: FitData, budget: Budget) -> None:
    cxr = small.target.train.cxr.copy()
    cxr[3, 0] = np.inf
    stage = Stage(replace(small.target.train, cxr=cxr), small.target.val)
    with pytest.raises(BadInput, match=r"exam 't3': its radiograph's embedding .*not finite"):
        build_method(name, budget).fit(FitData((stage,), small.teacher), 0)


def test_a_method_that_reads_no_ct_does_not_mind_one(small: FitData, budget: Budget) -> None:
    ct = np.full_like(small.target.train.paired_ct(), np.nan)
    stage = Stage(replace(small.target.train, ct=ct), small.target.val)
    found = build_method("cxr-only", budget).fit(FitData((stage,), small.teacher), 0)
    expected = build_method("cxr-only", budget).fit(small, 0)
    cases = small.target.val.without_ct()
    np.testing.assert_array_equal(found.scores(cases), expected.scores(cases))


@pytest.mark.parametrize("name", CT_ROWS)
def test_identical_cts_give_finite_scores(name: str, small: FitData, budget: Budget) -> None:
    def same(cases: Cases) -> Cases:
        return replace(cases, ct=np.ones_like(cases.paired_ct()))

    data = FitData((Stage(same(small.target.train), same(small.target.val)),), small.teacher)
    scores = build_method(name, budget).fit(data, 0).scores(small.target.val.without_ct())
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", ["fitnets", "proto-kd", "contrastive-kd", "aft-kd", "rkd", "clip-alignment"])
def test_the_unit_of_the_ct_embedding_changes_nothing(name: str, small: FitData, budget: Budget) -> None:
    class Fixed:
        def logits(self, ct: np.ndarray) -> np.ndarray:
            return np.zeros(len(ct))

    def scores(unit: float) -> np.ndarray:
        train, val = (replace(c, ct=(unit * c.paired_ct()).astype(np.float32)) for c in small.target.parts)
        fitted = build_method(name, budget).fit(FitData((Stage(train, val),), Fixed()), 0)
        return np.asarray(fitted.scores(small.target.val.without_ct()))

    np.testing.assert_allclose(scores(1e-8), scores(1.0), atol=1e-4)


@pytest.mark.parametrize("name", ["cxr-only", *CT_ROWS, "logistic"])
def test_one_validation_case_is_enough_to_run(name: str, small: FitData, budget: Budget) -> None:
    data = with_val(small, small.target.val.take([0]))
    scores = build_method(name, budget).fit(data, 0).scores(small.target.val.without_ct())
    assert np.isfinite(scores).all()
