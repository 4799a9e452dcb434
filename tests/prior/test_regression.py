"""A prior around a ridge regression: the map itself, and that nothing but the mean of the prediction moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import Ridge

from embedprior.errors import BadInput
from embedprior.nn.ridge import PENALTIES
from embedprior.nn.standardise import Standardiser, TargetSpace
from embedprior.prior.config import ObjectiveConfig, Prediction, PriorConfig, ProcessConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.losses import NoisyBatch, Objective
from embedprior.prior.model import Prior
from embedprior.prior.regression import Regression, coefficients, fit_regression, pooled
from embedprior.prior.samplers import Conditions
from embedprior.prior.setup import initial_prior
from embedprior.prior.trainer import Learner, train_prior

from .conftest import make_pairs, small_config

Pairs = tuple[PairArrays, PairArrays]


def around(**process: object) -> PriorConfig:
    settings = ProcessConfig.model_validate({"timesteps": 50, "regression": "ridge", **process})
    return small_config().model_copy(update={"process": settings})


def replaced(config: PriorConfig, **training: object) -> PriorConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def with_weights(prior: Prior) -> Prior:
    """The same prior with an output that is not zero."""
    torch.nn.init.normal_(prior.network.out.weight, generator=torch.Generator().manual_seed(3))
    prior.network.eval()
    return prior


def test_the_fit_is_sklearns_ridge_at_the_penalty_of_least_validation_error() -> None:
    rng = np.random.default_rng(0)
    x, vx = rng.standard_normal((30, 12)) + 1.0, rng.standard_normal((20, 12)) + 1.0
    weights = rng.standard_normal((12, 4))
    y, vy = (a @ weights + 4.0 * rng.standard_normal((len(a), 4)) - 2.0 for a in (x, vx))
    fits = [Ridge(alpha=penalty).fit(x, y) for penalty in PENALTIES]
    errors = [((fit.predict(vx) - vy) ** 2).mean() for fit in fits]
    assert 0 < np.argmin(errors) < len(fits) - 1
    best = fits[int(np.argmin(errors))]
    found, left = fit_regression(x, y, vx, vy)
    np.testing.assert_allclose(found.weights, best.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.offset, best.intercept_, rtol=1e-8)
    others = np.arange(30) != 7
    without = Ridge(alpha=PENALTIES[int(np.argmin(errors))]).fit(x[others], y[others])
    np.testing.assert_allclose(left[7], y[7] - without.predict(x[7:8])[0], rtol=0.02)


def test_residuals_of_fewer_pairs_than_dimensions_are_as_large_as_those_left_out() -> None:
    """The fit goes through nearly every pair: leverage .997, residuals 1/300 of what a new pair would have."""
    rng = np.random.default_rng(2)
    x, vx = rng.standard_normal((8, 48)), rng.standard_normal((6, 48))
    weights = rng.standard_normal((48, 4))
    y, vy = (a @ weights + rng.standard_normal((len(a), 4)) for a in (x, vx))
    penalty = PENALTIES[int(np.argmin([((Ridge(alpha=p).fit(x, y).predict(vx) - vy) ** 2).mean() for p in PENALTIES]))]
    assert penalty < 1
    _, left = fit_regression(x, y, vx, vy)
    for case in range(8):
        others = np.arange(8) != case
        without = y[case] - Ridge(alpha=penalty).fit(x[others], y[others]).predict(x[case : case + 1])[0]
        np.testing.assert_allclose(left[case], without, rtol=0.02)


def test_a_later_stage_corrects_the_earlier_map_and_few_pairs_hardly_move_it() -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((12, 4))
    x, vx = rng.standard_normal((6, 12)), rng.standard_normal((200, 12))
    y, vy = (a @ weights + 0.5 * rng.standard_normal((len(a), 4)) + 3.0 for a in (x, vx))
    errors = [
        float(((vx @ fit.weights + fit.offset - vy) ** 2).mean())
        for fit, _ in (fit_regression(x, y, vx, vy, Regression(weights, np.zeros(4))), fit_regression(x, y, vx, vy))
    ]
    assert errors[0] < 0.5 < errors[1]


def test_an_earlier_map_that_does_not_hold_here_is_dropped() -> None:
    """DRRs may be another domain: what was learned on them is then worth less than nothing."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((5, 4))
    x, vx = rng.standard_normal((40, 5)), rng.standard_normal((30, 5))
    y, vy = (a @ weights + 0.5 * rng.standard_normal((len(a), 4)) for a in (x, vx))
    alone, _ = fit_regression(x, y, vx, vy)
    kept, _ = fit_regression(x, y, vx, vy, Regression(-3.0 * weights, np.zeros(4)))
    assert kept.first_stage is not None
    assert kept.first_stage.weight == 0.0
    np.testing.assert_array_equal(kept.weights, alone.weights)
    helped = fit_regression(x[:6], y[:6], vx, vy, Regression(weights, np.zeros(4)))[0].first_stage
    assert helped is not None
    assert helped.weight == 1.0


