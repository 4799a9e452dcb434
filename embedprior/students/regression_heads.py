"""Regression of the CT embedding, scored by the teacher head: the simplest ways to transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.kernel_ridge import KernelRidge

from embedprior.config import parse_config
from embedprior.nn.config import FitConfig
from embedprior.nn.network import fit_mlp, new_mlp
from embedprior.nn.ridge import FIXED_PENALTY, PENALTIES, fit_ridge
from embedprior.nn.search import Search
from embedprior.nn.stages import WEIGHTS, StageWeight, choose_weight, patient_folds
from embedprior.nn.standardise import Standardiser
from embedprior.nn.training import tensor
from embedprior.runs import hash_array, hash_of, read_json, write_json, write_tensors
from embedprior.students.base import Cases, FitData, Head, Recent, Stage, refuse_not_finite, shuffled_stage
from embedprior.students.config import Budget, Positive, Positives
from embedprior.students.fit_summary import FitSummary
from embedprior.students.regression_maps import (
    Affine,
    Array,
    Kernel,
    Network,
    RegressionTerm,
    read_network,
    size_of,
    summed,
)
from embedprior.students.search import search_settings
from embedprior.students.student import head_size, lowest, save_head
from embedprior.teachers.teacher import TeacherHead

FITTED = Recent["RegressionStudent"](8)
"""Of the latest fits whose maps serve the heads of several labels."""


@dataclass(frozen=True)
class RegressionStudent:
    """Regression of the CT embedding, then the teacher head.

    Attributes:
        terms: summed, one a stage.
        head: frozen.
        fit_summary: what the fit cost; None when it was read from a folder.
    """

    terms: tuple[RegressionTerm, ...]
    head: Head
    fit_summary: FitSummary | None = field(default=None, compare=False)
    kind: ClassVar[str] = "regression"

    def regression(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        return summed(self.terms, cxr)

    def scores(self, cases: Cases) -> Float[Array, " cases"]:
        """Return the head's probability at the predicted CT embedding."""
        return np.asarray(expit(self.head.logits(self.regression(cases.cxr)).astype(np.float64)))

    def save(self, folder: Path) -> None:
        """Write the terms (safetensors), their kinds (JSON) and the head."""
        described = []
        for number, term in enumerate(self.terms):
            arrays = {k: np.ascontiguousarray(v) for k, v in term.arrays().items()}
            write_tensors(folder / f"term-{number}.safetensors", arrays)
            described.append({"kind": type(term).__name__, "config": getattr(term, "config", None)})
        write_json(folder / "terms.json", described)
        (folder / "head").mkdir(exist_ok=True)
        save_head(self.head, folder / "head")

    @classmethod
    def load(cls, folder: Path) -> RegressionStudent:
        """Read a student back; runs no code from the files."""
        terms: list[RegressionTerm] = []
        for number, described in enumerate(read_json(folder / "terms.json")):
            arrays = load_file(folder / f"term-{number}.safetensors")
            if described["kind"] == "Network":
                config = parse_config(FitConfig, described["config"], str(folder / "terms.json"))
                terms.append(read_network(arrays, config))
            else:
                terms.append((Kernel if described["kind"] == "Kernel" else Affine)(**arrays))
        return cls(tuple(terms), TeacherHead.load(folder / "head"))


