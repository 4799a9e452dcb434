"""Students and controls on a cohort whose truth is known.

y depends on the first CT dimension only; the radiograph shows it with noise. Labels of the radiographs are few,
unlabelled pairs many.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from embedprior.nn.config import FitConfig
from embedprior.students.base import CannotFit, Cases, CtNotAvailable, FitData, Stage
from embedprior.students.logit_kd import hinton
from embedprior.students.registry import Budget, build_method
from embedprior.students.regression_heads import RidgeHead, summed
from embedprior.teachers.teacher import train_head

FIT = FitConfig(hidden=32, steps=300)
BUDGET = Budget(fit=FIT)
SIMPLE = ("cxr-only", "ct-only", "late-fusion", "same-modality-kd", "hinton-kd", "direct-head", "ridge-head")


def cohort(count: int, seed: int, prefix: str = "p", source: str = "cxr") -> Cases:
    rng = np.random.default_rng(seed)
    ct = rng.normal(size=(count, 6)).astype(np.float32)
    cxr = np.concatenate([ct[:, :3] + 0.7 * rng.normal(size=(count, 3)), rng.normal(size=(count, 9))], axis=1)
    label = (ct[:, 0] + 0.2 * rng.normal(size=count) > 0).astype(float)
    names = [f"{prefix}{i}" for i in range(count)]
    return Cases(names, names, label, cxr.astype(np.float32), ct, label.copy(), source)


@pytest.fixture(scope="module")
def data() -> FitData:
    train = cohort(300, 1, "t")
    few = np.where(np.arange(300) < 24, train.label, np.nan)
    stage = Stage(replace(train, label=few), cohort(100, 2, "v"))
    teacher = train_head(train.paired_ct(), train.ct_label, stage.val.paired_ct(), stage.val.ct_label, FIT, 0)
    return FitData((stage,), teacher)


@pytest.fixture(scope="module")
def held_out() -> Cases:
    return cohort(600, 3, "h")


@pytest.fixture(scope="module")
def aucs(data: FitData, held_out: Cases) -> dict[str, float]:
    found = {}
    for name in SIMPLE:
        method = build_method(name, BUDGET)
        cases = held_out if method.needs_ct else held_out.without_ct()
        found[name] = float(roc_auc_score(held_out.label, method.fit(data, 0).scores(cases)))
    return found


def test_transfer_beats_few_labels_where_ct_carries_the_label(aucs: dict[str, float]) -> None:
    for name in ("hinton-kd", "direct-head", "ridge-head"):
        assert aucs[name] > aucs["cxr-only"] + 0.03, aucs
    assert aucs["ct-only"] > 0.95


def test_only_oracles_need_ct(data: FitData, held_out: Cases) -> None:
    for name in SIMPLE:
        method = build_method(name, BUDGET)
        if method.needs_ct:
            with pytest.raises(CtNotAvailable):
                method.fit(data, 0).scores(held_out.without_ct())
    assert {n for n in SIMPLE if build_method(n, BUDGET).needs_ct} == {"ct-only", "late-fusion"}


def test_ct_swapped_between_patients_hurts(data: FitData, held_out: Cases, aucs: dict[str, float]) -> None:
    train = data.target.train
    swapped = replace(train, ct=train.paired_ct()[np.random.default_rng(0).permutation(len(train))])
    worse = FitData((Stage(swapped, data.target.val),), data.teacher)
    for name in ("direct-head", "ridge-head"):
        scores = build_method(name, BUDGET).fit(worse, 0).scores(held_out.without_ct())
        assert roc_auc_score(held_out.label, scores) < aucs[name] - 0.05


def test_methods_that_do_not_use_ct_are_the_same_without_it(data: FitData, held_out: Cases) -> None:
    bare = FitData((Stage(data.target.train.without_ct(), data.target.val.without_ct()),), None, "none")
    for name in ("cxr-only", "same-modality-kd"):
        method = build_method(name, BUDGET)
        assert not method.uses_ct
        with_ct = method.fit(data, 4).scores(held_out.without_ct())
        np.testing.assert_array_equal(method.fit(bare, 4).scores(held_out.without_ct()), with_ct)


def test_methods_that_need_a_teacher_say_why_they_can_not_be_fitted(data: FitData) -> None:
    bare = FitData(data.stages, None, "only class 1")
    for name in ("ct-only", "hinton-kd", "direct-head", "ridge-head", "prior"):
        with pytest.raises(CannotFit, match="only class 1"):
            build_method(name, BUDGET).fit(bare, 0)


def test_one_class_can_not_be_fitted(data: FitData) -> None:
    train = data.target.train
    one = FitData((Stage(replace(train, label=np.ones(len(train))), data.target.val),), data.teacher)
    for name in ("cxr-only", "hinton-kd", "late-fusion", "same-modality-kd"):
        with pytest.raises(CannotFit, match="fewer than two classes"):
            build_method(name, BUDGET).fit(one, 0)


def test_distillation_loss_is_temperature_squared_kl() -> None:
    teacher, student, temperature = np.array([1.5, -2.0, 0.3]), np.array([0.2, 0.4, -1.0]), 4.0
    p, q = expit(teacher / temperature), expit(student / temperature)
    expected = temperature**2 * np.mean([entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True)])
    outputs = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    loss = hinton(outputs, torch.tensor(teacher, dtype=torch.float32), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, outputs)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 3, rtol=1e-4)


def test_ridge_solves_its_normal_equations(data: FitData) -> None:
    fitted = RidgeHead(penalties=(5.0,)).fit(data, 0)
    train = data.target.train
    inputs = (train.cxr - train.cxr.mean(0)) / train.cxr.std(0)
    target = train.paired_ct() - train.paired_ct().mean(0)
    weights = np.linalg.solve(inputs.T @ inputs + 5.0 * np.eye(inputs.shape[1]), inputs.T @ target)
    expected = inputs @ weights + train.paired_ct().mean(0)
    np.testing.assert_allclose(fitted.regression(train.cxr), expected, atol=1e-4)


def test_second_ridge_stage_corrects_the_first(data: FitData) -> None:
    first = Stage(cohort(200, 11, "d", "drr"), cohort(50, 12, "w", "drr"))
    # So few pairs that they can't do without the first stage.
    two = FitData((first, Stage(data.target.train.take(range(12)), data.target.val)), data.teacher)
    terms, val = RidgeHead().fit(two, 0).terms, data.target.val
    assert len(terms) == 2
    first_error, both_error = (((summed(t, val.cxr) - val.paired_ct()) ** 2).sum() for t in (terms[:1], terms))
    assert both_error <= first_error


def test_cases_keep_their_rows_together() -> None:
    cases = cohort(5, 0).take([3, 1])
    whole = cohort(5, 0)
    assert list(cases.exam_ids) == [whole.exam_ids[3], whole.exam_ids[1]]
    np.testing.assert_array_equal(cases.paired_ct(), whole.paired_ct()[[3, 1]])
    assert np.isnan(cases.without_ct().ct_label).all()
