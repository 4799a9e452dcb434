"""What the feature methods ask of a batch, each against an independent computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from embedprior.students.base import FitData, Stage
from embedprior.students.controls import probe
from embedprior.students.feature_kd import AftKd, ContrastiveKd, FitNets, ProtoKd
from embedprior.students.network import StudentNetwork
from embedprior.students.registry import Budget, build_method
from embedprior.students.relational_kd import ClipAlignment
from embedprior.students.student import StudentMethod
from embedprior.students.training import Batch, Objective


def batch(small: FitData, method: StudentMethod) -> tuple[StudentNetwork, Objective, Batch, np.ndarray]:
    network, objective = method._parts(small, 0)
    network.eval()
    cases = small.target.val
    inputs = torch.from_numpy(cases.cxr)
    features, logits = network(inputs)
    label, ct = torch.from_numpy(cases.label).float(), torch.from_numpy(cases.paired_ct())
    teacher = torch.from_numpy(small.head().logits(cases.paired_ct()))
    count = len(cases)
    rows = Batch(features, logits, inputs, label, torch.ones(count), ct, label, teacher, torch.arange(count) // 2)
    train = small.target.train.paired_ct()
    return network, objective, rows, (cases.paired_ct() - train.mean(0)) / train.std(0)


def reaches_the_student(network: StudentNetwork, value: torch.Tensor) -> bool:
    return bool(torch.autograd.grad(value, network.backbone.layers[1].weight, retain_graph=True)[0].abs().max() > 1e-7)


def projected(objective: Objective, rows: Batch) -> np.ndarray:
    return objective.projector(rows.features).detach().numpy()


def test_hints_are_the_mean_squared_error_of_the_standardised_ct(small: FitData, budget: Budget) -> None:
    network, objective, rows, ct = batch(small, FitNets(budget))
    found = objective.losses(rows, rows)
    assert found["hint"].item() == pytest.approx(((projected(objective, rows) - ct) ** 2).mean(), rel=1e-4)
    assert all(reaches_the_student(network, v) for v in found.values())


def test_contrastive_pulls_the_own_ct_and_pushes_other_patients(small: FitData, budget: Budget) -> None:
    network, objective, rows, ct = batch(small, ContrastiveKd(budget, margin=0.9))
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (projected(objective, rows), ct)]
    distance, patient = cdist(*unit), rows.patient.numpy()
    other = patient[:, None] != patient[None]
    expected = (np.diag(distance) ** 2).mean() + (np.maximum(0, 0.9 - distance) ** 2)[other].reshape(16, 14).mean()
    found = objective.losses(rows, rows)
    assert found["contrastive"].item() == pytest.approx(expected, rel=1e-4)
    assert all(reaches_the_student(network, v) for v in found.values())


def test_prototypes_compare_each_space_with_its_own_class_means(small: FitData, budget: Budget) -> None:
    network, objective, rows, ct = batch(small, ProtoKd(budget))
    train = small.target.train
    standard = (train.paired_ct() - train.paired_ct().mean(0)) / train.paired_ct().std(0)
    features, label = rows.features.detach().numpy(), rows.label.numpy()
    student = 1 - cdist(features, np.stack([features[label == k].mean(0) for k in (0, 1)]), "cosine")
    teacher = 1 - cdist(ct, np.stack([standard[train.label == k].mean(0) for k in (0, 1)]), "cosine")
    found = objective.losses(rows, rows)
    assert found["proto"].item() == pytest.approx(((student - teacher) ** 2).mean(), rel=1e-4)
    assert all(reaches_the_student(network, v) for v in found.values())
    one = replace(rows, label=torch.ones(16))
    assert objective.losses(one, rows)["proto"].item() == 0


def test_aft_weights_follow_the_rates_at_which_the_terms_fall(small: FitData, budget: Budget) -> None:
    network, objective, rows, ct = batch(small, AftKd(budget, groups=(2, 4)))
    found = objective.losses(rows, rows)

    def blocks(vectors: np.ndarray, groups: int) -> np.ndarray:
        cut = vectors.reshape(len(vectors), groups, -1)
        energy = (cut**2).sum(2)
        return energy[..., None] / np.linalg.norm(energy, axis=1)[:, None, None] * cut

    for groups in (2, 4):
        gap = blocks(projected(objective, rows).astype(float), groups) - blocks(ct.astype(float), groups)
        expected = (gap**2).sum((1, 2)).mean() / ct.shape[1]
        assert found[f"afb-{groups}"].item() == pytest.approx(expected, rel=1e-3)
    assert all(reaches_the_student(network, v) for v in found.values())
    objective.advance(0.1, {"afb-2": 4.0, "afb-4": 4.0})
    assert (objective.weights["afb-2"], objective.weights["afb-4"]) == (1, 1)
    objective.advance(0.2, {"afb-2": 2.0, "afb-4": 4.0})
    raw = np.exp(np.array([0.5, 1.0]) / 2)
    assert [objective.weights["afb-2"], objective.weights["afb-4"]] == pytest.approx(list(2 * raw / raw.sum()))


def test_alignment_compares_unit_latents_with_unit_cts(small: FitData, budget: Budget) -> None:
    network, objective, rows, ct = batch(small, ClipAlignment(budget, scale=2.0))
    latent = network.readout.latent(rows.features).detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(latent, axis=1), 1, rtol=1e-5)
    cosines = 2.0 * latent @ (ct / np.linalg.norm(ct, axis=1, keepdims=True)).T
    patient = rows.patient.numpy()
    each = []
    for matrix in (cosines, cosines.T):
        for i in range(len(patient)):
            allowed = (patient != patient[i]) | (np.arange(len(patient)) == i)
            each.append(np.log(np.exp(matrix[i, allowed]).sum()) - matrix[i, i])
    value = objective.losses(rows, rows)["info-nce"]
    assert value.item() == pytest.approx(np.mean(each), rel=1e-4)
    assert reaches_the_student(network, value)


def test_the_probe_is_the_penalised_logistic_regression(small: FitData) -> None:
    cases = small.target.val
    weights, bias = probe(cases.cxr, cases.label, cases.cxr[:0], cases.label[:0], "none")
    p = 1 / (1 + np.exp(-(cases.cxr @ weights + bias)))
    # At the optimum of sum(log loss) + ‖w‖² / (2 C), C = 0.01, the gradient is zero.
    np.testing.assert_allclose(cases.cxr.T @ (p - cases.label) + weights / 0.01, 0, atol=2e-2)
    np.testing.assert_allclose((p - cases.label).sum(), 0, atol=2e-2)


@pytest.mark.parametrize("name", ["direct-head-shuffled", "ridge-head-shuffled"])
def test_a_shuffled_control_pairs_nobody_with_the_own_ct(name: str, small: FitData, budget: Budget) -> None:
    straight = name.removesuffix("-shuffled")
    visible = small.target.val.without_ct()
    plain = build_method(straight, budget).fit(small, 3).scores(visible)
    assert np.abs(build_method(name, budget).fit(small, 3).scores(visible) - plain).max() > 1e-3
    constant = np.repeat(small.target.train.paired_ct()[:1], len(small.target.train), axis=0)
    val_ct = np.repeat(constant[:1], len(small.target.val), axis=0)
    same = FitData(
        (Stage(replace(small.target.train, ct=constant), replace(small.target.val, ct=val_ct)),), small.teacher
    )
    np.testing.assert_array_equal(
        build_method(name, budget).fit(same, 3).scores(visible),
        build_method(straight, budget).fit(same, 3).scores(visible),
    )
