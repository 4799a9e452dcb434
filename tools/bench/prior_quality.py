"""Is a sampled CT embedding worth more than a regressed one, and does the prior match `direct_head`?

Conditional mixtures with a known answer: the class decides which of two axes a CT embedding lies along, the side is a
coin toss, so E[z | condition] is the same for both classes and regression + head is blind. The Bayes score p(y |
condition) is known exactly. ``--quick`` trains with fewer steps on fewer pairs and only checks that the prior beats
regression by 0.2 AUC.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

from embedprior.prior.config import NetworkConfig, PriorConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.training import train_prior

DIM, SIDE, SHIFT = 4, 3.0, 2.0
Array = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """Cases of the mixture: condition, CT embedding, class, and the Bayes score p(y | condition)."""

    condition: Array
    target: Array
    label: NDArray[np.int64]
    bayes: NDArray[np.float64]

    def pairs(self, prefix: str) -> PairArrays:
        """Return what a prior is trained on."""
        return PairArrays(self.condition, self.target, [f"{prefix}{i}" for i in range(len(self.label))], "cxr")


def world(count: int, seed: int) -> World:
    """Draw cases; dimensions 2 and 3 follow the condition linearly and say nothing of the class."""
    rng = np.random.default_rng(seed)
    condition = rng.standard_normal((count, DIM))
    bayes = 1 / (1 + np.exp(-6 * condition[:, 0]))
    label = (rng.random(count) < bayes).astype(np.int64)
    target = rng.standard_normal((count, DIM))
    target[np.arange(count), label] += SIDE * rng.choice([-1, 1], count)
    target[:, 2:] += 0.5 * condition[:, 2:]
    return World(condition.astype(np.float32), (target + SHIFT).astype(np.float32), label, bayes)


def by_class(embedding: Array) -> Array:
    """The true p(y | z)."""
    along = SIDE * (embedding - SHIFT)
    log_cosh = np.logaddexp(along, -along)
    return 1 / (1 + np.exp(log_cosh[..., 0] - log_cosh[..., 1]))


def by_side(embedding: Array) -> Array:
    """An unrelated head the prior was never trained for: is the embedding far out along axis 1?"""
    return 1 / (1 + np.exp(-4 * (np.abs(embedding[..., 1] - SHIFT) - 2)))


def by_linear(embedding: Array) -> Array:
    """A linear head: here regression is enough."""
    return 1 / (1 + np.exp(-2 * (embedding[..., 2] - SHIFT)))


def main() -> int:
    """Run, print, return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs, steps = (2000, 600) if options.quick else (4000, 2500)
    sizes = (pairs, pairs // 5, 1500)
    train, val, test = (world(count, options.seed + 1 + k) for k, count in enumerate(sizes))
    settings = TrainingConfig(
        steps=steps, lr=1e-3, weight_decay=1.0, ema=0.999, validate_every=steps // 10, seed=options.seed
    )
    config = PriorConfig(network=NetworkConfig(preset="tiny"), training=settings)
    with tempfile.TemporaryDirectory() as folder:
        prior = train_prior(train.pairs("t"), val.pairs("v"), config, Path(folder))
    rows: dict[str, float] = {}

    def auc(name: str, score: NDArray[np.floating], label: NDArray[np.int64]) -> float:
        rows[name] = float(roc_auc_score(label, score))
        print(f"{name:<44} AUC {rows[name]:.4f}", flush=True)
        return rows[name]

    bayes = auc("Bayes p(y | condition)", test.bayes, test.label)
    drawn = prior.sample(test.condition, samples=16, steps=16 if options.quick else 64, seed=options.seed)
    ours = auc("prior, mean of head over samples", by_class(drawn).mean(axis=1), test.label)
    auc("prior, head of the one-step x0", by_class(prior.one_step(test.condition)), test.label)
    ridge = LinearRegression().fit(train.condition, train.target).predict(test.condition)
    network = {"hidden_layer_sizes": (64, 64), "early_stopping": True, "random_state": options.seed}
    regressed = MLPRegressor(**network).fit(train.condition, train.target).predict(test.condition)
    blind = auc("ridge + head", by_class(ridge), test.label)
    auc("MLP + head", by_class(regressed), test.label)
    gaps = {}
    for name, head in {"class": by_class, "side": by_side, "linear": by_linear}.items():
        label = (np.random.default_rng(options.seed).random(len(test.label)) < head(test.target)).astype(np.int64)
        label = test.label if name == "class" else label
        direct = MLPRegressor(**network).fit(train.condition, head(train.target)).predict(test.condition)
        one = auc(f"direct_head, head '{name}'", direct, label)
        gaps[name] = auc(f"prior, head '{name}'", head(drawn).mean(axis=1), label) - one
    if not options.quick:
        for sampler in ("analytic", "analytic_diag", "ddpm_small", "ddpm_big", "ddim", "dpm_solver"):
            for count in (4, 8, 16, 64):
                few = prior.sample(test.condition, 16, sampler, count, options.seed)  # type: ignore[arg-type]
                auc(f"{sampler}, {count} steps", by_class(few).mean(axis=1), test.label)
    bars = {"above regression by 0.2": ours >= blind + 0.2}
    if not options.quick:
        bars["within 0.015 of Bayes"] = ours >= bayes - 0.015
        bars |= {f"head '{name}' within 0.01 of direct_head, or above": gap >= -0.01 for name, gap in gaps.items()}
    for name, met in bars.items():
        print(f"{name:<52} {'met' if met else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps({"auc": rows, "bars": {k: bool(v) for k, v in bars.items()}}, indent=2))
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
