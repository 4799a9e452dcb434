"""Every loss: its value against an independent computation, and a gradient that reaches the student."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import expit, log_softmax, softmax
from scipy.stats import entropy, pearsonr

from embedprior.nn.losses import info_nce
from embedprior.students.feature_kd import orthogonality
from embedprior.students.logit_kd import decoupled, dist, hinton, soft_label_loss

RNG = np.random.default_rng(0)
T = lambda array: torch.tensor(array, dtype=torch.float64)  # noqa: E731


def leaf(*shape: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(size=shape), requires_grad=True)


def slope(value: torch.Tensor, at: torch.Tensor) -> np.ndarray:
    (gradient,) = torch.autograd.grad(value, at, retain_graph=True)
    return gradient.numpy()


def test_soft_label_loss_is_cross_entropy_with_the_teacher() -> None:
    z, t = leaf(4), RNG.normal(size=4)
    value = soft_label_loss(z, T(t))
    p, q = expit(t), expit(z.detach().numpy())
    assert value.item() == pytest.approx(
        np.mean([entropy([a, 1 - a]) + entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True)])
    )
    np.testing.assert_allclose(slope(value, z), (q - p) / 4)


@pytest.mark.parametrize("squared", [True, False])
def test_hinton_is_kl_of_softened_outputs(squared: bool) -> None:
    z, t, temperature = leaf(3), RNG.normal(size=3), 4.0
    value = hinton(z, T(t), temperature, squared)
    p, q = expit(t / temperature), expit(z.detach().numpy() / temperature)
    kl = np.mean([entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True)])
    assert value.item() == pytest.approx(kl * (temperature**2 if squared else 1))
    np.testing.assert_allclose(slope(value, z), (temperature if squared else 1 / temperature) * (q - p) / 3)


def two(logits: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.zeros_like(logits), logits], 1)


def test_with_two_classes_dkd_is_hinton_and_its_other_term_is_zero_without_gradient() -> None:
    z, t, target = leaf(6), T(RNG.normal(size=6)), torch.tensor([0, 1, 1, 0, 1, 0])
    tckd, nckd = decoupled(two(z), two(t), target, 4.0)
    assert tckd.item() == pytest.approx(hinton(z, t, 4.0).item())
    np.testing.assert_allclose(slope(tckd, z), slope(hinton(z, t, 4.0), z))
    assert nckd.item() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(slope(nckd, z), 0, atol=1e-12)


def test_with_three_classes_dkd_splits_the_divergence() -> None:
    z, t, target = leaf(5, 3), RNG.normal(size=(5, 3)), torch.tensor([0, 1, 2, 1, 0])
    tckd, nckd = decoupled(z, T(t), target, 2.0)
    p, q = softmax(t / 2, 1), softmax(z.detach().numpy() / 2, 1)
    own, rest, total = [], [], []
    for i, k in enumerate(target.tolist()):
        others = [j for j in range(3) if j != k]
        own.append(entropy([p[i, k], 1 - p[i, k]], [q[i, k], 1 - q[i, k]]))
        rest.append(entropy(p[i, others], q[i, others]))
        total.append(own[-1] + (1 - p[i, k]) * rest[-1] - entropy(p[i], q[i]))
    assert tckd.item() == pytest.approx(4 * np.mean(own))
    assert nckd.item() == pytest.approx(4 * np.mean(rest))
    np.testing.assert_allclose(total, 0, atol=1e-12)
    assert np.abs(slope(nckd, z)).max() > 1e-3


def test_dist_has_no_gradient_between_two_classes_and_one_within() -> None:
    z, t = leaf(6), RNG.normal(size=6)
    inter, intra = dist(two(z), two(T(t)))
    signs = np.sign(z.detach().numpy()) * np.sign(t)
    assert inter.item() == pytest.approx(np.mean(1 - signs))
    np.testing.assert_allclose(slope(inter, z), 0, atol=1e-8)
    assert intra.item() == pytest.approx(1 - pearsonr(expit(z.detach().numpy()), expit(t))[0])
    assert np.abs(slope(intra, z)).max() > 1e-3


def test_dist_with_three_classes_is_one_minus_pearson() -> None:
    z, t = leaf(4, 3), RNG.normal(size=(4, 3))
    p, q = softmax(z.detach().numpy(), 1), softmax(t, 1)
    inter, intra = dist(z, T(t))
    assert inter.item() == pytest.approx(np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)]))
    assert intra.item() == pytest.approx(np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)]))
    assert np.abs(slope(inter, z)).max() > 1e-4


def test_info_nce_leaves_rows_of_one_patient_out_of_each_others_denominators() -> None:
    f, g, patient, scale = leaf(5, 4), RNG.normal(size=(5, 4)), np.array([0, 1, 2, 1, 3]), 3.0
    value = info_nce(f, T(g), torch.tensor(patient), scale)
    cosines = scale * (1 - cdist(f.detach().numpy(), g, "cosine"))
    each = []
    for matrix in (cosines, cosines.T):
        for i in range(5):
            allowed = [i, *(j for j in range(5) if patient[j] != patient[i])]
            each.append(-log_softmax(matrix[i, allowed])[0])
    assert value.item() == pytest.approx(np.mean(each))
    assert (np.abs(slope(value, f)).max(1) > 1e-4).all()


def test_info_nce_punishes_a_second_reconstruction_only_when_it_is_taken_for_another_patient() -> None:
    f = T(np.eye(3)[[0, 0, 1]])
    grouped = info_nce(f, f, torch.tensor([0, 0, 1]), 20.0)
    apart = info_nce(f, f, torch.tensor([0, 1, 2]), 20.0)
    assert grouped.item() < 1e-6
    assert apart.item() == pytest.approx(2 / 3 * np.log(2), rel=1e-4)


def test_orthogonality_is_least_at_a_right_angle_not_at_opposition() -> None:
    a = T([[1.0, 0.0]])
    values = [orthogonality(a, T([[np.cos(angle), np.sin(angle)]])).item() for angle in (0, np.pi / 2, np.pi)]
    np.testing.assert_allclose(values, [1, 0, 1], atol=1e-12)
    b = leaf(4, 3)
    assert np.abs(slope(orthogonality(b, T(RNG.normal(size=(4, 3)))), b)).max() > 1e-3
