"""Relational distillation: how far cases lie apart is imitated, not where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from embedprior.students.base import FitData
from embedprior.students.network import StudentNetwork
from embedprior.students.settings import Weight
from embedprior.students.student import StudentMethod
from embedprior.students.training import LabelsAnd


def distance_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Return smooth L1 between pairwise distances, each divided by its mean (RKD-D, arXiv 1904.05068)."""
    scaled = []
    for features in (student, teacher):
        square = (features[:, None] - features[None]).square().sum(2)
        distance = square.clamp(min=1e-12).sqrt() * (square > 0)
        scaled.append(distance / distance[distance > 0].mean().clamp(min=1e-12))
    return F.smooth_l1_loss(scaled[0], scaled[1])


@dataclass(frozen=True)
class Rkd(StudentMethod):
    """Labels and the distance term of relational distillation (Park 2019), weight 25 as in mdistiller."""

    weight: Weight = 25.0
    name: str = "rkd"
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> LabelsAnd:
        """Return both terms."""
        return LabelsAnd(lambda pairs: {"rkd": distance_relations(pairs.features, pairs.ct)}, {"rkd": self.weight})
