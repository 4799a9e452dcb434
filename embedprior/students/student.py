"""A method that trains the shared student by an objective of its own, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from scipy.special import expit

from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.nn.training import contiguous
from embedprior.runs import read_json, write_json
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Head, Stage, shuffled_stage
from embedprior.students.config import Budget, InputKind
from embedprior.students.network import StudentNetwork, new_student
from embedprior.students.training import CaseTensors, FitSummary, Objective, to_tensors, train_student
from embedprior.teachers.teacher import TeacherHead

WEIGHTS, SETTINGS = "student.safetensors", "network.json"


@dataclass(frozen=True)
class LogitStudent:
    """A trained student network.

    Attributes:
        network: from radiograph to logit.
        fit_summary: what the fit cost; None when it was read from a folder.
    """

    network: StudentNetwork
    fit_summary: FitSummary | None = field(default=None, compare=False)
    kind: ClassVar[str] = "student"

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return sigmoid of the logit."""
        return np.asarray(expit(self.network.logits(cases).astype(np.float64)))

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON)."""
        save_file(contiguous(self.network.state_dict()), folder / WEIGHTS)
        write_json(folder / SETTINGS, {**self.network.settings, "config": self.network.config})

    @classmethod
    def load(cls, folder: Path) -> LogitStudent:
        """Read a student back; runs no code from the file."""
        settings = read_json(folder / SETTINGS)
        config = parse_config(FitConfig, settings.pop("config"), str(folder / SETTINGS))
        network = StudentNetwork(config=config, **settings)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return cls(network.eval())


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a radiograph's and a CT's embedding."""

    cxr: int
    ct: int


@dataclass(frozen=True)
class StudentMethod:
    """Base of every method that trains the shared student; a subclass gives ``objective``.

    Attributes:
        budget: the same for every row.
        inputs: what the student reads: ``embedding``, ``tokens`` or ``pixels``.
        pretraining: learn from the DRR–CT pairs first, where there are any.
        shuffled: the null control: pairs shuffled between patients.
        name: of the row.
        needs_ct: false: a student sees radiographs alone.
        uses_ct: whether CT takes part in its training.
        needs_teacher: whether it can't be fitted without a CT head (a fact of the class, as the next).
        input_kinds: what its student can read.
    """

    budget: Budget = field(default_factory=Budget)
    inputs: InputKind = "embedding"
    pretraining: bool = True
    shuffled: bool = False
    name: str = ""
    needs_ct: bool = False
    uses_ct: bool = True
    readout: ClassVar[str] = "linear"
    needs_teacher: ClassVar[bool] = True
    input_kinds: ClassVar[tuple[InputKind, ...]] = ("embedding", "tokens", "pixels")

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return what the student learns by; its own modules are trained with it and thrown away."""
        raise NotImplementedError

    def latent(self, sizes: Sizes) -> int:
        """Return the width of the readout's latents, where it has any."""
        return 0

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit stage after stage (DRR–CT pairs first where there are any).

        Raises:
            CannotFit: no teacher though one is needed, one class only though labels are used, or no such input.
            BadInput: see ``train_student``.
        """
        network, fit_summary = self.trained(data, seed)
        return LogitStudent(network, fit_summary)

    def trained(self, data: FitData, seed: int) -> tuple[StudentNetwork, FitSummary]:
        """Return the trained network and what it cost (see ``fit``)."""
        started = perf_counter()
        head = data.head() if self.needs_teacher else None
        network, objective = self._parts(data, seed)
        if objective.reads_labels:
            labelled(data.target.train)
        stages, history = self._stages(data, seed), list[dict[str, float]]()
        for number, stage in enumerate(stages):
            train, val = (self._tensors(cases, head) for cases in (stage.train, stage.val))
            network.backbone.fit_scale(train.inputs)
            found = train_student(network, objective, train, val, self.budget, seed + number)
            history += [{"stage": number, **record} for record in found]
        names = tuple(n for n in history[0] if n not in ("stage", "step", "loss", "val_loss")) if history else ()
        trainable, total = _counts(network, objective, head)
        steps, seconds = len(stages) * self.budget.fit.steps, perf_counter() - started
        return network, FitSummary(trainable, total, steps, seconds, names, tuple(history))

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these."""
        few = self.budget.fit.model_copy(update={"steps": 1})
        quick = replace(self, budget=self.budget.model_copy(update={"fit": few}))
        return _counts(*quick._parts(data, 0), data.teacher if self.needs_teacher else None)

    def _parts(self, data: FitData, seed: int) -> tuple[StudentNetwork, Objective]:
        target = data.target.train
        sizes = Sizes(target.cxr.shape[1], 0 if target.ct is None else target.ct.shape[1])
        network = new_student(target, self.inputs, self.budget.fit, seed, self.readout, self.latent(sizes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return network, self.objective(data, network, seed)

    def _stages(self, data: FitData, seed: int) -> tuple[Stage, ...]:
        stages = data.stages if self.pretraining and self.uses_ct else data.stages[-1:]
        used = tuple(s for s in stages if len(s.train))
        return tuple(shuffled_stage(s, seed) for s in used) if self.shuffled else used

    def _tensors(self, cases: Cases, head: Head | None) -> CaseTensors:
        if not self.uses_ct:
            cases = cases.without_ct()
        return to_tensors(cases, self.inputs, head, self.budget.balance)


def labelled(cases: Cases) -> Cases:
    """Return the cases that have a label.

    Raises:
        CannotFit: fewer than two classes are left.
    """
    kept = cases.take(np.flatnonzero(cases.known))
    if len(np.unique(kept.label)) < 2:
        raise CannotFit(f"the {len(kept)} labelled training cases hold fewer than two classes")
    return kept


def head_size(head: object) -> int:
    """Return the number of parameters of a frozen head (0 where it is no network)."""
    network = getattr(head, "network", None)
    return sum(p.numel() for p in network.parameters()) if isinstance(network, torch.nn.Module) else 0


def _counts(network: StudentNetwork, objective: Objective, head: object) -> tuple[int, int]:
    everything = {id(p): p for module in (network, objective) for p in module.parameters()}.values()
    before = {id(p) for module in objective.trained_before for p in module.parameters()}
    trainable = sum(p.numel() for p in everything if p.requires_grad or id(p) in before)
    return trainable, sum(p.numel() for p in everything) + head_size(head)


def save_head(head: Head, folder: Path) -> None:
    """Write a frozen head.

    Raises:
        BadInput: it is not a ``TeacherHead``, so nobody could read it back.
    """
    if not isinstance(head, TeacherHead):
        raise BadInput(f"a head of type {type(head).__name__} can't be saved. Allowed: a TeacherHead.")
    head.save(folder)
