"""Does the prior work where nobody tuned it? Worlds with a known answer, default settings only.

Seven worlds. *linear*: Gaussian, correlated noise. *switch*: which of two modes a CT embedding lies at depends on the
sign of a product of two radiograph dimensions. *sides*: the class decides the axis, a coin the side, so that E[z | x]
says nothing. *few*: 60 pairs. *wide*: 1,280 radiograph dimensions, 300 pairs. *shifted*: a first stage of DRRs whose
map is another one. *null*: the radiograph shows what the CT shows, and every radiograph has a label: nothing to gain.

The head is the true p(y | z). AUC of each method over held-out cases, against labels; ``best`` is the larger of
``direct-head`` and ``ridge-head`` without pretraining. Spread ratio: standard deviation of samples over the root mean
square distance of the true embedding from their mean, both as unbiased estimates: 1 for a faithful predictive
distribution, uncertainty of the fit included. Coverage: of the interval between two order statistics of 39 samples,
which holds 80 % of the draws of any distribution. Bars hold for the mean over draws.

``--strange``: five more, that settings were never chosen on. *relu*: features cut at 0, of both. *heavy*: Student's t
with 2.5 degrees of freedom, in both. *big*: 768 and 1,024 dimensions, 200 pairs. *rare*: 3 % positives. *odd*: signs,
copied and constant columns, units of a million and a millionth, constant targets. The remainder of the first two is no
Gaussian, and a few hundred pairs do not show its shape: their spread and coverage are shown, and how often the prior
itself warns of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common.measuring import Table
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from embedprior.prior.config import PriorConfig, TrainingConfig
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.config import Budget
from embedprior.students.prior_method import PriorStudent
from embedprior.students.registry import build_method

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Floats, Floats]]
SAMPLES, RANK = 39, 4
NOMINAL = 1 - 2 * RANK / (SAMPLES + 1)
ALONE = ("prior", "direct-head", "ridge-head")
SLACK = 0.01


@dataclass(frozen=True)
class World:
    """Pairs (x, z) to draw, the true p(y | z), and how many.

    Attributes:
        draw: (generator, count) ↦ radiograph and CT embeddings.
        head: (…, D) CT embeddings ↦ p(y | z).
        pairs, validation: how many train and choose.
        drr: draws of a first stage; None when there is none.
        methods: that are compared.
        calibrated: spread and coverage are held to bars.
    """

    draw: Draw
    head: Callable[[Floats], Floats]
    pairs: int
    validation: int
    drr: Draw | None = None
    methods: tuple[str, ...] = ALONE
    calibrated: bool = True


@dataclass(frozen=True)
class KnownHead:
    """The true p(y | z), as a frozen head: logits of NumPy arrays and of tensors."""

    probability: Callable[[Floats], Floats]

    def logits(self, embeddings: NDArray[np.floating]) -> Floats:
        """Return one logit a case."""
        return np.asarray(logit(np.clip(self.probability(np.asarray(embeddings, dtype=np.float64)), 1e-9, 1 - 1e-9)))

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return one logit a case."""
        return torch.from_numpy(self.logits(embeddings.numpy()))


def linear_world(pairs: int, validation: int, x_dim: int = 12, z_dim: int = 16) -> World:
    """z = x A + correlated noise, a linear head."""
    rng = np.random.default_rng(5)
    a, axis = rng.normal(size=(x_dim, z_dim)) / x_dim**0.5, rng.normal(size=z_dim)
    noise = np.linspace(0.3, 0.8, z_dim)[:, None] * np.linalg.qr(rng.normal(size=(z_dim, z_dim)))[0]
    axis *= 2 / np.linalg.norm(axis)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        x = rng.normal(size=(count, x_dim))
        return x, x @ a + rng.normal(size=(count, z_dim)) @ noise

    return World(draw, lambda z: expit(z @ axis), pairs, validation)


def switch_world() -> World:
    """Two modes; which one depends on x_0 · x_1, which no linear map sees."""
    rng = np.random.default_rng(6)
    mode, b = rng.normal(size=12), 0.3 * rng.normal(size=(8, 12)) / 8**0.5
    mode *= 2 / np.linalg.norm(mode)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        x = rng.normal(size=(count, 8))
        product = x[:, 0] * x[:, 1]
        first = rng.random(count) < expit(6 * np.sign(product) * np.sqrt(np.abs(product)))
        return x, np.where(first[:, None], mode, -mode) + x @ b + 0.6 * rng.normal(size=(count, 12))

    return World(draw, lambda z: expit(2 * (z @ mode)), 2000, 300)


