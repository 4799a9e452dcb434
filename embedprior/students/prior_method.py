"""The diffusion prior as a method: sample CT embeddings from a radiograph, average the frozen head over them."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit
from torch import Tensor

from embedprior.config import parse_config
from embedprior.nn.search import Search
from embedprior.nn.stages import StageWeight
from embedprior.prior.assessment import assess
from embedprior.prior.config import NetworkConfig, ObjectiveConfig, PriorConfig, ProcessConfig, SamplerName, Source
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior, new_network
from embedprior.prior.regression import coefficients
from embedprior.prior.search import RECORD, candidates
from embedprior.prior.trainer import METRICS, train_prior
from embedprior.runs import artifact, hash_array, hash_of, read_json, seed_for, write_json
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Head, Recent, Stage, shuffled_stage
from embedprior.students.config import Budget
from embedprior.students.fit_summary import FitSummary
from embedprior.students.student import head_size, save_head
from embedprior.teachers.teacher import TeacherHead

CODE_TAG = "prior-6"
DRAWN = Recent[Float[np.ndarray, "cases samples ct_dim"]](4)
"""Samples of the latest priors that serve several heads: of a prior and its control, for ``val`` and ``test``."""
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
        fit_summary: what the fit cost; None when it was read from a folder.
        shared_as: key of the prior among those whose samples serve several heads; empty where they serve one.
    """

    prior: Prior
    head: Head
    samples: int
    sampler: SamplerName
    steps: int
    seed: int
    fit_summary: FitSummary | None = field(default=None, compare=False)
    shared_as: str = field(default="", compare=False)
    kind: ClassVar[str] = "prior"

    def generate(self, cases: Cases) -> Float[np.ndarray, "cases samples ct_dim"]:
        """Return samples of the CT embedding, each case with a noise of its own."""
        return self._drawn(cases, range(len(cases)))

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the mean over samples of the head's probability."""
        return np.asarray(self.sample_scores(cases).mean(axis=1))

    def sample_scores(self, cases: Cases) -> Float[np.ndarray, "cases samples"]:
        """Return the head's probability of every sample."""
        # One noise for all cases: a score depends on its radiograph alone, and the chance of a few samples moves all of
        # them alike, so it does not reorder them.
        drawn = self._drawn(cases, [0] * len(cases))
        logits = self.head.logits(drawn.reshape(-1, drawn.shape[-1]))
        return np.asarray(expit(logits.astype(np.float64)).reshape(drawn.shape[:2]))

    def _drawn(self, cases: Cases, keys: Sequence[int]) -> Float[np.ndarray, "cases samples ct_dim"]:
        def draw() -> Float[np.ndarray, "cases samples ct_dim"]:
            drawn = self.prior.sample(
                cases.cxr, self.samples, self.sampler, self.steps, self.seed, _source(cases), cases=keys, progress=True
            )
            return np.asarray(drawn)

        if not self.shared_as:
            return draw()
        asked = [self.samples, self.sampler, self.steps, self.seed, _source(cases), list(keys)]
        return DRAWN.get(hash_of([self.shared_as, hash_array(cases.cxr), asked]), draw)

    def save(self, folder: Path) -> None:
        """Write prior, head and how they are sampled (safetensors and JSON)."""
        for name in ("prior", "head"):
            (folder / name).mkdir(exist_ok=True)
        self.prior.save(folder / "prior")
        save_head(self.head, folder / "head")
        settings = {"samples": self.samples, "sampler": self.sampler, "steps": self.steps, "seed": self.seed}
        write_json(folder / "sampling.json", settings)

    @classmethod
    def load(cls, folder: Path) -> PriorStudent:
        """Read a prior student back; runs no code from the files."""
        prior, head = Prior.load(folder / "prior"), TeacherHead.load(folder / "head")
        return cls(prior, head, **read_json(folder / "sampling.json"))


