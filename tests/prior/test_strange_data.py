"""Embeddings as strangers bring them: constant, copied and tiny columns, one dimension, few pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.prior import samplers, setup
from embedprior.prior.assessment import COVERAGE, assess, covered, warnings
from embedprior.prior.config import ProcessConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.diffusion import SAMPLING, KeyedNoise, keyed_normal
from embedprior.prior.losses import Objective
from embedprior.prior.metrics import Validator
from embedprior.prior.model import Prior
from embedprior.prior.setup import initial_prior, to_tensors
from embedprior.prior.trainer import train_prior

from .conftest import make_pairs, small_config
from .test_search import auto, few_candidates

Pairs = tuple[PairArrays, PairArrays]
WHITENED = ProcessConfig(timesteps=50, regression="ridge", whitening=True, sigma_data=1.0)
CPU = torch.device("cpu")


def strange(pairs: PairArrays) -> PairArrays:
    """With copied, constant, huge and tiny columns of the condition, and two constant ones of the target."""
    x, z, count = pairs.condition, pairs.target, len(pairs)
    odd = [x, x[:, :2], np.full((count, 3), 7.3), 1e6 * x[:, :1], 1e-6 * x[:, 1:2]]
    target = [z, np.full((count, 1), 7.3), np.zeros((count, 1)), 1e-6 * z[:, :1]]
    return replace(
        pairs, condition=np.concatenate(odd, axis=1, dtype=np.float32),
        target=np.concatenate(target, axis=1, dtype=np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("process", [WHITENED, ProcessConfig(timesteps=50)], ids=["whitened", "plain"])
def test_a_target_that_does_not_vary_is_sampled_without_noise(process: ProcessConfig, tmp_path: Path) -> None:
    train, val = strange(make_pairs(40, 0)), strange(make_pairs(16, 1000))
    config = small_config().model_copy(update={"process": process})
    trained = train_prior(train, val, config, tmp_path, show_progress=False)
    for prior in (trained, Prior.load(tmp_path)):
        for sampler in ("analytic", "dpm_solver"):
            drawn = prior.sample(val.condition, 5, sampler, 8)  # type: ignore[arg-type]
            assert np.isfinite(drawn).all()
            assert np.unique(drawn[..., 6:8].reshape(-1, 2), axis=0).tolist() == [[np.float32(7.3), 0.0]]
            assert (drawn[..., [0, 8]].std(axis=1) > 0).all()
        assert prior.one_step(val.condition)[:, 6:8].tolist() == [[np.float32(7.3), 0.0]] * 16
    assert trained.caveats()[-2:] == [
        "3 of 12 dimensions of the condition do not vary over the training pairs: nothing is learned from them",
        "2 of 9 dimensions of the target do not vary over the training pairs: samples have the training value there",
    ]
    usual = train_prior(*(make_pairs(40, 0), make_pairs(16, 1000)), config, tmp_path / "usual", show_progress=False)
    assert not any("do not vary" in text for text in usual.caveats())


def test_targets_that_do_not_vary_leave_the_score_of_a_checkpoint_alone() -> None:
    """Untrained, the network of a whitened prior is the best linear denoiser, which the score is relative to: 1.

    With half of the columns constant, and counted, it would be that of the mean of both halves.
    """
    parts = [make_pairs(3000, 0), make_pairs(1500, 5000)]
    zeros = [replace(part, target=np.concatenate([part.target, np.zeros_like(part.target)], axis=1)) for part in parts]
    config = small_config(validation_bins=8).model_copy(update={"process": WHITENED})
    for train, val in (parts, zeros):
        prior = initial_prior(train, val, config, None)
        data = to_tensors(train, prior, CPU)
        objective = Objective(
            config.objective, config.process, prior.schedule, prior.target_space("cxr"), None, data.target, data.labels
        )
        validator = Validator(to_tensors(val, prior, CPU), prior.schedule, objective, config.training)
        assert validator.figures(prior)["val/relative_error"] == pytest.approx(1.0, abs=0.04)


def test_targets_that_do_not_vary_leave_the_networks_share_alone(tmp_path: Path) -> None:
    """A network that has learned nothing has no share; it knows of constant columns alone that they are 0."""
    parts = [make_pairs(300, 0), make_pairs(80, 1000)]
    train, val = (
        replace(part, target=np.concatenate([part.target] + 3 * [np.zeros_like(part.target)], axis=1)) for part in parts
    )
    narrow = WHITENED.model_copy(update={"sigma_data": 0.5})
    config = small_config(steps=1).model_copy(update={"process": narrow})
    prior = train_prior(train, val, config, tmp_path, show_progress=False)
    assert prior.variance is not None
    assert prior.variance.share is not None
    assert prior.variance.share[len(prior.variance.share) // 2] < 0.2


@pytest.mark.parametrize(
    "case", ["twelve pairs", "one CT dimension", "one radiograph", "one CT", "one pair to validate"]
)
def test_default_settings_work_on_little_or_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_candidates(monkeypatch)
    train, val = make_pairs(12 if case == "twelve pairs" else 40, 0), make_pairs(8, 1000)
    if case == "one CT dimension":
        train, val = (replace(part, target=part.target[:, :1]) for part in (train, val))
    elif case == "one radiograph":
        train, val = (replace(part, condition=np.ones_like(part.condition)) for part in (train, val))
    elif case == "one CT":
        train, val = (replace(part, target=np.full_like(part.target, 2.5)) for part in (train, val))
    elif case == "one pair to validate":
        val = make_pairs(1, 1000)
    prior = train_prior(train, val, auto(), tmp_path, show_progress=False)
    drawn = prior.sample(val.condition, 20, steps=8)
    assert np.isfinite(drawn).all()
    said = [text for text in prior.caveats() if "do not vary" in text]
    if case == "one radiograph":
        (text,) = said
        assert text.startswith("5 of 5 dimensions of the condition do not vary")
    elif case == "one CT":
        (text,) = said
        assert text.startswith("6 of 6 dimensions of the target do not vary")
        assert (drawn == 2.5).all()
        assert prior.record["validation"]["coverage"] is None
        assert prior.caveats() == said
    else:
        assert said == []
    if case == "one pair to validate":
        assert prior.record["validation"]["standard_errors"] is None


def test_what_candidates_have_in_common_is_fitted_once(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three candidates have one regression and whitening, the fourth a whitening alone; each trains in parts."""
    few_candidates(monkeypatch)
    made = []
    for name in ("fit_regression", "_units"):
        real = getattr(setup, name)
        monkeypatch.setattr(setup, name, lambda *given, real=real, name=name: made.append(name) or real(*given))
    prior = train_prior(*pairs, auto(), tmp_path, show_progress=False)
    assert sorted(made) == ["_units", "_units", "fit_regression"]
    alone = initial_prior(*pairs, prior.config, None)
    np.testing.assert_array_equal(prior.target_space("cxr").whitening, alone.target_space("cxr").whitening)
    for source, regression in alone.regressions.items():
        np.testing.assert_array_equal(prior.regressions[source].weights, regression.weights)


