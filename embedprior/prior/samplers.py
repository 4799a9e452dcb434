"""Reverse steps: Analytic-DPM, DDPM, DDIM and DPM-Solver++ as one linear rule with tabulated coefficients.

Drawing samples with them, and the variance table that Analytic-DPM needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from embedprior.errors import BadInput
from embedprior.prior.config import ProcessConfig, SamplerConfig
from embedprior.prior.diffusion import KeyedNoise, Parametrisation, Schedule, keyed_normal
from embedprior.prior.network import Prefix, PriorNetwork


@dataclass(frozen=True)
class VarianceTable:
    """v_n = E (x0 - x0hat(x_n, n, c))² per dimension, standardised units, bounded by what the data allow.

    The squared error is used instead of the published Gamma_n = E ||epshat||²/d: the two agree for an exact
    posterior mean, but Gamma loses all digits in float32 at the noisy end and errs when the mean does.

    Attributes:
        nodes: (G,) increasing timesteps where it was measured.
        error: (G, D) measured mean squared error.
        spread: (D,) variance of the standardised training targets.
        guidance: the guidance weight it was measured with; the table holds for that weight alone.
        share: (G,) how much of x0hat is the network's, between 0 and 1, where what is noised is whitened; the rest is
            the linear denoiser's (see ``linear_x0hat``). A network that has learned nothing has none. None: all of it.
    """

    nodes: NDArray[np.int64]
    error: NDArray[np.float64]
    spread: NDArray[np.float64]
    guidance: float
    share: NDArray[np.float64] | None = None

    def at(self, schedule: Schedule, n: int) -> NDArray[np.float64]:
        """Return (D,) v_n within [0, bound].

        Between nodes the ratio to the bound is interpolated in the timestep: the bound carries the fall of v over
        many orders of magnitude, the ratio moves slowly.
        """
        bound_at_nodes = linear_bound(schedule, self.spread, self.nodes)
        ratio = np.clip(self.error / np.where(bound_at_nodes > 0, bound_at_nodes, 1.0), 0.0, 1.0)
        place = np.interp(n, self.nodes, np.arange(len(self.nodes)))
        low = int(place)
        high = min(low + 1, len(self.nodes) - 1)
        mixed = ratio[low] + (place - low) * (ratio[high] - ratio[low])
        return np.asarray(mixed * linear_bound(schedule, self.spread, np.array([n]))[0])

    def network_share(self, n: int) -> float:
        """Return the network's share of x0hat at timestep n, interpolated between nodes."""
        return 1.0 if self.share is None else float(np.interp(n, self.nodes, self.share))

    def scalar(self, schedule: Schedule) -> NDArray[np.float64]:
        """Return (N+1,) the mean over dimensions at every timestep; index 0 is 0."""
        return np.array([0.0, *(self.at(schedule, n).mean() for n in range(1, schedule.timesteps + 1))])


