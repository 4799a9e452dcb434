"""A method that trains the shared student by an objective of its own, and what it leaves behind."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from scipy.special import expit

from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.evidence.calibration import platt_scaling
from embedprior.nn.config import FitConfig
from embedprior.nn.search import Search
from embedprior.nn.stages import ALL_OR_NOTHING, StageWeight, choose_weight, patient_folds
from embedprior.nn.training import ValidationHistory, contiguous
from embedprior.runs import artifact, hash_array, hash_of, measured, read_json, write_json, write_tensors
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Head, Stage, shuffled_stage
from embedprior.students.config import Budget, InputKind, NetworkKind
from embedprior.students.fit_summary import FitSummary
from embedprior.students.network import StudentNetwork, new_student
from embedprior.students.search import search_settings
from embedprior.students.training import (
    CaseTensors,
    Objective,
    can_choose_stage,
    can_validate,
    to_tensors,
    train_student,
    validation_loss,
    validation_losses,
)
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
        write_tensors(folder / WEIGHTS, contiguous(self.network.state_dict()))
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
        student: the network that learns, ``shared`` unless the pilot's small ones are asked for.
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
    student: NetworkKind = "shared"
    pretraining: bool = True
    shuffled: bool = False
    name: str = ""
    needs_ct: bool = False
    uses_ct: bool = True
    readout: ClassVar[str] = "linear"
    needs_teacher: ClassVar[bool] = True
    input_kinds: ClassVar[tuple[InputKind, ...]] = ("embedding", "tokens", "pixels")
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.student != "shared" and self.inputs != "pixels":
            raise BadInput(
                f"method '{self.name}': student '{self.student}' reads pixels, inputs is '{self.inputs}'. "
                "Next: inputs: pixels"
            )

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
        started, head = perf_counter(), data.head() if self.needs_teacher else None
        method, search, notes = self._with_settings(data, seed, head)
        course = _Course(method, data, seed, head)
        network, objective = course.run()
        steps = course.steps + (0 if search is None else round(search.cost * self.budget.fit.steps))
        names = tuple(n for n in course.history[0] if n not in NO_TERMS) if course.history else ()
        trainable, total = _counts(network, objective, head)
        return network, FitSummary(
            trainable, total, steps, perf_counter() - started, names, tuple(course.history), course.weight, search,
            (*notes, *course.notes), shared_seconds=objective.shared_seconds,
        )  # fmt: skip

    def _with_settings(
        self, data: FitData, seed: int, head: Head | None
    ) -> tuple[StudentMethod, Search | None, tuple[str, ...]]:
        """Return the method with the settings it is fitted with, how they were chosen, and why they could not be."""
        if self.budget.settings == "given":
            return self, None, ()
        given = self._fitted_with(self.budget.fit)
        train, val = (self._tensors(cases, head) for cases in given._stages(data, seed)[-1].parts)
        if not can_validate(given._parts(data, seed)[1], val):
            return given, None, ("settings: the default ones, for no validation case could choose them",)

        def val_loss(fit: FitConfig) -> float:
            one = given._fitted_with(fit)
            network, objective = one._parts(data, seed)
            network.backbone.fit_scale(train.inputs)
            return lowest(train_student(network, objective, train, val, one.budget, seed))

        fit, search = search_settings(self.budget.fit, val_loss)
        return given._fitted_with(fit), search, ()

    def _fitted_with(self, fit: FitConfig) -> StudentMethod:
        return replace(self, budget=self.budget.model_copy(update={"fit": fit, "settings": "given"}))

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these."""
        quick = self._fitted_with(self.budget.fit.model_copy(update={"steps": 1}))
        return _counts(*quick._parts(data, 0), data.teacher if self.needs_teacher else None)

    def _parts(self, data: FitData, seed: int) -> tuple[StudentNetwork, Objective]:
        target = data.target.train
        sizes = Sizes(target.cxr.shape[1], 0 if target.ct is None else target.ct.shape[1])
        network = new_student(
            target, self.inputs, self.budget.fit, seed, self.readout, self.latent(sizes), self.student
        )  # fmt: skip
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


NO_TERMS = ("stage", "first_stage_weight", "step", "loss", "val_loss")
"""Columns of a history that are no terms of the objective."""
Parts = tuple[StudentNetwork, Objective]


