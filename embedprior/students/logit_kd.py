"""Students of labels and of logits: no teacher, a teacher's logits (Hinton), the CT head's score (``direct-head``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from embedprior.nn.losses import label_loss
from embedprior.students.base import FitData, Stage
from embedprior.students.config import Count, Positive, Share, TeacherKind
from embedprior.students.fit_summary import FitSummary
from embedprior.students.network import StudentNetwork
from embedprior.students.student import LogitStudent, StudentMethod, labelled
from embedprior.students.training import Batch, Objective

__all__ = ["CxrAndDrr", "CxrOnly", "LabelsOnly", "LogitStudent", "labelled"]

Logits = Float[Tensor, " cases"]
"""One logit z a case stands for the two-class logits (0, z). A teacher's carry no gradient."""


def soft_label_loss(logits: Logits, teacher: Logits) -> Tensor:
    """Return cross-entropy against the teacher's probability."""
    return F.binary_cross_entropy_with_logits(logits, teacher.sigmoid())


def hinton(logits: Logits, teacher: Logits, temperature: float, squared: bool = True) -> Tensor:
    """Return T² · KL(teacher ‖ student) at temperature T (Hinton 2015, arXiv 1503.02531).

    Args:
        logits: of the student.
        teacher: logits.
        temperature: T.
        squared: False leaves T² out, as ProtoKD's released code does.

    Example:
        >>> hinton(torch.tensor([0.0]), torch.tensor([2.0]), 1.0)  # KL of (.881, .119) from (.5, .5)
        tensor(0.3278)
    """
    return (temperature**2 if squared else 1.0) * softened_divergence(logits, teacher, temperature).mean()


def softened_divergence(logits: Logits, teacher: Logits, temperature: float) -> Float[Tensor, " cases"]:
    """Return each case's KL(teacher ‖ student) at temperature T."""
    target, prediction = teacher / temperature, logits / temperature
    p = target.sigmoid()
    positive = F.logsigmoid(target) - F.logsigmoid(prediction)
    negative = F.logsigmoid(-target) - F.logsigmoid(-prediction)
    return p * positive + (1 - p) * negative


