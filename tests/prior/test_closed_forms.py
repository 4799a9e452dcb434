"""Gaussian targets, for which every step's variance is known on paper (Bao et al. 2022)."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embedprior.errors import BadInput
from embedprior.prior.config import PriorConfig, ProcessConfig, SamplerConfig, TrainingConfig
from embedprior.prior.diffusion import Schedule, make_schedule
from embedprior.prior.metrics import measure_variance
from embedprior.prior.samplers import (
    Conditions,
    ReverseStep,
    even_trajectory,
    log_snr_trajectory,
    optimal_trajectory,
    plan,
    run,
)
from embedprior.prior.setup import PairTensors

SPREADS = np.array([0.3, 1.0, 4.0])
SAMPLERS = {
    "ddpm analytic": SamplerConfig(variance="analytic_diag"),
    "ddpm small": SamplerConfig(variance="small"),
    "ddpm big": SamplerConfig(variance="big"),
    "ddim analytic": SamplerConfig(family="ddim", variance="analytic_diag"),
    "ddim eta .5 analytic": SamplerConfig(family="ddim", variance="analytic_diag", eta=0.5),
    "ddim small": SamplerConfig(family="ddim", variance="small"),
}


def cosine(timesteps: int) -> Schedule:
    return make_schedule(ProcessConfig(timesteps=timesteps))


def exact_error(schedule: Schedule, n: int, spread: np.ndarray) -> np.ndarray:
    """Posterior variance of x0 ~ N(m, S) given x_n: the product of two Gaussians, as precisions."""
    precision = 1.0 / spread + schedule.alpha_bar[n] / (1.0 - schedule.alpha_bar[n])
    return 1.0 / precision


def gain(schedule: Schedule, n: int, spread: np.ndarray) -> np.ndarray:
    """d x0hat / d x_n of the exact posterior mean."""
    abar = schedule.alpha_bar[n]
    return np.sqrt(abar) * spread / (abar * spread + 1.0 - abar)


def propagate(schedule: Schedule, steps: list[ReverseStep], spread: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Variance of x after every step when x0hat is exact and the start has the right variance."""
    abar = schedule.alpha_bar[steps[0].r]
    variance = abar * spread + 1.0 - abar
    found = []
    for step in steps:
        variance = (step.predicted * gain(schedule, step.r, spread) + step.keep) ** 2 * variance + step.sigma**2
        found.append((step.s, variance))
    return found


def trajectories(timesteps: int) -> list[list[int]]:
    rng, schedule = np.random.default_rng(0), cosine(timesteps)
    ragged = sorted({1, timesteps, *rng.integers(2, timesteps, 7).tolist()})
    error = np.array([0.0, *(exact_error(schedule, n, SPREADS).mean() for n in range(1, timesteps + 1))])
    return [
        *(even_trajectory(timesteps, k) for k in (1, 2, 4, 10, 64)),
        *(log_snr_trajectory(schedule, k) for k in (4, 10, 64)),
        *(optimal_trajectory(schedule, error, k) for k in (4, 10, 64)),
        ragged,
    ]


