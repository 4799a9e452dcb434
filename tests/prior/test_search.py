"""Settings that choose themselves, and what is said of a prior that has not learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embedprior.errors import BadInput
from embedprior.prior import search, trainer
from embedprior.prior.assessment import assess, warnings
from embedprior.prior.config import NetworkConfig, ObjectiveConfig, PriorConfig, ProcessConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior
from embedprior.prior.search import candidates, sample_scores
from embedprior.prior.setup import Fitted
from embedprior.prior.trainer import train_prior

from .conftest import make_pairs, small_config

Pairs = tuple[PairArrays, PairArrays]


def first_logit(embedding: torch.Tensor) -> torch.Tensor:
    return embedding[:, 0] - 3.0


def auto(steps: int = 12) -> PriorConfig:
    return PriorConfig(settings="auto", training=TrainingConfig(steps=steps, batch=16))


def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped candidates with the smallest network, so that a test takes a second."""
    small = NetworkConfig(preset="tiny", dim=8, depth=1, heads=1, head_dim=8, inner=8)
    real = search.candidates

    def shrunk(config: PriorConfig, first_stage: PriorConfig | None = None) -> dict[str, search.Candidate]:
        found = real(config, first_stage)
        return {k: replace(c, config=c.config.model_copy(update={"network": small})) for k, c in found.items()}

    monkeypatch.setattr(search, "candidates", shrunk)


def test_settings_are_automatic_where_none_is_given_and_nothing_is_left_unread() -> None:
    assert PriorConfig().settings == "auto"
    assert PriorConfig(objective=ObjectiveConfig(bce=0.2)).settings == "auto"
    assert PriorConfig(training=TrainingConfig(lr=1e-3)).settings == "given"
    assert PriorConfig.model_validate(PriorConfig().model_dump()) == PriorConfig()
    kept = PriorConfig(settings="auto", training=TrainingConfig(steps=32, seed=7, precision="bf16", batch=8))
    for candidate in candidates(kept).values():
        training = candidate.config.training
        assert (training.steps, training.seed, training.precision, training.batch) == (32, 7, "bf16", 8)
    for section in ({"network": {"depth": 2}}, {"process": {"timesteps": 50}}, {"training": {"lr": 0.1}}):
        with pytest.raises(ValidationError, match="settings 'auto' chooses"):
            PriorConfig.model_validate({"settings": "auto", **section})


