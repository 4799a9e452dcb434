"""Feature losses against plain loops over patients, dimensions and classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.nn.losses import class_prototypes
from embedprior.prior.losses import aft, attention_blocks, contrast, proto

torch.manual_seed(0)
PREDICTED, TARGET = torch.randn(2, 5, 7, dtype=torch.float64)
PATIENT = torch.tensor([0, 1, 1, 2, 3])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_attention_blocks_weigh_each_block_by_its_share_of_the_energy() -> None:
    # Blocks (3, 0), (0, 4) and (0, pad): energies 9, 16, 0, which normalise to 9/√337, 16/√337, 0.
    blocks = attention_blocks(torch.tensor([[3.0, 0.0, 0.0, 4.0, 0.0]]), groups=3)
    root = float(np.sqrt(9.0**2 + 16.0**2))
    expected = torch.tensor([[[3 * 9 / root, 0.0], [0.0, 4 * 16 / root], [0.0, 0.0]]])
    torch.testing.assert_close(blocks, expected)


def test_aft_is_the_squared_distance_of_the_blocks_per_dimension() -> None:
    found = aft(PREDICTED, TARGET, groups=3)
    for row in range(5):
        blocks = []
        for embedding in (PREDICTED[row].numpy(), TARGET[row].numpy()):
            cut = [embedding[0:3], embedding[3:6], embedding[6:7]]
            energy = np.array([(part**2).sum() for part in cut])
            attention = energy / np.sqrt((energy**2).sum())
            blocks.append(np.concatenate([a * part for a, part in zip(attention, cut, strict=True)]))
        assert float(found[row]) == pytest.approx(((blocks[0] - blocks[1]) ** 2).sum() / 7)
    assert float(aft(TARGET, TARGET, 3).abs().max()) == 0.0


def test_proto_compares_the_cosines_to_both_class_means() -> None:
    labels = torch.tensor([1.0, 0.0, float("nan"), 1.0, 0.0])
    prototypes = class_prototypes(TARGET, labels)
    means = [TARGET[[1, 4]].mean(0).numpy(), TARGET[[0, 3]].mean(0).numpy()]
    np.testing.assert_allclose(prototypes.numpy(), means)
    found = proto(PREDICTED, TARGET, prototypes)
    for row in range(5):
        gaps = [cosine(PREDICTED[row].numpy(), m) - cosine(TARGET[row].numpy(), m) for m in means]
        assert float(found[row]) == pytest.approx(np.mean(np.square(gaps)))


def test_a_class_nobody_has_leaves_its_prototype_undefined() -> None:
    assert class_prototypes(TARGET, torch.ones(5)).isfinite().all(dim=1).tolist() == [False, True]


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_contrast_pulls_the_own_ct_and_pushes_those_of_other_patients(margin: float) -> None:
    apart = PATIENT[:, None] != PATIENT
    found = contrast(PREDICTED, TARGET, TARGET, apart, margin)
    unit = [(row / np.linalg.norm(row)) for row in PREDICTED.numpy()]
    unit_target = [(row / np.linalg.norm(row)) for row in TARGET.numpy()]
    for i in range(5):
        push = [
            max(0.0, margin - np.linalg.norm(unit[i] - unit_target[j])) ** 2
            for j in range(5)
            if PATIENT[j] != PATIENT[i]
        ]
        expected = np.linalg.norm(unit[i] - unit_target[i]) ** 2 + np.mean(push)
        assert float(found[i]) == pytest.approx(expected)


def test_contrast_without_another_patient_keeps_the_pull_alone() -> None:
    nobody = torch.zeros(5, 5, dtype=torch.bool)
    pulled = 2.0 - 2.0 * torch.cosine_similarity(PREDICTED, TARGET)
    torch.testing.assert_close(contrast(PREDICTED, TARGET, TARGET, nobody, 1.0), pulled)


def test_gradients_equal_finite_differences() -> None:
    predicted = PREDICTED.clone().requires_grad_(True)
    prototypes, apart = TARGET[:2] + 0.3, PATIENT[:, None] != PATIENT
    for loss in (
        lambda p: aft(p, TARGET, 3),
        lambda p: proto(p, TARGET, prototypes),
        lambda p: contrast(p, TARGET, TARGET, apart, 1.5),
    ):
        assert torch.autograd.gradcheck(loss, (predicted,), eps=1e-6, atol=1e-7)


def test_gradient_is_finite_where_a_rival_is_met_exactly() -> None:
    predicted = TARGET.clone().requires_grad_(True)
    contrast(predicted, TARGET, TARGET, torch.ones(5, 5, dtype=torch.bool), 1.0).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_losses_do_not_depend_on_the_order_of_the_batch() -> None:
    apart = PATIENT[:, None] != PATIENT
    order = torch.tensor([3, 0, 4, 2, 1])
    base = contrast(PREDICTED, TARGET, TARGET, apart, 1.0)
    shuffled = contrast(PREDICTED[order], TARGET[order], TARGET[order], apart[order][:, order], 1.0)
    torch.testing.assert_close(shuffled, base[order])
