"""How good a prior is: held-out error while it trains, and the distance, spread and retrieval of what it generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from scipy.stats import binomtest
from torch import Tensor

from embedprior.errors import BadInput
from embedprior.evidence.calibration import brier, logistic_recalibration
from embedprior.evidence.delong import delong
from embedprior.evidence.metrics import Cases
from embedprior.prior.config import TrainingConfig, named_sampler
from embedprior.prior.diffusion import TEACHER, VALIDATION, VARIANCE, KeyedNoise, Schedule, add_noise
from embedprior.prior.losses import Negatives, NoisyBatch, Objective
from embedprior.prior.model import Prior
from embedprior.prior.samplers import (
    VarianceTable,
    even_trajectory,
    linear_bound,
    linear_x0hat,
    log_snr_trajectory,
    plan,
)
from embedprior.prior.setup import PairTensors

Floats = NDArray[np.float64]


def frechet(a: Floats, b: Floats) -> float:
    """Return the squared Fréchet distance of the Gaussians fitted to two samples, at least 0.

    |m_a - m_b|² + tr(S_a + S_b - 2 (S_a^½ S_b S_a^½)^½), S with divisor n - 1 (Dowson and Landau 1982).

    Args:
        a, b: (n, D) and (m, D), both with more rows than columns: a covariance of fewer has no rank to compare.

    Raises:
        ValueError: too few rows.

    Example:
        >>> one = np.array([[-1.0], [0.0], [1.0]])
        >>> frechet(one, 2.0 * one + 3.0)  # 3² + (2 - 1)²
        10.0
    """
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(f"{min(len(a), len(b))} rows of {a.shape[1]} dimensions: too few for a covariance")
    left, right = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _root(left)
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root @ right @ root), 0.0, None)).sum()
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    return max(0.0, shift + float(np.trace(left) + np.trace(right) - 2.0 * overlap))


def _root(symmetric: Floats) -> Floats:
    values, vectors = np.linalg.eigh(symmetric)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def energy_distance(a: Floats, b: Floats) -> float:
    """Return the unbiased energy distance 2 E|x - y| - E|x - x'| - E|y - y'| (Székely and Rizzo 2004).

    Pairs of a point with itself are left out, so that two samples of one distribution give 0 on average, and less
    than 0 half of the time.

    Args:
        a, b: (n, D) and (m, D), at least two rows each.

    Example:
        >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[5.0], [6.0]]))  # 2 · 5 - 1 - 1
        8.0
    """
    return float(2.0 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean())


def median_bandwidth(reference: Floats) -> float:
    """Return the median distance between the rows of (n, D) ``reference`` (the usual choice for a Gaussian kernel)."""
    middle = float(np.median(pdist(reference)))
    return middle if middle > 0 else 1.0


def mmd(a: Floats, b: Floats, bandwidth: float) -> float:
    """Return the unbiased squared maximum mean discrepancy, kernel exp(-|x - y|² / (2 bandwidth²)).

    Gretton et al. 2012, lemma 6; can be below 0, as ``energy_distance``.

    Args:
        a, b: (n, D) and (m, D), at least two rows each.
        bandwidth: see ``median_bandwidth``.
    """
    within = [float(_kernel(pdist(x, "sqeuclidean"), bandwidth).mean()) for x in (a, b)]
    return float(sum(within) - 2.0 * _kernel(cdist(a, b, "sqeuclidean"), bandwidth).mean())


def _kernel(squared: Floats, bandwidth: float) -> Floats:
    return np.asarray(np.exp(squared / (-2.0 * bandwidth**2)))


def cosine(a: Floats, b: Floats) -> Floats:
    """Return (n,) the cosine of each row of ``a`` with the same row of ``b``; NaN where one of them is 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / lengths)


def ranks(queries: Floats, gallery: Floats, target_rows: NDArray[np.intp]) -> Floats:
    """Return (n,) the rank of the right gallery row among all of them, by cosine with the query; 1 is best.

    Ties count half, so that a generator that gives everyone the same embedding gains nothing.

    Args:
        queries: (n, D).
        gallery: (g, D).
        target_rows: (n,) rows of the gallery.

    Example:
        >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> ranks(np.array([[2.0, 1.0], [3.0, 1.0]]), gallery, np.array([0, 1])).tolist()
        [1.0, 2.0]
    """
    similarity = _unit(queries) @ _unit(gallery).T
    own = similarity[np.arange(len(queries)), target_rows][:, None]
    above = (similarity > own).sum(axis=1)
    level = (similarity == own).sum(axis=1) - 1
    return np.asarray(1.0 + above + 0.5 * level)


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))


