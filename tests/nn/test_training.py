"""The training loop: the checkpoint it keeps, what it records, and the losses it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from embedprior.errors import BadInput, EmbedpriorError
from embedprior.nn.training import Resume, minimise, seeded


class Point(nn.Module):
    """One number that is trained, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(0.0))
        self.frozen = nn.Parameter(torch.tensor(7.0), requires_grad=False)


def run(
    point: Point, loss: Callable[[int], torch.Tensor], steps: int, validate: Callable[[], float] | None, every: int
) -> list[dict[str, float]]:
    return minimise(point, loss, steps, lr=0.1, weight_decay=0.0, validate=validate, validate_every=every)


def test_the_step_of_the_lowest_validation_loss_is_kept() -> None:
    point, seen = Point(), list[float]()

    def validate() -> float:
        assert not point.training
        seen.append(point.x.item())
        return (point.x.item() - 0.5) ** 2

    history = run(point, lambda step: (point.x - 2).square(), 20, validate, 1)
    best = min(seen, key=lambda x: (x - 0.5) ** 2)
    assert 0.4 < best < 0.6 < seen[-1]
    assert point.x.item() == best
    assert [record["val_loss"] for record in history] == pytest.approx([(x - 0.5) ** 2 for x in seen])
    assert float(point.frozen) == 7


def test_without_validation_the_last_step_is_kept_and_the_mean_losses_are_recorded() -> None:
    point, losses = Point(), list[float]()

    def loss(step: int) -> torch.Tensor:
        value = (point.x - 2).square()
        losses.append(value.item())
        return value

    history = run(point, loss, 7, None, 3)
    assert [record["step"] for record in history] == [3, 6, 7]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    assert [record["loss"] for record in history] == pytest.approx(expected)
    assert "val_loss" not in history[0]
    assert (point.x.item() - 2) ** 2 < losses[-1]


def test_the_last_step_is_validated_too() -> None:
    point = Point()
    history = run(point, lambda step: (point.x - 2).square(), 5, lambda: -point.x.item(), 4)
    assert [record["step"] for record in history] == [4, 5]
    assert point.x.item() == pytest.approx(-history[-1]["val_loss"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_is_refused_with_its_step(bad: float) -> None:
    point = Point()

    def loss(step: int) -> torch.Tensor:
        return point.x.square() + (bad if step == 6 else 0.0)

    with pytest.raises(EmbedpriorError, match="loss at step 6 is not a number"):
        run(point, loss, 20, None, 4)


def test_a_validation_loss_that_is_never_a_number_is_refused() -> None:
    point = Point()
    with pytest.raises(EmbedpriorError, match="validation loss was never a number"):
        run(point, lambda step: point.x.square(), 4, lambda: float("nan"), 2)


def test_a_schedule_sets_the_learning_rate_of_each_step() -> None:
    point, moved = Point(), [0.0]

    def loss(step: int) -> torch.Tensor:
        moved.append(point.x.item())
        return -point.x

    minimise(
        point, loss, 4, lr=1.0, weight_decay=0.0, validate=None, validate_every=4,
        schedule=lambda optimiser: torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5**step),
    )  # fmt: skip
    # Adam moves by the learning rate when the gradient does not change.
    assert np.diff([*moved, point.x.item()])[1:] == pytest.approx([1, 0.5, 0.25, 0.125], rel=1e-4)


def test_seeding_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(0, "a"):
        one = torch.rand(2)
    with seeded(0, "b"):
        two = torch.rand(2)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(one, two)
    with seeded(0, "a"):
        assert torch.equal(torch.rand(2), one)


def test_training_ends_when_the_criterion_has_not_fallen_for_long_enough() -> None:
    point = Point()
    values = iter([3.0, 2.0, 2.5, 2.0, 9.0, 1.0])  # the best is the second; an equal one is no improvement
    history = minimise(
        point, lambda step: (point.x - 2).square(), 12, lr=0.1, weight_decay=0.0, validate=lambda: next(values),
        validate_every=2, criterion="error", patience=3,
    )  # fmt: skip
    assert [record["error"] for record in history] == [3.0, 2.0, 2.5, 2.0, 9.0]
    fresh = Point()
    run(fresh, lambda step: (fresh.x - 2).square(), 4, None, 4)
    assert point.x.item() == pytest.approx(fresh.x.item())  # as it was at step 4


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def fit(folder: Path | None, stop: int | None = None) -> tuple[list[float], list[dict[str, float]]]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

        def loss(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            return (network(x)[:, 0] - x.sum(1)).square().mean()

        def validate() -> float:
            x = torch.ones(1, 3)
            return float((network(x) - 3).abs())

        resume = None if folder is None else Resume(folder, {"data": "a"})
        history = minimise(
            network, loss, 20, lr=0.05, weight_decay=0.01, validate=validate, validate_every=4, resume=resume
        )
        return [value for p in network.parameters() for value in p.flatten().tolist()], history

    expected = fit(None)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop=11)
    assert fit(tmp_path) == expected
    with pytest.raises(BadInput, match="another data"):
        minimise(
            Point(), lambda step: torch.zeros(()), 20, lr=1.0, weight_decay=0.0, validate=None, validate_every=1,
            resume=Resume(tmp_path, {"data": "b"}),
        )  # fmt: skip
