"""Held-out figures of a prior, on noise that never changes, and the variance table that Analytic-DPM needs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from embedprior.prior.config import TrainingConfig
from embedprior.prior.diffusion import Schedule, add_noise, to_x0
from embedprior.prior.model import Prior
from embedprior.prior.noise import VALIDATION, VARIANCE, KeyedNoise, keyed_normal
from embedprior.prior.objectives import Noised, Objective
from embedprior.prior.sampling import even_trajectory
from embedprior.prior.setup import PairTensors
from embedprior.prior.variance import VarianceTable


class Validator:
    """Measures a prior on the validation pairs.

    Args:
        data: validation pairs, standardised.
        schedule, objective: of the training.
        settings: bins and seed.
    """

    def __init__(self, data: PairTensors, schedule: Schedule, objective: Objective, settings: TrainingConfig) -> None:
        self.data = data
        self._objective = objective
        bins, count = settings.validation_bins, schedule.timesteps
        self._timesteps = [max(1, round((k + 0.5) / bins * count)) for k in range(bins)]
        keyed, shape = KeyedNoise(settings.seed, VALIDATION), (data.target.shape[1],)
        self._batches = []
        for n in self._timesteps:
            noise = torch.from_numpy(keyed_normal(keyed, n, range(len(data)), shape)).to(data.target.device)
            clock = torch.full((len(data),), n, device=data.target.device)
            x = add_noise(schedule, data.target, noise, clock)
            self._batches.append(Noised(data.target, noise, x, clock, data.labels))

    @torch.no_grad()
    def figures(self, prior: Prior) -> dict[str, float]:
        """Return the figures by name.

        ``val/loss``: the training objective, averaged over timestep bins; it chooses the checkpoint.
        ``val/mse@n``: squared error of x0hat at timestep n, standardised units (1 = as bad as the training mean).
        ``val/cosine``, ``val/recall@1``, ``val/recall@5``: of x0hat at the noisiest bin against the true CT
        embeddings, standardised; recall ranks all validation targets by cosine (chance: k / N).
        """
        network, data = prior.network, self.data
        prefix = network.encode(data.condition, data.visible)
        figures, totals, predicted = {}, [], data.target
        for n, batch in zip(self._timesteps, self._batches, strict=True):
            output = network.step(prefix, batch.x, batch.n).float()
            totals.append(sum(float(loss) for loss in self._objective.losses(output, batch).values()))
            figures[f"val/mse@{n}"] = float(self._objective.squared_error(output, batch).mean())
            predicted = to_x0(prior.schedule, prior.config.process.prediction, output, batch.x, batch.n)
        return {"val/loss": float(np.mean(totals)), **figures, **_likeness(predicted, data.target)}


def _likeness(predicted: Tensor, target: Tensor) -> dict[str, float]:
    cosine = F.normalize(predicted, dim=1) @ F.normalize(target, dim=1).T
    own = cosine.diagonal()
    # A case is found at rank k when fewer than k targets are at least as near; ties count against it.
    ahead = (cosine >= own[:, None]).sum(dim=1) - 1
    return {
        "val/cosine": float(own.mean()),
        "val/recall@1": float((ahead < 1).float().mean()),
        "val/recall@5": float((ahead < 5).float().mean()),
    }


def measure_variance(prior: Prior, train_target: Tensor, held_out: PairTensors) -> VarianceTable:
    """Return v_n at evenly spaced timesteps, measured on held-out pairs with the prior's (averaged) weights.

    Args:
        prior: as it will be sampled; its guidance weight is the one the table holds for.
        train_target: (N, D) standardised training targets, for the bound.
        held_out: pairs the weights were not fitted on.
    """
    settings, schedule, guidance = prior.config.training, prior.schedule, prior.config.process.guidance
    nodes = even_trajectory(schedule.timesteps, min(settings.variance_nodes, schedule.timesteps))
    draws, (count, dim) = settings.variance_draws, held_out.target.shape
    keyed = KeyedNoise(settings.seed, VARIANCE)
    x0 = held_out.target.repeat_interleave(draws, dim=0)
    denoise = prior.denoiser(held_out.condition, held_out.visible, draws, guidance)
    error = np.empty((len(nodes), dim))
    for row, n in enumerate(nodes):
        noise = torch.from_numpy(keyed_normal(keyed, n, range(count), (draws, dim))).flatten(0, 1).to(x0.device)
        x = add_noise(schedule, x0, noise, torch.full((len(x0),), n, device=x0.device))
        error[row] = (denoise(x, n) - x0).double().square().mean(dim=0).cpu().numpy()
    spread = train_target.double().var(dim=0, correction=0).cpu().numpy()
    return VarianceTable(np.array(nodes, dtype=np.int64), error, spread, guidance)
