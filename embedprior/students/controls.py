"""Controls, without which a comparison is worth nothing, and oracles, which need CT at inference: never ranked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from embedprior.nn.losses import case_weights, soft_cross_entropy
from embedprior.nn.standardise import Standardiser
from embedprior.runs import read_json, seed_for, write_json, write_tensors
from embedprior.students.base import Cases, FitData, Fitted, Head, Stage, refuse_not_finite
from embedprior.students.config import Balance, Budget
from embedprior.students.fit_summary import FitSummary
from embedprior.students.logit_kd import CxrOnly
from embedprior.students.regression_maps import Array
from embedprior.students.student import LogitStudent, head_size, labelled, save_head
from embedprior.teachers.teacher import TeacherHead

INVERSE_PENALTIES = tuple(10.0**k for k in range(-4, 3))
FIXED_INVERSE_PENALTY = 0.01


@dataclass(frozen=True)
class Constant:
    """Score every case alike."""

    value: float
    fit_summary: FitSummary | None = field(default=None, compare=False)
    kind: ClassVar[str] = "constant"

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the value."""
        return np.full(len(cases), self.value)

    def save(self, folder: Path) -> None:
        """Write the value."""
        write_json(folder / "constant.json", {"value": self.value})

    @classmethod
    def load(cls, folder: Path) -> Constant:
        """Read it back."""
        return cls(**read_json(folder / "constant.json"))


@dataclass(frozen=True)
class ConstantMethod:
    """The share of positives among the labelled training cases, for everybody: AUC ½, and the Brier score to beat."""

    budget: Budget = field(default_factory=Budget)
    name: str = "constant"
    needs_ct: bool = False
    uses_ct: bool = False
    budget_part: ClassVar[str] = "nothing"

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Count; ``seed`` changes nothing.

        Raises:
            CannotFit: one class only.
        """
        return Constant(float(labelled(data.target.train).label.mean()), FitSummary(1, 1, 0, 0.0))

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (1, 1)."""
        return 1, 1


@dataclass(frozen=True)
class LinearStudent:
    """Logistic regression on standardised embeddings."""

    mean: Array
    scale: Array
    weights: Array
    bias: Array
    fit_summary: FitSummary | None = field(default=None, compare=False)
    kind: ClassVar[str] = "linear"

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the probability."""
        return np.asarray(expit(((cases.cxr - self.mean) / self.scale) @ self.weights + self.bias))

    def save(self, folder: Path) -> None:
        """Write the coefficients (safetensors)."""
        names = ("mean", "scale", "weights", "bias")
        write_tensors(folder / "linear.safetensors", {n: np.ascontiguousarray(getattr(self, n)) for n in names})

    @classmethod
    def load(cls, folder: Path) -> LinearStudent:
        """Read them back."""
        arrays: dict[str, Any] = dict(load_file(folder / "linear.safetensors"))
        return cls(**arrays)


@dataclass(frozen=True)
class Logistic:
    """L2-penalised logistic regression on z_CXR: no network, no CT."""

    budget: Budget = field(default_factory=Budget)
    name: str = "logistic"
    needs_ct: bool = False
    uses_ct: bool = False
    budget_part: ClassVar[str] = "nothing"

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit on the labelled radiographs of the last stage; the validation cases choose the penalty.

        Raises:
            CannotFit: one class only.
        """
        started, train, val = perf_counter(), labelled(data.target.train), data.target.val
        for cases in (train, val):
            refuse_not_finite(cases, "cxr")
        scaler, known = Standardiser.fit(train.cxr), val.take(np.flatnonzero(val.known))
        weights, bias = probe(
            scaler.wide(train.cxr), train.label, scaler.wide(known.cxr), known.label, self.budget.balance
        )
        count = weights.size + 1
        return LinearStudent(
            scaler.mean, scaler.scale, weights, bias, FitSummary(count, count, 0, perf_counter() - started, ("label",))
        )

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these."""
        return (count := data.target.train.cxr.shape[1] + 1), count


@dataclass(frozen=True)
class LabelPermutation(CxrOnly):
    """The X-ray-only student on labels permuted between patients: what leaks in another way shows here.

    Those of the validation cases are permuted too, each part for itself: true ones would choose a checkpoint that is
    better than chance.
    """

    name: str = "label-permutation"
    version: ClassVar[int] = 4

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Permute the known labels within each part, then fit.

        Raises:
            CannotFit: one class only.
        """
        target = Stage(_permuted(data.target.train, seed, "train"), _permuted(data.target.val, seed, "val"))
        network, fit_summary = self.trained(replace(data, stages=(*data.stages[:-1], target)), seed)
        return LogitStudent(network, fit_summary)


