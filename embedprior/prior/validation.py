"""Held-out figures of a prior, on noise that never changes, and the variance table that Analytic-DPM needs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from embedprior.evidence.calibration import brier, logistic_recalibration
from embedprior.evidence.delong import delong
from embedprior.evidence.metrics import Cases
from embedprior.prior.config import TrainingConfig, named_sampler
from embedprior.prior.diffusion import Schedule, add_noise
from embedprior.prior.model import Prior
from embedprior.prior.noise import TEACHER, VALIDATION, VARIANCE, KeyedNoise, keyed_normal
from embedprior.prior.objectives import Noised, Objective, Rivals
from embedprior.prior.sampling import even_trajectory, log_snr_trajectory, plan
from embedprior.prior.setup import PairTensors
from embedprior.prior.variance import VarianceTable

TEACHER_SAMPLES, TEACHER_STEPS = 4, 10
GUIDANCE = 1.0


class Validator:
    """Measures a prior on the validation pairs.

    Args:
        data: validation pairs, standardised.
        schedule, objective: of the training.
        settings: bins and seed.

    Attributes:
        reason: why there are no figures of the teacher; None when there are.
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
            centre = data.given.centre
            x0 = data.target if centre is None else data.target - centre
            x = add_noise(schedule, x0, noise, clock)
            rivals = Rivals(data.target, data.patient)
            self._batches.append(Noised(x0, noise, x, clock, data.labels, data.patient, rivals, centre))
        self._seed, self._schedule = settings.seed, schedule
        known = data.labels[data.labels.isfinite()]
        self.reason: str | None = None
        if not objective.has_teacher:
            self.reason = "no teacher"
        elif len(known.unique()) < 2:
            self.reason = f"the validation pairs hold {'one class' if len(known) else 'no label'}"

    @torch.no_grad()
    def figures(self, prior: Prior) -> dict[str, float]:
        """Return the figures by name.

        ``val/loss``: the training objective, averaged over timestep bins; it chooses the checkpoint.
        ``val/mse@n``: squared error of x0hat at timestep n, standardised units (1 = as bad as the training mean).
        ``val/cosine``, ``val/recall@1``, ``val/recall@5``: of x0hat at the noisiest bin against the true CT
        embeddings, standardised; recall ranks all validation targets by cosine (chance: k / N).
        ``val/teacher_auc``, ``val/teacher_brier``, ``val/teacher_slope``: of the mean over samples of the teacher's
        probability, against the labels (see ``reason``); a slope that is not defined is left out.
        """
        network, data = prior.network, self.data
        prefix = network.encode(data.given.tokens, data.given.mask)
        figures, totals, predicted = {}, [], data.target
        for n, batch in zip(self._timesteps, self._batches, strict=True):
            output = network.step(prefix, batch.x, batch.n).float()
            totals.append(sum(float(loss) for loss in self._objective.losses(output, batch).values()))
            figures[f"val/mse@{n}"] = float(self._objective.squared_error(output, batch).mean())
            predicted = self._objective.x0hat(output, batch)
        figures = {"val/loss": float(np.mean(totals)), **figures, **_likeness(predicted, data.target)}
        return figures if self.reason else figures | self._teacher_figures(prior)

    def _teacher_figures(self, prior: Prior) -> dict[str, float]:
        """Mean of the head over a few quick samples: DPM-Solver++ needs no variance table, which comes at the end."""
        steps = min(TEACHER_STEPS, self._schedule.timesteps)
        trajectory = log_snr_trajectory(self._schedule, steps)
        reverse = plan(self._schedule, named_sampler("dpm_solver", steps), trajectory, None)
        noise, data = KeyedNoise(self._seed, TEACHER), self.data
        drawn = prior.draw(data.given, reverse, TEACHER_SAMPLES, noise, GUIDANCE, range(len(data)))
        flat = torch.from_numpy(drawn).to(data.target.device).flatten(0, 1)
        score = self._objective.teacher_logits(flat).double().sigmoid().view(drawn.shape[:2]).mean(dim=1).cpu().numpy()
        labels = data.labels.cpu().numpy()
        known = np.isfinite(labels)
        patients, where = np.unique(data.patient.cpu().numpy()[known], return_inverse=True)
        cases = Cases(labels[known] == 1, score[None, known], where, len(patients), None)
        figures = {
            "val/teacher_auc": float(delong(cases.labels, cases.scores).auc[0]),
            "val/teacher_brier": float(brier(cases).estimate(cases.n_patients)[0]),
        }
        for metric in logistic_recalibration(cases)[0]:
            slope = float(metric.estimate(cases.n_patients)[0])
            if metric.name == "calibration_slope" and np.isfinite(slope):
                figures["val/teacher_slope"] = slope
        return figures


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
        prior: as it will be sampled. The table is measured at guidance 1, the only weight at which x0hat is a
            posterior mean and its squared error the posterior's variance.
        train_target: (N, D) standardised training targets, for the bound.
        held_out: pairs the weights were not fitted on.
    """
    settings, schedule = prior.config.training, prior.schedule
    nodes = even_trajectory(schedule.timesteps, min(settings.variance_nodes, schedule.timesteps))
    draws, (count, dim) = settings.variance_draws, held_out.target.shape
    keyed = KeyedNoise(settings.seed, VARIANCE)
    x0 = held_out.target.repeat_interleave(draws, dim=0)
    denoise = prior.denoiser(held_out.given, draws, GUIDANCE)
    error = np.empty((len(nodes), dim))
    for row, n in enumerate(nodes):
        noise = torch.from_numpy(keyed_normal(keyed, n, range(count), (draws, dim))).flatten(0, 1).to(x0.device)
        x = add_noise(schedule, x0, noise, torch.full((len(x0),), n, device=x0.device))
        error[row] = (denoise(x, n) - x0).double().square().mean(dim=0).cpu().numpy()
    spread = train_target.double().var(dim=0, correction=0).cpu().numpy()
    return VarianceTable(np.array(nodes, dtype=np.int64), error, spread, GUIDANCE)
