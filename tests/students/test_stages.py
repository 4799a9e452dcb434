"""What a row takes over of its DRR stage: nothing that harms, much of what helps, each source on its own scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from embedprior.nn.ridge import PENALTIES
from embedprior.nn.stages import WEIGHTS
from embedprior.students import student
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.registry import Budget, build_method
from embedprior.students.training import train_student

ROWS = ("ridge-head", "kernel-ridge-head", "mlp-head", "direct-head", "hinton-kd", "cxr-only-drr", "fitnets")
MAP = np.random.default_rng(7).normal(size=(6, 5))


class FirstNumber:
    """A head whose logit is the first number of the CT embedding."""

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        return np.asarray(embeddings[:, 0], dtype=np.float64)


def world(count: int, seed: int, source: str, mapping: np.ndarray = MAP, noise: float = 0.3) -> Cases:
    """z_CT = z_CXR · mapping + noise; the label is the sign of its first number."""
    rng = np.random.default_rng([seed, len(source)])
    cxr = rng.normal(size=(count, 6))
    ct = cxr @ mapping + noise * rng.normal(size=(count, 5))
    label = (ct[:, 0] > 0).astype(float)
    names = [f"{source}-{seed}-{i}" for i in range(count)]
    return Cases(names, names, label, cxr.astype(np.float32), ct.astype(np.float32), label.copy(), source=source)


def two_stages(mapping: np.ndarray, train: int = 40, val: int = 40) -> FitData:
    drr = Stage(world(300, 1, "drr", mapping), world(60, 2, "drr", mapping))
    return FitData((drr, Stage(world(train, 3, "cxr"), world(max(val, 1), 4, "cxr").take(range(val)))), FirstNumber())


def standard(cases: Cases, of: Cases) -> np.ndarray:
    return (cases.cxr - of.cxr.astype(float).mean(0)) / of.cxr.astype(float).std(0)


TEST = world(500, 9, "cxr").without_ct()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("val", [40, 0])
def test_a_drr_stage_that_harms_is_dropped_and_said(name: str, val: int, budget: Budget) -> None:
    longer = budget.model_copy(update={"fit": budget.fit.model_copy(update={"steps": 80, "lr": 0.01})})
    data = two_stages(-4 * MAP, val=val)
    fitted = build_method(name, longer).fit(data, 5)
    summary = fitted.fit_summary  # type: ignore[attr-defined]
    assert summary.stage_weight.weight == 0
    assert summary.stage_weight.measured_on == ("validation" if val else "out of fold")
    assert "dropped" in summary.sentences()[0]
    if name == "cxr-only-drr":
        alone = FitData(data.stages[-1:], data.teacher)
        expected = build_method(name, longer).fit(alone, 5)
    else:
        expected = build_method(name, longer, pretraining=False).fit(data, 5)
    np.testing.assert_array_equal(fitted.scores(TEST), expected.scores(TEST))
    assert summary.steps == 0 or summary.steps > expected.fit_summary.steps  # type: ignore[attr-defined]


def enough(budget: Budget, dropout: float = 0.0) -> Budget:
    """Enough steps to learn; without dropout every library trains alike."""
    fit = budget.fit.model_copy(update={"steps": 200, "lr": 0.01, "dropout": dropout})
    return budget.model_copy(update={"fit": fit})


@pytest.mark.parametrize("name", ["ridge-head", "kernel-ridge-head", "mlp-head", "direct-head"])
@pytest.mark.parametrize("val", [40, 0])
def test_a_drr_stage_that_helps_is_taken_over(name: str, val: int, budget: Budget) -> None:
    """Whatever the seed; eight pairs alone can decide it where no dropout blurs their losses."""
    data, truth = two_stages(MAP, train=8, val=val), expit(TEST.cxr @ MAP[:, 0])
    longer, worth, errors = enough(budget, 0.2 if val else 0.0), [], []
    for seed in (5, 6, 7) if name in ("mlp-head", "direct-head") else (5,):
        fitted, alone = (build_method(name, longer, pretraining=p).fit(data, seed) for p in (True, False))
        weight = fitted.fit_summary.stage_weight  # type: ignore[attr-defined]
        assert weight.weight > 0
        worth.append(weight.worth)
        errors.append([float(np.mean((method.scores(TEST) - truth) ** 2)) for method in (fitted, alone)])
    assert np.mean(worth) > (0.03 if name == "direct-head" and val else 0.2)  # its cross-entropy has a floor
    with_stage, without = np.mean(errors, axis=0)
    assert with_stage < 0.8 * without


@pytest.mark.parametrize("name", ["ridge-head", "kernel-ridge-head", "mlp-head", "direct-head"])
def test_each_source_is_read_on_its_own_scale(name: str, budget: Budget) -> None:
    """Radiographs in another unit, with another zero: what was learned on DRRs still holds."""
    data, longer = two_stages(MAP, train=8), enough(budget)

    def moved(cases: Cases) -> Cases:
        return replace(cases, cxr=(50 + 9 * cases.cxr).astype(np.float32))

    target = Stage(moved(data.target.train), moved(data.target.val))
    fitted = build_method(name, longer).fit(FitData((data.stages[0], target), FirstNumber()), 5)
    assert fitted.fit_summary.stage_weight.weight > 0  # type: ignore[attr-defined]
    plain = build_method(name, longer).fit(data, 5).scores(TEST)
    np.testing.assert_allclose(fitted.scores(moved(TEST)), plain, atol=2e-3)


def test_the_weight_is_the_smallest_within_a_standard_error_of_the_least_squared_error_on_the_validation_pairs() -> (
    None
):
    data = two_stages(2 * MAP, train=12)
    drr, target = data.stages
    fitted = build_method("ridge-head", Budget()).fit(data, 0)

    def best(x: np.ndarray, y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray) -> Ridge:
        fits = [Ridge(alpha=p).fit(x, y) for p in PENALTIES]
        return min(fits, key=lambda fit: ((fit.predict(val_x) - val_y) ** 2).sum())

    first = best(standard(drr.train, drr.train), drr.train.paired_ct(), standard(drr.val, drr.train),
                 drr.val.paired_ct())  # fmt: skip
    x, val_x = (standard(cases, target.train) for cases in (target.train, target.val))
    losses = {}
    for weight in WEIGHTS:
        left, val_left = (
            cases.paired_ct() - weight * first.predict(inputs)
            for cases, inputs in ((target.train, x), (target.val, val_x))
        )
        second = best(x, left, val_x, val_left)
        losses[weight] = ((second.predict(val_x) - val_left) ** 2).sum(axis=1)
    found = fitted.fit_summary.stage_weight  # type: ignore[attr-defined]
    means = {weight: each.mean() for weight, each in losses.items()}
    assert dict(found.losses) == pytest.approx(means, rel=1e-4)
    least = losses[min(means, key=lambda weight: means[weight])]
    allowed = {weight: (each - least).std(ddof=1) / len(least) ** 0.5 for weight, each in losses.items()}
    assert found.weight == next(w for w in WEIGHTS if means[w] - least.mean() <= allowed[w])
    assert 0 < found.weight < 1


@pytest.mark.parametrize(("gain", "weight"), [([0.3, -0.2, 0.3, -0.2], 0.0), ([0.3, 0.2, 0.3, 0.2], 1.0)])
@pytest.mark.parametrize("val", [40, 0])
def test_a_student_takes_the_drr_stage_over_where_it_lowers_the_loss_by_more_than_a_standard_error(
    gain: list[float], weight: float, val: int, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of the stage alone, then of what goes on from the DRRs: lower by .05 ± .14, or by .25 ± .03."""
    folds = 1 if val else 3
    alone = np.array([1.0, 2.0, 1.5, 0.5])
    found = iter([alone] * folds + [alone - gain] * folds)
    monkeypatch.setattr(student, "validation_losses", lambda *_given: next(found))
    fitted = build_method("direct-head", budget).fit(two_stages(MAP, val=val), 5)
    chosen = fitted.fit_summary.stage_weight  # type: ignore[attr-defined]
    assert dict(chosen.losses) == pytest.approx({0.0: 1.25, 1.0: 1.25 - float(np.mean(gain))})
    assert chosen.weight == weight
    assert next(found, None) is None


