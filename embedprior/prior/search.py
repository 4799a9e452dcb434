"""Settings that choose themselves: a few candidates, compared on the validation pairs while they train.

Compared by the Brier score of the mean over samples of the teacher head's probability, against the head's probability
of the real CT (every pair has one, labelled or not), or, without a head, by the energy score of the samples (Gneiting
and Raftery 2007), which sees both their error and their spread.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float

from embedprior.nn.search import successive_halving
from embedprior.prior.config import NetworkConfig, PriorConfig, ProcessConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.losses import Head
from embedprior.prior.model import Prior
from embedprior.runs import hash_of, read_json, write_json

STEPS = 800
"""Optimiser steps of the chosen candidate, where ``training.steps`` is not set."""
LR, WEIGHT_DECAY, LIGHT_DECAY = 1e-3, 2.0, 0.06
"""AdamW forgets a weight over 1 / (LR · decay) steps: 500, within the training, or 17,000, far beyond it. Some thousand
pairs come round every few dozen steps, and what is not forgotten within the training is learned by heart."""
VALIDATIONS = 16
PATIENCE = 6
"""Validations without a better one, of that many."""
SAMPLES, SAMPLER_STEPS = 16, 8
"""What a candidate is judged by: samples a case, and network calls of DPM-Solver++ a sample."""
RECORD = "search.json"


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Attributes:
        config: with every setting in place.
        goes_on: whether network and regression go on from the first stage's.
    """

    config: PriorConfig
    goes_on: bool = False


Train = Callable[[Candidate, Path, int | None], Prior]
"""(candidate, folder of its training, step to stop at; None trains to the end) → the best prior so far."""


def candidates(config: PriorConfig, first_stage: PriorConfig | None = None) -> dict[str, Candidate]:
    """Return the candidates by name, the default first.

    Args:
        config: of ``settings: auto``; its objective and what it says of the training's size and seed are kept.
        first_stage: settings of the prior to go on from; the last candidate does so, the others drop it.

    Example:
        >>> list(candidates(PriorConfig()))
        ['ridge', 'ridge, noise 1, decay 1', 'ridge, narrow skip', 'no regression, light decay']
    """
    settings = config.training
    steps = settings.steps if settings.steps != TrainingConfig().steps else STEPS
    every = max(1, steps // VALIDATIONS)
    training = settings.model_copy(
        update={
            "steps": steps, "lr": LR, "weight_decay": WEIGHT_DECAY, "ema": 0.99, "validate_every": every,
            "patience": PATIENCE, "variance_nodes": 17, "variance_draws": 2, "checkpoint_every": max(steps, 1000),
        }
    )  # fmt: skip
    # Without a null branch every row of a batch teaches the conditional model: guidance is 1 here.
    # With sigma_data 1 the untrained network is the linear denoiser, so that a Gaussian remainder is sampled exactly.
    process = ProcessConfig(regression="ridge", whitening=True, condition_dropout=0.0, sigma_data=1.0)
    base = config.model_copy(
        update={"settings": "given", "network": NetworkConfig(preset="tiny"), "process": process, "training": training}
    )

    def varied(decay: float = WEIGHT_DECAY, **changes: object) -> Candidate:
        decayed = training.model_copy(update={"weight_decay": decay})
        return Candidate(base.model_copy(update={"process": process.model_copy(update=changes), "training": decayed}))

    found = {
        "ridge": varied(),
        "ridge, noise 1, decay 1": varied(1.0, condition_noise=1.0),
        "ridge, narrow skip": varied(sigma_data=0.5),
        "no regression, light decay": varied(LIGHT_DECAY, regression="none", sigma_data=0.5),
    }
    if first_stage is None:
        return found
    kept = base.model_copy(update={"network": first_stage.network, "process": first_stage.process})
    return {**found, "from the first stage": Candidate(kept, goes_on=True)}


def sample_scores(prior: Prior, val: PairArrays, teacher: Head | None, seed: int) -> Float[np.ndarray, " pairs"]:
    """Return each validation pair's Brier score (with a head) or energy score of its samples; lower is better."""
    drawn = prior.sample(
        val.condition, SAMPLES, "dpm_solver", SAMPLER_STEPS, seed, val.source, val.condition_mask,
        cases=[0] * len(val) if teacher is not None else None,
    )  # fmt: skip
    if teacher is None:
        units = prior.target_scaler
        samples, real = units.forward(drawn).astype(np.float64), units.forward(val.target).astype(np.float64)
        error = np.linalg.norm(samples - real[:, None], axis=-1).mean(axis=1)
        apart = np.linalg.norm(samples[:, : SAMPLES // 2] - samples[:, SAMPLES // 2 :], axis=-1).mean(axis=1)
        return np.asarray(error - 0.5 * apart)
    device = prior.device
    with torch.no_grad():
        flat = torch.from_numpy(rearrange(drawn, "cases samples d -> (cases samples) d")).to(device)
        chance = rearrange(teacher(flat).reshape(-1), "(cases samples) -> cases samples", samples=SAMPLES)
        real_chance = teacher(torch.from_numpy(val.target).to(device)).reshape(-1).double().sigmoid()
        return np.asarray((chance.double().sigmoid().mean(dim=1) - real_chance).square().cpu().numpy())


def train_best(
    config: PriorConfig,
    val: PairArrays,
    out: Path,
    first_stage: Prior | None,
    teacher: Head | None,
    made_of: Mapping[str, str],
    train: Train,
) -> Prior:
    """Train the candidates, drop the worse half again and again, and return the best one, trained to its end.

    Writes the prior, its ``metrics.jsonl`` and ``search.json`` (candidates, scores, steps of all) into ``out``.

    Args:
        config: of ``settings: auto``.
        val: pairs that the candidates are compared on.
        out: folder of the training.
        first_stage: the prior to go on from; None when there is none.
        teacher: the head the samples are scored with, if any.
        made_of: data and settings by name: a finished search of the same is not done again.
        train: how a candidate is trained.
    """
    key = hash_of(dict(made_of))
    if (out / RECORD).is_file() and read_json(out / RECORD).get("made_of") == key:
        return Prior.load(out)
    tried = candidates(config, None if first_stage is None else first_stage.config)
    folders = {name: out / "candidates" / str(number) for number, name in enumerate(tried)}
    last: dict[str, int] = {}

    def loss_at(name: str, share: float) -> Float[np.ndarray, " pairs"]:
        last[name] = max(1, round(share * tried[name].config.training.steps))
        prior = train(tried[name], folders[name], last[name])
        return sample_scores(prior, val, teacher, config.training.seed)

    search = successive_halving(list(tried), loss_at)
    chosen = tried[search.chosen]
    best = train(chosen, folders[search.chosen], None)
    last[search.chosen] = chosen.config.training.steps
    record: dict[str, Any] = {
        "chosen": search.chosen,
        "compared_by": "energy score" if teacher is None else "Brier score of the mean over samples of the head",
        "rounds": [dict(scores) for scores in search.rounds],
        "steps": sum(last.values()),
    }
    prior = replace(best, record={**best.record, "search": record})
    if train_process() == 0:
        prior.save(out)
        shutil.copyfile(folders[search.chosen] / "metrics.jsonl", out / "metrics.jsonl")
        write_json(out / RECORD, {"made_of": key, "settings": chosen.config, **record})
        shutil.rmtree(out / "candidates")
    return prior


def train_process() -> int:
    """Return this process's number among those that train together."""
    from accelerate import PartialState

    return int(PartialState().process_index)