def sides_world() -> World:
    """The class decides the axis, a coin the side: the mean embedding is the same for both classes."""
    rotation = np.linalg.qr(np.random.default_rng(7).normal(size=(8, 8)))[0]

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        x = rng.normal(size=(count, 6))
        axis = (rng.random(count) < expit(5 * x[:, 0])).astype(int)
        z = 0.7 * rng.normal(size=(count, 8))
        z[np.arange(count), axis] += rng.choice([-2.0, 2.0], count)
        z[:, 3:6] += 0.5 * x[:, 1:4]
        return x, z @ rotation.T

    def head(z: Floats) -> Floats:
        along = (2.0 / 0.49) * (z @ rotation)
        log_cosh = np.logaddexp(along, -along)
        return np.asarray(expit(log_cosh[..., 1] - log_cosh[..., 0]))

    return World(draw, head, 2000, 300)


def wide_world() -> World:
    """Ten latent numbers seen through 1,280 noisy dimensions."""
    rng = np.random.default_rng(9)
    seen, a, axis = rng.normal(size=(10, 1280)), rng.normal(size=(10, 32)) / 10**0.5, rng.normal(size=32)
    axis *= 3 / np.linalg.norm(axis)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        latent = rng.normal(size=(count, 10))
        return latent @ seen + 2 * rng.normal(size=(count, 1280)), latent @ a + 0.5 * rng.normal(size=(count, 32))

    return World(draw, lambda z: expit(z @ axis), 300, 75)


def shifted_world() -> World:
    """DRRs show the same latent numbers through another map, offset and scale: what they teach does not hold."""
    rng = np.random.default_rng(10)
    seen, seen_in_drr = rng.normal(size=(2, 8, 16))
    a, axis = rng.normal(size=(8, 16)) / 8**0.5, rng.normal(size=16)
    axis *= 3 / np.linalg.norm(axis)

    def through(matrix: Floats, scale: float) -> Draw:
        def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
            latent = rng.normal(size=(count, 8))
            x = scale * (latent @ matrix + rng.normal(size=(count, 16))) + scale
            return x, latent @ a + 0.5 * rng.normal(size=(count, 16))

        return draw

    methods = (*ALONE, "kernel-ridge-head", "mlp-head")
    return World(through(seen, 1.0), lambda z: expit(z @ axis), 150, 50, through(seen_in_drr, 3.0), methods)


def null_world() -> World:
    """Radiograph and CT show the same latent numbers, equally blurred, and every radiograph has a label."""
    rng = np.random.default_rng(11)
    mix_x, mix_z = (np.linalg.qr(rng.normal(size=(10, 10)))[0] for _ in range(2))

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        latent = rng.normal(size=(count, 10))
        return tuple((latent + 0.5 * rng.normal(size=(count, 10))) @ mix for mix in (mix_x, mix_z))  # type: ignore[return-value]

    return World(draw, lambda z: expit(2 * (z @ mix_z.T)[..., 0]), 400, 100, None, ("prior", "cxr-only", *ALONE[1:]))


def latent_maps(seed: int, latent: int, x_dim: int, z_dim: int, slope: float) -> tuple[Floats, Floats, Floats]:
    """Return the maps of latent numbers to radiograph and CT embedding, and the head's axis, of length ``slope``."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(latent, dim)) / latent**0.5 for dim in (x_dim, z_dim))
    axis = rng.normal(size=z_dim)
    return a, b, slope * axis / np.linalg.norm(axis)


def relu_world() -> World:
    """Both embeddings are cut at 0, as a network's last features are; the spread depends on the case."""
    a, b, axis = latent_maps(21, 12, 256, 64, 1.0)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        latent = rng.normal(size=(count, 12))
        x = 4 * np.maximum(latent @ a + 0.5 * rng.normal(size=(count, 256)) - 0.3, 0)
        spread = 0.3 + 0.5 * np.abs(latent[:, :1])
        return x, np.maximum(latent @ b + spread * rng.normal(size=(count, 64)), 0) ** 1.5

    along = draw(np.random.default_rng(1), 4000)[1] @ axis
    return World(draw, lambda z: expit(4 * (z @ axis - along.mean()) / along.std()), 500, 100, calibrated=False)


