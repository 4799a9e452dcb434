"""The noising process: schedules, forward noising, and the three ways to say what the network predicts.

Timesteps are counted n = 1..N; n = 0 is the clean embedding, so ``alpha_bar[0] == 1``.
"""

from __future__ import annotations

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
    """Return x_n (B, D) for clean ``x0`` (B, D), standard normal ``noise`` (B, D) and timesteps ``n`` (B,)."""
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
    """Return the clean embedding (B, D) that a network output at ``x`` = x_n implies."""
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
