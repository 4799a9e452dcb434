"""The diffusion process: schedule, parametrisations, and the noise of every step and case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedprior.prior.config import Prediction, ProcessConfig


@dataclass(frozen=True)
class Schedule:
    """Cumulative signal share of every timestep.

    Attributes:
        alpha_bar: (N+1,) float64; x_n = sqrt(alpha_bar[n]) x_0 + sqrt(1 - alpha_bar[n]) noise.
    """

    alpha_bar: NDArray[np.float64]

    @property
    def timesteps(self) -> int:
        """N, the number of noisy timesteps."""
        return len(self.alpha_bar) - 1

    @cached_property
    def beta_bar(self) -> NDArray[np.float64]:
        """(N+1,) noise share, 1 - alpha_bar."""
        return 1.0 - self.alpha_bar

    @property
    def snr(self) -> NDArray[np.float64]:
        """(N+1,) signal-to-noise ratio; infinite at n = 0."""
        with np.errstate(divide="ignore"):
            return self.alpha_bar / self.beta_bar

    def signal_and_noise(self, n: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha_bar[n]) and sqrt(1 - alpha_bar[n]) as (B, 1) columns of ``like``'s type."""
        share = torch.from_numpy(self.alpha_bar)[n.cpu()]
        column = torch.stack([share.sqrt(), (1.0 - share).sqrt()]).to(like.device, like.dtype)
        return column[0, :, None], column[1, :, None]


def make_schedule(config: ProcessConfig) -> Schedule:
    """Return the schedule.

    Cosine: alpha_bar(u) = cos²((u + .008)/1.008 · pi/2), betas clipped to .999 (Nichol and Dhariwal 2021, eq. 17).
    Linear: betas from 1e-4 to 0.02 for N = 1000, scaled by 1000/N so that the total noise is alike for any N.

    Example:
        >>> make_schedule(ProcessConfig(timesteps=4)).alpha_bar.round(3).tolist()
        [1.0, 0.847, 0.494, 0.144, 0.0]
    """
    steps = config.timesteps
    if config.schedule == "cosine":
        u = np.arange(steps + 1, dtype=np.float64) / steps
        curve = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = 1.0 - curve[1:] / curve[:-1]
    else:
        beta = np.linspace(1e-4, 0.02, steps, dtype=np.float64) * (1000 / steps)
    alpha_bar = np.cumprod(1.0 - np.clip(beta, 0.0, 0.999))
    return Schedule(np.concatenate([[1.0], alpha_bar]))


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, n: Tensor) -> Tensor:
    """Return x_n (B, D) for clean ``x0`` (B, D), standard normal ``noise`` (B, D) and timesteps ``n`` (B,).

    Example:
        >>> schedule = make_schedule(ProcessConfig(timesteps=4))
        >>> add_noise(schedule, torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([1, 4])).flatten().round(decimals=3)
        tensor([0.9200, 0.0120])
    """
    signal, spread = schedule.signal_and_noise(n, x0)
    return signal * x0 + spread * noise


MIN_SIGNAL = 0.1
"""Signal sqrt(alpha_bar) below which an x0hat is not made from predicted noise: its error is that of the noise, divided
by the signal. x_n then says next to nothing of x_0 (a signal-to-noise ratio of .01)."""


