"""Is a sampled CT embedding worth more than a regressed one, and does the prior match `direct_head`?

Two worlds with a known answer. In the *mixture* the class decides which of two axes a CT embedding lies along and the
side is a coin toss, so E[z | condition] is the same for both classes and regression + head is blind; the Bayes score
p(y | condition) is known exactly, and one prior serves three heads that took no part in its training. (Every training
case comes with its mirror image, the other side. Without, a regression errs more along the axis of the likelier class,
and errors of a hundredth then rank the cases at AUC .6 to .7, though the scores hardly differ.) In the *line* the CT
embedding is a linear map of the condition plus noise of constant covariance and the head is linear: here ridge is
enough, and the prior has to tie with it.

The prior chooses its settings itself (``settings: auto``) and is given no head: candidates are compared by the energy
score. It is scored by the mean of the head's probability over ``--samples`` draws. All cases share their noise, as in a
study: with noise of its own for each, Monte-Carlo variance, p (1 - p) / samples for a confident head, would reorder
cases of like risk. The table of samples shows what few samples cost. ``--quick`` trains with fewer steps on fewer pairs
and holds itself to wider bars.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

from embedprior.prior.config import PriorConfig, SamplerName, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.metrics import energy_distance
from embedprior.prior.model import Prior
from embedprior.prior.trainer import train_prior

DIM, SIDE, SHIFT = 4, 3.0, 2.0
SAMPLERS: tuple[SamplerName, ...] = ("analytic", "analytic_diag", "ddpm_small", "ddpm_big", "ddim", "dpm_solver")
Array = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """Cases: condition, CT embedding, class, and the Bayes score p(y | condition)."""

    condition: Array
    target: Array
    label: NDArray[np.int64]
    bayes: NDArray[np.float64]

    def pairs(self, prefix: str) -> PairArrays:
        """Return what a prior is trained on."""
        return PairArrays(self.condition, self.target, [f"{prefix}{i}" for i in range(len(self.label))], "cxr")


def mixture(count: int, seed: int, mirrored: bool = False) -> World:
    """Draw cases; dimensions 2 and 3 follow the condition linearly and say nothing of the class.

    Args:
        count: cases.
        seed: of everything.
        mirrored: half as many conditions, each with both sides.
    """
    rng = np.random.default_rng(seed)
    fewer, copies = (count // 2, 2) if mirrored else (count, 1)
    condition = rng.standard_normal((fewer, DIM))
    bayes = 1 / (1 + np.exp(-6 * condition[:, 0]))
    label = (rng.random(fewer) < bayes).astype(np.int64)
    side = rng.choice([-1, 1], fewer)
    condition, bayes, label = np.tile(condition, (copies, 1)), np.tile(bayes, copies), np.tile(label, copies)
    side = np.concatenate([side, -side])[: len(label)]
    target = rng.standard_normal((len(label), DIM))
    target[np.arange(len(label)), label] += SIDE * side
    target[:, 2:] += 0.5 * condition[:, 2:]
    return World(condition.astype(np.float32), (target + SHIFT).astype(np.float32), label, bayes)


def line(count: int, seed: int, mirrored: bool = False) -> World:
    """Draw cases of the linear world; the Bayes score of a linear head is increasing in the mean, given here.

    There is no side, so nothing to mirror.
    """
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(5).standard_normal((DIM, DIM)) / np.sqrt(DIM)
    condition = rng.standard_normal((count, DIM))
    mean = condition @ weights
    target = mean + rng.standard_normal((count, DIM)) + SHIFT
    label = (rng.random(count) < by_linear(target)).astype(np.int64)
    return World(condition.astype(np.float32), target.astype(np.float32), label, mean[:, 2])


def by_class(embedding: NDArray[np.floating]) -> NDArray[np.floating]:
    """The true p(y | z)."""
    along = SIDE * (embedding - SHIFT)
    log_cosh = np.logaddexp(along, -along)
    return 1 / (1 + np.exp(log_cosh[..., 0] - log_cosh[..., 1]))


def by_side(embedding: NDArray[np.floating]) -> NDArray[np.floating]:
    """An unrelated head: is the embedding far out along axis 1?"""
    return 1 / (1 + np.exp(-4 * (np.abs(embedding[..., 1] - SHIFT) - 2)))


def by_linear(embedding: NDArray[np.floating]) -> NDArray[np.floating]:
    """A linear head: here regression is enough."""
    return 1 / (1 + np.exp(-2 * (embedding[..., 2] - SHIFT)))


HEADS = {"class": by_class, "side": by_side, "linear": by_linear}


class Bench:
    """One run: its settings, and the AUCs found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick, self.seed, self.samples, self.steps = options.quick, options.seed, options.samples, options.steps
        self.pairs, self.budget, self.held_out = (1500, 400, 600) if options.quick else (4000, 2500, 1500)
        self.rows: dict[str, float] = {}
        self.bars: dict[str, bool] = {}

    def auc(self, name: str, score: NDArray[np.floating], label: NDArray[np.int64]) -> float:
        """Print and keep one AUC."""
        self.rows[name] = float(roc_auc_score(label, score))
        print(f"{name:<48} AUC {self.rows[name]:.4f}", flush=True)
        return self.rows[name]

    def trained(self, draw: Callable[[int, int, bool], World], name: str) -> tuple[World, World, Prior]:
        """Return training and held-out cases of a world, and a prior trained on the former."""
        sizes = (self.pairs, self.pairs // 5, self.held_out)
        train, val, test = (draw(count, 1000 * self.seed + 1 + k, k < 2) for k, count in enumerate(sizes))
        config = PriorConfig(settings="auto", training=TrainingConfig(steps=self.budget, seed=self.seed))
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            prior = train_prior(train.pairs("t"), val.pairs("v"), config, Path(folder), show_progress=False)
        seconds = time.perf_counter() - started
        print(f"\n{name}: {self.budget} steps on {self.pairs} pairs ({seconds:.0f} s); {self.held_out} held out")
        return train, test, prior

    def drawn(self, prior: Prior, test: World) -> NDArray[np.float32]:
        """Return the samples that are scored: one noise for all cases, as the method ``prior`` draws them."""
        cases = [0] * len(test.label)
        return prior.sample(test.condition, self.samples, "analytic", self.steps, self.seed, cases=cases)

    def direct(self, train: World, test: World, wanted: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return an MLP's regression of anything known for the training pairs, at the held-out conditions."""
        network = MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, random_state=self.seed)
        return np.asarray(network.fit(train.condition, wanted).predict(test.condition))

    def in_the_mixture(self) -> None:
        """Bayes, regression, direct_head and the prior; three heads from one training."""
        train, test, prior = self.trained(mixture, "mixture")
        bayes = self.auc("Bayes p(y | condition)", test.bayes, test.label)
        drawn = self.drawn(prior, test)
        ours = self.auc(f"prior, mean of head over {self.samples} samples", by_class(drawn).mean(axis=1), test.label)
        for few in (1, 8, 16):
            self.auc(f"  over the first {few}", by_class(drawn[:, :few]).mean(axis=1), test.label)
        self.auc("prior, head of the one-step x0", by_class(prior.one_step(test.condition)), test.label)
        blind = self.blind(test)
        slack, ceiling = (0.01, 0.015) if not self.quick else (0.03, 0.04)
        self.bars |= {
            "regression + head near chance (mean at most .60)": blind <= 0.6,
            f"prior within {ceiling} of Bayes": ours >= bayes - ceiling,
        }
        for name, head in HEADS.items():
            drawn_labels = (np.random.default_rng(self.seed).random(len(test.label)) < head(test.target)).astype(int)
            label = test.label if name == "class" else drawn_labels
            one = self.auc(f"direct_head, head '{name}'", self.direct(train, test, head(train.target)), label)
            mine = self.auc(f"prior, head '{name}'", head(drawn).mean(axis=1), label)
            self.bars[f"head '{name}': within {slack} of its own direct_head, or above"] = mine >= one - slack
        if not self.quick:
            self.by_steps(prior, test)

    def blind(self, test: World) -> float:
        """AUC of regression + head, the mean over training sets: one alone ranks the cases by its own small errors."""
        sets = [mixture(self.pairs, 1000 * self.seed + 500 + k, True) for k in range(30)]
        found: dict[str, list[float]] = {"ridge + head": [], "MLP + head": []}
        for number, train in enumerate(sets):
            ridge = LinearRegression().fit(train.condition, train.target).predict(test.condition)
            found["ridge + head"].append(float(roc_auc_score(test.label, by_class(ridge))))
            if number < 6:
                guess = self.direct(train, test, train.target)
                found["MLP + head"].append(float(roc_auc_score(test.label, by_class(guess))))
        for name, values in found.items():
            self.rows[name] = float(np.mean(values))
            spread = f"{min(values):.3f} to {max(values):.3f}"
            print(f"{name:<48} AUC {self.rows[name]:.4f}  ({len(values)} training sets: {spread})", flush=True)
        return max(self.rows[name] for name in found)

    def by_steps(self, prior: Prior, test: World) -> None:
        """AUC of the class head over 16 samples of 600 cases, and how far their first samples lie from the truth."""
        cases, counts = slice(0, 600), (4, 8, 16, 64)
        real = test.target[cases].astype(np.float64)
        again = mixture(600, 1000 * self.seed + 900).target.astype(np.float64)
        floor = energy_distance(again, real)
        print(f"\n{'':<16}{'AUC by steps':<36}energy distance by steps (real to real {floor:+.3f})")
        print(f"{'':<16}" + "".join(f"{count:>8}" for count in counts) * 2)
        for sampler in SAMPLERS:
            aucs, distances = [], []
            for count in counts:
                drawn = prior.sample(test.condition[cases], 16, sampler, count, self.seed)
                aucs.append(float(roc_auc_score(test.label[cases], by_class(drawn).mean(axis=1))))
                distances.append(energy_distance(drawn[:, 0].astype(np.float64), real))
                self.rows |= {f"{sampler}, {count} steps": aucs[-1], f"{sampler}, {count} steps, energy": distances[-1]}
            cells = "".join(f"{value:8.4f}" for value in aucs) + "".join(f"{value:+8.3f}" for value in distances)
            print(f"{sampler:<16}{cells}", flush=True)

    def on_the_line(self) -> None:
        """Constant covariance, linear mean, linear head: nothing to gain over ridge, and nothing to lose."""
        train, test, prior = self.trained(line, "line")
        self.auc("Bayes (line)", test.bayes, test.label)
        ridge = LinearRegression().fit(train.condition, train.target).predict(test.condition)
        best = self.auc("ridge + head (line)", by_linear(ridge), test.label)
        drawn = self.drawn(prior, test)
        ours = self.auc("prior, mean of head (line)", by_linear(drawn).mean(axis=1), test.label)
        tie = 0.01 if not self.quick else 0.03
        self.bars[f"line: prior and ridge tie within {tie}"] = bool(abs(ours - best) <= tie)


def main() -> int:
    """Run, print, return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    bench = Bench(options)
    torch.set_num_threads(1)
    bench.in_the_mixture()
    bench.on_the_line()
    print()
    for name, met in bench.bars.items():
        print(f"{name:<64} {'met' if met else 'MISSED'}")
    if options.json:
        found = {"seed": bench.seed, "auc": bench.rows, "bars": bench.bars}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(bench.bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
