from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from embedprior.students.base import FitData
from embedprior.students.feature_kd import DiscomKd, Disentangled, ReverseGradient
from embedprior.students.network import StudentNetwork
from embedprior.students.registry import Budget
from embedprior.students.training import Batch


def parts(small: FitData, budget: Budget, **options: object) -> tuple[StudentNetwork, Disentangled, Batch]:
    method = DiscomKd(budget, width=4, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = StudentNetwork("embedding", small.target.train.cxr.shape[1], budget.fit, "disentangled", 4)
    objective = Disentangled(small, network, method)
    network.eval()
    objective.eval()
    cases = small.target.val
    inputs = torch.from_numpy(cases.cxr)
    features, logits = network(inputs)
    label = torch.from_numpy(cases.label).float()
    rows = Batch(
        features, logits, inputs, label, torch.ones(len(label)), torch.from_numpy(cases.paired_ct()), 1 - label,
        torch.zeros(len(label)), torch.arange(len(label)),
    )  # fmt: skip
    return network, objective, rows


def probability(logits: torch.Tensor) -> np.ndarray:
    return torch.sigmoid(logits).detach().numpy().astype(float)


def test_the_five_terms_are_the_papers(small: FitData, budget: Budget) -> None:
    network, objective, rows = parts(small, budget)
    found = objective.losses(rows, rows)
    cxr = network.readout.parts(rows.features)
    ct = objective.ct_network.readout.parts(objective.ct_network.backbone(rows.ct))
    y = [rows.label.numpy(), rows.ct_label.numpy()]
    ct_p = probability(objective.ct_network(rows.ct)[1])
    classified = log_loss(np.concatenate(y), np.concatenate([probability(rows.logits), ct_p]))
    auxiliary = sum(
        log_loss(np.concatenate(y), probability(objective.shared(torch.cat([cxr[i], ct[i]]))[:, 0])) for i in (0, 1)
    )
    modality = np.repeat([0, 1], len(rows.label))

    def domain(layer: torch.nn.Module, part: int) -> float:
        z = layer(torch.cat([cxr[part], ct[part]])).detach().numpy()
        return float(-log_softmax(z, axis=1)[np.arange(len(modality)), modality].mean())

    def cosine(a: int, b: int) -> float:
        x, z = (torch.cat([cxr[i], ct[i]]).detach().numpy() for i in (a, b))
        lengths = np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(z, axis=1), 1e-12)
        return float((np.abs((x * z).sum(1)) / lengths).mean())

    expected = {
        "cl": classified,
        "aux": auxiliary,
        "mod": domain(objective.modality_informative, 1) + domain(objective.modality_irrelevant, 2),
        "adv": domain(objective.discriminator, 0),
        "perp": cosine(1, 2) + cosine(1, 0),
    }
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-4)
    for name, value in found.items():
        gradient = torch.autograd.grad(value, network.backbone.layers[1].weight, retain_graph=True)[0]
        assert gradient.abs().max() > 1e-6, name


def test_both_modalities_get_a_gradient_from_the_modality_terms(small: FitData, budget: Budget) -> None:
    network, objective, rows = parts(small, budget)
    for name in ("mod", "adv"):
        value = objective.losses(rows, rows)[name]
        for side in (network, objective.ct_network):
            assert torch.autograd.grad(value, side.backbone.layers[1].weight, retain_graph=True)[0].abs().max() > 1e-6


def test_the_gradient_is_reversed_for_the_encoder_and_not_for_the_discriminator() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    value = (3 * ReverseGradient.apply(x, 0.5)).sum()
    assert value.item() == -3
    assert torch.autograd.grad(value, x)[0].tolist() == [-1.5, -1.5]


def test_the_schedule_raises_lambda_from_zero(small: FitData, budget: Budget) -> None:
    _, constant, _ = parts(small, budget)
    constant.advance(0.5, {})
    assert constant.strength == 1.0
    _, objective, _ = parts(small, budget, schedule=True)
    seen = [objective.strength]
    for share in (0.1, 1.0):
        objective.advance(share, {})
        seen.append(objective.strength)
    assert seen == pytest.approx([0, 2 / (1 + np.exp(-1)) - 1, 2 / (1 + np.exp(-10)) - 1])
