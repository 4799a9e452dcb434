from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from embedprior.prior.config import NetworkConfig, ObjectiveConfig, PriorConfig, ProcessConfig, TrainingConfig
from embedprior.prior.data import PairArrays

torch.set_num_threads(1)


def make_pairs(count: int, first: int, seed: int = 0, condition_dim: int = 5, dim: int = 6) -> PairArrays:
    """Pairs whose target is a noisy linear map of the condition."""
    rng = np.random.default_rng([seed, first])
    weights = np.random.default_rng(99).standard_normal((condition_dim, dim))
    condition = rng.standard_normal((count, condition_dim))
    target = 3.0 + 2.0 * (condition @ weights + 0.5 * rng.standard_normal((count, dim)))
    ids = [f"pair-{first + i}" for i in range(count)]
    return PairArrays(condition.astype(np.float32), target.astype(np.float32), ids, "cxr")


def small_config(**training: object) -> PriorConfig:
    """A network of a few thousand parameters, a few steps."""
    settings = {
        "steps": 20, "batch": 8, "lr": 1e-3, "warmup": 2, "validate_every": 10, "validation_bins": 4,
        "checkpoint_every": 10, "variance_nodes": 8, "variance_draws": 2, "ema": 0.99, **training,
    }  # fmt: skip
    return PriorConfig(
        network=NetworkConfig(preset="tiny", dim=16, depth=2, heads=2, head_dim=8, inner=16),
        process=ProcessConfig(timesteps=50),
        training=TrainingConfig.model_validate(settings),
    )


@pytest.fixture
def pairs() -> tuple[PairArrays, PairArrays]:
    return make_pairs(40, 0), make_pairs(16, 1000)


def labelled_pairs() -> tuple[PairArrays, PairArrays]:
    """Pairs of which every third has no label, two to a patient."""
    parts = []
    for count, first in ((40, 0), (16, 1000)):
        part = make_pairs(count, first)
        labels = np.where(np.arange(count) % 3, part.target[:, 0] > 3.0, np.nan)
        parts.append(replace(part, labels=labels, patients=[f"p{first + i // 2}" for i in range(count)]))
    return parts[0], parts[1]


def every_term() -> PriorConfig:
    """A small config with every term of the objective in use, around a regression."""
    terms = ObjectiveConfig(bce=0.2, bce_target="labels", aft=0.1, aft_groups=2, proto=0.1, contrastive=0.1)
    process = ProcessConfig(timesteps=50, regression="ridge")
    return small_config().model_copy(update={"objective": terms, "process": process})


def first_logit(embedding: torch.Tensor) -> torch.Tensor:
    """A teacher that reads the first dimension."""
    return embedding[:, 0] - 3.0
