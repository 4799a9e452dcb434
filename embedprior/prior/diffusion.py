"""The diffusion process: schedule, parametrisations, and the noise of every example and step."""

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


def training_target(schedule: Schedule, prediction: Prediction, x0: Tensor, noise: Tensor, n: Tensor) -> Tensor:
    """Return what the network should put out, (B, D): x0, the noise, or v = sqrt(abar) eps - sqrt(bbar) x0.

    v is Salimans and Ho 2022, appendix D.
    """
    if prediction == "x0":
        return x0
    if prediction == "epsilon":
        return noise
    signal, spread = schedule.signal_and_noise(n, x0)
    return signal * noise - spread * x0


def to_x0(schedule: Schedule, prediction: Prediction, output: Tensor, x: Tensor, n: Tensor) -> Tensor:
    """Return the clean embedding (B, D) that a network output at ``x`` = x_n implies.

    Example:
        >>> schedule, n = make_schedule(ProcessConfig(timesteps=4)), torch.tensor([2])
        >>> x0, noise = torch.tensor([[0.5]]), torch.tensor([[-1.0]])
        >>> v = training_target(schedule, "v", x0, noise, n)
        >>> to_x0(schedule, "v", v, add_noise(schedule, x0, noise, n), n)
        tensor([[0.5000]])
    """
    if prediction == "x0":
        return output
    signal, spread = schedule.signal_and_noise(n, x)
    if prediction == "epsilon":
        return (x - spread * output) / signal
    return signal * x - spread * output


def loss_weight(schedule: Schedule, prediction: Prediction, gamma: float | None, n: Tensor) -> Tensor:
    """Return the (B,) weight of the squared error: 1, or min-SNR.

    min(SNR, gamma) on the error of x0, divided by SNR for eps and by SNR + 1 for v, so that the three
    predictions are weighed alike (Hang et al. 2023, section 3.4).
    """
    if gamma is None:
        return torch.ones(len(n), device=n.device)
    snr = torch.from_numpy(schedule.snr)[n.cpu()]
    weight = snr.clamp(max=gamma)
    if prediction == "epsilon":
        weight = weight / snr
    elif prediction == "v":
        weight = weight / (snr + 1.0)
    return weight.float().to(n.device)


# Streams never share a key: the same seed, step and example give unrelated numbers in each.
TRAINING, VALIDATION, VARIANCE, SAMPLING, ORDER, ONE_STEP, TEACHER = range(7)


class KeyedNoise:
    """A Philox generator that is moved to the start of stream (seed, purpose, step, example) on demand."""

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
    """What one training step needs beside its data.

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


def training_draws(
    source: KeyedNoise,
    step: int,
    examples: NDArray[np.int64],
    dim: int,
    timesteps: int,
    condition_shape: tuple[int, ...] | None = None,
) -> StepDraws:
    """Return the draws of these examples at this step; each depends on (seed, step, example) alone."""
    timestep = np.empty(len(examples), dtype=np.int64)
    drop = np.empty((len(examples), 2))
    noise = np.empty((len(examples), dim), dtype=np.float32)
    condition = None if condition_shape is None else np.empty((len(examples), *condition_shape), dtype=np.float32)
    for row, example in enumerate(examples):
        generator = source.at(step, int(example))
        uniform = generator.random(3)
        timestep[row] = 1 + int(uniform[0] * timesteps)
        drop[row] = uniform[1:]
        generator.standard_normal(dtype=np.float32, out=noise[row])
        if condition is not None:
            generator.standard_normal(dtype=np.float32, out=condition[row])
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
