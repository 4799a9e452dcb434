from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.prior.config import ProcessConfig
from embedprior.prior.diffusion import Parametrisation, add_noise, make_schedule


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


@pytest.mark.parametrize("prediction", ["edm", "x0", "epsilon", "v"])
def test_a_perfect_output_gives_the_clean_embedding_back(prediction: str) -> None:
    process = ProcessConfig(prediction=prediction, timesteps=1000)  # type: ignore[arg-type]
    schedule = make_schedule(process)
    x0, noise = torch.randn(2, 7, 4, dtype=torch.float64)
    n = torch.tensor([1, 10, 200, 500, 800, 850, 930])
    x = add_noise(schedule, x0, noise, n)
    of = Parametrisation.of(process, schedule)
    torch.testing.assert_close(of.x0hat(of.target(x0, x, n), x, n), x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["edm", "x0", "v"])
def test_float32_keeps_its_digits_at_the_last_timesteps(prediction: str) -> None:
    process = ProcessConfig(prediction=prediction)  # type: ignore[arg-type]
    schedule = make_schedule(process)
    x0, noise = torch.randn(2, 4, 50)
    n = torch.tensor([900, 990, 999, 1000])
    x = add_noise(schedule, x0, noise, n)
    of = Parametrisation.of(process, schedule)
    torch.testing.assert_close(of.x0hat(of.target(x0, x, n), x, n), x0, rtol=0, atol=2e-6)


def test_without_noise_x0hat_is_x_whatever_the_network_says() -> None:
    """EDM's boundary condition: c_skip is 1 and c_out 0 at no noise; predicting x0 itself has no such thing."""
    schedule, n = make_schedule(ProcessConfig()), torch.zeros(3, dtype=torch.long)
    x, output = torch.randn(2, 3, 4)
    for prediction in ("edm", "v"):
        of = Parametrisation(schedule, prediction, 0.5)  # type: ignore[arg-type]
        torch.testing.assert_close(of.x0hat(output, x, n), x)


def test_edm_coefficients_are_those_of_karras() -> None:
    """c_skip = s² / (s² + sigma²) on x / sqrt(abar), sigma² = bbar / abar; c_out by Monte Carlo, variance 1."""
    schedule, n, s = make_schedule(ProcessConfig()), torch.tensor([30, 300, 700, 990]), 0.5
    skip, out = Parametrisation(schedule, "edm", s).coefficients(n, torch.zeros(1, dtype=torch.float64))
    abar = schedule.alpha_bar[n]
    sigma2 = (1 - abar) / abar
    np.testing.assert_allclose(skip[:, 0], s**2 / (s**2 + sigma2) / np.sqrt(abar), rtol=1e-9)
    x0, noise = np.random.default_rng(0).standard_normal((2, 400_000, 1))
    left = x0 - skip[:, 0].numpy() * (np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise)
    np.testing.assert_allclose(out[:, 0], left.std(axis=0), rtol=5e-3)


def test_predicted_noise_is_not_divided_by_a_vanishing_signal() -> None:
    """At the last timesteps sqrt(abar) is 5e-5: an error of .1 in the noise would be one of 2,000 in x0hat."""
    schedule = make_schedule(ProcessConfig())
    x, n = torch.randn(1000, 8), torch.full((1000,), 1000)
    assert float(Parametrisation(schedule, "epsilon").x0hat(0.9 * x, x, n).abs().max()) < 0.01
    readable = torch.full((1000,), int((np.sqrt(schedule.alpha_bar) >= 0.1).sum()) - 1)
    assert float(Parametrisation(schedule, "epsilon").x0hat(0.9 * x, x, readable).std()) < 1.5


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
    weights = {name: Parametrisation(schedule, name).loss_weight(5.0, n).numpy() for name in ("x0", "epsilon", "v")}
    np.testing.assert_allclose(weights["x0"], np.minimum(snr, 5.0), rtol=1e-6)
    np.testing.assert_allclose(weights["epsilon"] * snr, weights["x0"], rtol=1e-6)
    np.testing.assert_allclose(weights["v"] / (1 - schedule.alpha_bar[n]), weights["x0"], rtol=1e-5)
    of = Parametrisation(schedule, "edm", 0.5)
    out = of.coefficients(n, torch.zeros(1, dtype=torch.float64))[1][:, 0].numpy()
    np.testing.assert_allclose(of.loss_weight(5.0, n).numpy() / out**2, weights["x0"], rtol=1e-5)
    assert (Parametrisation(schedule, "v").loss_weight(None, n) == 1).all()