@dataclass(frozen=True)
class Parametrisation:
    """How a network output and x_n make x0hat = skip · x_n + out · output, and what the output should be.

    edm: skip = sqrt(abar) s² / (abar s² + bbar) with s = ``sigma_data``, out the root mean square of x_0 - skip · x_n
    for data of variance 1 (Karras et al. 2022, section 5, in variance-preserving form). With s = 1 this is v with its
    sign turned. v: skip = sqrt(abar), out = -sqrt(bbar) (Salimans and Ho 2022, appendix D).

    Attributes:
        schedule: the process.
        prediction, sigma_data: see ``ProcessConfig``.

    Example:
        >>> of = Parametrisation(make_schedule(ProcessConfig(timesteps=4)), "v")
        >>> x0, noise, n = torch.tensor([[0.5]]), torch.tensor([[-1.0]]), torch.tensor([2])
        >>> x = add_noise(of.schedule, x0, noise, n)
        >>> of.x0hat(of.target(x0, x, n), x, n)
        tensor([[0.5000]])
    """

    schedule: Schedule
    prediction: Prediction
    sigma_data: float = 1.0

    @classmethod
    def of(cls, config: ProcessConfig, schedule: Schedule) -> Parametrisation:
        """Return that of a configured process."""
        return cls(schedule, config.prediction, config.sigma_data)

    def coefficients(self, n: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return skip and out as (B, 1) columns of ``like``'s type."""
        share = torch.from_numpy(self.schedule.alpha_bar)[n.cpu()]
        signal, noise = share.sqrt(), (1.0 - share).sqrt()
        if self.prediction == "x0":
            skip, out = torch.zeros_like(signal), torch.ones_like(signal)
        elif self.prediction == "v":
            skip, out = signal, -noise
        elif self.prediction == "edm":
            variance = self.sigma_data**2
            skip = signal * variance / (signal**2 * variance + noise**2)
            out = ((1.0 - skip * signal) ** 2 + (skip * noise) ** 2).sqrt()
        else:
            # Without signal the best guess of the embedding is sqrt(abar) x_n, whatever the output.
            readable = signal >= MIN_SIGNAL
            skip = torch.where(readable, 1.0 / signal, signal)
            out = torch.where(readable, -noise / signal, torch.zeros_like(signal))
        pair = torch.stack([skip, out]).to(like.device, like.dtype)
        return pair[0, :, None], pair[1, :, None]

    def x0hat(self, output: Tensor, x: Tensor, n: Tensor) -> Tensor:
        """Return the clean embedding (B, D) that a network output at ``x`` = x_n implies."""
        if self.prediction == "x0":
            return output
        skip, out = self.coefficients(n, x)
        return skip * x + out * output

    def target(self, x0: Tensor, x: Tensor, n: Tensor) -> Tensor:
        """Return what the network should put out, (B, D), for ``x0`` noised to ``x``; timesteps from 1."""
        if self.prediction == "x0":
            return x0
        if self.prediction == "epsilon":
            signal, noise = self.schedule.signal_and_noise(n, x0)
            return (x - signal * x0) / noise
        skip, out = self.coefficients(n, x)
        return (x0 - skip * x) / out

    def loss_weight(self, gamma: float | None, n: Tensor) -> Tensor:
        """Return the (B,) weight of the squared error of the output: 1, for ``edm`` its c_out, or min-SNR.

        c_out on the output is 1 / c_out on x0hat: between the squared error of x0hat, which does not see low noise, and
        EDM's 1 / c_out², most of which is noise that can't be predicted. min-SNR: min(SNR, gamma) on the error of
        x0hat, whatever is predicted (Hang et al. 2023, section 3.4).
        """
        like = torch.ones(1, device=n.device)
        if gamma is None:
            if self.prediction != "edm":
                return torch.ones(len(n), device=n.device)
            return self.coefficients(n, like)[1][:, 0]
        snr = torch.from_numpy(self.schedule.snr)[n.cpu()]
        weight = snr.clamp(max=gamma)
        if self.prediction == "epsilon":
            return (weight / snr).float().to(n.device)
        out = self.coefficients(n, like.double())[1][:, 0]
        return (weight.to(n.device) * out.square()).float()


# Streams never share a key: the same seed, step and example give unrelated numbers in each.
TRAINING, VALIDATION, VARIANCE, SAMPLING, ORDER, ONE_STEP, TEACHER = range(7)


class KeyedNoise:
    """A Philox generator that is moved to the start of stream (seed, purpose, step, case) on demand."""

    def __init__(self, seed: int, purpose: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, step: int, example: int) -> np.random.Generator:
        """Return the generator at the start of one stream; it is valid until the next call."""
        # The low counter word stays free for the draws; setting the state is 5x quicker than a new generator.
        self._state["state"]["counter"][:] = (0, 0, step, example)
        self._state["buffer_pos"] = 4
        self._state["has_uint32"] = 0
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class StepDraws:
    """What the whole batch of one training step needs beside its data, over all processes.

    Attributes:
        timestep: (B,) uniform on 1..N.
        drop: (B, 2) uniform on [0, 1): condition and noised-target dropout.
        noise: (B, D) standard normal, float32.
        condition: (B, *condition_shape) standard normal, float32; None when it was not asked for.
    """

    timestep: NDArray[np.int64]
    drop: NDArray[np.float64]
    noise: NDArray[np.float32]
    condition: NDArray[np.float32] | None = None

    def rows(self, part: slice) -> StepDraws:
        """Return the draws of some rows of the batch."""
        condition = None if self.condition is None else self.condition[part]
        return StepDraws(self.timestep[part], self.drop[part], self.noise[part], condition)


def training_draws(
    source: KeyedNoise,
    step: int,
    batch: int,
    dim: int,
    timesteps: int,
    condition_shape: tuple[int, ...] | None = None,
) -> StepDraws:
    """Return the draws of a step's whole batch from one generator keyed by (seed, step).

    Every process draws all and takes its rows, so the numbers are the same on any number of processes.

    Example:
        >>> draws = training_draws(KeyedNoise(0, TRAINING), step=3, batch=4, dim=2, timesteps=10)
        >>> draws.noise.shape, draws.rows(slice(2, 4)).timestep.shape
        ((4, 2), (2,))
    """
    generator = source.at(step, 0)
    timestep = generator.integers(1, timesteps + 1, batch)
    drop = generator.random((batch, 2))
    noise = generator.standard_normal((batch, dim), dtype=np.float32)
    condition = None
    if condition_shape is not None:
        condition = generator.standard_normal((batch, *condition_shape), dtype=np.float32)
    return StepDraws(timestep, drop, noise, condition)


def keyed_normal(source: KeyedNoise, step: int, examples: Iterable[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return (len(examples), *shape) standard normal float32 numbers, one stream per example."""
    return np.stack([source.at(step, example).standard_normal(shape, dtype=np.float32) for example in examples])


def batch_at(seed: int, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Return the ``batch`` example indices of one step.

    Steps cut an endless row of shuffled passes over the ``count`` examples into equal batches, so every example
    is seen equally often and the batch of a step needs no memory of the steps before it.

    Example:
        >>> sorted(int(row) for step in (0, 1) for row in batch_at(0, step, 3, 6))
        [0, 1, 2, 3, 4, 5]
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    order = KeyedNoise(seed, ORDER)
    passes = {int(p): order.at(int(p), 0).permutation(count) for p in np.unique(positions // count)}
    return np.array([passes[int(p // count)][p % count] for p in positions], dtype=np.int64)
