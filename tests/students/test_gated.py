"""The gates, and the losses behind them, against hand counts and independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.gated_kd import ConfidenceGate, PseudoLabel, confidence_gate, pseudo_label_loss
from embedprior.students.registry import Budget, build_method

TEACHER = torch.tensor([3.0, -3.0, 0.2, 2.0, -2.0, 3.0])
LABEL = torch.tensor([1.0, 0.0, 1.0, torch.nan, 1.0, 0.0])


def test_the_gate_is_open_where_the_teacher_is_sure_and_not_known_to_be_wrong() -> None:
    found = confidence_gate(TEACHER, LABEL, ConfidenceGate(power=1.0))
    p = expit(TEACHER.numpy())
    confidence = np.maximum(p, 1 - p)
    # The third is unsure (.55), the fifth and sixth contradict their labels.
    np.testing.assert_allclose(found, np.where([1, 1, 0, 1, 0, 0], confidence, 0), rtol=1e-6)
    open_or_shut = confidence_gate(TEACHER, LABEL, ConfidenceGate(power=0.0, floor=0.1, only_where_right=False))
    np.testing.assert_allclose(open_or_shut, [1, 1, 0.1, 1, 1, 1], rtol=1e-6)
    by_class = confidence_gate(TEACHER, LABEL, ConfidenceGate(power=0.0, threshold_positive=0.99))
    np.testing.assert_allclose(by_class, [0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_pseudo_labels_count_where_the_teacher_is_sure(kind: str) -> None:
    logits = torch.tensor([0.5, 0.1, 4.0, -1.0, 0.3, 0.0], requires_grad=True)
    value = pseudo_label_loss(logits, TEACHER, PseudoLabel(kind=kind, threshold=0.9))  # type: ignore[arg-type]
    p, q, sure = expit(TEACHER.numpy()), expit(logits.detach().numpy()), [0, 1, 5]
    each = {
        "hard": [-np.log(q[0]), -np.log(1 - q[1]), -np.log(q[5])],
        "soft": [entropy([p[i], 1 - p[i]], [q[i], 1 - q[i]]) for i in sure],
    }
    assert value.item() == pytest.approx(np.mean(each[kind]), rel=1e-5)
    value.backward()
    assert (logits.grad != 0).nonzero().flatten().tolist() == sure
    none = pseudo_label_loss(logits, TEACHER, PseudoLabel(threshold=0.999))
    assert none.item() == 0


def test_the_gated_term_is_the_weighted_divergence(small: FitData, budget: Budget) -> None:
    method = ConfidenceGate(budget, temperature=2.0)
    network, objective = method._parts(small, 0)
    network.eval()
    cases = small.target.val
    rows = _batch(network, small)
    weight = confidence_gate(rows.teacher, rows.label, method).numpy()
    p, q = (expit(z.detach().numpy() / 2.0) for z in (rows.teacher, rows.logits))
    each = np.array([entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(p, q, strict=True)])
    found = objective.losses(rows, rows)["gated"].item()
    assert found == pytest.approx(4 * (weight * each).sum() / max(weight.sum(), 1), rel=1e-4)
    assert len(cases) == len(each)


def test_how_much_passes_is_said(small: FitData, budget: Budget) -> None:
    train = small.target.train
    p = expit(small.head().logits(train.paired_ct()).astype(float))
    sure = np.maximum(p, 1 - p) >= 0.7
    right = np.isnan(train.label) | ((p >= 0.5) == (train.label == 1))
    summary = build_method("confidence-gate", budget).fit(small, 0).fit_summary  # type: ignore[attr-defined]
    assert summary.notes == (f"the gate is open for {(sure & right).sum()} of 48 training pairs",)
    summary = build_method("pseudo-label", budget).fit(small, 0).fit_summary  # type: ignore[attr-defined]
    assert summary.notes == (f"the teacher is sure of {sure.sum()} of 48 training pairs",)


class FirstNumber:
    """A head whose logit is a multiple of the first number of the CT embedding."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        return np.asarray(self.slope * embeddings[:, 0], dtype=np.float64)


def transfer_cases(count: int, seed: int, labelled: int) -> Cases:
    rng = np.random.default_rng(seed)
    ct = rng.normal(size=(count, 4)).astype(np.float32)
    cxr = (ct + 0.3 * rng.normal(size=ct.shape)).astype(np.float32)
    label = (ct[:, 0] > 0).astype(float)
    label[labelled:] = np.nan
    names = [f"{seed}-{i}" for i in range(count)]
    return Cases(names, names, label, cxr, ct, np.full(count, np.nan))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("confidence-gate", {"only_where_right": False, "soft_share": 0.9}),
        ("pseudo-label", {"weight": 5.0}),
        ("crd", {"kd_share": 0.9}),
    ],
)
def test_a_swapped_teacher_hurts(name: str, options: dict[str, Any], budget: Budget) -> None:
    longer = budget.model_copy(update={"fit": budget.fit.model_copy(update={"steps": 200, "lr": 0.01})})
    train, held_out = transfer_cases(200, 1, labelled=12), transfer_cases(300, 2, labelled=300)

    def auc(slope: float) -> float:
        data = FitData((Stage(train, train.take([])),), FirstNumber(slope))
        scores = build_method(name, longer, **options).fit(data, 0).scores(held_out.without_ct())
        return float(roc_auc_score(held_out.label, scores))

    assert auc(4.0) > 0.9
    assert auc(-4.0) < auc(4.0) - 0.1


def _batch(network: torch.nn.Module, small: FitData):
    from embedprior.students.training import Batch

    cases = small.target.val
    inputs = torch.from_numpy(cases.cxr)
    features, logits = network(inputs)
    label, ct = torch.from_numpy(cases.label).float(), torch.from_numpy(cases.paired_ct())
    teacher, count = torch.from_numpy(small.head().logits(cases.paired_ct())), len(cases)
    return Batch(features, logits, inputs, label, torch.ones(count), ct, label, teacher, torch.arange(count))