def decoupled(
    logits: Float[Tensor, "cases classes"],
    teacher: Float[Tensor, "cases classes"],
    target: Int[Tensor, " cases"],
    temperature: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """Return (TCKD, NCKD), each times T² (Zhao 2022, arXiv 2203.08679).

    With two classes the one non-target class has probability 1 in teacher and student: NCKD is 0, its gradient too,
    and TCKD is Hinton's term. ``students.registry`` therefore refuses DKD as a row of a two-class study.
    """
    own = F.one_hot(target, logits.shape[1]).bool()

    def split(z: Tensor) -> tuple[Tensor, Tensor]:
        scaled = z / temperature
        of_target = F.log_softmax(scaled, 1)[own]
        others = torch.logsumexp(scaled.masked_fill(own, -torch.inf), 1) - torch.logsumexp(scaled, 1)
        return torch.stack([of_target, others], 1), F.log_softmax(scaled[~own].view(len(z), -1), 1)

    (binary_s, rest_s), (binary_t, rest_t) = split(logits), split(teacher)
    target_term = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    rest_term = F.kl_div(rest_s, rest_t, reduction="batchmean", log_target=True)
    return temperature**2 * target_term, temperature**2 * rest_term


def dist(
    logits: Float[Tensor, "cases classes"], teacher: Float[Tensor, "cases classes"], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return DIST's inter-class and intra-class terms (Huang 2022, arXiv 2205.10536): 1 − Pearson correlation.

    With two classes the probabilities of a case are p and 1 − p: their correlation across classes is ±1 whatever p
    is, so the inter-class term has no gradient. The intra-class term, across the batch, works.
    """
    p, q = (z.div(temperature).softmax(1) for z in (logits, teacher))
    return _one_minus_pearson(p, q).mean(), _one_minus_pearson(p.T, q.T).mean()


def _one_minus_pearson(a: Float[Tensor, "rows values"], b: Float[Tensor, "rows values"]) -> Float[Tensor, " rows"]:
    return 1 - F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


class LabelsOnly(Objective):
    """Cross-entropy of the known labels."""

    reads_pairs = False

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``."""
        return {"label": label_loss(labelled.logits, labelled.label, labelled.weight)}


@dataclass(frozen=True)
class CxrOnly(StudentMethod):
    """Labels and radiographs only: the row every other deployable row is compared with.

    Attributes:
        step_multiplier: steps, as a multiple of the budget's. ``cxr-only-long`` takes 2, what a row with a DRR stage
            takes in all: a gain over ``cxr-only`` that it has too is a gain of training longer.
    """

    step_multiplier: Count = 1
    name: str = "cxr-only"
    uses_ct: bool = False
    needs_teacher: ClassVar[bool] = False
    renamed: ClassVar[Mapping[str, str]] = {"times": "step_multiplier"}

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the label term alone."""
        return LabelsOnly()

    def trained(self, data: FitData, seed: int) -> tuple[StudentNetwork, FitSummary]:
        """Return the trained network and what it cost (see ``fit``)."""
        if self.step_multiplier == 1:
            return super().trained(data, seed)
        fit = self.budget.fit.model_copy(update={"steps": self.step_multiplier * self.budget.fit.steps})
        return replace(self, step_multiplier=1, budget=self.budget.model_copy(update={"fit": fit})).trained(data, seed)


@dataclass(frozen=True)
class CxrAndDrr(CxrOnly):
    """Labels of the DRRs first, then of the radiographs; no CT embedding, no teacher.

    It sees every picture, every label and every step that a distilled student with a DRR stage sees. What it gains
    over ``cxr-only`` is owed to more labelled pictures; only what another row gains over it, to the CT embedding.
    """

    name: str = "cxr-only-drr"
    uses_ct: bool = True
    version: ClassVar[int] = 4

    def _stages(self, data: FitData, seed: int) -> tuple[Stage, ...]:
        *before, last = super()._stages(data, seed)
        taught = [s for s in before if len(np.unique(s.train.label[s.train.known])) == 2]
        return (*taught, last)


class LabelsAndLogits(Objective):
    """(1 − share) · labels + share · distillation."""

    def __init__(self, temperature: float, share: float) -> None:
        super().__init__({"label": 1 - share, "kd": share})
        self.temperature = temperature

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label`` and ``kd``."""
        return {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "kd": hinton(pairs.logits, self.target(pairs), self.temperature),
        }

    def target(self, rows: Batch) -> Tensor:
        """Return the teacher's logits."""
        return rows.teacher


class LogitsOnly(Objective):
    """Cross-entropy against the teacher's probability."""

    reads_labels = False

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``soft``."""
        return {"soft": soft_label_loss(pairs.logits, pairs.teacher)}


class SameModality(LabelsAndLogits):
    """Distillation from a radiograph model, which reads the very picture the student reads: flips agree."""

    def __init__(self, teacher: StudentNetwork, temperature: float, share: float) -> None:
        super().__init__(temperature, share)
        self.teacher = teacher.eval().requires_grad_(False)
        self.trained_before = (self.teacher,)

    def train(self, mode: bool = True) -> SameModality:
        """Change the mode of this module; the teacher stays without dropout."""
        super().train(mode)
        self.teacher.eval()
        return self

    def target(self, rows: Batch) -> Tensor:
        """Return the radiograph teacher's logits."""
        with torch.no_grad():
            logits: Tensor = self.teacher(rows.inputs)[1]
        return logits


@dataclass(frozen=True)
class HintonKd(StudentMethod):
    """Plain cross-modal logit distillation: the known labels, and the CT teacher's softened output on every pair.

    Attributes:
        temperature: 4 (the pilot study's protocol).
        soft_share: weight of the distillation term, 0.6 (the pilot study's protocol).
    """

    temperature: Positive = 4.0
    soft_share: Share = 0.6
    name: str = "hinton-kd"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return both terms."""
        return LabelsAndLogits(self.temperature, self.soft_share)


@dataclass(frozen=True)
class DirectHead(StudentMethod):
    """Regress the CT head's probability straight from the radiograph, no label used.

    Over the same pairs it has the same optimum as the mean of the head over a perfect prior's samples, so it is
    the control a prior must match.
    """

    name: str = "direct-head"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the soft term alone."""
        return LogitsOnly()


@dataclass(frozen=True)
class SameModalityKd(StudentMethod):
    """Distillation from a radiograph teacher: the control for gains that owe nothing to CT.

    It also learns from radiographs without a label, on which the radiograph teacher has a say.

    Attributes:
        teacher_width: hidden width of the radiograph teacher, as a multiple of the student's.
        teacher: network of the radiograph teacher, where the student is not the shared one.
    """

    temperature: Positive = 4.0
    soft_share: Share = 0.6
    teacher_width: Count = 4
    teacher: TeacherKind = "pilot-teacher"
    name: str = "same-modality-kd"
    uses_ct: bool = False
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the radiograph teacher on the labels, and return both terms."""
        fit = self.budget.fit.model_copy(update={"hidden": self.budget.fit.hidden * self.teacher_width})
        wide = replace(CxrOnly(), budget=self.budget.model_copy(update={"fit": fit}), inputs=self.inputs)
        if self.student != "shared":
            wide = CxrOnly(self.budget, inputs=self.inputs, student=self.teacher)
        return SameModality(wide.trained(data, seed + 1)[0], self.temperature, self.soft_share)