@dataclass(frozen=True)
class PriorMethod:
    """Train one prior stage after stage (pretraining on DRRs, fine-tuning on real radiographs).

    It learns from every pair, labelled or not; labels are read by the objective terms that need them alone.

    Attributes:
        budget: settings of each stage, and how the prior is sampled.
        objective: weights of the losses over those of the budget's stages (see ``prior.config.ObjectiveConfig``).
        pretraining: learn from the DRR–CT pairs first, where there are any.
        shuffled: the null control. Training and validation pairs are shuffled between patients, in every stage; the
            radiographs it scores are untouched. Scores above chance would mean that something other than the pairing
            carries the label.
    """

    budget: Budget = field(default_factory=Budget)
    objective: Mapping[str, Any] = field(default_factory=dict)
    pretraining: bool = True
    shuffled: bool = False
    name: str = "prior"
    needs_ct: bool = False
    uses_ct: bool = True
    budget_part: ClassVar[str] = "prior"
    version: ClassVar[int] = 6

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Train the prior; one that was trained on the same pairs with the same settings is reused.

        Raises:
            CannotFit: there is no teacher head to score the samples with, or no label that the objective needs.
        """
        started, head = perf_counter(), data.head()
        with tempfile.TemporaryDirectory(prefix="embedprior-") as scratch:
            root = self.budget.artifacts or Path(scratch)
            before: Path | None = None
            steps, history = 0, list[dict[str, Any]]()
            for number, stage in enumerate(data.stages if self.pretraining else data.stages[-1:]):
                config = self._config(min(number, len(self.budget.stages) - 1))
                pairs = shuffled_stage(stage, seed) if self.shuffled else stage
                pairs = pairs if len(pairs.val) else _set_aside(pairs.train, seed)
                before = self._train(pairs, config, head, seed, root, before)
                steps += _steps_taken(before)
                history += [{"stage": number, **line} for line in _metrics(before)]
            assert before is not None
            prior, search = Prior.load(before), _search(before)
        learned = assess(prior, _arrays(pairs.train, labels=True), _arrays(pairs.val, labels=True), _as_function(head))
        trainable = sum(p.numel() for p in prior.network.parameters()) + prior.regression_size
        names = tuple(
            n for n in ("l2", *prior.config.objective.auxiliary_weights) if n != "l2" or prior.config.objective.l2
        )
        fit_summary = FitSummary(
            trainable, trainable + head_size(head), steps, perf_counter() - started, names, tuple(history),
            _taken_over(prior), search, learned=learned,
        )  # fmt: skip
        budget = self.budget
        shared_as = f"{root}/{before.name}" if budget.shared_by_labels else ""
        return PriorStudent(
            prior, head, budget.samples, budget.sampler, budget.steps, seed_for(seed, "samples"), fit_summary, shared_as
        )

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these, without training."""
        cases, config = data.target.train, self._config(0)
        if config.settings == "auto":
            config = next(iter(candidates(config).values())).config
        trainable = _network_size(config.network, config.process, cases.cxr.shape[1], cases.paired_ct().shape[1])
        return trainable, trainable + head_size(data.teacher)

    def _config(self, stage: int) -> PriorConfig:
        config = self.budget.stages[stage]
        changed = {**config.objective.model_dump(), **self.objective}
        if self.budget.balance != "none" and changed["bce"] > 0 and changed["bce_target"] == "labels":
            changed["bce_balanced"] = True
        return config.model_copy(update={"objective": parse_config(ObjectiveConfig, changed, self.name)})

    def _train(self, stage: Stage, config: PriorConfig, head: Head, seed: int, root: Path, before: Path | None) -> Path:
        config = config.model_copy(
            update={"training": config.training.model_copy(update={"seed": seed_for(seed, "prior") % 2**31})}
        )
        reads = config.objective
        labels = reads.proto > 0 or (reads.bce > 0 and reads.bce_target == "labels")
        if labels and len(np.unique(stage.train.label[stage.train.known])) < 2:
            raise CannotFit(f"{self.name}: the labelled training pairs hold fewer than two classes")
        train, val = (_arrays(cases, labels) for cases in (stage.train, stage.val))
        inputs = {"train": _digest(train), "val": _digest(val), "init": before.name if before else "none"}
        teacher = None
        if reads.bce > 0 or (config.settings == "auto" and not self.budget.shared_by_labels):
            inputs["head"] = hash_array(head.logits(np.concatenate([train.target, val.target])))
            # Only the cross-entropy needs a gradient; a head that is no network can judge candidates as well.
            teacher = cast(Callable[[Tensor], Tensor], head) if callable(head) else _as_function(head)

        def build(work: Path) -> None:
            train_prior(train, val, config, work, init_from=before, teacher=teacher)

        return artifact("prior", inputs, config, CODE_TAG, build, root).path


