from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embedprior.errors import BadInput
from embedprior.nn.standardise import Standardiser, TargetSpace
from embedprior.prior.config import ObjectiveConfig, PriorConfig, ProcessConfig
from embedprior.prior.diffusion import Parametrisation, add_noise, make_schedule
from embedprior.prior.losses import Negatives, NoisyBatch, Objective
from embedprior.prior.trainer import train_prior

from .conftest import make_pairs, small_config

SCALER = Standardiser(np.array([3.0, -2.0, 1.0]), np.array([0.5, 4.0, 2.0]))


class Head(nn.Module):
    """A non-linear teacher head in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, embedding: Tensor) -> Tensor:
        logits: Tensor = self.layers(embedding.double())[:, 0]
        return logits


def objective(
    head: nn.Module | None,
    labels: Sequence[float] = (1.0, 0.0),
    prediction: str = "x0",
    target: Tensor | None = None,
    **weights: object,
) -> Objective:
    """An objective whose training fold has these labels and targets (random ones when none are given)."""
    process = ProcessConfig(timesteps=50, prediction=prediction)  # type: ignore[arg-type]
    config = ObjectiveConfig.model_validate(weights)
    if target is None:
        target = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(5))
    return Objective(config, process, make_schedule(process), TargetSpace(SCALER), head, target, torch.tensor(labels))


def noised(labels: list[float], prediction: str = "x0") -> NoisyBatch:
    torch.manual_seed(1)
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    n = torch.tensor([1, 10, 25, 40, 50])
    schedule = make_schedule(ProcessConfig(timesteps=50, prediction=prediction))  # type: ignore[arg-type]
    return NoisyBatch(x0, noise, add_noise(schedule, x0, noise, n), n, torch.tensor(labels, dtype=torch.float64))


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("target", ["teacher", "labels"])
def test_bce_gradient_equals_finite_differences(target: str, prediction: str) -> None:
    fold = [1.0, 0.0, float("nan"), 1.0, 0.0]
    made = objective(Head(), fold, prediction=prediction, bce=0.7, bce_target=target)
    batch = noised([1.0, 0.0, float("nan"), 1.0, 0.0], prediction)
    output = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    made.losses(output, batch)["bce"].backward()
    assert output.grad is not None
    step, numeric = 1e-6, torch.zeros(5, 3, dtype=torch.float64)
    for row in range(5):
        for column in range(3):
            bump = torch.zeros(5, 3, dtype=torch.float64)
            bump[row, column] = step
            up, down = (float(made.losses(output.detach() + s * bump, batch)["bce"].detach()) for s in (1, -1))
            numeric[row, column] = (up - down) / (2 * step)
    torch.testing.assert_close(output.grad, numeric, rtol=1e-6, atol=1e-9)
    assert numeric.abs().max() > 1e-3


def test_bce_reads_the_embedding_in_its_own_scale() -> None:
    head = Head()
    batch = noised([1.0, 0.0, 1.0, 1.0, 0.0])
    output = torch.randn(5, 3, dtype=torch.float64)
    own = output.numpy() * SCALER.scale + SCALER.mean
    p = torch.sigmoid(head(torch.from_numpy(own))).detach().numpy()
    y = batch.labels.numpy()
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    found = objective(head, bce=1.0, bce_target="labels").losses(output, batch)["bce"]
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_balanced_bce_weighs_both_classes_of_the_fold_alike() -> None:
    head, fold = Head(), [1.0, 0.0, 1.0, 1.0, float("nan")]
    batch, output = noised(fold), torch.randn(5, 3, dtype=torch.float64)
    z = head(torch.from_numpy(output.numpy() * SCALER.scale + SCALER.mean)).detach().numpy()
    each = np.log1p(np.exp(z)) - z * np.nan_to_num(np.array(fold))
    expected = (each[[0, 2, 3]].mean() + each[1]) / 2
    found = objective(head, fold, bce=1.0, bce_target="labels", bce_balanced=True).losses(output, batch)["bce"]
    assert float(found) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="needs bce_target 'labels'"):
        ObjectiveConfig(bce=1.0, bce_balanced=True)


def test_l2_is_the_plain_mean_of_squared_errors() -> None:
    for prediction in ("x0", "epsilon", "v"):
        batch = noised([float("nan")] * 5, prediction)
        output = torch.randn(5, 3, dtype=torch.float64)
        made = objective(None, prediction=prediction, l2=2.0)
        schedule = make_schedule(ProcessConfig(timesteps=50))
        target = Parametrisation(schedule, prediction).target(batch.x0, batch.x, batch.n)  # type: ignore[arg-type]
        named = made.losses(output, batch)
        assert list(named) == ["l2"]
        assert float(named["l2"]) == pytest.approx(2 * float(((output - target) ** 2).mean()))


def test_bce_without_a_head_or_a_label_is_refused() -> None:
    with pytest.raises(BadInput, match="no teacher was given"):
        objective(None, bce=0.2)
    with pytest.raises(BadInput, match="no pair has a known label"):
        objective(Head(), [float("nan")] * 2, bce=0.2, bce_target="labels")
    with pytest.raises(BadInput, match="labelled training pair of each class"):
        objective(None, [1.0, 1.0, float("nan")], proto=0.2)
    with pytest.raises(BadInput, match=r"aft_groups 4\. Allowed: 1 to 3"):
        objective(None, aft=0.2, aft_groups=4)
    with pytest.raises(BadInput, match="teacher can't read CT embeddings of 3 dimensions"):
        objective(nn.Linear(4, 1), bce=0.2)


def test_the_bce_term_changes_what_is_learned_and_leaves_the_head_alone(tmp_path: Path) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, embedding: Tensor) -> Tensor:
            return embedding @ self.weight

    head, pairs = Linear(), (make_pairs(40, 0), make_pairs(16, 1000))
    plain = train_prior(*pairs, small_config(), tmp_path / "plain", show_progress=False)
    config = small_config()
    config = config.model_copy(update={"objective": ObjectiveConfig(bce=0.5)})
    with_bce = train_prior(*pairs, config, tmp_path / "bce", teacher=head, show_progress=False)
    assert not torch.equal(plain.network.query, with_bce.network.query)
    assert torch.equal(head.weight, torch.ones(6))
    assert '"loss/bce"' in (tmp_path / "bce" / "metrics.jsonl").read_text()


def test_unlabelled_pairs_train_every_term_but_the_hard_label_one() -> None:
    labels = [1.0, 0.0, float("nan"), 1.0, 0.0]
    weights = {"bce": 0.7, "aft": 0.5, "aft_groups": 2, "proto": 0.4, "contrastive": 0.3}
    reached = {}
    for target in ("teacher", "labels"):
        made = objective(Head(), labels, **weights, bce_target=target)
        plain = noised(labels)
        batch = replace(plain, patient=torch.arange(5), negatives=Negatives(plain.x0, torch.arange(5)))
        output = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        named = made.losses(output.requires_grad_(True), batch)
        for name, value in named.items():
            (gradient,) = torch.autograd.grad(value, output, retain_graph=True)
            reached[target, name] = bool(gradient[2].abs().max() > 1e-9)
            assert gradient[0].abs().max() > 1e-9
    assert [name for name, reach in reached.items() if not reach] == [("labels", "bce")]
    assert {name for _, name in reached} == {"l2", "bce", "aft", "proto", "contrastive"}


def test_a_term_on_x0hat_is_refused_where_x0hat_is_ill_conditioned() -> None:
    with pytest.raises(ValueError, match="needs prediction 'edm', 'x0' or 'v'"):
        PriorConfig(process=ProcessConfig(prediction="epsilon"), objective=ObjectiveConfig(contrastive=0.1))


def test_teacher_figures_stand_beside_the_loss_where_labels_are_known(tmp_path: Path) -> None:
    """The mean of the head over samples, against an AUC by hand, Brier score by hand, and a slope that is not 1."""

    class Score(nn.Module):
        def forward(self, embedding: Tensor) -> Tensor:
            return embedding[:, 0] - 3.0

    parts = [make_pairs(200, 0), make_pairs(60, 1000)]
    labelled = [replace(part, labels=(part.target[:, 0] > 3.0).astype(float)) for part in parts]
    config = small_config(steps=150, batch=32, lr=3e-3, validate_every=150, ema=0.9)
    config = config.model_copy(update={"objective": ObjectiveConfig(bce=0.2)})
    prior = train_prior(*labelled, config, tmp_path / "out", teacher=Score(), show_progress=False)
    text = (tmp_path / "out" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    _, last = [line for line in lines if line["event"] == "validation"]
    drawn = prior.sample(parts[1].condition, 64, "dpm_solver", 10)
    score = (1 / (1 + np.exp(-(drawn[..., 0] - 3.0)))).mean(axis=1)
    positive = labelled[1].labels == 1
    auc = np.mean([(p > n) + 0.5 * (p == n) for p in score[positive] for n in score[~positive]])
    assert last["val/teacher_auc"] == pytest.approx(auc, abs=0.05)
    assert last["val/teacher_brier"] == pytest.approx(((score - positive) ** 2).mean(), abs=0.03)
    assert np.isfinite(last["val/teacher_slope"])
    assert lines[0]["no_teacher_figures"] is None
    assert any("bce 0.2" in caveat for caveat in prior.caveats())


def test_without_labels_the_log_says_why_there_are_no_teacher_figures(tmp_path: Path) -> None:
    pairs = make_pairs(40, 0), make_pairs(16, 1000)
    train_prior(*pairs, small_config(steps=10), tmp_path, teacher=lambda z: z[:, 0], show_progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["no_teacher_figures"] == "the validation pairs hold no label"
    assert not any("teacher_auc" in key for line in lines for key in line)
