from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from embedprior.errors import BadInput
from embedprior.nn.losses import case_weights
from embedprior.students.base import CannotFit, Cases, FitData, Stage
from embedprior.students.logit_kd import LabelsOnly
from embedprior.students.network import StudentNetwork
from embedprior.students.registry import Augmentation, Budget, build_method
from embedprior.students.training import (
    Batch,
    CaseTensors,
    Objective,
    augmented,
    to_tensors,
    train_student,
)


class Watch(Objective):
    """Remembers the batches it was given."""

    def __init__(self, reads_labels: bool = True, reads_pairs: bool = True) -> None:
        super().__init__()
        self.reads_labels, self.reads_pairs = reads_labels, reads_pairs
        self.seen: list[tuple[Batch, Batch]] = []

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, torch.Tensor]:
        self.seen.append((labelled, pairs))
        return {"all": (labelled.logits.sum() + pairs.logits.sum()) * 0.0}


def watched(data: CaseTensors, budget: Budget, objective: Watch, kind: str = "embedding") -> Watch:
    network = StudentNetwork(kind, 0 if kind == "pixels" else data.inputs.shape[-1], budget.fit)  # type: ignore[arg-type]
    network.backbone.fit_scale(data.inputs)
    empty = CaseTensors(**{k: v[:0] for k, v in vars(data).items() if v is not None and k != "mirrored"})
    train_student(network, objective, data, empty, budget, 3)
    return objective


def test_label_terms_see_labelled_cases_and_transfer_terms_see_all(small: FitData, budget: Budget) -> None:
    data = to_tensors(small.target.train, "embedding", small.teacher, "none")
    seen = watched(data, budget, Watch()).seen
    assert len(seen) == budget.fit.steps
    assert all((~labelled.label.isnan()).all() for labelled, _ in seen)
    unlabelled = torch.cat([pairs.label.isnan() for _, pairs in seen]).float().mean().item()
    assert unlabelled == pytest.approx(0.5, abs=0.05)


def test_one_draw_serves_both_when_every_case_is_labelled(small: FitData, budget: Budget) -> None:
    data = to_tensors(small.target.val, "embedding", small.teacher, "none")
    assert all(labelled is pairs for labelled, pairs in watched(data, budget, Watch()).seen)


def test_every_method_draws_the_same_labelled_cases(small: FitData, budget: Budget) -> None:
    data = to_tensors(small.target.val, "embedding", small.teacher, "none")
    one, two = (watched(data, budget, Watch(reads_pairs=p)).seen for p in (True, False))
    assert all(torch.equal(a[0].inputs, b[0].inputs) for a, b in zip(one, two, strict=True))


def unbalanced(small: FitData) -> Cases:
    train = small.target.train
    rows = [*np.flatnonzero(train.label == 1)[:2], *np.flatnonzero(train.label == 0)[:9]]
    return train.take(rows)


def test_sampler_draws_both_classes_alike_and_weights_sum_to_the_same(small: FitData, budget: Budget) -> None:
    cases = unbalanced(small)
    for balance, share in (("none", 2 / 11), ("sampler", 0.5)):
        own = budget.model_copy(update={"balance": balance})
        data = to_tensors(cases, "embedding", small.teacher, balance)  # type: ignore[arg-type]
        drawn = torch.cat([labelled.label for labelled, _ in watched(data, own, Watch()).seen])
        assert drawn.mean().item() == pytest.approx(share, abs=0.06)
    weights = case_weights(np.array([1, 0, 0, 0, np.nan]))
    np.testing.assert_allclose(weights, [2, 2 / 3, 2 / 3, 2 / 3, 1])


def test_balance_reaches_every_student(small: FitData, budget: Budget) -> None:
    cases = unbalanced(small)
    data = FitData((Stage(cases, small.target.val),), small.teacher)
    visible = small.target.val.without_ct()
    for name in ("cxr-only", "hinton-kd", "discom-kd", "logistic", "clip-alignment"):
        plain = build_method(name, budget).fit(data, 1).scores(visible)
        for balance in ("class-weights", "sampler"):
            other = build_method(name, budget.model_copy(update={"balance": balance})).fit(data, 1).scores(visible)
            assert np.abs(other - plain).max() > 1e-4, (name, balance)


def test_the_kept_step_has_the_best_validation_value(small: FitData, budget: Budget) -> None:
    fit = budget.fit.model_copy(update={"steps": 400, "validate_every": 10, "lr": 0.02, "dropout": 0.0})
    own = budget.model_copy(update={"fit": fit})
    train = to_tensors(small.target.train, "embedding", None, "none")
    val = to_tensors(small.target.val, "embedding", None, "none")
    network = StudentNetwork("embedding", train.inputs.shape[1], fit)
    history = train_student(network, LabelsOnly(), train, val, own, 0)
    logits = network.eval()(val.inputs)[1]
    now = torch.nn.functional.binary_cross_entropy_with_logits(logits, val.label).item()
    values = [h["val_loss"] for h in history]
    assert now == pytest.approx(min(values), rel=1e-5)
    assert min(values) < values[-1]


