from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embedprior.errors import BadInput
from embedprior.prior.config import ObjectiveConfig, ProcessConfig
from embedprior.prior.diffusion import add_noise, make_schedule, training_target
from embedprior.prior.objectives import Noised, Objective
from embedprior.prior.scaling import Standardiser
from embedprior.prior.training import train_prior

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


def objective(head: nn.Module | None, known: float = 1.0, prediction: str = "x0", **weights: object) -> Objective:
    process = ProcessConfig(timesteps=50, prediction=prediction)  # type: ignore[arg-type]
    config = ObjectiveConfig.model_validate(weights)
    return Objective(config, process, make_schedule(process), SCALER, head, known, torch.device("cpu"))


def noised(labels: list[float], prediction: str = "x0") -> Noised:
    torch.manual_seed(1)
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    n = torch.tensor([1, 10, 25, 40, 50])
    schedule = make_schedule(ProcessConfig(timesteps=50, prediction=prediction))  # type: ignore[arg-type]
    return Noised(x0, noise, add_noise(schedule, x0, noise, n), n, torch.tensor(labels, dtype=torch.float64))


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("target", ["teacher", "labels"])
def test_bce_gradient_equals_finite_differences(target: str, prediction: str) -> None:
    made = objective(Head(), known=0.8, prediction=prediction, bce=0.7, bce_target=target)
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


def test_l2_is_the_plain_mean_of_squared_errors() -> None:
    for prediction in ("x0", "epsilon", "v"):
        batch = noised([float("nan")] * 5, prediction)
        output = torch.randn(5, 3, dtype=torch.float64)
        made = objective(None, prediction=prediction, l2=2.0)
        schedule = make_schedule(ProcessConfig(timesteps=50))
        target = training_target(schedule, prediction, batch.x0, batch.noise, batch.n)  # type: ignore[arg-type]
        named = made.losses(output, batch)
        assert list(named) == ["l2"]
        assert float(named["l2"]) == pytest.approx(2 * float(((output - target) ** 2).mean()))


def test_bce_without_a_head_or_a_label_is_refused() -> None:
    with pytest.raises(BadInput, match="no teacher head was given"):
        objective(None, bce=0.2)
    with pytest.raises(BadInput, match="no pair has a known label"):
        objective(Head(), known=0.0, bce=0.2, bce_target="labels")


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
    with_bce = train_prior(*pairs, config, tmp_path / "bce", head=head, show_progress=False)
    assert not torch.equal(plain.network.query, with_bce.network.query)
    assert torch.equal(head.weight, torch.ones(6))
    assert '"loss/bce"' in (tmp_path / "bce" / "metrics.jsonl").read_text()