class _Course:
    """The trainings of one fit: the DRR stages, and the radiographs' stage with and without what they taught.

    The first stage's weights are taken over whole or not at all: whole, where they lower the validation loss of the
    radiographs' stage by more than a standard error, or, where the validation cases are none or too few to decide it,
    the loss out of fold over training patients. Where labels are all that is learned from, what the first stage taught
    is also tried with no more than a new scale, for a few labels of radiographs can spoil it; and out of fold the lower
    loss wins.

    Attributes:
        history: records of all stages.
        weight: what was taken over; None without a DRR stage.
        steps: optimiser steps taken.
        notes: for the summary.
    """

    def __init__(self, method: StudentMethod, data: FitData, seed: int, head: Head | None) -> None:
        self._method, self._data, self._seed = method, data, seed
        self._fresh = method._parts(data, seed)
        if self._fresh[1].reads_labels:
            labelled(data.target.train)
        *earlier, self._target = [
            [method._tensors(cases, head) for cases in stage.parts] for stage in method._stages(data, seed)
        ]
        self._earlier = earlier
        self.history: list[dict[str, float]] = []
        self.weight: StageWeight | None = None
        self.steps = 0
        self.notes = self._fresh[1].notes

    def run(self) -> Parts:
        """Train, and return the network that is kept, with its objective."""
        train, val = self._target
        if len(val) and not can_validate(self._fresh[1], val):
            self.notes += (f"none of the {len(val)} validation cases has a label: the last step is kept",)
        if not self._earlier:
            return self._train(self._fresh, train, val, stage=0)
        pretrained = copy.deepcopy(self._fresh)
        for number, (drr, drr_val) in enumerate(self._earlier):
            pretrained = self._train(pretrained, drr, drr_val, stage=number)
        starts = {0.0: self._fresh, 1.0: pretrained}
        rescaled = None if self._fresh[1].reads_pairs else self._rescaled(pretrained, train)
        if can_choose_stage(self._fresh[1], val):
            return self._chosen_on_validation(starts, rescaled, train, val)
        return self._chosen_out_of_fold(starts, rescaled, train, val)

    def _chosen_on_validation(
        self, starts: dict[float, Parts], rescaled: Parts | None, train: CaseTensors, val: CaseTensors
    ) -> Parts:
        found = {w: self._train(start, train, val, len(self._earlier), w) for w, start in starts.items()}
        if rescaled is not None and validation_loss(*rescaled, val) < validation_loss(*found[1.0], val):
            found[1.0] = rescaled
        self.weight = choose_weight(lambda w: validation_losses(*found[w], val, self._seed), ALL_OR_NOTHING)
        chosen = found[self.weight.weight]
        return self._keep(chosen, "on the validation cases") if chosen is rescaled else chosen

    def _chosen_out_of_fold(
        self, starts: dict[float, Parts], rescaled: Parts | None, train: CaseTensors, val: CaseTensors
    ) -> Parts:
        losses = {w: self._out_of_fold(start, train, val) for w, start in starts.items()}
        rescaled_is_better = False
        if rescaled is not None:
            as_taught = self._out_of_fold(starts[1.0], train, val, trained_on=False)
            rescaled_is_better = float(as_taught.mean()) < float(losses[1.0].mean())
            losses[1.0] = as_taught if rescaled_is_better else losses[1.0]
        self.weight = choose_weight(losses.__getitem__, ALL_OR_NOTHING, "out of fold")
        if rescaled is not None and rescaled_is_better and self.weight.weight:
            return self._keep(rescaled, "out of fold")
        return self._train(starts[self.weight.weight], train, val, len(self._earlier))

    def _keep(self, parts: Parts, where: str) -> Parts:
        count = len(labelled(self._data.target.train))
        self.notes += (
            f"what the DRRs taught is kept: the labels of {count} radiographs set the scale of its logit alone, for "
            f"training on with them gave a higher loss {where}",
        )
        return parts

    def _rescaled(self, start: Parts, train: CaseTensors) -> Parts:
        """Return a copy with the scales of inputs and logit fitted to these cases; nothing else is learned."""
        network, objective = copy.deepcopy(start)
        network.backbone.fit_scale(train.inputs)
        network.eval()
        known = train.take(np.flatnonzero(~train.label.isnan().numpy()))
        with torch.no_grad():
            logits = network(known.inputs)[1].double().numpy()
        intercept, slope = platt_scaling(logits, known.label.numpy() == 1)
        if slope > 0:
            network.rescale(intercept, slope)
        return network, objective

    def _train(
        self, parts: Parts, train: CaseTensors, val: CaseTensors, stage: int, weight: float | None = None
    ) -> Parts:
        """Train in place; return the parts."""
        network, objective = parts
        network.backbone.fit_scale(train.inputs)
        # The radiographs' stage draws the same batches whether a stage came before it or not.
        seed = self._seed + len(self._earlier) - stage
        found = train_student(network, objective, train, val, self._method.budget, seed)
        self.steps += self._method.budget.fit.steps
        taken_over = {} if weight is None else {"first_stage_weight": weight}
        self.history += [{"stage": stage, **taken_over, **record} for record in found]
        return parts

    def _out_of_fold(
        self, start: Parts, train: CaseTensors, val: CaseTensors, trained_on: bool = True
    ) -> Float[np.ndarray, " groups"]:
        """Return losses on training cases left out of trainings that choose their step as the one that is kept does.

        With ``trained_on`` false the start learns no more than its scale from the rest of the cases.
        """
        measured = np.arange(len(train)) if start[1].reads_pairs else np.flatnonzero(~train.label.isnan().numpy())
        patients = train.patient.numpy()
        found: list[Float[np.ndarray, " groups"]] = []
        for _, left_out in patient_folds([str(number) for number in patients[measured].tolist()], self._seed):
            rest = train.take(measured[left_out])
            if not can_validate(start[1], rest):
                continue
            kept = train.take(np.flatnonzero(~np.isin(patients, rest.patient.numpy())))
            parts = copy.deepcopy(start) if trained_on else self._rescaled(start, kept)
            if trained_on:
                parts[0].backbone.fit_scale(kept.inputs)
                train_student(*parts, kept, val, self._method.budget, self._seed)
                self.steps += self._method.budget.fit.steps
            found.append(validation_losses(*parts, rest, self._seed))
        losses = np.concatenate(found) if found else np.array([np.nan])
        # The mean alone has no standard error: that of a handful of labels would drop every stage.
        return losses if start[1].reads_pairs else losses.mean(keepdims=True)