def principal_axes(reference: Floats, dims: int) -> tuple[Floats, Floats]:
    """Return the mean (D,) and the first ``dims`` principal axes (D, dims) of (n, D) ``reference``."""
    mean = reference.mean(axis=0)
    _, _, right = np.linalg.svd(reference - mean, full_matrices=False)
    return mean, np.asarray(right[:dims].T)


OUTPUTS = ("sample", "mean", "one_step")
MIN_PATIENTS = 20
"""Below this, half of the patients say nothing about a distribution."""
TOP = (1, 5, 10)


@dataclass(frozen=True)
class Matched:
    """Generated embeddings and the real CT embeddings of the same pairs, row by row.

    Attributes:
        generated: output (``sample``, ``mean``, ``one_step``) → (N, D) float64, standardised by the training CTs.
        real: (N, D) float64, standardised likewise.
        patients: N patient ids.
        exams: N CT exam ids; pairs of one CT share it.
    """

    generated: Mapping[str, Floats]
    real: Floats
    patients: Sequence[str]
    exams: Sequence[str]


def quality(matched: Matched, seed: int, splits: int = 20, replicates: int = 1000) -> dict[str, Any]:
    """Return every figure by output, JSON types; a figure that is not defined is None, with the reason.

    Args:
        matched: the embeddings.
        seed: of the halves and of the bootstrap.
        splits: random halvings of the patients.
        replicates: of the patient bootstrap.

    Raises:
        BadInput: fewer than ``MIN_PATIENTS`` patients.
    """
    patients = np.unique(np.asarray(matched.patients, dtype=str))
    if len(patients) < MIN_PATIENTS:
        raise BadInput(
            f"{len(patients)} patients with generated and real embeddings. Allowed: at least {MIN_PATIENTS}. "
            "Next: give --pairs of more patients, or leave --reference out"
        )
    figures: dict[str, Any] = {"patients": len(patients), "pairs": len(matched.real), "dim": matched.real.shape[1]}
    figures["distances"] = _distances(matched, seed, splits)
    figures["cosine"] = {
        name: mean_by_patient(cosine(rows, matched.real), matched.patients, seed, replicates)
        for name, rows in matched.generated.items()
    }
    figures["retrieval"] = _retrieval(matched, seed, replicates)
    return figures


def _distances(matched: Matched, seed: int, splits: int) -> dict[str, Any]:
    """Return mean and standard deviation over halvings of every distance, for each output and for real ones.

    One pair a patient is used, the first.
    """
    rng = np.random.default_rng(seed)
    # One pair a patient: a CT that stands in several pairs would be at distance 0 from itself.
    _, first_pair = np.unique(np.asarray(matched.patients, dtype=str), return_index=True)
    real = matched.real[first_pair]
    half = len(real) // 2
    dims = max(1, min(real.shape[1], half // 5))
    mean, axes = principal_axes(real, dims)
    bandwidth = median_bandwidth(real)
    measures: dict[str, Callable[[Floats, Floats], float]] = {
        "frechet": lambda a, b: frechet((a - mean) @ axes, (b - mean) @ axes),
        "energy": energy_distance,
        "mmd": lambda a, b: mmd(a, b, bandwidth),
    }
    clouds = {"real": real, **{name: rows[first_pair] for name, rows in matched.generated.items()}}
    values: dict[str, dict[str, list[float]]] = {m: {c: [] for c in clouds} for m in measures}
    for _ in range(splits):
        first = np.zeros(len(real), dtype=bool)
        first[rng.permutation(len(real))[:half]] = True
        for measure, distance in measures.items():
            for cloud, rows in clouds.items():
                values[measure][cloud].append(distance(rows[first], real[~first]))
    summary = {
        measure: {cloud: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1))} for cloud, v in by_cloud.items()}
        for measure, by_cloud in values.items()
    }
    variance = {name: float(rows.var(axis=0).sum() / real.var(axis=0).sum()) for name, rows in clouds.items()}
    return {
        **summary, "variance_share": variance, "halves": splits, "patients_per_half": half, "frechet_dims": dims,
        "mmd_bandwidth": bandwidth,
    }  # fmt: skip


