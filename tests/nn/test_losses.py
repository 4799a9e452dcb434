from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import expit
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from embedprior.nn.losses import (
    case_weights,
    class_prototypes,
    class_weights,
    label_loss,
    prototype_cosines,
    soft_cross_entropy,
)

RNG = np.random.default_rng(0)


def leaf(*shape: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(size=shape), requires_grad=True)


def slope(value: torch.Tensor, at: torch.Tensor) -> np.ndarray:
    (gradient,) = torch.autograd.grad(value, at, retain_graph=True)
    return gradient.numpy()


def test_label_loss_is_the_log_loss_of_known_labels() -> None:
    z, label, weight = leaf(5), np.array([1, 0, np.nan, 1, np.nan]), np.array([1.0, 2.0, 5.0, 0.5, 5.0])
    value = label_loss(z, torch.tensor(label), torch.tensor(weight))
    known = ~np.isnan(label)
    p = expit(z.detach().numpy())
    assert value.item() == pytest.approx(log_loss(label[known], p[known], sample_weight=weight[known]))
    expected = np.where(known, weight * (p - np.nan_to_num(label)), 0) / weight[known].sum()
    np.testing.assert_allclose(slope(value, z), expected, atol=1e-12)
    assert label_loss(z, torch.full((5,), torch.nan)).item() == 0


def test_class_weights_are_sklearns_balanced_ones() -> None:
    label = np.array([1, 0, 0, 0, np.nan, 1, 0])
    known = label[~np.isnan(label)]
    np.testing.assert_allclose(
        class_weights(label), compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=known)
    )
    assert case_weights(label).tolist() == [1.5, 0.75, 0.75, 0.75, 1.0, 1.5, 0.75]
    assert case_weights(np.full(3, np.nan)).tolist() == [1, 1, 1]


def test_prototypes_are_class_means_and_the_map_is_the_cosine_to_them() -> None:
    f, label = leaf(6, 3), np.array([0, 1, np.nan, 1, 0, 1])
    prototypes = class_prototypes(f, torch.tensor(label))
    a = f.detach().numpy()
    expected = np.stack([a[label == 0].mean(0), a[label == 1].mean(0)])
    np.testing.assert_allclose(prototypes.detach().numpy(), expected)
    cosines = prototype_cosines(f, prototypes)
    np.testing.assert_allclose(cosines.detach().numpy(), 1 - cdist(a, expected, "cosine"))
    assert np.abs(slope(cosines[2].sum(), f)).max() > 1e-3
    assert class_prototypes(f, torch.zeros(6)).isnan().any(dim=1).tolist() == [False, True]


def test_soft_cross_entropy_is_the_log_loss_where_targets_are_labels_and_least_at_the_target() -> None:
    label, weight, p = np.array([1.0, 0, 1, 0]), np.array([1.0, 2, 3, 4]), np.array([0.9, 0.2, 0.6, 0.5])
    assert soft_cross_entropy(label, p, weight) == pytest.approx(log_loss(label, p, sample_weight=weight))
    assert all(soft_cross_entropy(p, p) < soft_cross_entropy(p, p + shift) for shift in (-0.05, 0.05))
