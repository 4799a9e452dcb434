from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.prior.config import ProcessConfig
from embedprior.prior.diffusion import add_noise, loss_weight, make_schedule, to_x0, training_target


def test_cosine_schedule_has_its_known_ends() -> None:
    for timesteps, last, first in [(1000, 2.4e-9, 4.1e-5), (64, 5.9e-7, 1.2e-3)]:
        schedule = make_schedule(ProcessConfig(timesteps=timesteps))
        assert schedule.alpha_bar[0] == 1.0
        assert schedule.alpha_bar[-1] == pytest.approx(last, rel=0.03)
        assert 1 - schedule.alpha_bar[1] == pytest.approx(first, rel=0.03)
        assert (np.diff(schedule.alpha_bar) < 0).all()


def test_linear_schedule_ends_alike_for_any_number_of_timesteps() -> None:
    ends = [make_schedule(ProcessConfig(schedule="linear", timesteps=n)).alpha_bar[-1] for n in (200, 1000, 4000)]
    assert ends[1] == pytest.approx(4.04e-5, rel=0.01)
    np.testing.assert_allclose(np.log(ends), np.log(ends[1]), rtol=0.06)


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_a_perfect_output_gives_the_clean_embedding_back(prediction: str) -> None:
    process = ProcessConfig(prediction=prediction, timesteps=1000)  # type: ignore[arg-type]
    schedule = make_schedule(process)
    x0, noise = torch.randn(2, 7, 4, dtype=torch.float64)
    n = torch.tensor([1, 10, 200, 500, 800, 990, 1000])
    x = add_noise(schedule, x0, noise, n)
    output = training_target(schedule, process.prediction, x0, noise, n)
    torch.testing.assert_close(to_x0(schedule, process.prediction, output, x, n), x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_float32_keeps_its_digits_at_the_last_timesteps(prediction: str) -> None:
    process = ProcessConfig(prediction=prediction)  # type: ignore[arg-type]
    schedule = make_schedule(process)
    x0, noise = torch.randn(2, 4, 50)
    n = torch.tensor([900, 990, 999, 1000])
    x = add_noise(schedule, x0, noise, n)
    output = training_target(schedule, process.prediction, x0, noise, n)
    torch.testing.assert_close(to_x0(schedule, process.prediction, output, x, n), x0, rtol=0, atol=2e-6)


def test_noised_embeddings_have_the_variance_of_the_schedule() -> None:
    schedule = make_schedule(ProcessConfig(timesteps=100))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 1, generator=generator)
    x = add_noise(schedule, torch.full((200_000, 1), 2.0), noise, torch.full((200_000,), 30))
    assert float(x.mean()) == pytest.approx(2 * np.sqrt(schedule.alpha_bar[30]), abs=0.01)
    assert float(x.var()) == pytest.approx(1 - schedule.alpha_bar[30], rel=0.01)


def test_min_snr_weighs_the_error_of_x0_alike_for_every_prediction() -> None:
    """An error of d in x0 is d · sqrt(abar/bbar) in the noise and d / sqrt(bbar) in v."""
    schedule = make_schedule(ProcessConfig(timesteps=200))
    n = torch.tensor([1, 20, 100, 180, 200])
    snr = schedule.alpha_bar[n] / (1 - schedule.alpha_bar[n])
    in_x0 = loss_weight(schedule, "x0", 5.0, n).numpy()
    np.testing.assert_allclose(in_x0, np.minimum(snr, 5.0), rtol=1e-6)
    np.testing.assert_allclose(loss_weight(schedule, "epsilon", 5.0, n).numpy() * snr, in_x0, rtol=1e-6)
    velocity = loss_weight(schedule, "v", 5.0, n).numpy() / (1 - schedule.alpha_bar[n])
    np.testing.assert_allclose(velocity, in_x0, rtol=1e-5)
    assert (loss_weight(schedule, "v", None, n) == 1).all()