def test_whitened_residuals_have_the_covariance_of_noise() -> None:
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    rows = rng.standard_normal((20_000, 5)) * [0.6, 0.8, 1.0, 1.5, 2.0] @ rotation
    space = TargetSpace(Standardiser(np.zeros(5), np.ones(5))).whitened(rows)
    covariance = np.cov(space.forward(rows.astype(np.float32)), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(5), atol=0.05)
    np.testing.assert_allclose(space.inverse(space.forward(rows.astype(np.float32))), rows, rtol=1e-3, atol=1e-3)
    flat = TargetSpace(Standardiser(np.zeros(5), np.ones(5))).whitened(np.zeros((10, 5)))
    np.testing.assert_allclose(flat.forward(rows.astype(np.float32)), rows, rtol=1e-6)


def test_an_untrained_prior_around_a_whitened_regression_samples_a_gaussian(tmp_path: Path) -> None:
    """z = A x + L noise: mean and covariance of the samples are known; the network has not been touched."""
    rng = np.random.default_rng(3)
    a, noise = rng.standard_normal((5, 6)), 0.6 * rng.standard_normal((6, 6))

    def drawn(count: int, name: str) -> PairArrays:
        x = rng.standard_normal((count, 5))
        z = x @ a + rng.standard_normal((count, 6)) @ noise
        return PairArrays(x.astype("f"), z.astype("f"), [f"{name}{i}" for i in range(count)], "cxr")

    config = around(whitening=True, sigma_data=1.0, timesteps=1000)
    prior = train_prior(drawn(4000, "t"), drawn(1000, "v"), replaced(config, steps=1), tmp_path, show_progress=False)
    at = np.tile(rng.standard_normal((1, 5)).astype("f"), (2000, 1))
    samples = prior.sample(at, 1, steps=16)[:, 0].astype(float)
    np.testing.assert_allclose(samples.mean(axis=0), (at @ a)[0], atol=0.15)
    np.testing.assert_allclose(np.cov(samples, rowvar=False), noise.T @ noise, atol=0.25)
    assert np.trace(np.cov(samples, rowvar=False)) == pytest.approx(np.trace(noise.T @ noise), rel=0.06)
    again = Prior.load(tmp_path).sample(at[:3], 2, steps=16)
    np.testing.assert_array_equal(again, prior.sample(at[:3], 2, steps=16))


def test_padding_does_not_change_what_the_regression_reads() -> None:
    tokens = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    padded = np.concatenate([tokens, np.full((3, 4, 5), np.nan, np.float32)], axis=1)
    real = np.tile(np.arange(6) < 2, (3, 1))
    np.testing.assert_allclose(pooled(padded, real), tokens.astype(np.float64).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_x0hat_is_the_regression_plus_what_the_network_makes_of_the_rest(prediction: Prediction, pairs: Pairs) -> None:
    prior = with_weights(initial_prior(*pairs, around(prediction=prediction), None))
    plain = replace(prior, regressions={})
    tokens = pairs[1].tokens[:4]
    with_ridge, bare = (one.standardise_conditions(tokens, None, "cxr") for one in (prior, plain))
    assert bare.ridge_prediction is None
    scaled = prior.condition_scaler("cxr").forward(tokens)[:, 0]
    ridge = torch.from_numpy(
        (scaled @ prior.regressions["cxr"].weights + prior.regressions["cxr"].offset).astype(np.float32)
    ).repeat_interleave(2, dim=0)
    x, n = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), 20
    signal = float(np.sqrt(prior.schedule.alpha_bar[n]))
    expected = ridge + plain.denoiser(bare, 2, 1.0)(x - signal * ridge, n)
    torch.testing.assert_close(prior.denoiser(with_ridge, 2, 1.0)(x, n), expected, rtol=1e-5, atol=1e-5)
    assert float(ridge.abs().max()) > 0.1


@pytest.mark.parametrize("null", ["keeps_target", "drops_both"])
def test_the_branch_without_condition_has_no_regression(null: str, pairs: Pairs) -> None:
    prior = with_weights(initial_prior(*pairs, around(null_branch=null), None))
    tokens = pairs[1].tokens[:4]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    bare = replace(prior, regressions={})
    expected = bare.denoiser(bare.standardise_conditions(tokens, None, "cxr"), 1, 0.0)(x, 20)
    found = prior.denoiser(prior.standardise_conditions(tokens, None, "cxr"), 1, 0.0)(x, 20)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-5, atol=1e-5)