def few_labels(known_val: int) -> tuple[FitData, Cases]:
    """60 numbers of which one shows the label; 400 labelled DRRs, 24 labelled radiographs of 200, 40 to validate on."""

    def drawn(count: int, seed: int, source: str, known: int) -> Cases:
        rng = np.random.default_rng(seed)
        label = np.arange(count) % 2.0
        cxr = rng.normal(size=(count, 60))
        cxr[:, 0] += 2 * label
        names = [f"{source}-{seed}-{i}" for i in range(count)]
        seen = np.where(np.arange(count) < known, label, np.nan)
        numbers = cxr.astype(np.float32)
        return Cases(names, names, seen, numbers, numbers[:, :5], seen.copy(), source=source)

    target = Stage(drawn(200, 3, "cxr", 24), drawn(40, 4, "cxr", known_val))
    drr = Stage(drawn(400, 1, "drr", 400), drawn(60, 2, "drr", 60))
    return FitData((drr, target), FirstNumber()), drawn(1000, 9, "cxr", 1000).without_ct()


@pytest.mark.parametrize(("known_val", "where"), [(6, "out of fold"), (18, "out of fold"), (20, "validation")])
def test_validation_labels_of_fewer_than_ten_patients_a_class_decide_nothing(
    known_val: int, where: str, budget: Budget
) -> None:
    fitted = build_method("cxr-only-drr", budget).fit(few_labels(known_val)[0], 5)
    assert fitted.fit_summary.stage_weight.measured_on == where  # type: ignore[attr-defined]
    pairs = build_method("direct-head", budget).fit(few_labels(known_val)[0], 5)
    assert pairs.fit_summary.stage_weight.measured_on == "validation"  # type: ignore[attr-defined]


