"""Students of labels and of logits: no teacher, a teacher's logits (Hinton), the CT head's score (``direct-head``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from embedprior.students.base import FitData, Stage
from embedprior.students.config import Count, Positive, Share
from embedprior.students.losses import hinton, label_loss, soft_label_loss
from embedprior.students.network import StudentNetwork
from embedprior.students.student import LogitStudent, StudentMethod, labelled
from embedprior.students.training import Account, Objective, Rows

__all__ = ["CxrAndDrr", "CxrOnly", "LabelsOnly", "LogitStudent", "labelled"]


class LabelsOnly(Objective):
    """Cross-entropy of the known labels."""

    reads_pairs = False

    def losses(self, labelled: Rows, pairs: Rows) -> dict[str, Tensor]:
        """Return ``label``."""
        return {"label": label_loss(labelled.logits, labelled.label, labelled.weight)}


@dataclass(frozen=True)
class CxrOnly(StudentMethod):
    """Labels and radiographs only: the row every other deployable row is compared with.

    Attributes:
        times: steps, as a multiple of the budget's. ``cxr-only-long`` takes 2, what rows with a DRR stage take in all:
            a gain over ``cxr-only`` that it has too is a gain of training longer.
    """

    times: Count = 1
    name: str = "cxr-only"
    uses_ct: bool = False
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the label term alone."""
        return LabelsOnly()

    def trained(self, data: FitData, seed: int) -> tuple[StudentNetwork, Account]:
        """Return the trained network and what it cost (see ``fit``)."""
        if self.times == 1:
            return super().trained(data, seed)
        fit = self.budget.fit.model_copy(update={"steps": self.times * self.budget.fit.steps})
        return replace(self, times=1, budget=self.budget.model_copy(update={"fit": fit})).trained(data, seed)


@dataclass(frozen=True)
class CxrAndDrr(CxrOnly):
    """Labels of the DRRs first, then of the radiographs; no CT embedding, no teacher.

    It sees every picture, every label and every step that a distilled student with a DRR stage sees. What it gains
    over ``cxr-only`` is owed to more labelled pictures; only what another row gains over it, to the CT embedding.
    """

    name: str = "cxr-only-drr"
    uses_ct: bool = True

    def _stages(self, data: FitData, seed: int) -> tuple[Stage, ...]:
        *before, last = super()._stages(data, seed)
        taught = [s for s in before if len(np.unique(s.train.label[s.train.known])) == 2]
        return (*taught, last)


class LabelsAndLogits(Objective):
    """(1 − share) · labels + share · distillation."""

    def __init__(self, temperature: float, share: float) -> None:
        super().__init__({"label": 1 - share, "kd": share})
        self.temperature = temperature

    def losses(self, labelled: Rows, pairs: Rows) -> dict[str, Tensor]:
        """Return ``label`` and ``kd``."""
        return {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "kd": hinton(pairs.logits, self.wanted(pairs), self.temperature),
        }

    def wanted(self, rows: Rows) -> Tensor:
        """Return the teacher's logits."""
        return rows.teacher


class LogitsOnly(Objective):
    """Cross-entropy against the teacher's probability."""

    reads_labels = False

    def losses(self, labelled: Rows, pairs: Rows) -> dict[str, Tensor]:
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

    def wanted(self, rows: Rows) -> Tensor:
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
    """

    temperature: Positive = 4.0
    soft_share: Share = 0.6
    teacher_width: Count = 4
    name: str = "same-modality-kd"
    uses_ct: bool = False
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the radiograph teacher on the labels, and return both terms."""
        fit = self.budget.fit.model_copy(update={"hidden": self.budget.fit.hidden * self.teacher_width})
        wide = replace(CxrOnly(), budget=self.budget.model_copy(update={"fit": fit}), inputs=self.inputs)
        return SameModality(wide.trained(data, seed + 1)[0], self.temperature, self.soft_share)
