"""Regression of the CT embedding, scored by the teacher head: the simplest ways to transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from sklearn.kernel_ridge import KernelRidge

from embedprior.config import parse_config
from embedprior.nn.config import FitConfig
from embedprior.nn.network import Mlp, fit_mlp, new_mlp, predict
from embedprior.nn.ridge import FIXED_PENALTY, PENALTIES, fit_ridge
from embedprior.nn.standardise import Standardiser
from embedprior.nn.training import tensor
from embedprior.runs import read_json, write_json
from embedprior.students.base import Cases, FitData, Head, Stage, shuffled_stage
from embedprior.students.config import Budget, Positive, Positives
from embedprior.students.student import head_size, save_head
from embedprior.students.training import FitSummary
from embedprior.teachers.teacher import TeacherHead

Array = np.ndarray[Any, Any]
Term = Callable[[Array], Array]


@dataclass(frozen=True)
class Affine:
    """((x − mean) / scale) · weights + offset."""

    mean: Array
    scale: Array
    weights: Array
    offset: Array

    def __call__(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        return np.asarray(((cxr - self.mean) / self.scale) @ self.weights + self.offset)

    def arrays(self) -> dict[str, Array]:
        """Return what it consists of."""
        return {k: np.asarray(v) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Kernel:
    """Σ_i exp(−gamma · ‖x − x_i‖²) · dual_i + offset on standardised x."""

    mean: Array
    scale: Array
    anchors: Array
    dual: Array
    gamma: Array
    offset: Array

    def __call__(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        x = (cxr - self.mean) / self.scale
        square = (x**2).sum(1)[:, None] + (self.anchors**2).sum(1)[None] - 2 * x @ self.anchors.T
        return np.asarray(np.exp(-self.gamma * np.maximum(square, 0)) @ self.dual + self.offset)

    def arrays(self) -> dict[str, Array]:
        """Return what it consists of."""
        return {k: np.asarray(v) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Network:
    """An MLP in place of a matrix; the target is standardised while it is fitted."""

    network: Mlp
    offset: Array
    spread: Array
    config: FitConfig

    def __call__(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        return np.asarray(predict(self.network, cxr).astype(np.float64) * self.spread + self.offset)

    def arrays(self) -> dict[str, Array]:
        """Return what it consists of."""
        weights = {f"network.{k}": v.numpy() for k, v in self.network.state_dict().items()}
        return {"offset": self.offset, "spread": self.spread, **weights}


@dataclass(frozen=True)
class RegressionStudent:
    """Regression of the CT embedding, then the teacher head.

    Attributes:
        terms: summed, one a stage.
        head: frozen.
        fit_summary: what the fit cost; None when it was read from a folder.
    """

    terms: tuple[Affine | Kernel | Network, ...]
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
            save_file(arrays, folder / f"term-{number}.safetensors")
            described.append({"kind": type(term).__name__, "config": getattr(term, "config", None)})
        write_json(folder / "terms.json", described)
        (folder / "head").mkdir(exist_ok=True)
        save_head(self.head, folder / "head")

    @classmethod
    def load(cls, folder: Path) -> RegressionStudent:
        """Read a student back; runs no code from the files."""
        terms: list[Affine | Kernel | Network] = []
        for number, described in enumerate(read_json(folder / "terms.json")):
            arrays = load_file(folder / f"term-{number}.safetensors")
            if described["kind"] == "Network":
                config = parse_config(FitConfig, described["config"], str(folder / "terms.json"))
                terms.append(_network(arrays, config))
            else:
                terms.append((Kernel if described["kind"] == "Kernel" else Affine)(**arrays))
        return cls(tuple(terms), TeacherHead.load(folder / "head"))


def summed(terms: Sequence[Term], cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
    """Return the sum of the stages' predictions."""
    return np.asarray(np.sum([term(cxr) for term in terms], axis=0))


def size_of(term: Affine | Kernel | Network) -> int:
    """Return the number of fitted coefficients."""
    if isinstance(term, Network):
        return sum(p.numel() for p in term.network.parameters())
    return int(term.weights.size + term.offset.size if isinstance(term, Affine) else term.dual.size + term.offset.size)


def _network(arrays: dict[str, Array], config: FitConfig) -> Network:
    state = {k.removeprefix("network."): tensor(v) for k, v in arrays.items() if k.startswith("network.")}
    network = Mlp(state["mean"].numel(), len(arrays["offset"]), config)
    network.load_state_dict(state)
    return Network(network.eval(), arrays["offset"], arrays["spread"], config)


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

    def term(self, stage: Stage, target: Array, val_target: Array, seed: int) -> Affine | Kernel | Network:
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
        """
        started, head = perf_counter(), data.head()
        terms: tuple[Affine | Kernel | Network, ...] = ()
        for number, stage in enumerate(data.stages if self.pretraining else data.stages[-1:]):
            pairs = shuffled_stage(stage, seed) if self.shuffled else stage
            left = [_left_over(cases, terms) for cases in (pairs.train, pairs.val)]
            terms = (*terms, self.term(pairs, left[0], left[1], seed + number))
        trainable = sum(size_of(term) for term in terms)
        steps = self.budget.fit.steps * sum(isinstance(t, Network) for t in terms)
        fit_summary = FitSummary(
            trainable, trainable + head_size(head), steps, perf_counter() - started, ("squared error",)
        )
        return RegressionStudent(terms, head, fit_summary)

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these: those of a fit on a few of them."""
        few = self.budget.fit.model_copy(update={"steps": 1})
        fit_summary = replace(self, budget=self.budget.model_copy(update={"fit": few})).fit(data, 0).fit_summary
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

    def term(self, stage: Stage, target: Array, val_target: Array, seed: int) -> Network:
        """Return the network with the least squared error on the validation pairs."""
        scaler, config = Standardiser.fit(target), self.budget.fit
        network = new_mlp(stage.train.cxr, target.shape[1], config, seed)
        targets = [tensor(scaler.wide(t)) for t in (target, val_target)]
        losses = [lambda out, rows, t=t: (out - t[rows]).square().mean() for t in targets]
        fit_mlp(network, stage.train.cxr, losses[0], stage.val.cxr, losses[1], config, seed)
        return Network(network, scaler.mean, scaler.scale, config)


def _left_over(cases: Cases, before: Sequence[Term]) -> Float[Array, "cases ct_dim"]:
    target = cases.paired_ct().astype(np.float64)
    return target - summed(before, cases.cxr) if before and len(cases) else target


def _least(candidates: Sequence[Any], predict_at: Callable[[Any], Array], target: Array, fixed: Any) -> Any:
    if not len(target):
        return fixed
    return min(candidates, key=lambda c: float(((predict_at(c) - target) ** 2).sum()))
