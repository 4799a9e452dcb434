from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import r2_score

from embedprior import DiffusionPrior
from embedprior.errors import BadInput

MIXING = np.random.default_rng(7).normal(size=(3, 5))
NOISE = 1.5
TINY = {"network": {"dim": 16, "depth": 1, "inner": 16}, "training": {"batch": 16, "variance_nodes": 4}}


def pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """X-ray embeddings that are a noisy linear picture of the CT's: the posterior is Gaussian, in closed form."""
    rng = np.random.default_rng(seed)
    ct = rng.normal(size=(count, 3))
    return ct @ MIXING + NOISE * rng.normal(size=(count, 5)), ct


def posterior(cxr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.linalg.inv(np.eye(3) + MIXING @ MIXING.T / NOISE**2)
    return cxr @ MIXING.T / NOISE**2 @ covariance, covariance


@pytest.fixture(scope="module")
def fitted() -> DiffusionPrior:
    return DiffusionPrior(steps=400).fit(*pairs(600, 0))


def quick(**settings: object) -> DiffusionPrior:
    return DiffusionPrior(**{"steps": 10, "sampling_steps": 4, "config": TINY, **settings})  # type: ignore[arg-type]


def test_with_its_defaults_it_comes_near_the_posterior_in_closed_form(fitted: DiffusionPrior) -> None:
    cxr, ct = pairs(400, 1)
    mean, covariance = posterior(cxr)
    best = r2_score(ct, mean)
    assert best - 0.02 < fitted.score(cxr, ct) < best + 0.02
    drawn = fitted.sample(cxr, n_samples=32)
    assert np.abs(drawn.mean(axis=1) - mean).mean() < 0.2
    spread = np.einsum("nmi,nmj->ij", *(2 * [drawn - drawn.mean(axis=1, keepdims=True)])) / (400 * 31)
    assert 0.75 < np.trace(spread) / np.trace(covariance) < 1.25
    # its draws have the spread of real CT embeddings, which the mean lacks
    assert drawn[:, 0].var(axis=0).sum() > 1.3 * fitted.predict(cxr).var(axis=0).sum()


def test_the_mean_of_the_head_over_draws_is_not_the_head_of_the_mean(fitted: DiffusionPrior) -> None:
    """For p(y | z) = z₁² > 1, the head at the mean knows nothing of the spread; the closed form says what is right."""
    from scipy.stats import norm

    cxr, _ = pairs(200, 2)
    mean, covariance = posterior(cxr)
    sd = np.sqrt(covariance[0, 0])
    right = norm.sf((1 - mean[:, 0]) / sd) + norm.cdf((-1 - mean[:, 0]) / sd)

    def head(z: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(z[:, 0]) > 1, dtype=float)

    wrong = np.abs(head(fitted.predict(cxr)) - right).mean()
    assert np.abs(fitted.predict_head(cxr, head, n_samples=32) - right).mean() < wrong / 2


def test_it_keeps_scikit_learns_manners() -> None:
    prior = DiffusionPrior(steps=7, seed=3, config=TINY)
    assert clone(prior).get_params() == prior.get_params()
    assert prior.set_params(steps=9) is prior
    assert prior.steps == 9
    assert "steps=9" in repr(prior)
    fitted = prior.fit(*pairs(40, 0))
    assert fitted is prior
    assert (prior.n_features_in_, prior.n_outputs_) == (5, 3)
    assert prior.get_params()["config"] is TINY


def test_the_seed_decides_every_number() -> None:
    cxr, ct = pairs(60, 0)
    first, again, other = (quick(seed=s).fit(cxr, ct) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.sample(cxr, 2), again.sample(cxr, 2))
    assert not np.allclose(first.predict(cxr), other.predict(cxr))
    assert not np.allclose(first.sample(cxr, 2), first.sample(cxr, 2, seed=9))
    np.testing.assert_allclose(first.sample(cxr[:7], 2), first.sample(cxr, 2)[:7], atol=1e-5)


def test_arrays_lists_and_frames_give_the_same_prior() -> None:
    cxr, ct = pairs(40, 0)
    expected = quick().fit(cxr, ct).predict(cxr[:3])
    for X, y in (
        (cxr.tolist(), ct.tolist()),
        (cxr.astype(np.float32), ct.astype(np.float32)),
        (pd.DataFrame(cxr, index=range(7, 47)), pd.DataFrame(ct)),
    ):
        np.testing.assert_array_equal(quick().fit(X, y).predict(cxr[:3]), expected)


def test_no_patient_trains_and_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def spy(train: object, val: object, *rest: object, **more: object) -> object:
        seen.update(train=train, val=val)
        raise KeyboardInterrupt

    monkeypatch.setattr("embedprior.prior.trainer.train_prior", spy)
    groups = [f"p{n % 10}" for n in range(40)]
    with pytest.raises(KeyboardInterrupt):
        quick(val_fraction=0.3).fit(*pairs(40, 0), groups=groups)
    parts = {part: set(pairs.patients) for part, pairs in seen.items()}
    assert (len(parts["train"]), len(parts["val"])) == (7, 3)
    assert parts["train"].isdisjoint(parts["val"])
    assert parts["train"] | parts["val"] == set(groups)
    with pytest.raises(KeyboardInterrupt):
        quick().fit(*pairs(40, 0), validation=pairs(10, 1))
    assert (len(seen["train"]), len(seen["val"])) == (40, 10)


def test_a_saved_prior_gives_the_same_numbers(tmp_path: Path) -> None:
    cxr, ct = pairs(40, 0)
    prior = quick(sampler="ddim", seed=5).fit(cxr, ct)
    prior.save(str(tmp_path / "prior"))
    for folder in (tmp_path / "prior", str(tmp_path / "prior")):
        again = DiffusionPrior.load(folder)
        assert (again.sampler, again.sampling_steps, again.seed) == ("ddim", 4, 5)
        np.testing.assert_array_equal(again.sample(cxr, 2), prior.sample(cxr, 2))
    assert not [p for p in (tmp_path / "prior").rglob("*") if p.suffix in (".pt", ".pkl", ".npy")]
    (tmp_path / "prior" / "estimator.json").unlink()  # as train_prior.py leaves it
    np.testing.assert_array_equal(DiffusionPrior.load(tmp_path / "prior").predict(cxr[:1]).shape, (1, 3))


def test_several_condition_tokens_are_read() -> None:
    cxr, ct = pairs(40, 0)
    prior = quick().fit(np.stack([cxr, cxr + 1], axis=1), ct)
    assert prior.predict(np.stack([cxr, cxr + 1], axis=1)).shape == (40, 3)


X, Y = pairs(12, 0)
HOLED = np.where(np.arange(12)[:, None] == 4, np.nan, X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quick().fit(X, Y[:-1]), "X has 12 rows, y has 11"),
        (lambda: quick().fit(HOLED, Y), r"X holds a number that is not finite in rows \[4\] \(1 such\)"),
        (lambda: quick().fit(X, np.full_like(Y, np.inf)), "y holds a number that is not finite"),
        (lambda: quick().fit(X[0], Y), r"X has shape \(5,\). Allowed: \(N, D\) or \(N, tokens, D\).*X\[None\]"),
        (lambda: quick().fit(X, Y[:, 0]), r"y has shape \(12,\). Allowed: \(N, D\)"),
        (lambda: quick().fit(X[:0], Y[:0]), r"X has shape \(0, 5\)"),
        (lambda: quick().fit([["a"]], Y), "X is no array of numbers"),
        (lambda: quick().fit([[1], [1, 2]], Y), "X is no array of numbers"),
        (lambda: quick().fit(X, Y, groups=["one"] * 12), "1 patient given. Allowed: at least 2"),
        (lambda: quick().fit(X, Y, groups=["one"]), r"groups has shape \(1,\), but there are 12 pairs"),
        (lambda: quick().fit(X, Y, groups=[None, *"abcdefghijk"]), r"names no patient in rows \[0\]"),
        (lambda: quick().fit(X, Y, validation=(X, Y[:3])), "validation X has 12 rows, y has 3"),
        (lambda: quick().fit(X, Y, validation=(X[:, :4], Y)), "condition dimension: '5' in training, '4' in"),
        (lambda: quick(val_fraction=1.0).fit(X, Y), "val_fraction is 1.0"),
        (lambda: quick(config={"network": {"depht": 2}}).fit(X, Y), r"unknown key.*Did you mean 'depth'\?"),
        (lambda: quick(config="pe_papers").fit(X, Y), r"no configuration 'pe_papers'.*Did you mean 'pe_paper'\?"),
        (lambda: quick(steps=0).fit(X, Y), "steps.*greater than 0"),
        (lambda: quick().predict(X), r"not fitted. Next: fit\(X, y\)"),
        (lambda: quick().fit(X, Y).predict(X[:, :3]), r"Allowed: \(N, 5\)"),
        (lambda: quick().fit(X, Y).sample(HOLED), "not finite in rows"),
        (lambda: quick().fit(X, Y).sample(X, n_samples=0), "n_samples is 0"),
        (lambda: quick().fit(X, Y).predict_head(X, lambda z: z), r"the head gave shape \(768, 3\).*predict_proba"),
        (lambda: DiffusionPrior.load("nowhere"), "nowhere holds no trained prior"),
    ],
)
def test_what_can_not_be_used_is_refused(call, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()