@pytest.mark.parametrize("timesteps", [64, 1000])
@pytest.mark.parametrize("name", ["ddpm analytic", "ddim analytic", "ddim eta .5 analytic"])
def test_analytic_variance_keeps_the_marginal_at_every_node_of_every_trajectory(name: str, timesteps: int) -> None:
    schedule = cosine(timesteps)
    for trajectory in trajectories(timesteps):
        steps = plan(schedule, SAMPLERS[name], trajectory, lambda n: exact_error(schedule, n, SPREADS))
        for s, variance in propagate(schedule, steps, SPREADS):
            abar = schedule.alpha_bar[s]
            if s > 0:
                np.testing.assert_allclose(variance, abar * SPREADS + 1.0 - abar, rtol=1e-9)
            else:
                first = schedule.alpha_bar[trajectory[0]]
                np.testing.assert_allclose(variance, first * SPREADS**2 / (first * SPREADS + 1.0 - first), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddpm analytic", [1.000, 1.000, 1.000, 0.996]),
        ("ddpm small", [0.302, 0.903, 0.936, 0.905]),
        ("ddpm big", [1.612, 1.025, 0.971, 1.021]),
        ("ddim analytic", [1.000, 1.000, 1.000, 0.996]),
        ("ddim small", [0.352, 0.955, 0.953, 0.954]),
    ],
)
def test_final_variance_over_true_variance(name: str, expected: list[float]) -> None:
    """Columns: N=1000 K=4 s²=.3 · N=1000 K=64 s²=.3 · N=1000 K=64 s²=4 · N=64 K=64 s²=.3."""
    ratios = []
    for timesteps, count, spread in [(1000, 4, 0.3), (1000, 64, 0.3), (1000, 64, 4.0), (64, 64, 0.3)]:
        schedule, wide = cosine(timesteps), np.array([spread])
        steps = plan(
            schedule, SAMPLERS[name], even_trajectory(timesteps, count),
            lambda n, schedule=schedule, wide=wide: exact_error(schedule, n, wide),
        )  # fmt: skip
        ratios.append(float(propagate(schedule, steps, wide)[-1][1][0]) / spread)
    np.testing.assert_allclose(ratios, expected, atol=6e-4)


def test_scalar_variance_keeps_the_total_of_an_axis_aligned_gaussian_but_not_each_axis() -> None:
    schedule = cosine(1000)
    trajectory = even_trajectory(1000, 4)
    ratios = {}
    for variance in ("analytic", "analytic_diag"):
        settings = SamplerConfig(variance=variance)  # type: ignore[arg-type]
        steps = plan(schedule, settings, trajectory, lambda n: exact_error(schedule, n, SPREADS))
        ratios[variance] = propagate(schedule, steps, SPREADS)[-1][1] / SPREADS
    np.testing.assert_allclose(ratios["analytic_diag"], 1.0, atol=1e-3)
    assert np.abs(ratios["analytic"] - 1.0).max() > 0.02


@pytest.mark.parametrize("count", [4, 64])
def test_drawn_samples_keep_the_variance_where_ddpm_small_does_not(count: int) -> None:
    schedule, spread, mean = cosine(1000), np.array([0.3]), 1.5
    drawn = {}
    for name in ("ddpm analytic", "ddpm small"):
        steps = plan(schedule, SAMPLERS[name], even_trajectory(1000, count), lambda n: exact_error(schedule, n, spread))
        generator = torch.Generator().manual_seed(0)

        def denoise(x: torch.Tensor, n: int) -> torch.Tensor:
            signal = float(np.sqrt(schedule.alpha_bar[n]))
            return mean + float(gain(schedule, n, spread)[0]) * (x - signal * mean)

        x = run(steps, denoise, lambda _, g=generator: torch.randn(200_000, 1, generator=g, dtype=torch.float64))
        drawn[name] = float(x.var()) / 0.3
        assert float(x.mean()) == pytest.approx(mean, abs=5 * np.sqrt(0.3 / 200_000))
    # The spread of a variance from 200,000 draws is sqrt(2/n) = 0.3 %.
    assert drawn["ddpm analytic"] == pytest.approx(1.0, abs=0.01)
    assert drawn["ddpm small"] < 0.92


@pytest.mark.parametrize("count", [4, 64])
def test_drawn_samples_keep_every_axis_with_a_variance_per_dimension(count: int) -> None:
    """300,000 draws at N = 1000 (a variance is then known to 0.26 %); DDPM-small keeps neither axes nor total."""
    schedule = cosine(1000)
    ratios, totals = {}, {}
    for variance in ("analytic_diag", "small", "analytic")[: 3 if count == 4 else 2]:
        settings = SamplerConfig(variance=variance)  # type: ignore[arg-type]
        trajectory = even_trajectory(1000, count)
        steps = plan(schedule, settings, trajectory, lambda n: exact_error(schedule, n, SPREADS))
        generator = torch.Generator().manual_seed(0)
        x = run(
            steps,
            lambda x, n: torch.from_numpy(gain(schedule, n, SPREADS)).float() * x,
            lambda _, g=generator: torch.randn(300_000, 3, generator=g),  # type: ignore[misc]
        )
        ratios[variance] = x.double().var(dim=0).numpy() / SPREADS
        totals[variance] = float(x.double().var(dim=0).sum()) / SPREADS.sum()
    np.testing.assert_allclose(ratios["analytic_diag"], 1.0, atol=0.01)
    assert np.abs(ratios["small"] - 1.0).max() > 0.05
    if count == 4:
        assert np.abs(ratios["analytic"] - 1.0).max() > 0.02
    assert totals["small"] < 0.97