def linear_bound(schedule: Schedule, spread: NDArray[np.float64], nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (G, D) bbar S / (abar S + bbar): the error of the best linear guess without the condition.

    It never exceeds the total variance S, so it is the only bound needed.
    """
    abar, bbar = schedule.alpha_bar[nodes, None], schedule.beta_bar[nodes, None]
    return np.asarray(bbar * spread / (abar * spread + bbar))


def linear_x0hat(schedule: Schedule, x: Tensor, n: int) -> Tensor:
    """Return sqrt(abar) x_n: the best linear guess of x_0 where its covariance is that of the noise (whitened)."""
    return x * float(np.sqrt(schedule.alpha_bar[n]))


Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ReverseStep:
    """x_s = keep · x_r + predicted · x0hat_r + previous · x0hat of the step before + sigma · noise.

    Attributes:
        r, s: timestep before and after.
        keep, predicted, previous: coefficients.
        sigma: (1,) or (D,) standard deviation of the added noise.
    """

    r: int
    s: int
    keep: float
    predicted: float
    previous: float
    sigma: Vector


def even_trajectory(timesteps: int, steps: int) -> list[int]:
    """Return ``steps`` timesteps from 1 to N, evenly spaced and rounded; one step uses N alone.

    Raises:
        BadInput: more steps than timesteps.

    Example:
        >>> even_trajectory(1000, 5)
        [1, 251, 500, 750, 1000]
    """
    if steps > timesteps:
        raise BadInput(f"{steps} sampling steps asked for. Allowed: 1 to {timesteps}, the prior's timesteps.")
    if steps == 1:
        return [timesteps]
    return [round(1 + k * (timesteps - 1) / (steps - 1)) for k in range(steps)]


def log_snr_trajectory(schedule: Schedule, steps: int) -> list[int]:
    """Return ``steps`` distinct timesteps from 1 to N, as evenly spaced in log-SNR as whole timesteps allow.

    Multi-step solvers extrapolate over the ratio of neighbouring log-SNR steps, so these should be alike.

    Raises:
        BadInput: more steps than timesteps.
    """
    even = even_trajectory(schedule.timesteps, steps)
    if steps < 3:
        return even
    level = -np.log(schedule.snr[1:])
    position = np.interp(np.linspace(level[0], level[-1], steps), level, np.arange(1, schedule.timesteps + 1))
    nodes = np.round(position).astype(int)
    # Where whole timesteps are too coarse, neighbours would coincide: push them apart, inwards from both ends.
    rank = np.arange(steps)
    nodes = np.maximum.accumulate(nodes - rank) + rank
    nodes = np.minimum.accumulate((np.minimum(nodes, schedule.timesteps) - rank)[::-1])[::-1] + rank
    return [int(node) for node in nodes]


def optimal_trajectory(schedule: Schedule, variance: Vector, steps: int) -> list[int]:
    """Return the ``steps`` timesteps, 1 and N among them, with the least sum of log(1 - b · Gamma_r / bbar_r).

    Dynamic programming of Bao et al. 2022, section 4, for the DDPM family; O(steps · N²).

    Args:
        schedule: the process.
        variance: (N+1,) v_n, the mean squared error of x0hat at every timestep (index 0 is not read).
        steps: nodes, 2 to N.

    Raises:
        BadInput: ``steps`` outside 2..N.
    """
    count = schedule.timesteps
    if not 2 <= steps <= count:
        raise BadInput(f"{steps} optimal sampling steps asked for. Allowed: 2 to {count}.")
    abar, bbar = schedule.alpha_bar[1:], schedule.beta_bar[1:]
    gamma = np.clip(1.0 - variance[1:] * abar / bbar, 0.0, 1.0)
    b = 1.0 - abar[None, :] / abar[:, None]
    edge = np.full((count, count), np.inf)
    forward = np.triu_indices(count, 1)
    with np.errstate(divide="ignore"):
        edge[forward] = np.log(np.maximum(1.0 - b * (gamma / bbar)[None, :], 0.0)[forward])
    cost = np.full(count, np.inf)
    cost[0] = 0.0
    predecessor = []
    for _ in range(steps - 1):
        through = cost[:, None] + edge
        predecessor.append(through.argmin(axis=0))
        cost = through.min(axis=0)
    node = count - 1
    path = [node]
    for choices in reversed(predecessor):
        node = int(choices[node])
        path.append(node)
    return [node + 1 for node in reversed(path)]


def plan(
    schedule: Schedule, config: SamplerConfig, trajectory: Sequence[int], variance: Callable[[int], Vector] | None
) -> list[ReverseStep]:
    """Return the reverse steps from trajectory[-1] down to 0.

    Args:
        schedule: the process.
        config: family, variance, eta.
        trajectory: increasing timesteps; the last is where sampling starts.
        variance: n ↦ (D,) or (1,) v_n = E (x0 - x0hat)² at timestep n; read by the analytic variances only.

    Raises:
        BadInput: an analytic variance without a variance table.

    Example:
        >>> from embedprior.prior.diffusion import make_schedule
        >>> schedule, config = make_schedule(ProcessConfig()), SamplerConfig(variance="small", steps=3)
        >>> [(step.r, step.s) for step in plan(schedule, config, even_trajectory(1000, 3), None)]
        [(1000, 500), (500, 1), (1, 0)]
    """
    pairs = list(zip([0, *trajectory[:-1]], trajectory, strict=True))[::-1]
    if config.family == "dpm_solver":
        return _solver_steps(schedule, pairs)
    return [_markov_step(schedule, config, s, r, variance) for s, r in pairs]


def _markov_step(
    schedule: Schedule, config: SamplerConfig, s: int, r: int, variance: Callable[[int], Vector] | None
) -> ReverseStep:
    abar_s, abar_r = schedule.alpha_bar[s], schedule.alpha_bar[r]
    bbar_s, bbar_r = schedule.beta_bar[s], schedule.beta_bar[r]
    b = 1.0 - abar_r / abar_s
    beta_tilde = b * bbar_s / bbar_r
    lam2 = beta_tilde * (config.eta**2 if config.family == "ddim" else 1.0)
    keep = np.sqrt(max(bbar_s - lam2, 0.0) / bbar_r)
    predicted = np.sqrt(abar_s) - keep * np.sqrt(abar_r)
    if s == 0:
        sigma2 = np.zeros(1)
    elif config.variance == "small":
        sigma2 = np.full(1, lam2)
    elif config.variance == "big":
        sigma2 = np.full(1, b)
    elif variance is None:
        raise BadInput("analytic sampling needs a variance table. Next: train the prior with a validation part.")
    else:
        error = variance(r)
        sigma2 = lam2 + predicted**2 * (error if config.variance == "analytic_diag" else error.mean(keepdims=True))
    return ReverseStep(r, s, float(keep), float(predicted), 0.0, np.sqrt(sigma2))


def _solver_steps(schedule: Schedule, pairs: Sequence[tuple[int, int]]) -> list[ReverseStep]:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; first order at the first step and at the last (where h = ∞)."""
    steps = []
    half_log_snr = 0.5 * np.log(np.maximum(schedule.alpha_bar, 1e-300)) - 0.5 * np.log(
        np.where(schedule.beta_bar > 0, schedule.beta_bar, 1.0)
    )
    previous_h: float | None = None
    for s, r in pairs:
        if s == 0:
            steps.append(ReverseStep(r, s, 0.0, 1.0, 0.0, np.zeros(1)))
            continue
        h = float(half_log_snr[s] - half_log_snr[r])
        keep = float(np.sqrt(schedule.beta_bar[s] / schedule.beta_bar[r]))
        gain = -float(np.sqrt(schedule.alpha_bar[s]) * np.expm1(-h))
        lean = 0.0 if previous_h is None else h / (2.0 * previous_h)
        steps.append(ReverseStep(r, s, keep, gain * (1.0 + lean), -gain * lean, np.zeros(1)))
        previous_h = h
    return steps


def run(
    steps: Sequence[ReverseStep], denoise: Callable[[Tensor, int], Tensor], noise: Callable[[int], Tensor]
) -> Tensor:
    """Return samples of x_0.

    Args:
        steps: a plan.
        denoise: (x_r (B, D), r) ↦ x0hat (B, D).
        noise: k ↦ (B, D) standard normal: k = 0 is the start, k = 1, 2, … what the k-th step adds.
    """
    *_, last = states(steps, denoise, noise)
    return last


def states(
    steps: Sequence[ReverseStep], denoise: Callable[[Tensor, int], Tensor], noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Yield x after every step, the start first; arguments as in ``run``."""
    x = noise(0)
    yield x
    before: Tensor | None = None
    for index, step in enumerate(steps, start=1):
        predicted = denoise(x, step.r)
        x = step.keep * x + step.predicted * predicted
        if before is not None and step.previous:
            x = x + step.previous * before
        if step.sigma.any():
            x = x + torch.as_tensor(step.sigma, dtype=x.dtype, device=x.device) * noise(index)
        before = predicted
        yield x


Denoise = Callable[[Tensor, int], Tensor]

MAX_NOISE_NUMBERS = 2**25
"""Numbers of whole trajectories' noise that are in memory at once: 128 MB."""
ROWS_AT_ONCE = 4096
"""Samples that go through the network together on a CPU: more of them leave its caches, and take half as long again."""


@dataclass(frozen=True)
class Conditions:
    """What is known of each case, on the device.

    Attributes:
        tokens: (cases, C, Dc) standardised condition tokens.
        mask: (cases, C), True where a token is real; None when all are.
        ridge_prediction: (cases, D) what the ridge regression makes of them, in the units that are noised; None
            when the prior has none.
    """

    tokens: Tensor
    mask: Tensor | None = None
    ridge_prediction: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, part: slice) -> Conditions:
        """Return some of the cases."""
        rest = (None if values is None else values[part] for values in (self.mask, self.ridge_prediction))
        return Conditions(self.tokens[part], *rest)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        """Return the same on a device, its tokens in the network's type."""
        rest = (None if values is None else values.to(device) for values in (self.mask, self.ridge_prediction))
        return Conditions(self.tokens.to(device, dtype), *rest)


def denoiser(
    network: PriorNetwork,
    process: ProcessConfig,
    schedule: Schedule,
    conditions: Conditions,
    samples: int,
    guidance: float,
    network_share: Callable[[int], float] | None = None,
) -> Denoise:
    """Return (x (cases · samples, D), n) ↦ x0hat, float32, with the conditions encoded once.

    The network sees the noised embedding less its share of the ridge prediction, and its answer is added to that.

    Args:
        network: of the prior.
        process, schedule: it was trained with.
        conditions: of the cases.
        samples: rows per case, next to each other.
        guidance: w in null + w · (conditional - null); any w but 1 costs a second pass when the null branch keeps
            the noised target, and one extra row when it does not.
        network_share: timestep ↦ how much of the conditional x0hat is the network's; see ``VarianceTable``.
    """
    drops_both, parametrisation = process.null_branch == "drops_both", Parametrisation.of(process, schedule)
    with torch.inference_mode():
        prefix = network.encode(conditions.tokens, conditions.mask)
        null_prefix = None
        if guidance != 1.0:
            # Without condition and target the null branch knows only the timestep: one row serves all.
            null_conditions = conditions.rows(slice(0, 1) if drops_both else slice(None))
            dropped = torch.ones(len(null_conditions), dtype=torch.bool, device=conditions.tokens.device)
            null_prefix = network.encode(null_conditions.tokens, null_conditions.mask, dropped)
    ridge = conditions.ridge_prediction
    ridge = None if ridge is None else repeat(ridge, "cases d -> (cases samples) d", samples=samples)

    def predict(prefix: Prefix, x: Tensor, n: int, rows: int, drop: Tensor | None) -> Tensor:
        timestep, x = torch.full((1,), n, device=x.device), x.to(network.query.dtype)
        if rows == 1:
            return network.step(prefix, x, timestep, drop).float()
        # The timestep's token sees the condition alone, so a case's samples share it: a third less work.
        return network.step(network.at_time(prefix, timestep).repeat(rows), x, None, drop).float()

    @torch.inference_mode()
    def denoise(x: Tensor, n: int) -> Tensor:
        timestep = torch.full((len(x),), n)
        signal = schedule.signal_and_noise(timestep, x)[0]
        remainder = x if ridge is None else x - signal * ridge
        output = predict(prefix, remainder, n, samples, None)
        x0hat = parametrisation.x0hat(output, remainder, timestep)
        if network_share is not None:
            linear = linear_x0hat(schedule, remainder, n)
            # In place: linear + share · (x0hat - linear), without three more arrays of this size.
            x0hat = x0hat.sub_(linear).mul_(network_share(n)).add_(linear)
        x0hat = x0hat if ridge is None else x0hat.add_(ridge)
        if null_prefix is None:
            return x0hat
        if drops_both:
            output = predict(null_prefix, x[:1], n, 1, torch.ones(1, dtype=torch.bool, device=x.device))
        else:
            output = predict(null_prefix, x, n, samples, None)
        null_x0hat = parametrisation.x0hat(output, x, timestep)
        return null_x0hat + guidance * (x0hat - null_x0hat)

    return denoise


def draw(
    denoise_part: Callable[[slice], Denoise],
    reverse: Sequence[ReverseStep],
    cases: Sequence[int],
    samples: int,
    dim: int,
    noise: KeyedNoise,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return (cases, samples, D) standardised samples, all samples of a case in one batch.

    Args:
        denoise_part: rows ↦ their denoiser.
        reverse: the plan.
        cases: a number per case that keys its noise.
        samples, dim: sizes.
        noise: sample m of case i reads the m-th part of stream i, so that neither batch mates nor M change it.
        device: of the network.
    """
    at_once = max(1, MAX_NOISE_NUMBERS // (_draws(reverse) * dim * samples))
    if device.type == "cpu":
        at_once = min(at_once, max(1, ROWS_AT_ONCE // samples))
    out = np.empty((len(cases), samples, dim), dtype=np.float32)
    for start in range(0, len(cases), at_once):
        part = slice(start, min(start + at_once, len(cases)))
        x0 = run(reverse, denoise_part(part), noise_of_steps(noise, reverse, cases[part], samples, dim, device))
        out[part] = rearrange(x0, "(cases samples) d -> cases samples d", samples=samples).cpu().numpy()
    return out


def noise_of_steps(
    noise: KeyedNoise,
    reverse: Sequence[ReverseStep],
    cases: Sequence[int],
    samples: int,
    dim: int,
    device: torch.device,
) -> Callable[[int], Tensor]:
    """Return k ↦ (cases · samples, D) standard normal: k = 0 is the start, then one per step that adds noise.

    A trajectory's noise is drawn once for each key among ``cases``; cases of one key read the same numbers.
    """
    keys, position = np.unique(np.array(cases, dtype=np.uint64), return_inverse=True)
    # A case's samples follow each other in its stream, so that the first ones do not depend on how many there are.
    drawn = torch.from_numpy(keyed_normal(noise, 0, keys.tolist(), (samples, _draws(reverse), dim))).to(device)
    rows = torch.from_numpy(position).to(device)
    return lambda k: rearrange(drawn[:, :, k][rows], "cases samples d -> (cases samples) d")


def _draws(reverse: Sequence[ReverseStep]) -> int:
    return 1 + (len(reverse) if any(step.sigma.any() for step in reverse) else 0)