def _retrieval(matched: Matched, seed: int, replicates: int) -> dict[str, Any]:
    """Return recall@k of the own CT among all distinct CTs, with interval and chance."""
    exams, first, target_rows = np.unique(np.asarray(matched.exams, dtype=str), return_index=True, return_inverse=True)
    gallery = matched.real[first]
    top = [k for k in TOP if k < len(exams)]
    figures: dict[str, Any] = {"gallery": len(exams), "chance": {str(k): k / len(exams) for k in top}}
    for name, rows in matched.generated.items():
        rank = ranks(rows, gallery, target_rows.astype(np.intp))
        figures[name] = {str(k): hit_rate(rank <= k, matched.patients, seed, replicates) for k in top}
        figures[name]["median_rank"] = float(np.median(rank))
    return figures


def mean_by_patient(values: Floats, patients: Sequence[str], seed: int, replicates: int) -> dict[str, Any]:
    """Return mean and 95 % percentile interval, patients drawn with replacement.

    ``value`` is None, with the reason, when a row has no value.
    """
    if not np.isfinite(values).all():
        return {"value": None, "low": None, "high": None, "reason": "an embedding of length 0 has no direction"}
    names, member = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    total, count = (np.bincount(member, weights, len(names)) for weights in (values, None))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), replicates)
    means = (drawn @ total) / (drawn @ count)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "reason": None}