def test_held_out_error_keeps_its_digits_at_the_last_timesteps_where_gamma_loses_them() -> None:
    """float32, d = 512, 900 draws: v_n = bbar S / (abar S + bbar) is .976 at n = 900 and 1 from 990 on."""
    schedule, config = cosine(1000), PriorConfig(training=TrainingConfig(variance_nodes=101, variance_draws=4))
    target = torch.randn(225, 512, generator=torch.Generator().manual_seed(0))
    gamma = {}

    def denoise(x: torch.Tensor, n: int) -> torch.Tensor:
        x0hat = float(gain(schedule, n, np.ones(1))[0]) * x
        abar = schedule.alpha_bar[n]
        share = float(((x - float(np.sqrt(abar)) * x0hat) ** 2).mean() / np.float32(1 - abar))
        gamma[n] = float((1 - abar) / abar * (1 - share))
        return x0hat

    held_out = PairTensors(Conditions(torch.zeros(225, 1, 1)), target, torch.zeros(225), torch.arange(225))
    prior = SimpleNamespace(config=config, schedule=schedule, denoiser=lambda *_: denoise)
    table = measure_variance(prior, target, held_out)  # type: ignore[arg-type]
    for n, error in zip(table.nodes.tolist(), table.error.mean(axis=1), strict=True):
        if n >= 900:
            assert error == pytest.approx(float(exact_error(schedule, n, np.ones(1))[0]), rel=0.02)
    assert abs(gamma[1000] - 1.0) > 10


def test_variance_lies_between_its_published_bounds() -> None:
    schedule = cosine(1000)
    for name in ("ddpm analytic", "ddim analytic"):
        steps = plan(schedule, SAMPLERS[name], even_trajectory(1000, 16), lambda n: exact_error(schedule, n, SPREADS))
        for step in steps[:-1]:
            a = schedule.alpha_bar[step.r] / schedule.alpha_bar[step.s]
            bbar_s, bbar_r = 1 - schedule.alpha_bar[step.s], 1 - schedule.alpha_bar[step.r]
            lam2 = (1 - a) * bbar_s / bbar_r if name.startswith("ddpm") else 0.0
            upper = lam2 + (np.sqrt(bbar_r / a) - np.sqrt(bbar_s - lam2)) ** 2
            assert (step.sigma**2 >= lam2 - 1e-12).all()
            assert (step.sigma**2 <= upper + 1e-12).all()


def test_ddpm_mean_has_the_textbook_coefficients() -> None:
    """Ho et al. 2020, eq. 7: b sqrt(abar_s) / bbar_r on x0hat, sqrt(a) bbar_s / bbar_r on x_r."""
    schedule = cosine(1000)
    for step in plan(schedule, SAMPLERS["ddpm small"], even_trajectory(1000, 10), None):
        abar_s, abar_r = schedule.alpha_bar[step.s], schedule.alpha_bar[step.r]
        a = abar_r / abar_s
        assert step.predicted == pytest.approx((1 - a) * np.sqrt(abar_s) / (1 - abar_r), rel=1e-9)
        assert step.keep == pytest.approx(np.sqrt(a) * (1 - abar_s) / (1 - abar_r), rel=1e-9, abs=1e-12)


