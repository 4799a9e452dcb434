"""Controls that answer "was it the CT?": longer training, more labelled pictures, permuted labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from embedprior.nn.stages import FOLDS
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.controls import LabelPermutation
from embedprior.students.registry import Budget, build_method

RNG = np.random.default_rng(0)


@pytest.fixture
def two_stages(small: FitData) -> FitData:
    """DRR–CT pairs, other patients, before the radiographs."""
    train, val = (
        replace(c, exam_ids=[f"d-{i}" for i in c.exam_ids], patient_ids=[f"d-{i}" for i in c.patient_ids],
                cxr=c.cxr[::-1].copy(), label=np.nan_to_num(c.ct_label)[::-1].copy(), source="drr")
        for c in (small.target.train, small.target.val)
    )  # fmt: skip
    return FitData((Stage(train, val), small.target), small.teacher)


def test_the_longer_row_is_the_xray_only_student_with_twice_the_steps(small: FitData, budget: Budget) -> None:
    cases = small.target.val.without_ct()
    long = build_method("cxr-only-long", budget).fit(small, 3)
    twice = budget.model_copy(update={"fit": budget.fit.model_copy(update={"steps": 2 * budget.fit.steps})})
    np.testing.assert_array_equal(long.scores(cases), build_method("cxr-only", twice).fit(small, 3).scores(cases))
    assert long.fit_summary.steps == 2 * budget.fit.steps  # type: ignore[attr-defined]


def test_the_drr_row_learns_drr_labels_and_nothing_of_ct(two_stages: FitData, budget: Budget) -> None:
    cases = two_stages.target.val.without_ct()

    def scores(data: FitData) -> np.ndarray:
        fitted = build_method("cxr-only-drr", budget).fit(data, 3)
        return np.asarray(fitted.scores(cases))

    def changed(part: Cases, **fields: object) -> Cases:
        return replace(part, **fields)  # type: ignore[arg-type]

    whole = scores(two_stages)
    noise = FitData(
        tuple(
            Stage(*(changed(c, ct=RNG.normal(size=c.paired_ct().shape).astype(np.float32)) for c in (s.train, s.val)))
            for s in two_stages.stages
        ),
        None,
        "none",
    )
    np.testing.assert_array_equal(scores(noise), whole)
    drr, target = two_stages.stages
    other = Stage(changed(drr.train, label=1 - drr.train.label), drr.val)
    assert np.abs(scores(FitData((other, target), None, "none")) - whole).max() > 1e-3
    fitted = build_method("cxr-only-drr", budget).fit(two_stages, 3)
    # The DRRs' stage and the radiographs' own, whose two starts were compared out of fold: too few labels validate.
    assert fitted.fit_summary.steps == budget.fit.steps * (1 + 1 + 2 * FOLDS)  # type: ignore[attr-defined]


def test_drrs_without_labels_teach_the_drr_row_nothing(two_stages: FitData, budget: Budget) -> None:
    drr, target = two_stages.stages
    cases = target.val.without_ct()
    bare = FitData((Stage(replace(drr.train, label=np.full(len(drr.train), np.nan)), drr.val), target), None, "none")
    np.testing.assert_array_equal(
        build_method("cxr-only-drr", budget).fit(bare, 3).scores(cases),
        build_method("cxr-only", budget).fit(bare, 3).scores(cases),
    )


def plain_cases(count: int, seed: int) -> Cases:
    """Radiographs that show the label plainly; every fourth label is unknown."""
    rng, names = np.random.default_rng(seed), [f"{seed}-{i}" for i in range(count)]
    label = np.where(np.arange(count) % 4 == 3, np.nan, np.arange(count) % 2)
    cxr = rng.normal(size=(count, 5)) + 3 * (np.arange(count) % 2)[:, None]
    return Cases(names, names, label, cxr.astype(np.float32), None, np.full(count, np.nan))


def test_permuted_labels_are_the_same_labels_in_each_part_and_teach_nothing(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, held_out = Stage(plain_cases(60, 1), plain_cases(40, 2)), plain_cases(100, 3)
    held_out = held_out.take(np.flatnonzero(held_out.known))
    data, seen = FitData((stage,), None, "none"), list[FitData]()
    fitted = LabelPermutation.trained
    monkeypatch.setattr(LabelPermutation, "trained", lambda self, d, seed: seen.append(d) or fitted(self, d, seed))

    def auc(name: str, seed: int) -> float:
        return float(roc_auc_score(held_out.label, build_method(name, budget).fit(data, seed).scores(held_out)))

    assert auc("cxr-only", 0) > 0.95
    assert abs(np.mean([auc("label-permutation", seed) for seed in range(8)]) - 0.5) < 0.35
    for given in seen:
        for part, true in ((given.target.train, stage.train), (given.target.val, stage.val)):
            np.testing.assert_array_equal(part.known, true.known)
            assert part.label[part.known].sum() == true.label[true.known].sum()
            assert (part.label[part.known] != true.label[true.known]).any()
