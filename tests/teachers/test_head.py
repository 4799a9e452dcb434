from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from embedprior.errors import BadInput
from embedprior.nn.config import Balance, FitConfig
from embedprior.nn.losses import case_weights
from embedprior.nn.network import loss_of_labels
from embedprior.teachers.teacher import OneClass, TeacherHead, train_head

FIT = FitConfig(hidden=16, steps=200)


def data(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(3.0, 50.0, size=(count, 4)).astype(np.float32)
    return inputs, (inputs[:, 0] > 3.0).astype(float)


def test_head_learns_whatever_the_scale_and_is_frozen(tmp_path: Path) -> None:
    head = train_head(*data(0), *data(1), FIT, 0)
    inputs, label = data(2)
    assert ((head.logits(inputs) > 0) == label).mean() > 0.9
    assert not any(p.requires_grad for p in head.network.parameters())
    head.save(tmp_path)
    np.testing.assert_array_equal(TeacherHead.load(tmp_path).logits(inputs), head.logits(inputs))


def test_gradients_reach_the_embedding_through_the_frozen_head() -> None:
    head = train_head(*data(0), *data(1), FIT, 0)
    point = torch.tensor(data(2)[0][:2], requires_grad=True)
    (gradient,) = torch.autograd.grad(head(point).sum(), point)
    step = torch.zeros_like(point)
    step[:, 0] = 0.5
    slope = (head(point.detach() + step) - head(point.detach() - step)).numpy()
    np.testing.assert_allclose(gradient[:, 0].numpy(), slope, rtol=0.05, atol=1e-4)


def test_cases_without_a_label_change_nothing() -> None:
    inputs, label = data(0)
    more = np.concatenate([inputs, 1e3 + inputs])
    unknown = np.concatenate([label, np.full(len(label), np.nan)])
    plain, padded = train_head(inputs, label, *data(1), FIT, 0), train_head(more, unknown, *data(1), FIT, 0)
    np.testing.assert_array_equal(plain.logits(inputs), padded.logits(inputs))


def test_one_class_is_refused() -> None:
    inputs, label = data(0)
    with pytest.raises(OneClass, match="only class 1"):
        train_head(inputs, np.ones_like(label), *data(1), FIT, 0)


def test_weighed_loss_is_the_log_loss_with_balanced_sample_weights() -> None:
    label, logits = np.array([1.0, 0, 0, 0, np.nan]), np.array([0.3, -1.0, 2.0, 0.1, 5.0])
    known = slice(0, 4)
    expected = log_loss(label[known], 1 / (1 + np.exp(-logits[known])), sample_weight=[2, 2 / 3, 2 / 3, 2 / 3])
    loss = loss_of_labels(label, case_weights(label))
    assert loss(torch.tensor(logits)[:, None], torch.arange(5)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("balance", "mean"), [("none", 0.1), ("class-weights", 0.5), ("sampler", 0.5)])
def test_head_on_noise_predicts_the_share_of_positives_or_a_half_when_balanced(balance: Balance, mean: float) -> None:
    rng = np.random.default_rng(3)
    inputs, label = rng.normal(size=(600, 2)).astype(np.float32), (np.arange(600) % 10 == 0).astype(float)
    fit = FitConfig(hidden=4, steps=400, lr=1e-2)
    head = train_head(inputs[:400], label[:400], inputs[:0], label[:0], fit, 0, balance=balance)
    probability = 1 / (1 + np.exp(-head.logits(inputs[400:])))
    assert probability.mean() == pytest.approx(mean, abs=0.08)


def test_validation_cts_choose_the_step_by_the_weighed_loss_too() -> None:
    rng = np.random.default_rng(4)
    inputs, label = rng.normal(size=(200, 2)).astype(np.float32), (np.arange(200) % 10 == 0).astype(float)
    fit = FitConfig(hidden=4, steps=20, validate_every=20)
    head = train_head(inputs[:100], label[:100], inputs[100:], label[100:], fit, 0, "class-weights")
    p = 1 / (1 + np.exp(-head.logits(inputs[100:]).astype(float)))
    assert head.validation_history[0]["val_loss"] == pytest.approx(
        log_loss(label[100:], p, sample_weight=case_weights(label[100:]))
    )


@pytest.mark.parametrize("shape", [(5, 8, 4), (4,), (5, 3)])
def test_a_head_refuses_what_is_not_one_embedding_a_row(shape: tuple[int, ...]) -> None:
    """(cases, samples, dim) would come out as the logits of each case's first sample."""
    head = train_head(*data(0, 40), *data(1, 40), FitConfig(hidden=4, steps=5), 0)
    with pytest.raises(BadInput, match=r"Allowed: \(cases, 4\)"):
        head(torch.zeros(shape))
    with pytest.raises(BadInput, match=r"Allowed: \(cases, 4\)"):
        head.logits(np.zeros(shape, np.float32))
