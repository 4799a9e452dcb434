from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from embedprior.cache import EmbeddingCache, open_cache, write_cache
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.nn.network import Mlp
from embedprior.prior.config import GenerateConfig
from embedprior.prior.generate import Generated, generate, noise_key, path, standardised
from embedprior.prior.model import Prior
from embedprior.prior.trainer import train_prior
from embedprior.teachers.teacher import TeacherHead, train_head

from .conftest import make_pairs, small_config

COUNT = 20
CONFIG = GenerateConfig(steps=4, samples=6, batch=8)


def spec(name: str, dim: int, tokens: int | None = None) -> EncoderSpec:
    return EncoderSpec(
        name=name, modality="CXR", dim=dim, token_dim=tokens, source="test", weights_sha256="none", licence="none",
        profile={}, pooling="none",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prior")
    train_prior(make_pairs(40, 0), make_pairs(16, 1000), small_config(), out, show_progress=False)
    return out


@pytest.fixture(scope="module")
def prior(folder: Path) -> Prior:
    return Prior.load(folder)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    rows = make_pairs(COUNT, 5000).condition
    return write_cache(tmp_path / "cxr", spec("cxr", 5), names(), [f"s{i}" for i in range(COUNT)], rows)


@pytest.fixture(scope="module")
def head() -> TeacherHead:
    """A head so steep that its mean over samples and its value at their mean are far apart."""
    pairs = make_pairs(60, 0)
    label = (pairs.target[:, 0] > 3).astype(float)
    found = train_head(pairs.target, label, pairs.target[:0], label[:0], FitConfig(steps=200, lr=2e-2, hidden=8), 0)
    last = found.network.layers[-1]
    with torch.no_grad():
        last.weight.mul_(100.0)
        last.bias.mul_(100.0)
    return found


def names() -> list[str]:
    return [f"x{i}" for i in range(COUNT)]


def matrices(made: Generated) -> dict[str, np.ndarray]:
    return {name: cache.take(names()) for name, cache in made.caches.items()}


def test_three_outputs_are_kept_apart_and_are_what_they_say(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path
) -> None:
    made = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out")
    condition, keys = cache.take(names()), [noise_key(name) for name in names()]
    drawn = prior.sample(condition, 6, "analytic", 4, 0, "cxr", cases=keys)
    found = matrices(made)
    assert sorted(found) == ["mean", "one_step", "sample"]
    np.testing.assert_allclose(found["sample"], drawn[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["mean"], drawn.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(found["one_step"], prior.one_step(condition, seed=0, cases=keys), atol=1e-5)
    keys_of = {str(open_cache(tmp_path / "out" / name).key["encoder"]) for name in found}
    assert keys_of == {"prior-sample", "prior-mean", "prior-one-step"}
    assert made.scores is None


def test_the_order_the_batch_and_the_neighbours_change_nothing(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path
) -> None:
    one = generate(prior, folder, cache, names(), CONFIG, tmp_path / "a")
    other = generate(prior, folder, cache, names()[::-1], CONFIG.model_copy(update={"batch": 3}), tmp_path / "b")
    few = generate(prior, folder, cache, ["x7"], CONFIG, tmp_path / "c")
    for name, rows in matrices(one).items():
        np.testing.assert_allclose(rows, matrices(other)[name], atol=1e-5)
        np.testing.assert_allclose(rows[7], few.caches[name].take(["x7"])[0], atol=1e-5)
        assert one.caches[name].key == other.caches[name].key


def test_the_noise_of_an_exam_is_keyed_by_its_id() -> None:
    digest = hashlib.sha256(b"x7").hexdigest()
    assert noise_key("x7") == int("".join(reversed([digest[i : i + 2] for i in range(0, 16, 2)])), 16)
    assert len({noise_key(name) for name in names()}) == COUNT


def test_a_stopped_generation_goes_on_and_computes_nothing_twice(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = matrices(generate(prior, folder, cache, names(), CONFIG, tmp_path / "whole"))
    real, calls = Prior.sample, []

    def stops(self: Prior, condition: np.ndarray, *rest: object, **more: object) -> np.ndarray:
        calls.append(len(condition))
        # The first call is the trial of one exam, before anything is written.
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, condition, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Prior, "sample", stops)
    with pytest.raises(KeyboardInterrupt):
        generate(prior, folder, cache, names(), CONFIG, tmp_path / "out")
    rest = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out")
    assert rest.drawn == COUNT - CONFIG.batch
    assert calls == [1, 8, 8, 1, 8, 4]
    for name, rows in matrices(rest).items():
        np.testing.assert_array_equal(rows, whole[name])
    assert generate(prior, folder, cache, names(), CONFIG, tmp_path / "out").drawn == 0
    assert len(calls) == 7


def test_a_radiograph_that_changed_is_drawn_again(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path
) -> None:
    before = matrices(generate(prior, folder, cache, names(), CONFIG, tmp_path / "out"))
    rows = cache.take(names())
    rows[3] += 1.0
    sources = [f"s{i}" if i != 3 else "new" for i in range(COUNT)]
    changed = write_cache(tmp_path / "changed", spec("cxr", 5), names(), sources, rows)
    again = generate(prior, folder, changed, names(), CONFIG, tmp_path / "out")
    assert again.drawn == 1
    differs = np.abs(matrices(again)["one_step"] - before["one_step"]).max(axis=1) > 0
    assert np.flatnonzero(differs).tolist() == [3]


def test_the_score_is_the_mean_of_the_heads_probability_not_the_head_of_the_mean(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path, head: TeacherHead, last_digits: float
) -> None:
    made = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out", head, "h")
    keys = [noise_key(name) for name in names()]
    drawn = prior.sample(cache.take(names()), 6, "analytic", 4, 0, "cxr", cases=keys)
    chance = np.stack([expit(head.logits(drawn[:, m])) for m in range(6)], axis=1)
    assert made.scores is not None
    table = made.scores.set_index("exam_id").loc[names()]
    np.testing.assert_allclose(table["mean_of_samples"], chance.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(table["one_sample"], chance[:, 0], atol=1e-5 * last_digits)
    np.testing.assert_allclose(table["sd_of_samples"], chance.std(axis=1), atol=1e-5)
    np.testing.assert_allclose(table["one_step"], expit(head.logits(made.caches["one_step"].take(names()))), atol=1e-5)
    assert np.abs(table["mean_of_samples"] - expit(head.logits(made.caches["mean"].take(names())))).max() > 1e-3


def test_another_head_reuses_the_embeddings(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path, head: TeacherHead
) -> None:
    first = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out", head, "h")
    second = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out", head, "other")
    assert {n: c.path for n, c in first.caches.items()} == {n: c.path for n, c in second.caches.items()}
    assert len(list((tmp_path / "out" / "scores").glob("prior-scores@*"))) == 2


FIELDS = {"sampler": "ddpm_small", "steps": 5, "samples": 3, "seed": 1, "guidance": 2.0, "source": "drr"}
CHANGED_BY = {"samples": {"mean"}, "seed": {"sample", "mean", "one_step"}}


def test_every_setting_is_covered_here() -> None:
    """``batch`` changes nothing (above); ``halves`` and ``replicates`` belong to the report (``test_quality``)."""
    assert set(GenerateConfig.model_fields) == {*FIELDS, "batch", "halves", "replicates"}


@pytest.mark.parametrize("field", ["sampler", "steps", "samples", "seed"])
def test_a_setting_that_changes_numbers_changes_the_key(
    field: str, prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path
) -> None:
    base = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out")
    other = generate(prior, folder, cache, names(), CONFIG.model_copy(update={field: FIELDS[field]}), tmp_path / "out")
    a, b = matrices(base), matrices(other)
    for name in a:
        same_numbers = bool(np.array_equal(a[name], b[name]))
        assert same_numbers == (base.caches[name].path == other.caches[name].path)
    assert {n for n in a if not np.array_equal(a[n], b[n])} == CHANGED_BY.get(field, {"sample", "mean"})


def test_guidance_and_source_reach_the_prior(prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="voids the variance table"):
        generate(prior, folder, cache, names(), CONFIG.model_copy(update={"guidance": 2.0}), tmp_path / "a")
    with pytest.raises(BadInput, match="unknown condition source 'drr'"):
        generate(prior, folder, cache, names(), CONFIG.model_copy(update={"source": "drr"}), tmp_path / "b")


def test_radiographs_of_another_encoder_or_size_are_refused(
    folder: Path, cache: EmbeddingCache, tmp_path: Path
) -> None:
    from dataclasses import replace

    stranger = replace(Prior.load(folder), encoders=("dinov2@12345678", ""))
    with pytest.raises(BadInput, match="condition encoder"):
        generate(stranger, folder, cache, names(), CONFIG, tmp_path / "out")
    narrow = TeacherHead(Mlp(2, 1, FitConfig(hidden=4)), FitConfig(hidden=4))
    with pytest.raises(BadInput, match=r"embeddings of 2\. Allowed: 6"):
        generate(Prior.load(folder), folder, cache, names(), CONFIG, tmp_path / "out", narrow, "h")
    assert not (tmp_path / "out").exists()
    wide = write_cache(tmp_path / "wide", spec("wide", 7), ["x0"], ["s"], np.zeros((1, 7), np.float32))
    with pytest.raises(BadInput, match=r"Allowed: \(N, 5\)"):
        generate(Prior.load(folder), folder, wide, ["x0"], CONFIG, tmp_path / "out")


def test_the_path_starts_at_noise_and_ends_at_the_sample(
    prior: Prior, folder: Path, cache: EmbeddingCache, tmp_path: Path
) -> None:
    made = generate(prior, folder, cache, names(), CONFIG, tmp_path / "out")
    start, _, end = path(prior, cache, names(), CONFIG)
    np.testing.assert_allclose(end, matrices(made)["sample"], atol=1e-5)
    noise = standardised(prior, {"start": start})["start"]
    # Pure noise: nothing of the condition in it.
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


def test_tokens_are_conditions_up_to_the_number_trained_for(prior: Prior, folder: Path, tmp_path: Path) -> None:
    row = make_pairs(1, 5000).condition
    flat = write_cache(tmp_path / "flat", spec("f", 5), ["a"], ["s"], row)
    one = write_cache(tmp_path / "one", spec("t", 5, 5), ["a"], ["s"], [row], tokens=True)
    drawn = [generate(prior, folder, each, ["a"], CONFIG, tmp_path / each.path.name).caches for each in (flat, one)]
    np.testing.assert_allclose(drawn[0]["mean"].take(["a"]), drawn[1]["mean"].take(["a"]), atol=1e-5)
    many = write_cache(tmp_path / "many", spec("u", 5, 5), ["a"], ["s"], [np.repeat(row, 3, axis=0)], tokens=True)
    with pytest.raises(BadInput, match="up to 1"):
        generate(prior, folder, many, ["a"], CONFIG, tmp_path / "out")
