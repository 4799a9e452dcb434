"""The student that never sees CT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from embedprior.students.base import FitData
from embedprior.students.losses import label_loss
from embedprior.students.network import StudentNetwork
from embedprior.students.student import LogitStudent, StudentMethod, labelled
from embedprior.students.training import Objective, Rows

__all__ = ["CxrOnly", "LabelsOnly", "LogitStudent", "labelled"]


class LabelsOnly(Objective):
    """Cross-entropy of the known labels."""

    reads_pairs = False

    def losses(self, labelled: Rows, pairs: Rows) -> dict[str, Tensor]:
        """Return ``label``."""
        return {"label": label_loss(labelled.logits, labelled.label, labelled.weight)}


@dataclass(frozen=True)
class CxrOnly(StudentMethod):
    """Labels and radiographs only: the row every other deployable row is compared with."""

    name: str = "cxr-only"
    uses_ct: bool = False
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the label term alone."""
        return LabelsOnly()