def test_the_best_candidate_is_trained_to_its_end_and_all_steps_are_counted(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    scored: list[np.ndarray] = []

    def kept(*given: Any) -> np.ndarray:
        scored.append(sample_scores(*given))
        return scored[-1]

    monkeypatch.setattr(search, "sample_scores", kept)
    prior = train_prior(*pairs, auto(), tmp_path, teacher=first_logit, show_progress=False)
    record = json.loads((tmp_path / "search.json").read_text())
    first, second = record["rounds"]
    assert set(first) == set(candidates(auto()))
    assert [len(one) for one in scored] == [len(pairs[1])] * 6
    by_name = dict(zip(candidates(auto()), scored[:4], strict=True))
    assert {name: float(each.mean()) for name, each in by_name.items()} == pytest.approx(first)
    # Behind the default, at the end of one standard error.
    behind = {name: each - by_name["ridge"] for name, each in by_name.items()}
    bound = {name: each.mean() + each.std(ddof=1) / len(each) ** 0.5 for name, each in behind.items()}
    assert set(second) == set(sorted(bound, key=lambda name: bound[name])[:2])
    left, other = (name for name in by_name if name in second)
    gain = scored[4] - scored[5]
    assert record["chosen"] == (other if gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5 else left)
    # Four candidates for 3 steps, two of them for 6, one for 12.
    assert record["steps"] == 2 * 3 + 6 + 12
    assert record["compared_by"].startswith("Brier score")
    assert prior.config.settings == "given"
    assert prior.record["search"]["chosen"] == record["chosen"]
    assert not (tmp_path / "candidates").exists()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["event"] == "start"
    monkeypatch.setattr(search, "successive_halving", None)
    again = train_prior(*pairs, auto(), tmp_path, teacher=first_logit, show_progress=False)
    x = pairs[1].condition
    np.testing.assert_array_equal(again.sample(x, 2, steps=4), prior.sample(x, 2, steps=4))


def test_candidates_are_ranked_by_the_brier_score_or_without_a_head_by_the_energy_score(
    pairs: Pairs, tmp_path: Path
) -> None:
    """Both by hand from samples; the energy score prefers the right spread to one half or twice of it."""
    prior, val = train_prior(*pairs, small_config(), tmp_path, show_progress=False), pairs[1]
    drawn = prior.sample(val.condition, 16, "dpm_solver", 8, 5, cases=[0] * len(val))
    chance = 1 / (1 + np.exp(3.0 - drawn[..., 0].astype(float)))
    real = 1 / (1 + np.exp(3.0 - val.target[:, 0].astype(float)))
    found = sample_scores(prior, val, first_logit, 5)
    np.testing.assert_allclose(found, (chance.mean(axis=1) - real) ** 2, rtol=1e-3, atol=1e-7)

    def energy(scale: float) -> float:
        drawn = prior.sample(val.condition, 16, "dpm_solver", 8, 5)
        wide = drawn.mean(axis=1, keepdims=True) + scale * (drawn - drawn.mean(axis=1, keepdims=True))
        stand_in = replace(prior)
        object.__setattr__(stand_in, "sample", lambda *_args, **_more: wide.astype(np.float32))
        return float(sample_scores(stand_in, val, None, 5).mean())

    units = prior.target_scaler
    samples = units.forward(prior.sample(val.condition, 16, "dpm_solver", 8, 5)).astype(float)
    error = [np.linalg.norm(s - z, axis=1).mean() for s, z in zip(samples, units.forward(val.target), strict=True)]
    apart = [np.linalg.norm(s[:8] - s[8:], axis=1).mean() for s in samples]
    assert energy(1.0) == pytest.approx(float(np.mean(error) - 0.5 * np.mean(apart)), rel=1e-4)


def test_a_second_stage_may_go_on_from_the_first_or_drop_it(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    drr = [replace(part, source="drr", ids=[f"drr-{name}" for name in part.ids]) for part in pairs]
    train_prior(*drr, auto(), tmp_path / "drr", teacher=first_logit, show_progress=False)
    second = train_prior(*pairs, auto(), tmp_path / "cxr", tmp_path / "drr", first_logit, show_progress=False)
    record = json.loads((tmp_path / "cxr" / "search.json").read_text())
    assert "from the first stage" in record["rounds"][0]
    goes_on = record["chosen"] == "from the first stage"
    assert sorted(second.condition_scalers) == (["cxr", "drr"] if goes_on else ["cxr"])


def test_only_the_candidate_that_goes_on_reads_the_first_stage(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    train_prior(*pairs, auto(), tmp_path / "first", show_progress=False)
    real, started = trainer.initial_prior, []

    def spy(train: PairArrays, val: PairArrays, config: PriorConfig, start: Prior | None, fitted: Fitted) -> Prior:
        started.append(start is not None)
        return real(train, val, config, start, fitted)

    monkeypatch.setattr(trainer, "initial_prior", spy)
    train_prior(*pairs, auto(), tmp_path / "second", tmp_path / "first", show_progress=False)
    assert started[:5] == [False, False, False, False, True]


def test_a_prior_without_null_branch_refuses_guidance(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    prior = train_prior(*pairs, auto(), tmp_path, show_progress=False)
    with pytest.raises(BadInput, match="trained without a null branch"):
        prior.sample(pairs[1].condition, 2, "ddim", 4, guidance=2.0)


def test_a_prior_that_has_not_learned_says_so(tmp_path: Path) -> None:
    """One step of training, and no regression to start from: it predicts the mean, which ridge beats by far."""
    pairs = make_pairs(300, 0), make_pairs(80, 1000)
    lazy = train_prior(*pairs, small_config(steps=1), tmp_path / "lazy", teacher=first_logit, show_progress=False)
    figures = lazy.record["validation"]
    real = lazy.target_scaler.forward(pairs[1].target)
    assert figures["error"]["mean"] == pytest.approx(float((real.astype(float) ** 2).mean()), rel=1e-5)
    expected = lazy.target_scaler.forward(lazy.one_step(pairs[1].condition))
    assert figures["error"]["prior"] == pytest.approx(float(((expected - real).astype(float) ** 2).mean()), rel=1e-5)
    assert figures["error"]["ridge"] < 0.2 < 0.9 < figures["error"]["prior"]
    assert any("has not learned" in caveat or "than a linear map" in caveat for caveat in lazy.caveats())
    assert any("lower Brier score" in caveat for caveat in lazy.caveats())
    stored = json.loads((tmp_path / "lazy" / "prior.json").read_text())
    assert stored["caveats"] == lazy.caveats()
    process = ProcessConfig(timesteps=50, regression="ridge", whitening=True, sigma_data=1.0)
    config = small_config(steps=1).model_copy(update={"process": process})
    linear = train_prior(*pairs, config, tmp_path / "linear", teacher=first_logit, show_progress=False)
    assert linear.caveats() == []
    assert 0.9 < linear.record["validation"]["spread_ratio"] < 1.1


def test_labels_of_one_class_leave_the_aucs_out_with_the_reason(pairs: Pairs, tmp_path: Path) -> None:
    prior = train_prior(*pairs, small_config(steps=1), tmp_path, show_progress=False)
    labelled = [replace(part, labels=np.ones(len(part))) for part in pairs]
    assert assess(prior, *labelled, first_logit)["auc_reason"] == "the validation pairs do not hold both classes"
    labelled = [replace(part, labels=(part.target[:, 0] > 3.0).astype(float)) for part in pairs]
    found = assess(prior, *labelled, first_logit)
    assert found["auc"]["direct"] > 0.8
    assert "brier" not in assess(prior, *pairs, None)


def test_an_outlier_that_sets_its_dimensions_scale_is_named(pairs: Pairs, tmp_path: Path) -> None:
    far = pairs[0].target.copy()
    far[7, 2] = 1e6
    prior = train_prior(replace(pairs[0], target=far), pairs[1], small_config(steps=1), tmp_path, show_progress=False)
    (caveat,) = [text for text in prior.caveats() if "outlier" in text]
    assert caveat.startswith("the target embedding of pair 'pair-7' has a value of 1e+06 in dimension 2")
    usual = train_prior(*pairs, small_config(steps=1), tmp_path / "usual", show_progress=False)
    assert not any("outlier" in text for text in usual.caveats())


def test_a_network_that_predicts_noise_is_judged_by_the_mean_of_its_samples(tmp_path: Path) -> None:
    """Its one-step output is the training mean whatever it has learned, which is said."""
    parts = make_pairs(400, 0), make_pairs(100, 1000)
    config = small_config(steps=400, batch=64, lr=3e-3, validate_every=100, ema=0.95)
    config = config.model_copy(update={"process": ProcessConfig(timesteps=50, prediction="epsilon")})
    prior = train_prior(*parts, config, tmp_path, show_progress=False)
    error = prior.record["validation"]["error"]
    assert error["prior"] < 0.3 * error["mean"]
    assert any("one-step output is next to the training mean" in text for text in prior.caveats())
    one_step = prior.target_scaler.forward(prior.one_step(parts[1].condition))
    assert float(np.square(one_step).mean()) < 0.01


def test_each_warning_has_its_own_reason() -> None:
    fine = {"error": {"prior": 0.5, "ridge": 0.5, "mean": 1.0}, "spread_ratio": 1.0}
    assert warnings(fine) == []
    assert "0.60 times the spread" in warnings(fine | {"spread_ratio": 0.6})[0]
    worse = {"error": {"prior": 0.6, "ridge": 0.5, "mean": 1.0}, "spread_ratio": 1.0}
    assert "less than a linear map" in warnings(worse)[0]
    lost = fine | {"brier": {"prior": 0.2, "ridge": 0.3, "direct": 0.1}}
    assert warnings(lost) == [
        "regression of the head's probability has the lower Brier score on the validation pairs: 0.1000 to 0.2000"
    ]
    assert warnings(fine | {"brier": {"prior": 0.0012, "ridge": 0.0003, "direct": 0.3}}) == []


def test_validation_pairs_without_labels_keep_the_last_step_where_only_labels_are_learned(tmp_path: Path) -> None:
    parts = [make_pairs(40, 0), make_pairs(16, 1000)]
    labelled = replace(parts[0], labels=(parts[0].target[:, 0] > 3.0).astype(float))
    config = small_config().model_copy(update={"objective": ObjectiveConfig(l2=0.0, bce=1.0, bce_target="labels")})
    head = torch.nn.Linear(6, 1)
    prior = train_prior(labelled, parts[1], config, tmp_path, teacher=head, show_progress=False)
    assert json.loads((tmp_path / "resume.json").read_text())["best_step"] == 20
    assert any("the last step was kept" in caveat for caveat in prior.caveats())
    both = [replace(part, labels=(part.target[:, 0] > 3.0).astype(float)) for part in parts]
    chosen = train_prior(*both, config, tmp_path / "labelled", teacher=head, show_progress=False)
    assert not any("the last step" in caveat for caveat in chosen.caveats())


def test_a_network_that_learned_nothing_has_no_share_in_x0hat(tmp_path: Path) -> None:
    """Its output is then the linear denoiser's, which samples the Gaussian remainder exactly."""
    pairs = make_pairs(300, 0), make_pairs(80, 1000)
    process = ProcessConfig(timesteps=50, regression="ridge", whitening=True)
    config = small_config(steps=1).model_copy(update={"process": process})
    prior = train_prior(*pairs, config, tmp_path, show_progress=False)
    assert prior.variance is not None
    assert prior.variance.share is not None
    # c_skip of edm takes the data to be narrower than they are: at mid noise the linear denoiser is better alone.
    assert prior.variance.share[len(prior.variance.share) // 2] < 0.2
    assert Prior.load(tmp_path).variance.share.tolist() == prior.variance.share.tolist()  # type: ignore[union-attr]
    drawn = prior.sample(pairs[1].condition, 64, steps=16).astype(float)
    spread = np.sqrt(drawn.var(axis=1, ddof=1).mean() / np.square(pairs[1].target - drawn.mean(axis=1)).mean())
    assert spread == pytest.approx(1.0, abs=0.12)