def hit_rate(hit: NDArray[np.bool_], patients: Sequence[str], seed: int, replicates: int) -> dict[str, Any]:
    """Return the share of hits with a 95 % interval: Wilson when every patient has one pair, else by bootstrap.

    A share of 0 or 1 has no bootstrap interval; Wilson's over patients then stands in.
    """
    count = len(set(patients))
    if count == len(hit) or hit.all() or not hit.any():
        ends = binomtest(round(float(hit.mean()) * count), count).proportion_ci(method="wilson")
        return {"value": float(hit.mean()), "low": float(ends.low), "high": float(ends.high), "method": "Wilson"}
    boot = mean_by_patient(hit.astype(np.float64), patients, seed, replicates)
    return {"value": boot["value"], "low": boot["low"], "high": boot["high"], "method": "patient bootstrap"}


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
        keyed = KeyedNoise(settings.seed, VALIDATION)
        self._batches = []
        for n in self._timesteps:
            drawn = keyed.at(n, 0).standard_normal(tuple(data.target.shape), dtype=np.float32)
            noise = torch.from_numpy(drawn).to(data.target.device)
            clock = torch.full((len(data),), n, device=data.target.device)
            ridge = data.conditions.ridge_prediction
            x0 = data.target if ridge is None else data.target - ridge
            x = add_noise(schedule, x0, noise, clock)
            negatives = Negatives(data.target, data.patient)
            self._batches.append(NoisyBatch(x0, noise, x, clock, data.labels, data.patient, negatives, ridge))
        self._seed, self._schedule = settings.seed, schedule
        # A dimension that is left out is 0 for every pair, and says nothing of the rest.
        self._varying = _varying(self._batches[0].x0)
        # What is noised has variance 1 where it is whitened; measured, for where it is not.
        spread = self._batches[0].x0[:, self._varying].double().square().mean()
        self._spread = np.array([max(float(spread), 1e-12)])
        known = data.labels[data.labels.isfinite()]
        self.reason: str | None = None
        if not objective.has_teacher:
            self.reason = "no teacher"
        elif len(known.unique()) < 2:
            self.reason = f"the validation pairs hold {'one class' if len(known) else 'no label'}"

    @torch.no_grad()
    def figures(self, prior: Prior) -> dict[str, float]:
        """Return the figures by name.

        ``val/score``: the squared error of x0hat at each timestep bin over that of the best linear denoiser without a
        condition, so that low noise counts as much as high noise, plus the auxiliary losses; averaged over the bins. It
        chooses the checkpoint. ``val/relative_error``: without the auxiliary losses; ``val/loss``: the training
        objective.
        ``val/mse@n``: squared error of x0hat at timestep n, standardised units (1 = as bad as the training mean).
        ``val/cosine``, ``val/recall@1``, ``val/recall@5``: of x0hat at the noisiest bin against the true CT
        embeddings, standardised; recall ranks all validation targets by cosine (chance: k / N).
        ``val/teacher_auc``, ``val/teacher_brier``, ``val/teacher_slope``: of the mean over samples of the teacher's
        probability, against the labels (see ``reason``); a slope that is not defined is left out.
        """
        network, data, objective = prior.network, self.data, self._objective
        prefix = network.encode(data.conditions.tokens, data.conditions.mask)
        figures, losses, scores, relative, predicted = {}, [], [], [], data.target
        for n, batch in zip(self._timesteps, self._batches, strict=True):
            output = network.step(prefix, batch.x, batch.n).float()
            named = objective.losses(output, batch)
            auxiliary = sum(float(loss) for name, loss in named.items() if name != "l2")
            losses.append(auxiliary + float(named["l2"]))
            error = objective.error(output, batch)
            relative.append(float(error[:, self._varying].square().mean()) / self._linear_error(n))
            scores.append(auxiliary + objective.l2_weight * relative[-1])
            figures[f"val/mse@{n}"] = float(objective.standardised(error).square().mean())
            predicted = objective.x0hat(output, batch)
        totals = {"val/score": scores, "val/loss": losses, "val/relative_error": relative}
        means = {name: float(np.mean(values)) for name, values in totals.items()}
        likeness = _likeness(objective.standardised(predicted), objective.standardised(data.target))
        figures = {**means, **figures, **likeness}
        return figures if self.reason else figures | self._teacher_figures(prior)

    def _linear_error(self, n: int) -> float:
        """Squared error of the best linear denoiser that knows no condition, for what is noised at timestep n."""
        return float(linear_bound(self._schedule, self._spread[None], np.array([n]))[0, 0])

    def _teacher_figures(self, prior: Prior) -> dict[str, float]:
        """Mean of the head over a few quick samples: DPM-Solver++ needs no variance table, which comes at the end."""
        steps = min(TEACHER_STEPS, self._schedule.timesteps)
        trajectory = log_snr_trajectory(self._schedule, steps)
        reverse = plan(self._schedule, named_sampler("dpm_solver", steps), trajectory, None)
        noise, data = KeyedNoise(self._seed, TEACHER), self.data
        drawn = prior.draw(data.conditions, reverse, TEACHER_SAMPLES, noise, GUIDANCE, range(len(data)))
        flat = torch.from_numpy(rearrange(drawn, "cases samples d -> (cases samples) d")).to(data.target.device)
        probability = self._objective.teacher_logits(flat).double().sigmoid()
        by_case = rearrange(probability, "(cases samples) -> cases samples", samples=TEACHER_SAMPLES)
        score = by_case.mean(dim=1).cpu().numpy()
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
    x0 = repeat(held_out.target, "cases d -> (cases draws) d", draws=draws)
    denoise = prior.denoiser(held_out.conditions, draws, GUIDANCE)
    error, share = np.empty((len(nodes), dim)), np.ones(len(nodes))
    ridge = held_out.conditions.ridge_prediction
    ridge = torch.zeros_like(x0) if ridge is None else repeat(ridge, "cases d -> (cases draws) d", draws=draws)
    varying = _varying(train_target)
    for row, n in enumerate(nodes):
        noise = torch.from_numpy(keyed.at(n, 0).standard_normal((count * draws, dim), dtype=np.float32)).to(x0.device)
        x = add_noise(schedule, x0, noise, torch.full((len(x0),), n, device=x0.device))
        found = denoise(x, n)
        if prior.config.process.whitening:
            signal = float(np.sqrt(schedule.alpha_bar[n]))
            linear = ridge + linear_x0hat(schedule, x - signal * ridge, n)
            share[row] = _share((found - linear)[:, varying], (x0 - linear)[:, varying])
            found = linear + share[row] * (found - linear)
        error[row] = (found - x0).double().square().mean(dim=0).cpu().numpy()
    spread = train_target.double().var(dim=0, correction=0).cpu().numpy()
    kept = share if prior.config.process.whitening else None
    return VarianceTable(np.array(nodes, dtype=np.int64), error, spread, GUIDANCE, kept)


def _varying(x0: Tensor) -> Tensor | slice:
    """Return which columns are not 0 in every row; all of them where none varies."""
    varying = (x0 != 0).any(dim=0)
    return varying if bool(varying.any() & ~varying.all()) else slice(None)


def _share(step: Tensor, target: Tensor) -> float:
    """Return the a in [0, 1] with the least squared error of a · step for target."""
    step, target = step.double(), target.double()
    size = float(step.square().sum())
    return min(max(float((step * target).sum()) / size, 0.0), 1.0) if size > 0 else 1.0