@dataclass(frozen=True)
class RegressionMethod:
    """Base of the regressions; a subclass gives ``term``.

    Attributes:
        budget: the same for every row.
        pretraining: learn from the DRR–CT pairs first, where there are any.
        shuffled: the null control: pairs shuffled between patients.
    """

    budget: Budget = field(default_factory=Budget)
    pretraining: bool = True
    shuffled: bool = False
    name: str = ""
    needs_ct: bool = False
    uses_ct: bool = True
    stage_weights: ClassVar[tuple[float, ...]] = WEIGHTS
    version: ClassVar[int] = 3

    def term(self, stage: Stage, target: Array, val_target: Array, seed: int) -> RegressionTerm:
        """Return one stage's regression.

        Args:
            stage: cases.
            target: what is to be predicted for ``stage.train``, (cases, ct_dim).
            val_target: the same for ``stage.val``, which chooses settings; may be empty.
            seed: of anything random.
        """
        raise NotImplementedError

    def fit(self, data: FitData, seed: int) -> RegressionStudent:
        """Fit stage after stage.

        Raises:
            CannotFit: there is no teacher.
            BadInput: an embedding holds a number that is not finite.
        """
        head = data.head()
        if not self.budget.shared_by_labels:
            return self._fit(data, head, seed)
        read = [
            [c.source, list(c.patient_ids), hash_array(c.cxr), hash_array(c.paired_ct())]
            for s in data.stages for c in s.parts
        ]  # fmt: skip
        asked = [replace(self, budget=self.budget.model_copy(update={"artifacts": None})), seed]
        fitted = FITTED.get(hash_of([read, repr(asked)]), lambda: self._fit(data, head, seed))
        summary = fitted.fit_summary
        assert summary is not None
        return replace(fitted, head=head, fit_summary=replace(summary, total=summary.trainable + head_size(head)))

    def _fit(self, data: FitData, head: Head, seed: int) -> RegressionStudent:
        started, search = perf_counter(), None
        stages = [stage for stage in (data.stages if self.pretraining else data.stages[-1:]) if len(stage.train)]
        stages = [shuffled_stage(stage, seed) for stage in stages] if self.shuffled else stages
        for stage in stages:
            for cases in stage.parts:
                refuse_not_finite(cases, "cxr", "ct")
        method, search, notes = self.with_settings(stages[-1], seed)
        terms: tuple[RegressionTerm, ...] = ()
        weight, size, fits = None, 0, 0
        for number, stage in enumerate(stages):
            # The radiographs' stage draws the same batches whether a stage came before it or not.
            own_seed = seed + len(stages) - 1 - number
            if terms:
                weight, terms, new = method.second_stage(stage, terms, own_seed)
            else:
                terms, new = (method.term(stage, _target(stage.train), _target(stage.val), own_seed),), 1
            size, fits = size + size_of(terms[-1]), fits + new
        steps = method.budget.fit.steps * fits if isinstance(terms[-1], Network) else 0
        if search is not None:
            steps += round(search.cost * self.budget.fit.steps)
        return RegressionStudent(
            terms,
            head,
            FitSummary(
                size, size + head_size(head), steps, perf_counter() - started, ("squared error",),
                stage_weight=weight, search=search, notes=notes,
            ),
        )  # fmt: skip

    def with_settings(self, stage: Stage, seed: int) -> tuple[RegressionMethod, Search | None, tuple[str, ...]]:
        """Return the method with the settings it is fitted with, how they were chosen, and why they could not be.

        Regressions in closed form choose their penalty on the validation pairs themselves.
        """
        return self, None, ()

    def second_stage(
        self, stage: Stage, before: Sequence[RegressionTerm], seed: int
    ) -> tuple[StageWeight, tuple[RegressionTerm, ...], int]:
        """Fit a stage around a share of what the stages before predict, which the validation pairs choose.

        The earlier maps read inputs standardised by this stage's own mean and spread. Without validation pairs the
        share is chosen out of fold over training patients.

        Returns:
            The share, the terms that are summed, and how many regressions were fitted.
        """
        scaler = Standardiser.fit(stage.train.cxr)
        fitted: dict[float, tuple[RegressionTerm, ...]] = {}
        fits = 0

        def at(weight: float, stage: Stage) -> tuple[RegressionTerm, ...]:
            nonlocal fits
            fits += 1
            kept = tuple(term.taken_over(weight, scaler) for term in before) if weight else ()
            left = [_target(cases) - summed(kept, cases.cxr) if kept else _target(cases) for cases in stage.parts]
            return (*kept, self.term(stage, left[0], left[1], seed))

        def on_validation(weight: float) -> Array:
            fitted[weight] = at(weight, stage)
            return _squared_errors(fitted[weight], stage.val)

        def out_of_fold(weight: float) -> Array:
            found, none = list[Array](), stage.train.take([])
            for kept, left_out in patient_folds(stage.train.patient_ids, seed):
                terms = at(weight, Stage(stage.train.take(kept), none))
                found.append(_squared_errors(terms, stage.train.take(left_out)))
            return np.concatenate(found)

        if len(stage.val):
            chosen = choose_weight(on_validation, self.stage_weights)
            return chosen, fitted[chosen.weight], fits
        chosen = choose_weight(out_of_fold, self.stage_weights, "out of fold")
        return chosen, at(chosen.weight, stage), fits

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these: those of a fit on a few of them."""
        few = {"fit": self.budget.fit.model_copy(update={"steps": 1}), "settings": "given"}
        fit_summary = replace(self, budget=self.budget.model_copy(update=few)).fit(data, 0).fit_summary
        assert fit_summary is not None
        return fit_summary.trainable, fit_summary.total


@dataclass(frozen=True)
class RidgeHead(RegressionMethod):
    """Ridge regression z_CXR → z_CT in closed form, and the frozen CT head.

    Example:
        fitted = RidgeHead().fit(FitData((Stage(train, val),), head), seed=0)
        probability = fitted.scores(cases)  # (cases,)

    Attributes:
        penalties: candidates; the one with the least squared error on the validation pairs is taken.
        fixed_penalty: taken when there is no validation pair.
    """

    penalties: Positives = PENALTIES
    fixed_penalty: Positive = FIXED_PENALTY
    name: str = "ridge-head"
    budget_part: ClassVar[str] = "nothing"

    def term(self, stage: Stage, target: Array, val_target: Array, seed: int) -> Affine:
        """Return the least-squares map with an L2 penalty on standardised inputs; ``seed`` changes nothing."""
        scaler = Standardiser.fit(stage.train.cxr)
        inputs, val_inputs = scaler.wide(stage.train.cxr), scaler.wide(stage.val.cxr)
        found = fit_ridge(inputs, target, val_inputs, val_target, None, self.penalties, self.fixed_penalty)
        return Affine(scaler.mean, scaler.scale, found.weights, found.offset)


@dataclass(frozen=True)
class KernelRidgeHead(RegressionMethod):
    """Kernel ridge regression z_CXR → z_CT (Gaussian kernel), and the frozen CT head.

    Attributes:
        widths: kernel widths γ, as multiples of 1 / (2 · cxr_dim); with each penalty a candidate.
        penalties: candidates; the validation pairs choose.
        fixed: width and penalty taken when there is no validation pair.
    """

    widths: Positives = (0.1, 0.3, 1.0)
    penalties: Positives = (0.03, 0.3, 3.0, 30.0)
    fixed: tuple[Positive, Positive] = (0.3, 3.0)
    name: str = "kernel-ridge-head"
    budget_part: ClassVar[str] = "nothing"

    def term(self, stage: Stage, target: Array, val_target: Array, seed: int) -> Kernel:
        """Return the regression; ``seed`` changes nothing."""
        scaler, offset = Standardiser.fit(stage.train.cxr), target.mean(0)
        x = scaler.wide(stage.train.cxr)

        def at(pair: tuple[float, float]) -> Kernel:
            gamma = pair[0] / (2 * x.shape[1])
            dual = KernelRidge(alpha=pair[1], kernel="rbf", gamma=gamma).fit(x, target - offset).dual_coef_
            return Kernel(scaler.mean, scaler.scale, x, np.asarray(dual), np.array(gamma), offset)

        pairs = [(width, penalty) for width in self.widths for penalty in self.penalties]
        return at(_least(pairs, lambda p: at(p)(stage.val.cxr), val_target, self.fixed))


@dataclass(frozen=True)
class MlpHead(RegressionMethod):
    """A network of the student's size regresses z_CT, and the frozen CT head scores it; the diffusion prior's L2 term
    without the diffusion."""

    name: str = "mlp-head"
    budget_part: ClassVar[str] = "fit"
    stage_weights: ClassVar[tuple[float, ...]] = (0.0, 0.5, 1.0)

    def term(self, stage: Stage, target: Array, val_target: Array, seed: int) -> Network:
        """Return the network with the least squared error on the validation pairs."""
        return self._fitted(stage, target, val_target, seed)[0]

    def with_settings(self, stage: Stage, seed: int) -> tuple[RegressionMethod, Search | None, tuple[str, ...]]:
        """Compare a few settings on the validation pairs, where none are given."""
        if self.budget.settings == "given":
            return self, None, ()
        if not len(stage.val):
            return self, None, ("settings: the default ones, for no validation pair could choose them",)

        def val_loss(fit: FitConfig) -> float:
            return self._with(fit)._fitted(stage, _target(stage.train), _target(stage.val), seed)[1]

        fit, search = search_settings(self.budget.fit, val_loss)
        return self._with(fit), search, ()

    def _with(self, fit: FitConfig) -> MlpHead:
        return replace(self, budget=self.budget.model_copy(update={"fit": fit, "settings": "given"}))

    def _fitted(self, stage: Stage, target: Array, val_target: Array, seed: int) -> tuple[Network, float]:
        scaler, config = Standardiser.fit(target), self.budget.fit
        network = new_mlp(stage.train.cxr, target.shape[1], config, seed)
        targets = [tensor(scaler.wide(t)) for t in (target, val_target)]
        losses = [lambda out, rows, t=t: (out - t[rows]).square().mean() for t in targets]
        history = fit_mlp(network, stage.train.cxr, losses[0], stage.val.cxr, losses[1], config, seed)
        return Network(network, scaler.mean, scaler.scale, config), lowest(history)


def _target(cases: Cases) -> Float[Array, "cases ct_dim"]:
    return np.asarray(cases.paired_ct().astype(np.float64))


def _squared_errors(terms: Sequence[RegressionTerm], cases: Cases) -> Float[Array, " cases"]:
    return np.asarray(np.square(summed(terms, cases.cxr) - _target(cases)).sum(axis=1))


def _least(candidates: Sequence[Any], predict_at: Callable[[Any], Array], target: Array, fixed: Any) -> Any:
    if not len(target):
        return fixed
    return min(candidates, key=lambda c: float(((predict_at(c) - target) ** 2).sum()))