def test_last_step_returns_the_prediction_without_noise() -> None:
    schedule = cosine(100)
    for settings in [*SAMPLERS.values(), SamplerConfig(family="dpm_solver", variance="small")]:
        last = plan(schedule, settings, even_trajectory(100, 7), lambda n: exact_error(schedule, n, SPREADS))[-1]
        assert (last.s, last.keep, last.predicted, last.previous) == (0, 0.0, 1.0, 0.0)
        assert not last.sigma.any()


def test_even_trajectory_holds_both_ends_and_exactly_the_asked_calls() -> None:
    for timesteps, count in itertools.product((64, 1000), (2, 4, 8, 16, 64)):
        nodes = even_trajectory(timesteps, count)
        assert (len(set(nodes)), nodes[0], nodes[-1]) == (count, 1, timesteps)
    with pytest.raises(BadInput, match="65 sampling steps"):
        even_trajectory(64, 65)


def test_log_snr_trajectory_is_even_in_log_snr_and_never_repeats() -> None:
    for timesteps, count in itertools.product((64, 1000), (2, 3, 8, 20, 64)):
        schedule = cosine(timesteps)
        nodes = log_snr_trajectory(schedule, count)
        assert (len(set(nodes)), nodes[0], nodes[-1]) == (count, 1, timesteps)
        assert nodes == sorted(nodes)
    schedule = cosine(1000)
    # Whole timesteps are too coarse for the last two intervals; all others are even.
    gaps = np.diff(np.log(schedule.snr[log_snr_trajectory(schedule, 8)]))[:-2]
    assert gaps.std() < 0.05 * abs(gaps.mean())
    assert np.diff(np.log(schedule.snr[even_trajectory(1000, 8)])).std() > 0.3 * abs(gaps.mean())


def test_optimal_trajectory_is_the_cheapest_of_all() -> None:
    timesteps, count = 12, 5
    schedule = cosine(timesteps)
    spread = np.array([0.05, 2.0])
    error = np.array([0.0, *(exact_error(schedule, n, spread).mean() for n in range(1, timesteps + 1))])

    def cost(path: tuple[int, ...]) -> float:
        total = 0.0
        for s, r in itertools.pairwise(path):
            abar_r, bbar_r = schedule.alpha_bar[r], 1 - schedule.alpha_bar[r]
            b = 1 - abar_r / schedule.alpha_bar[s]
            total += np.log(1 - b * (1 - error[r] * abar_r / bbar_r) / bbar_r)
        return total

    everyone = [(1, *inner, timesteps) for inner in itertools.combinations(range(2, timesteps), count - 2)]
    found = optimal_trajectory(schedule, error, count)
    assert len(found) == count
    assert cost(tuple(found)) == pytest.approx(min(map(cost, everyone)), abs=1e-12)
    assert cost(tuple(found)) < cost(tuple(even_trajectory(timesteps, count))) - 1e-3


def test_dpm_solver_is_second_order_on_a_gaussian() -> None:
    """The probability-flow solution maps x_N to m + (x_N - sqrt(abar_N) m) · sqrt(S / (abar_N S + bbar_N))."""
    schedule, spread, mean = cosine(1000), np.array([0.3]), 1.5
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def denoise(x: torch.Tensor, n: int) -> torch.Tensor:
        signal = float(np.sqrt(schedule.alpha_bar[n]))
        return mean + float(gain(schedule, n, spread)[0]) * (x - signal * mean)

    abar = schedule.alpha_bar[1000]
    exact = mean + (start - np.sqrt(abar) * mean) * float(np.sqrt(0.3 / (abar * 0.3 + 1 - abar)))
    worst = {}
    for family in ("ddim", "dpm_solver"):
        settings = SamplerConfig(family=family, variance="small")  # type: ignore[arg-type]
        for count in (25, 100):
            steps = plan(schedule, settings, log_snr_trajectory(schedule, count), None)
            worst[family, count] = float((run(steps, denoise, lambda _: start) - exact).abs().max())
    assert worst["dpm_solver", 25] < 0.5 * worst["ddim", 25]
    assert worst["dpm_solver", 100] < worst["dpm_solver", 25] / 3
    assert worst["ddim", 100] > 0.01 * worst["ddim", 25]