def _permuted(cases: Cases, seed: int, part: str) -> Cases:
    known, label = np.flatnonzero(cases.known), cases.label.copy()
    label[known] = label[np.random.default_rng(seed_for(seed, "label permutation", part)).permutation(known)]
    return replace(cases, label=label)


def probe(
    x: Float[Array, "cases dim"], label: Float[Array, " cases"], val_x: Float[Array, "others dim"],
    val_label: Float[Array, " others"], balance: Balance,
) -> tuple[Float[Array, " dim"], Float[Array, ""]]:  # fmt: skip
    """Return weights and bias of a logistic regression; the penalty with the least validation cross-entropy is taken.

    Without a validation case of either class the penalty is fixed (C = 0.01). ``class-weights`` and ``sampler`` both
    weigh the classes alike here, of the validation cases too: there are no batches to draw.
    """
    weigh = "balanced" if balance != "none" else None

    def at(inverse: float) -> LogisticRegression:
        return LogisticRegression(C=inverse, class_weight=weigh, max_iter=1000).fit(x, label)

    inverse = FIXED_INVERSE_PENALTY
    if len(np.unique(val_label)) == 2:
        val_weight = case_weights(val_label) if weigh else None

        inverse = min(
            INVERSE_PENALTIES,
            key=lambda c: soft_cross_entropy(val_label, at(c).predict_proba(val_x)[:, 1], val_weight),
        )
    model = at(inverse)
    return np.asarray(model.coef_[0]), np.asarray(model.intercept_[0])


@dataclass(frozen=True)
class HeadOnCt:
    """The teacher head on the true CT embedding."""

    head: Head
    fit_summary: FitSummary | None = field(default=None, compare=False)
    kind: ClassVar[str] = "head-on-ct"

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the head's probability."""
        return np.asarray(expit(self.head.logits(cases.paired_ct())), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write the head."""
        save_head(self.head, folder)

    @classmethod
    def load(cls, folder: Path) -> HeadOnCt:
        """Read it back."""
        return cls(TeacherHead.load(folder))


@dataclass(frozen=True)
class CtOnly:
    """The CT teacher itself."""

    budget: Budget = field(default_factory=Budget)
    name: str = "ct-only"
    needs_ct: bool = True
    uses_ct: bool = True
    budget_part: ClassVar[str] = "nothing"

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Return the frozen teacher; nothing is fitted here, so ``seed`` changes nothing.

        Raises:
            CannotFit: there is no teacher.
        """
        head = data.head()
        return HeadOnCt(head, FitSummary(0, head_size(head), 0, 0.0))

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (0, those of the head): the teacher was trained before."""
        return 0, head_size(data.teacher)


@dataclass(frozen=True)
class FusedStudent:
    """A student on both embeddings."""

    student: LogitStudent
    kind: ClassVar[str] = "fused"

    @property
    def fit_summary(self) -> FitSummary | None:
        """What the fit cost."""
        return self.student.fit_summary

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return sigmoid of the logit."""
        return self.student.scores(both(cases))

    def save(self, folder: Path) -> None:
        """Write the network."""
        self.student.save(folder)

    @classmethod
    def load(cls, folder: Path) -> FusedStudent:
        """Read it back."""
        return cls(LogitStudent.load(folder))


@dataclass(frozen=True)
class LateFusion:
    """Radiograph and CT embeddings, concatenated, in the student's own network and budget."""

    budget: Budget = field(default_factory=Budget)
    name: str = "late-fusion"
    needs_ct: bool = True
    uses_ct: bool = True
    needs_teacher: ClassVar[bool] = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit on the labelled pairs of the last stage.

        Raises:
            CannotFit: they hold one class only.
            BadInput: an embedding holds a number that is not finite.
        """
        for cases in data.target.parts:
            refuse_not_finite(cases, "cxr", "ct")
        network, fit_summary = CxrOnly(self.budget).trained(_fused(data), seed)
        return FusedStudent(LogitStudent(network, fit_summary))

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total) for cases like these."""
        return CxrOnly(self.budget).parameters(_fused(data))


def both(cases: Cases) -> Cases:
    """Return the cases with radiograph and CT embedding side by side as ``cxr``.

    Raises:
        CtNotAvailable: the cases come without CT.
    """
    return replace(cases, cxr=np.concatenate([cases.cxr, cases.paired_ct()], axis=1))


def _fused(data: FitData) -> FitData:
    target = replace(data.target, train=both(data.target.train), val=both(data.target.val))
    return FitData((target,), data.teacher, data.teacher_reason)