NETWORK_TAG = "network-1"
"""Raised when a network that methods learn from comes out otherwise."""


def shared_network(own: StudentMethod, data: FitData, seed: int) -> tuple[StudentNetwork, float]:
    """Return a trained network that several methods learn from, and the seconds that another fit spent on it.

    It is kept under ``budget.artifacts``, so that the first of them trains it and the others read it; without such a
    folder it is trained here.

    Args:
        own: the method that trains it.
        data: what it learns from.
        seed: of its training.

    Raises:
        CannotFit: see ``StudentMethod.fit``.
    """
    root, here = own.budget.artifacts, list[StudentNetwork]()
    if root is None:
        return own.trained(data, seed)[0], 0.0

    def build(work: Path) -> None:
        with measured() as cost:
            here.append(own.trained(data, seed)[0])
        LogitStudent(here[0]).save(work)
        write_json(work / "cost.json", cost.record())

    parts = {f"{i}: {name}": _digest(cases) for i, stage in enumerate(data.stages)
             for name, cases in zip(("train", "val"), stage.parts, strict=True)}  # fmt: skip
    options = vars(own) | {"budget": own.budget.model_copy(update={"artifacts": None})}
    settings = {"method": own.name, "options": options, "seed": seed}
    made = artifact("network", parts, settings, f"{NETWORK_TAG}/{own.version}", build, root)
    if here:
        return here[0], 0.0
    with torch.random.fork_rng(devices=[]):  # building a network draws weights, which the file's then replace
        return LogitStudent.load(made.path).network, float(read_json(made.path / "cost.json")["seconds"])


def _digest(cases: Cases) -> str:
    """Return a hash of everything that a network can learn from these cases, but for CT embeddings: it has none."""
    arrays = (cases.label, cases.cxr, cases.tokens, cases.pixels)
    return hash_of([cases.source, list(cases.exam_ids), list(cases.patient_ids),
                    *("" if a is None else hash_array(np.ascontiguousarray(a)) for a in arrays)])  # fmt: skip


def lowest(history: ValidationHistory) -> float:
    """Return the lowest validation loss of a training; infinity where nothing was validated."""
    return min((record["val_loss"] for record in history if "val_loss" in record), default=float("inf"))


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