@functools.cache
def _network_size(network: NetworkConfig, process: ProcessConfig, cxr_dim: int, ct_dim: int) -> int:
    with torch.random.fork_rng(devices=[]):
        built = new_network(PriorConfig(network=network, process=process), cxr_dim, ct_dim, 1)
    regression = coefficients(process.regression, cxr_dim, ct_dim)
    return sum(p.numel() for p in built.parameters()) + regression


def _as_function(head: Head) -> Callable[[Tensor], Tensor]:
    """Return tensors ↦ logits, without gradient."""
    return lambda embeddings: torch.from_numpy(np.asarray(head.logits(embeddings.cpu().numpy()))).to(embeddings.device)


def _steps_taken(folder: Path) -> int:
    """Of all candidates, where settings were searched; training may stop before its last step (``patience``)."""
    if (folder / RECORD).is_file():
        return int(read_json(folder / RECORD)["steps"])
    return max(int(line["step"]) for line in _metrics(folder))


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def _search(folder: Path) -> Search | None:
    """Return how the settings of a stage were chosen, its cost in trainings of the chosen candidate's length."""
    if not (folder / RECORD).is_file():
        return None
    record = read_json(folder / RECORD)
    steps = int(record["settings"]["training"]["steps"])
    return Search(record["chosen"], tuple(record["rounds"]), (record["steps"] - steps) / steps)


def _taken_over(prior: Prior) -> StageWeight | None:
    """Return what the regression of the last stage took over of the one before; None where there is none of either."""
    fitted = prior.regressions.get("cxr")
    return None if fitted is None else fitted.first_stage


def _set_aside(cases: Cases, seed: int) -> Stage:
    patients = sorted(set(cases.patient_ids))
    if len(patients) < 2:
        raise CannotFit("a prior needs training pairs of at least two patients: one for its variance table")
    rng = np.random.default_rng(seed_for(seed, "patients set aside"))
    aside = set(rng.permutation(patients)[: max(1, round(SET_ASIDE * len(patients)))])
    is_aside = np.array([patient in aside for patient in cases.patient_ids])
    return Stage(cases.take(np.flatnonzero(~is_aside)), cases.take(np.flatnonzero(is_aside)))


def _arrays(cases: Cases, labels: bool) -> PairArrays:
    return PairArrays(
        condition=np.asarray(cases.cxr, dtype=np.float32),
        target=np.asarray(cases.paired_ct(), dtype=np.float32),
        ids=list(cases.exam_ids),
        source=_source(cases),
        labels=cases.label if labels else None,
        patients=list(cases.patient_ids),
    )


def _source(cases: Cases) -> Source:
    return "drr" if cases.source == "drr" else "cxr"


def _digest(pairs: PairArrays) -> str:
    labels = "" if pairs.labels is None else hash_array(pairs.labels)
    patients = list(pairs.patients or [])
    return hash_of([pairs.source, pairs.ids, patients, hash_array(pairs.condition), hash_array(pairs.target), labels])
