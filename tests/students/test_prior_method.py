"""How a prior is scored: the mean of the head over samples, of the radiograph alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from embedprior.prior.config import NetworkConfig, PriorConfig, ProcessConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior
from embedprior.prior.samplers import Conditions, Denoise
from embedprior.prior.setup import initial_prior
from embedprior.students.base import Cases
from embedprior.students.prior_method import PriorStudent

DIM = 6


class Head:
    """Reads the first dimension."""

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        return 3.0 * embeddings[:, 0]


def cases_of(cxr: np.ndarray, label: np.ndarray | None = None) -> Cases:
    names, unknown = [f"x{i}" for i in range(len(cxr))], np.full(len(cxr), np.nan)
    return Cases(names, names, unknown if label is None else label, cxr.astype(np.float32), None, unknown)


class Exact(Prior):
    """A prior that knows p(z_CT | z_CXR) = N(regression, 1): the posterior mean in closed form."""

    def denoiser(self, given: Conditions, samples: int, guidance: float) -> Denoise:
        assert given.ridge_prediction is not None
        ridge = given.ridge_prediction.repeat_interleave(samples, dim=0)

        def denoise(x: torch.Tensor, n: int) -> torch.Tensor:
            signal = float(np.sqrt(self.schedule.alpha_bar[n]))
            return ridge + signal * (x - signal * ridge)

        return denoise


@pytest.fixture(scope="module")
def student() -> PriorStudent:
    rng = np.random.default_rng(0)
    parts = []
    for name, count in (("t", 300), ("v", 100)):
        cxr = rng.standard_normal((count, DIM)).astype(np.float32)
        ct = (0.3 * cxr + rng.standard_normal((count, DIM))).astype(np.float32)
        parts.append(PairArrays(cxr, ct, [f"{name}{i}" for i in range(count)], "cxr"))
    config = PriorConfig(
        network=NetworkConfig(preset="tiny", dim=16, depth=1, heads=1, head_dim=8, inner=16),
        process=ProcessConfig(timesteps=50, regression="ridge"),
    )
    prior = initial_prior(parts[0], parts[1], config, None)
    return PriorStudent(Exact(**vars(prior)), Head(), 4, "ddpm_small", 25, 5)


def test_a_score_depends_on_its_radiograph_alone(student: PriorStudent) -> None:
    cxr = np.random.default_rng(1).standard_normal((10, DIM))
    together = student.scores(cases_of(cxr))
    np.testing.assert_allclose(student.scores(cases_of(cxr[::-1])), together[::-1], rtol=1e-5)
    np.testing.assert_allclose(student.scores(cases_of(cxr[7:8])), together[7:8], rtol=1e-5)
    twice = student.scores(cases_of(np.repeat(cxr[:1], 3, axis=0)))
    np.testing.assert_allclose(twice, together[0], rtol=1e-5)


def test_a_score_is_the_mean_of_the_heads_probability_over_its_samples(student: PriorStudent) -> None:
    one = cases_of(np.random.default_rng(1).standard_normal((1, DIM)))
    drawn = student.generate(one)
    assert drawn.shape == (1, 4, DIM)
    np.testing.assert_allclose(student.scores(one), expit(3.0 * drawn[..., 0].astype(float)).mean(axis=1), rtol=1e-5)


def test_generated_embeddings_of_alike_radiographs_differ(student: PriorStudent) -> None:
    alike = cases_of(np.zeros((5, DIM)))
    assert np.ptp(student.generate(alike)[:, 0], axis=0).min() > 0.5
    assert np.ptp(student._drawn(alike, [0] * 5)[:, 0], axis=0).max() < 1e-5


def test_few_samples_rank_cases_as_many_do(student: PriorStudent) -> None:
    """Independent noise of 4 samples would blur the ranking; shared noise does not."""
    rng = np.random.default_rng(2)
    cxr = rng.standard_normal((600, DIM))
    label = (rng.random(600) < expit(4.0 * cxr[:, 0])).astype(float)
    shared = roc_auc_score(label, student.scores(cases_of(cxr)))
    own = roc_auc_score(label, expit(3.0 * student.generate(cases_of(cxr))[..., 0]).mean(axis=1))
    assert shared > own + 0.02


def test_sampling_advances_the_bar_by_one_step_of_every_case(
    student: PriorStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int] = []
    steps: list[int] = []

    class Spy:
        def __enter__(self) -> Spy:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, count: int) -> None:
            steps.append(count)

    def bar(desc: str, total: int) -> Spy:
        totals.append(total)
        return Spy()

    monkeypatch.setattr("embedprior.prior.model.inner_bar", bar)
    student.scores(cases_of(np.zeros((10, DIM))))
    assert totals == [10 * student.steps]
    assert sum(steps) == 10 * student.steps
    student.prior.sample(np.zeros((2, DIM), np.float32), 1, "ddpm_small", 5)
    assert len(totals) == 1  # not asked for