def test_named_losses_are_weighted_and_logged(small: FitData, budget: Budget) -> None:
    fitted = build_method("discom-kd", budget, weights={"adv": 0.0}).fit(small, 1)
    assert fitted.fit_summary is not None
    assert fitted.fit_summary.losses == ("cl", "aux", "mod", "adv", "perp")
    assert [h["step"] for h in fitted.fit_summary.history] == [20, 40]
    objective = Objective({"a": 2.0})
    assert objective.total({"a": torch.tensor(3.0), "b": torch.tensor(4.0)}).item() == 10


def picture_cases(with_pixels, cases: Cases) -> Cases:
    """Pictures bright on one side, CT embeddings that name the side."""
    count, side = len(cases), np.arange(len(cases)) % 2
    pixels = np.zeros((count, 16, 16), np.uint8)
    for i, s in enumerate(side):
        pixels[i, :, 8 * s : 8 * s + 8] = 200
    ct = np.stack([side, 1 - side], 1).astype(np.float32)
    return replace(cases, pixels=pixels, ct=ct, ct_mirrored=ct[:, ::-1].copy())


def test_a_flipped_radiograph_goes_with_the_mirrored_ct(small: FitData, budget: Budget, with_pixels) -> None:
    cases = picture_cases(with_pixels, small.target.train)
    own = budget.model_copy(update={"augment": Augmentation(flip=True)})

    class Sides:
        def logits(self, ct: np.ndarray) -> np.ndarray:
            return ct[:, 0] * 10 - 5

    seen = watched(to_tensors(cases, "pixels", Sides(), "none"), own, Watch(), "pixels").seen
    pairs = [p for _, p in seen]
    right = torch.cat([p.inputs[:, :, 8:].float().mean((1, 2)) > 100 for p in pairs]).float()
    assert torch.equal(right, torch.cat([p.ct[:, 0] for p in pairs]))
    assert torch.equal(right * 10 - 5, torch.cat([p.teacher for p in pairs]))
    assert 0.3 < right.mean().item() < 0.7
    with pytest.raises(BadInput, match="no embedding of the mirrored CT"):
        watched(to_tensors(replace(cases, ct_mirrored=None), "pixels", Sides(), "none"), own, Watch(), "pixels")
    watched(to_tensors(cases.without_ct(), "pixels", None, "none"), own, Watch(), "pixels")


def test_flips_and_shifts_are_what_they_say() -> None:
    picture = torch.arange(36, dtype=torch.uint8).view(1, 6, 6).repeat(40, 1, 1)
    draws = torch.Generator().manual_seed(0)
    out, flipped = augmented(picture, Augmentation(flip=True), draws)
    assert 5 < flipped.sum() < 35
    for one, was in zip(out, flipped, strict=True):
        np.testing.assert_array_equal(one, np.fliplr(picture[0]) if was else picture[0])
    out, flipped = augmented(picture, Augmentation(shift=2), draws)
    assert not flipped.any()
    allowed = {
        np.pad(picture[0], 2, mode="edge")[2 + dy : 8 + dy, 2 + dx : 8 + dx].tobytes()
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    found = {one.numpy().tobytes() for one in out}
    assert found <= allowed
    assert len(found) > 5


def test_a_radiograph_teacher_reads_the_picture_the_student_reads(small: FitData, budget: Budget, with_pixels) -> None:
    from embedprior.students.logit_kd import SameModality

    teacher = StudentNetwork("pixels", 0, budget.fit)
    picture = torch.randint(0, 255, (4, 16, 16), dtype=torch.uint8)
    rows = Batch(*(torch.zeros(4) for _ in range(2)), picture, *(torch.zeros(4) for _ in range(6)))
    objective = SameModality(teacher, 4.0, 0.6).train()
    assert not teacher.training
    with torch.no_grad():
        torch.testing.assert_close(objective.target(rows), teacher.eval()(picture)[1])


def test_pixels_and_tokens_that_are_not_there_are_asked_for(small: FitData, budget: Budget) -> None:
    (stage,) = small.stages
    bare = Stage(*(replace(part, pixels=None, tokens=None, ct_pixels=None) for part in (stage.train, stage.val)))
    data = replace(small, stages=(bare,))
    with pytest.raises(CannotFit, match="pixels-128"):
        build_method("cxr-only", budget, inputs="pixels").fit(data, 0)
    with pytest.raises(CannotFit, match="token cache"):
        build_method("hinton-kd", budget, inputs="tokens").fit(data, 0)


@pytest.mark.parametrize(
    ("kind", "readout", "student"),
    [
        ("embedding", "linear", "shared"), ("embedding", "probe", "shared"), ("embedding", "disentangled", "shared"),
        ("pixels", "linear", "shared"), ("pixels", "linear", "pilot-dfpn"),
    ],
)  # fmt: skip
def test_a_rescaled_network_gives_intercept_plus_slope_times_its_logit(
    kind: str, readout: str, student: str, budget: Budget
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 128, 128))
    inputs = torch.from_numpy(pictures.astype(np.float32)) if kind == "pixels" else torch.randn(3, 6)
    network = StudentNetwork(kind, 6, budget.fit, readout, 4, student).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        before = network(inputs)[1].double().numpy()
        network.rescale(0.7, 1.9)
        after = network(inputs)[1].double().numpy()
    np.testing.assert_allclose(after, 0.7 + 1.9 * before, rtol=1e-5, atol=1e-5)