def heavy_world() -> World:
    """Remainders of both embeddings have hardly a variance."""
    a, b, axis = latent_maps(22, 8, 32, 32, 2.0)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        latent = rng.normal(size=(count, 8))
        return tuple(latent @ matrix + 0.4 * rng.standard_t(2.5, size=(count, 32)) for matrix in (a, b))  # type: ignore[return-value]

    return World(draw, lambda z: expit(2 * z @ axis), 600, 120, calibrated=False)


def gaussian_world(
    seed: int, latent: int, dims: tuple[int, int], noise: tuple[float, float], slope: float, pairs: int,
    validation: int, offset: float = 0.0, steepness: float = 2.0,
) -> World:  # fmt: skip
    """A few latent numbers, seen by both embeddings through noise."""
    a, b, axis = latent_maps(seed, latent, *dims, slope)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        shown = rng.normal(size=(count, latent))
        return tuple(
            shown @ matrix + size * rng.normal(size=(count, dim))
            for matrix, dim, size in zip((a, b), dims, noise, strict=True)
        )  # type: ignore[return-value]

    return World(draw, lambda z: expit(steepness * z @ axis + offset), pairs, validation)


def odd_world() -> World:
    """Signs; copied, constant, huge and tiny columns; two targets that do not vary."""
    a, b, axis = latent_maps(25, 6, 20, 24, 2.0)

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        latent = rng.normal(size=(count, 6))
        x = np.sign(latent @ a + 0.3 * rng.normal(size=(count, 20)))
        columns = [x, x[:, :4], np.full((count, 3), 7.0), 1e6 * x[:, :1], 1e-6 * x[:, 1:2]]
        z = latent @ b + 0.4 * rng.normal(size=(count, 24))
        return np.concatenate(columns, axis=1), np.concatenate([z, np.full((count, 2), 0.3)], axis=1)

    return World(draw, lambda z: expit(2 * z[..., :24] @ axis), 500, 100)


STRANGE: dict[str, Callable[[], World]] = {
    "relu": relu_world,
    "heavy": heavy_world,
    "big": lambda: gaussian_world(23, 5, (768, 1024), (1.0, 0.5), 3.0, 200, 60),
    "rare": lambda: gaussian_world(24, 8, (64, 48), (0.5, 0.5), 2.0, 600, 150, -6.5, 2.5),
    "odd": odd_world,
}
WORLDS: dict[str, Callable[[], World]] = {
    "linear": lambda: linear_world(2000, 300),
    "switch": switch_world,
    "sides": sides_world,
    "few": lambda: linear_world(60, 20),
    "wide": wide_world,
    "shifted": shifted_world,
    "null": null_world,
    **STRANGE,
}


def cases(world: World, draw: Draw, rng: np.random.Generator, count: int, prefix: str, source: str = "cxr") -> Cases:
    """Return labelled cases with CT; each has its own patient."""
    x, z = draw(rng, count)
    label = (rng.random(count) < world.head(z)).astype(float)
    ids = [f"{prefix}{i}" for i in range(count)]
    return Cases(ids, ids, label, x.astype(np.float32), z.astype(np.float32), label, source)


def one(job: tuple[str, int, int, int]) -> dict[str, float]:
    """Return the figures of every method in one draw of one world."""
    name, number, test_count, steps = job
    torch.set_num_threads(1)
    world, rng = WORLDS[name](), np.random.default_rng([number, 77])
    real = Stage(cases(world, world.draw, rng, world.pairs, "t"), cases(world, world.draw, rng, world.validation, "v"))
    stages = (real,)
    if world.drr is not None:
        first = Stage(cases(world, world.drr, rng, 1500, "d", "drr"), cases(world, world.drr, rng, 300, "e", "drr"))
        stages = (first, real)
    test = cases(world, world.draw, rng, test_count, "s")
    data = FitData(stages, KnownHead(world.head))
    # The defaults; --quick trains for fewer steps and changes nothing else.
    budget = (
        Budget() if steps == 0 else Budget(stages=(PriorConfig(settings="auto", training=TrainingConfig(steps=steps)),))
    )
    figures: dict[str, float] = {}
    for method in world.methods:
        variants: Mapping[str, Mapping[str, object]] = {method: {}}
        if world.drr is not None:
            variants = {method: {}, f"{method}, no pretraining": {"pretraining": False}}
        for variant, options in variants.items():
            started = time.process_time()
            fitted = build_method(method, budget, **options).fit(data, number)
            figures[f"{variant} seconds"] = time.process_time() - started
            figures[f"{variant} AUC"] = float(roc_auc_score(test.label, fitted.scores(test.without_ct())))
            if variant == "prior":
                assert isinstance(fitted, PriorStudent)
                figures |= spread(fitted, test)
                said = [text for text in fitted.prior.caveats() if text.startswith(("its samples", "its 80 %"))]
                figures["warns of spread or coverage"] = float(bool(said))
    return figures


