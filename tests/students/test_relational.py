from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from embedprior.students.base import FitData
from embedprior.students.registry import Budget
from embedprior.students.relational_kd import CrdKd, angle_relations, distance_relations
from embedprior.students.training import Batch


def test_distance_relations_are_smooth_l1_of_distances_by_their_mean() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    student = torch.tensor(a, requires_grad=True)
    value = distance_relations(student, torch.tensor(b))
    x, y = (d / d[d > 0].mean() for d in (cdist(a, a), cdist(b, b)))
    assert value.item() == pytest.approx(np.where(abs(x - y) < 1, (x - y) ** 2 / 2, abs(x - y) - 0.5).mean(), rel=1e-5)
    assert (torch.autograd.grad(value, student)[0].abs().amax(1) > 1e-4).all()


def test_angle_relations_are_smooth_l1_of_the_cosines_of_all_triples() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 4, 3))
    student = torch.tensor(a, requires_grad=True)
    value = angle_relations(student, torch.tensor(b))

    def cosines(points: np.ndarray) -> np.ndarray:
        found = np.zeros((4, 4, 4))
        for apex in range(4):
            for i in range(4):
                for j in range(4):
                    u, v = points[i] - points[apex], points[j] - points[apex]
                    if apex not in (i, j):
                        found[apex, i, j] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        return found

    gap = np.abs(cosines(a) - cosines(b))
    assert value.item() == pytest.approx(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean(), rel=1e-5)
    assert (torch.autograd.grad(value, student)[0].abs().amax(1) > 1e-4).all()


def test_crd_contrasts_projections_at_its_temperature(small: FitData, budget: Budget) -> None:
    method = CrdKd(budget, contrast_temperature=0.5, width=7)
    network, objective = method._parts(small, 0)
    cases = small.target.val.take(range(5))
    features, logits = network.eval()(torch.from_numpy(cases.cxr))
    label, ct = torch.from_numpy(cases.label).float(), torch.from_numpy(cases.paired_ct())
    patient = torch.tensor([0, 1, 1, 2, 3])
    rows = Batch(features, logits, features, label, torch.ones(5), ct, label, label, patient)
    train = small.target.train.paired_ct()
    projected = [
        objective.student_projection(features),
        objective.ct_projection((ct - torch.from_numpy(train.mean(0))) / torch.from_numpy(train.std(0))),
    ]  # fmt: skip
    s, t = (m.detach().numpy() / np.linalg.norm(m.detach().numpy(), axis=1, keepdims=True) for m in projected)
    each = []
    for matrix in (s @ t.T / 0.5, t @ s.T / 0.5):
        for i in range(5):
            allowed = [j for j in range(5) if j == i or patient[j] != patient[i]]
            each.append(np.log(np.exp(matrix[i, allowed]).sum()) - matrix[i, i])
    assert objective.losses(rows, rows)["crd"].item() == pytest.approx(np.mean(each), rel=1e-4)
    assert objective.weights == {"label": 0.7, "kd": 0.3, "crd": 0.5}
