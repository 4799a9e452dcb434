"""The students that no CT embedding teaches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from embedprior.students.base import FitData, Stage
from embedprior.students.losses import label_loss
from embedprior.students.network import StudentNetwork
from embedprior.students.settings import Count
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