def test_a_dropped_condition_is_learned_without_its_regression(pairs: Pairs) -> None:
    config = around(condition_dropout=0.5)
    learner = Learner(initial_prior(*pairs, config, None), pairs[0], Accelerator(cpu=True), None, None)
    batch, _, _, drop = learner._noised(0, 0)
    target = learner.data.target[torch.from_numpy(learner.batch(0))]
    dropped = drop[:, 0]
    assert 0 < int(dropped.sum()) < len(dropped)
    torch.testing.assert_close(batch.x0[dropped], target[dropped], rtol=0, atol=0)
    assert float((batch.x0 - target)[~dropped].abs().max(dim=1).values.min()) > 0.01
    assert batch.ridge_prediction is not None
    torch.testing.assert_close(batch.x0 + batch.ridge_prediction, target, rtol=0, atol=1e-6)


def test_the_head_and_the_error_see_the_whole_embedding(pairs: Pairs) -> None:
    prior = initial_prior(*pairs, around(), None)
    target, ridge = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    terms = ObjectiveConfig(bce=1.0, aft=0.5, aft_groups=2, proto=0.5)
    process, space = ProcessConfig(prediction="x0"), prior.target_space("cxr")
    objective = Objective(terms, process, prior.schedule, space, lambda z: z[:, 0] - 3.0, target, labels)
    output, clock, nothing = torch.randn(5, 6), torch.full((5,), 20), torch.zeros(5, 6)
    whole = NoisyBatch(target, nothing, nothing, clock, labels)
    rest = NoisyBatch(target - ridge, nothing, nothing, clock, labels, ridge_prediction=ridge)
    expected, found = objective.losses(output, whole), objective.losses(output - ridge, rest)
    assert set(found) == {"l2", "bce", "aft", "proto"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        objective.error(output - ridge, rest), objective.error(output, whole), rtol=1e-4, atol=1e-5
    )


def test_a_linear_world_needs_no_network(tmp_path: Path) -> None:
    """Twenty steps teach the small network nothing; around a regression that is no harm."""
    pairs, test = (make_pairs(300, 0), make_pairs(80, 1000)), make_pairs(200, 5000)
    errors = {}
    for config in (small_config(), around()):
        prior = train_prior(*pairs, config, tmp_path / config.process.regression, show_progress=False)
        errors[config.process.regression] = float(((prior.one_step(test.condition) - test.target) ** 2).mean())
    assert errors["ridge"] < 1.15 < 5.0 < errors["none"]


def test_it_resumes_bit_for_bit_and_loads_as_it_was_saved(pairs: Pairs, tmp_path: Path) -> None:
    whole = train_prior(*pairs, around(), tmp_path / "whole", show_progress=False)
    train_prior(*pairs, around(), tmp_path / "parts", stop_after=7, show_progress=False)
    resumed = train_prior(*pairs, around(), tmp_path / "parts", show_progress=False)
    drawn = [
        prior.sample(pairs[1].condition, 2, "analytic", steps=5)
        for prior in (whole, resumed, Prior.load(tmp_path / "whole"))
    ]
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])
    assert whole.regression_size == coefficients("ridge", 5, 6) == 36


def test_each_source_has_its_own_map_and_fine_tuning_keeps_the_others(pairs: Pairs, tmp_path: Path) -> None:
    drr = [replace(part, source="drr", ids=[f"drr-{name}" for name in part.ids]) for part in pairs]
    first = train_prior(*drr, around(), tmp_path / "drr", show_progress=False)
    real = make_pairs(12, 3000, seed=4), make_pairs(12, 4000, seed=4)
    second = train_prior(*real, around(), tmp_path / "cxr", tmp_path / "drr", show_progress=False)
    assert sorted(second.regressions) == ["cxr", "drr"]
    np.testing.assert_array_equal(second.regressions["drr"].weights, first.regressions["drr"].weights)
    scaled = [(second.condition_scaler("cxr").forward(p.tokens), second.target_scaler.forward(p.target)) for p in real]
    (x, y), (vx, vy) = [(c[:, 0].astype(np.float64), z) for c, z in scaled]
    expected, _ = fit_regression(x, y, vx, vy, first.regressions["drr"])
    np.testing.assert_array_equal(second.regressions["cxr"].weights, expected.weights)
    with pytest.raises(BadInput, match="regression: 'none' here, 'ridge' in the prior to start from"):
        train_prior(*real, small_config(), tmp_path / "other", tmp_path / "drr", show_progress=False)


def test_given_takes_rows_of_everything() -> None:
    given = Conditions(torch.zeros(4, 2, 3), torch.ones(4, 2, dtype=torch.bool), torch.arange(4.0)[:, None])
    part = given.rows(slice(1, 3))
    assert len(part) == 2
    assert part.ridge_prediction is not None
    assert part.ridge_prediction[:, 0].tolist() == [1.0, 2.0]