def test_cases_that_share_their_noise_draw_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(source: KeyedNoise, step: int, examples: list[int], shape: tuple[int, ...]) -> np.ndarray:
        asked.append(list(examples))
        return keyed_normal(source, step, examples, shape)

    monkeypatch.setattr(samplers, "keyed_normal", spy)
    steps = [
        samplers.ReverseStep(9, 5, 1.0, 1.0, 0.0, np.ones(1)),
        samplers.ReverseStep(5, 0, 1.0, 1.0, 0.0, np.zeros(1)),
    ]
    noise = samplers.noise_of_steps(KeyedNoise(3, SAMPLING), steps, [7, 2, 7, 7], 2, 4, CPU)
    assert asked == [[2, 7]]
    for case, key in enumerate([7, 2, 7, 7]):
        own = KeyedNoise(3, SAMPLING).at(0, key).standard_normal((2, 3, 4), dtype=np.float32)
        for k in range(3):
            np.testing.assert_array_equal(noise(k).numpy().reshape(4, 2, 4)[case], own[:, k])


def test_coverage_and_its_error_are_those_of_intervals_between_order_statistics(tmp_path: Path) -> None:
    """By hand from nineteen samples with a noise of each case's own; the error of the spread ratio by bootstrap."""
    pairs = make_pairs(300, 0), make_pairs(90, 1000)
    config = small_config(steps=1).model_copy(update={"process": WHITENED})
    prior = train_prior(*pairs, config, tmp_path, show_progress=False)
    figures, val = prior.record["validation"], pairs[1]
    drawn = np.sort(prior.sample(val.condition, 19, "analytic", 16), axis=1)
    inside = (val.target >= drawn[:, 1]) & (val.target <= drawn[:, 17])
    assert figures["coverage"] == pytest.approx(inside.mean(), abs=1e-3)
    assert abs(figures["coverage"] - COVERAGE) < 0.05  # a linear-Gaussian world, sampled exactly
    by_case = inside.mean(axis=1)
    assert figures["standard_errors"]["coverage"] == pytest.approx(by_case.std(ddof=1) / 90**0.5, rel=0.02)
    units = prior.target_scaler
    samples = units.forward(prior.sample(val.condition, 19, "analytic", 16)[:, :16]).astype(float)
    variance = samples.var(axis=1, ddof=1).mean(axis=1)
    away = units.forward(prior.one_step(val.condition)).astype(float) - units.forward(val.target)
    error = np.square(away).mean(axis=1)
    rows = np.random.default_rng(0).integers(90, size=(2000, 90))
    ratios = np.sqrt(variance[rows].mean(axis=1) / error[rows].mean(axis=1))
    assert figures["standard_errors"]["spread_ratio"] == pytest.approx(ratios.std(), rel=0.1)
    assert covered(drawn, np.full_like(val.target, 1e9), np.ones(6, bool)).max() == 0.0  # type: ignore[union-attr]


