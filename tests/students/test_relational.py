from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from embedprior.students.relational_kd import distance_relations


def test_distance_relations_are_smooth_l1_of_distances_by_their_mean() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    student = torch.tensor(a, requires_grad=True)
    value = distance_relations(student, torch.tensor(b))
    x, y = (d / d[d > 0].mean() for d in (cdist(a, a), cdist(b, b)))
    assert value.item() == pytest.approx(np.where(abs(x - y) < 1, (x - y) ** 2 / 2, abs(x - y) - 0.5).mean(), rel=1e-5)
    assert (torch.autograd.grad(value, student)[0].abs().amax(1) > 1e-4).all()