def spread(fitted: PriorStudent, test: Cases) -> dict[str, float]:
    """Return spread ratio and coverage of 39 samples for 300 cases, over the dimensions that vary."""
    few = test.take(range(min(300, len(test))))
    real = few.paired_ct()
    varies = real.min(axis=0) < real.max(axis=0)
    drawn = fitted.prior.sample(few.cxr, SAMPLES, fitted.sampler, fitted.steps, fitted.seed).astype(np.float64)
    real, drawn = np.compress(varies, real, axis=1), np.compress(varies, drawn, axis=2)
    within = drawn.var(axis=1, ddof=1).mean()
    distance = np.square(real - drawn.mean(axis=1)).mean() - within / SAMPLES
    ordered = np.sort(drawn, axis=1)
    inside = (real >= ordered[:, RANK - 1]) & (real <= ordered[:, -RANK])
    return {"spread ratio": float(np.sqrt(within / distance)), "coverage": float(inside.mean())}


def hold(table: Table, name: str, found: list[dict[str, float]], slack: float, spread_slack: float) -> None:
    """Print the means over draws of one world, with their bars."""
    mean = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
    for key, value in mean.items():
        if key.endswith("AUC"):
            table.hold(key, value, "AUC", case=name)
    plain = "ridge-head, no pretraining AUC" if "ridge-head, no pretraining AUC" in mean else "ridge-head AUC"
    best = max(mean["direct-head AUC"], mean[plain])
    table.hold("prior less best of direct-head and ridge", mean["prior AUC"] - best, "AUC", least=-slack, case=name)
    if "cxr-only AUC" in mean:
        gap = mean["prior AUC"] - mean["cxr-only AUC"]
        table.hold("prior less cxr-only", gap, "AUC", least=-slack, case=name)
    for key in [key for key in mean if key.endswith(", no pretraining AUC")]:
        with_it = key.replace(", no pretraining", "")
        gap = mean[with_it] - mean[key]
        table.hold(
            f"{with_it.removesuffix(' AUC')}: with less without pretraining", gap, "AUC", least=-slack, case=name
        )
    ratio, covered, calibrated = mean["spread ratio"], mean["coverage"], WORLDS[name]().calibrated
    bars = (10 * spread_slack, 3 * spread_slack) if calibrated else (None, None)
    table.hold("spread ratio, off 1", abs(ratio - 1), "", most=bars[0], case=f"{name} ({ratio:.3f})")
    table.hold("coverage, off nominal", abs(covered - NOMINAL), "", most=bars[1], case=f"{name} ({covered:.3f})")
    table.hold("fits that warn of spread or coverage", mean["warns of spread or coverage"], "", case=name)
    table.hold("prior: seconds a fit", mean["prior seconds"], "CPU s", case=name)


def main() -> int:
    """Run, print, return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two worlds, one draw, few steps, wider bars")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw; settings are chosen on 100 up")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--strange", action="store_true", help="five more worlds instead, strange data")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), help="some of them (default: the first seven)")
    options = parser.parse_args()
    usual = list(STRANGE) if options.strange else [name for name in WORLDS if name not in STRANGE]
    names = ["few", "shifted"] if options.quick else options.worlds or usual
    draws, test_count, steps = (1, 300, 60) if options.quick else (options.draws, 1000, 0)
    jobs = [
        (name, number, test_count, steps) for number in range(options.first, options.first + draws) for name in names
    ]
    table, results = Table(), dict[tuple[str, int, int, int], dict[str, float]]()
    with ProcessPoolExecutor(options.workers) as pool:
        for job, found in zip(jobs, pool.map(one, jobs), strict=True):
            results[job] = found
            shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if "seconds" not in name)
            print(f"{job[0]}, draw {job[1]}: {shown}", flush=True)
    slack, spread_slack = (0.08, 0.03) if options.quick else (SLACK, 0.01)
    for name in names:
        hold(table, name, [found for job, found in results.items() if job[0] == name], slack, spread_slack)
    return table.finish(options.json, draws=draws, first=options.first)


if __name__ == "__main__":
    sys.exit(main())
