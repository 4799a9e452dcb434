"""The diffusion prior as a method: sample CT embeddings from a radiograph, average the frozen head over them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.prior.config import PriorConfig, SamplerName, Source
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior
from embedprior.prior.training import train_prior
from embedprior.runs import artifact, hash_array, hash_of, seed_for
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Head, Stage

CODE_TAG = "prior-1"
SET_ASIDE = 0.2
"""Share of the training patients that measure the variance and choose the step when no validation case is given."""


@dataclass(frozen=True)
class PriorStudent:
    """A trained prior and the frozen head.

    Attributes:
        prior: p(z_CT | z_CXR).
        head: the matching layer.
        samples: drawn per case.
        sampler: name of the sampler.
        steps: network calls per sample.
        seed: of the samples.
        folder: where the prior is kept.
    """

    prior: Prior
    head: Head
    samples: int
    sampler: SamplerName
    steps: int
    seed: int
    folder: Path

    def generate(self, cases: Cases) -> Float[np.ndarray, "cases samples ct_dim"]:
        """Return samples of the CT embedding."""
        return np.asarray(
            self.prior.sample(cases.cxr, self.samples, self.sampler, self.steps, self.seed, _source(cases))
        )

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the mean over samples of the head's probability."""
        drawn = self.generate(cases)
        logits = self.head.logits(drawn.reshape(-1, drawn.shape[-1]))
        return np.asarray(expit(logits.astype(np.float64)).reshape(drawn.shape[:2]).mean(axis=1))


@dataclass(frozen=True)
class PriorMethod:
    """Train one prior stage after stage (pretraining on DRRs, fine-tuning on real radiographs).

    Attributes:
        stages: settings of each stage, first to last; the last one serves any further stage.
        folder: root under which trained priors are kept as artifacts; None keeps them for this process only.
        samples: CT embeddings drawn per case.
        sampler: see ``embedprior.prior``.
        steps: network calls per sample.
    """

    stages: tuple[PriorConfig, ...] = field(default_factory=lambda: (PriorConfig(),))
    folder: Path | None = None
    samples: int = 8
    sampler: SamplerName = "analytic"
    steps: int = 64
    name: str = "prior"
    needs_ct: bool = False
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Train the prior; one that was trained on the same pairs with the same settings is reused.

        Raises:
            CannotFit: there is no teacher head to score the samples with.
        """
        head = data.head()
        root = self.folder if self.folder is not None else Path(tempfile.mkdtemp(prefix="embedprior-"))
        before: Path | None = None
        for number, stage in enumerate(data.stages):
            config = self.stages[min(number, len(self.stages) - 1)]
            before = self._train(self.pairs_of(stage, seed), config, seed, root, before)
        assert before is not None
        return PriorStudent(
            Prior.load(before), head, self.samples, self.sampler, self.steps, seed_for(seed, "samples"), before
        )

    def pairs_of(self, stage: Stage, seed: int) -> Stage:
        """Return the pairs the prior is trained on."""
        return stage

    def _train(self, stage: Stage, config: PriorConfig, seed: int, root: Path, before: Path | None) -> Path:
        config = config.model_copy(
            update={"training": config.training.model_copy(update={"seed": seed_for(seed, "prior") % 2**31})}
        )
        stage = stage if len(stage.val) else _set_aside(stage.train, seed)
        train, val = _arrays(stage.train), _arrays(stage.val)
        inputs = {"train": _digest(train), "val": _digest(val), "init": before.name if before else "none"}

        def build(work: Path) -> None:
            train_prior(train, val, config, work, init_from=before)

        return artifact("prior", inputs, config, CODE_TAG, build, root).path


@dataclass(frozen=True)
class ShuffledPriorMethod(PriorMethod):
    """The null control: the same prior, its training and validation pairs shuffled between patients.

    Shuffled in every stage and only inside the training fold; the radiographs it scores are untouched. Scores
    above chance would mean that something other than the pairing carries the label.
    """

    name: str = "prior-shuffled"

    def pairs_of(self, stage: Stage, seed: int) -> Stage:
        """Return the pairs with CT embeddings permuted."""
        return Stage(_shuffled(stage.train, seed, "train"), _shuffled(stage.val, seed, "val"))


def _set_aside(cases: Cases, seed: int) -> Stage:
    patients = sorted(set(cases.patient_ids))
    if len(patients) < 2:
        raise CannotFit("a prior needs training pairs of at least two patients: one for its variance table")
    rng = np.random.default_rng(seed_for(seed, "patients set aside"))
    aside = set(rng.permutation(patients)[: max(1, round(SET_ASIDE * len(patients)))])
    is_aside = np.array([patient in aside for patient in cases.patient_ids])
    return Stage(cases.take(np.flatnonzero(~is_aside)), cases.take(np.flatnonzero(is_aside)))


def _shuffled(cases: Cases, seed: int, part: str) -> Cases:
    rng = np.random.default_rng(seed_for(seed, "shuffled pairs", cases.source, part))
    return replace(cases, ct=cases.paired_ct()[rng.permutation(len(cases))])


def _arrays(cases: Cases) -> PairArrays:
    return PairArrays(
        condition=np.asarray(cases.cxr, dtype=np.float32),
        target=np.asarray(cases.paired_ct(), dtype=np.float32),
        ids=list(cases.exam_ids),
        source=_source(cases),
    )


def _source(cases: Cases) -> Source:
    return "drr" if cases.source == "drr" else "cxr"


def _digest(pairs: PairArrays) -> str:
    return hash_of([pairs.source, pairs.ids, hash_array(pairs.condition), hash_array(pairs.target)])
