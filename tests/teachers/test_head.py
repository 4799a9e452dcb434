from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.teachers.config import FitConfig
from embedprior.teachers.head import OneClass, TeacherHead, train_head

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