def test_samples_that_are_too_narrow_for_new_pairs_are_said_to_be(tmp_path: Path) -> None:
    """Validation pairs whose remainder is one and a half times as wide: 80 % intervals of a Gaussian hold 61 %."""
    train, val = make_pairs(400, 0), make_pairs(200, 1000)
    config = small_config(steps=1).model_copy(update={"process": WHITENED})
    prior = train_prior(train, val, config, tmp_path, show_progress=False)
    assert prior.caveats() == []
    mean = prior.one_step(val.condition)
    wide = (mean + 1.5 * (val.target - mean)).astype(np.float32)
    found = assess(prior, train, replace(val, target=wide), None)
    assert found["coverage"] == pytest.approx(0.61, abs=0.06)
    spread, coverage = found["warnings"]
    assert spread.startswith("its samples have 0.6")
    assert coverage == f"its 80 % intervals hold {found['coverage']:.1%} of the real values on the validation pairs"
    assert coverage in replace(prior, record={"validation": found}).caveats()


def test_a_figure_off_by_chance_is_no_warning() -> None:
    fine = {"error": {"prior": 0.5, "ridge": 0.5, "mean": 1.0}, "spread_ratio": 0.87, "coverage": 0.75}
    sure, unsure = ({"spread_ratio": se, "coverage": se / 2} for se in (0.04, 0.1))
    assert [text[:8] for text in warnings(fine | {"standard_errors": sure})] == ["its samp", "its 80 %"]
    assert warnings(fine | {"standard_errors": unsure}) == []
    assert warnings(fine | {"standard_errors": None}) == []
    slight = fine | {
        "spread_ratio": 0.91,
        "coverage": 0.775,
        "standard_errors": {"spread_ratio": 0.01, "coverage": 0.001},
    }
    assert warnings(slight) == []
