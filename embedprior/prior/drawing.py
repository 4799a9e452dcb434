"""From conditions to samples: guided denoising with the condition encoded once, and the drawing of many samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def denoiser(
    network: PriorNetwork,
    process: ProcessConfig,
    schedule: Schedule,
    tokens: Tensor,
    mask: Tensor | None,
    samples: int,
    guidance: float,
) -> Denoise:
    """Return (x (cases · samples, D), n) ↦ x0hat, float32, with the conditions encoded once.

    Args:
        network: of the prior.
        process, schedule: it was trained with.
        tokens: (cases, C, Dc) standardised condition tokens.
        mask: (cases, C) or None.
        samples: rows per case, next to each other.
        guidance: w in null + w · (conditional - null); any w but 1 costs a second pass when the null branch keeps
            the noised target, and one extra row when it does not.
    """
    both = process.null == "both"
    with torch.inference_mode():
        prefix = network.encode(tokens, mask)
        null = None
        if guidance != 1.0:
            # Without condition and target the null branch knows only the timestep: one row serves all.
            few = slice(0, 1) if both else slice(None)
            dropped = torch.ones(len(tokens[few]), dtype=torch.bool, device=tokens.device)
            null = network.encode(tokens[few], None if mask is None else mask[few], dropped)

    def call(prefix: Prefix, x: Tensor, n: int, rows: int, drop: Tensor | None) -> Tensor:
        clock, x = torch.full((1,), n, device=x.device), x.to(network.query.dtype)
        if rows == 1:
            return network.step(prefix, x, clock, drop).float()
        # The timestep's token sees the condition alone, so a case's samples share it: a third less work.
        return network.step(network.at_time(prefix, clock).repeat(rows), x, None, drop).float()

    @torch.inference_mode()
    def denoise(x: Tensor, n: int) -> Tensor:
        output = call(prefix, x, n, samples, None)
        if null is not None:
            if both:
                base = call(null, x[:1], n, 1, torch.ones(1, dtype=torch.bool, device=x.device))
            else:
                base = call(null, x, n, samples, None)
            output = base + guidance * (output - base)
        return to_x0(schedule, process.prediction, output, x, torch.full((len(x),), n))

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
