"""From conditions to samples: guided denoising with the condition encoded once, and the drawing of many samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedprior.prior.config import ProcessConfig
from embedprior.prior.diffusion import Schedule, to_x0
from embedprior.prior.network import Prefix, PriorNetwork
from embedprior.prior.noise import KeyedNoise, keyed_normal
from embedprior.prior.sampling import ReverseStep, run

Denoise = Callable[[Tensor, int], Tensor]

NOISE_AHEAD = 2**25
"""Numbers of a trajectory's noise that are drawn ahead: 128 MB."""


@dataclass(frozen=True)
class Given:
    """What is known of each case, standardised and on the device.

    Attributes:
        tokens: (cases, C, Dc) condition tokens.
        mask: (cases, C), True where a token is real; None when all are.
        centre: (cases, D) what the regression makes of them; None when there is none.
    """

    tokens: Tensor
    mask: Tensor | None = None
    centre: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, part: slice) -> Given:
        """Return some of the cases."""
        rest = (None if values is None else values[part] for values in (self.mask, self.centre))
        return Given(self.tokens[part], *rest)

    def to(self, device: torch.device, dtype: torch.dtype) -> Given:
        """Return the same on a device, its tokens in the network's type."""
        rest = (None if values is None else values.to(device) for values in (self.mask, self.centre))
        return Given(self.tokens.to(device, dtype), *rest)


def denoiser(
    network: PriorNetwork,
    process: ProcessConfig,
    schedule: Schedule,
    given: Given,
    samples: int,
    guidance: float,
) -> Denoise:
    """Return (x (cases · samples, D), n) ↦ x0hat, float32, with the conditions encoded once.

    Args:
        network: of the prior.
        process, schedule: it was trained with.
        given: the cases' conditions.
        samples: rows per case, next to each other.
            The network sees the noised embedding less its share of the regression, and its answer is added to that.
        guidance: w in null + w · (conditional - null); any w but 1 costs a second pass when the null branch keeps
            the noised target, and one extra row when it does not.
    """
    both = process.null == "both"
    with torch.inference_mode():
        prefix = network.encode(given.tokens, given.mask)
        null = None
        if guidance != 1.0:
            # Without condition and target the null branch knows only the timestep: one row serves all.
            few = given.rows(slice(0, 1) if both else slice(None))
            dropped = torch.ones(len(few), dtype=torch.bool, device=few.tokens.device)
            null = network.encode(few.tokens, few.mask, dropped)
    centre = None if given.centre is None else given.centre.repeat_interleave(samples, dim=0)

    def call(prefix: Prefix, x: Tensor, n: int, rows: int, drop: Tensor | None) -> Tensor:
        clock, x = torch.full((1,), n, device=x.device), x.to(network.query.dtype)
        if rows == 1:
            return network.step(prefix, x, clock, drop).float()
        # The timestep's token sees the condition alone, so a case's samples share it: a third less work.
        return network.step(network.at_time(prefix, clock).repeat(rows), x, None, drop).float()

    @torch.inference_mode()
    def denoise(x: Tensor, n: int) -> Tensor:
        clock = torch.full((len(x),), n)
        signal = schedule.signal_and_noise(clock, x)[0]
        rest = x if centre is None else x - signal * centre
        found = to_x0(schedule, process.prediction, call(prefix, rest, n, samples, None), rest, clock)
        found = found if centre is None else found + centre
        if null is None:
            return found
        if both:
            base = call(null, x[:1], n, 1, torch.ones(1, dtype=torch.bool, device=x.device))
        else:
            base = call(null, x, n, samples, None)
        base = to_x0(schedule, process.prediction, base, x, clock)
        return base + guidance * (found - base)

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
        noise: sample m of case i reads stream (m, i), so that neither batch mates nor M change it.
        device: of the network.
    """
    at_once = max(1, NOISE_AHEAD // (_draws(reverse) * dim * samples))
    out = np.empty((len(cases), samples, dim), dtype=np.float32)
    for start in range(0, len(cases), at_once):
        part = slice(start, min(start + at_once, len(cases)))
        ahead = draw_noise(noise, reverse, cases[part], samples, dim, device)
        found = run(reverse, denoise_part(part), lambda k, ahead=ahead: ahead[:, k])  # type: ignore[misc]
        out[part] = found.cpu().numpy().reshape(-1, samples, dim)
    return out


def draw_noise(
    noise: KeyedNoise,
    reverse: Sequence[ReverseStep],
    cases: Sequence[int],
    samples: int,
    dim: int,
    device: torch.device,
) -> Tensor:
    """Return the noise of whole trajectories, (cases · samples, draws, D): the start, then one per step that adds."""
    shape = (_draws(reverse), dim)
    drawn = np.stack([keyed_normal(noise, m, cases, shape) for m in range(samples)], axis=1)
    return torch.from_numpy(drawn).flatten(0, 1).to(device)


def _draws(reverse: Sequence[ReverseStep]) -> int:
    return 1 + (len(reverse) if any(step.sigma.any() for step in reverse) else 0)