@pytest.mark.parametrize("known_val", [6, 20])
def test_a_few_labels_of_radiographs_do_not_spoil_what_the_drrs_taught(known_val: int, budget: Budget) -> None:
    """What is kept ranks as the network did after the DRRs, near the best line; going on with 24 labels spoils it.

    Which trainings chance spoils depends on the library that draws the dropout: five of eight are asked for.
    """
    longer = budget.model_copy(update={"fit": budget.fit.model_copy(update={"steps": 200, "lr": 0.01})})
    data, test = few_labels(known_val)
    method = build_method("cxr-only-drr", longer)
    assert isinstance(method, student.StudentMethod)
    (drr, drr_val), (target, val) = [[method._tensors(c, None) for c in stage.parts] for stage in data.stages]
    kept, spoiled = [], []
    for seed in range(8):
        network, objective = method._parts(data, seed)
        network.backbone.fit_scale(drr.inputs)
        train_student(network, objective, drr, drr_val, longer, seed + 1)
        network.backbone.fit_scale(target.inputs)
        taught = roc_auc_score(test.label, network.logits(test))
        train_student(network, objective, target, val, longer, seed)
        fitted = method.fit(data, seed)
        if any("what the DRRs taught is kept" in note for note in fitted.fit_summary.notes):  # type: ignore[attr-defined]
            assert roc_auc_score(test.label, fitted.scores(test)) == pytest.approx(taught, abs=1e-4)
            kept.append(taught)
            spoiled.append(roc_auc_score(test.label, network.logits(test)))
    assert len(kept) >= 5
    model = LogisticRegression(C=0.01).fit(standard(*[data.stages[0].train] * 2), data.stages[0].train.label)
    best = roc_auc_score(test.label, model.decision_function(standard(test, data.target.train)))
    assert np.mean(kept) > best - 0.04
    assert all(np.array(kept) > spoiled)
    assert np.mean(kept) > np.mean(spoiled) + 0.02


def test_pseudo_values_of_a_mean_over_as_many_cases_as_groups_are_the_cases_own_losses(budget: Budget) -> None:
    """Ten patients, one case each; what the jackknife gives for a mean is the numbers it is the mean of."""
    cases = world(10, 3, "cxr")
    method = build_method("cxr-only", budget)
    assert isinstance(method, student.StudentMethod)
    network, objective = method._parts(FitData((Stage(cases, cases),), FirstNumber()), 0)
    tensors = method._tensors(cases, None)
    network.backbone.fit_scale(tensors.inputs)
    found = student.validation_losses(network, objective, tensors, 4)
    chance = expit(network.eval().logits(cases).astype(float))
    own = -np.log(np.where(cases.label == 1, chance, 1 - chance))
    np.testing.assert_allclose(np.sort(found), np.sort(own), rtol=1e-3, atol=1e-5)
    assert found.mean() == pytest.approx(own.mean(), rel=1e-5)


def test_one_stage_has_nothing_to_take_over(small: FitData, budget: Budget) -> None:
    for name in ("ridge-head", "hinton-kd"):
        assert build_method(name, budget).fit(small, 0).fit_summary.stage_weight is None  # type: ignore[attr-defined]
