"""Two methods: one without CT, and one that learns the CT teacher's logits."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from embedprior.students.base import CannotFit
from embedprior.students.config import Budget
from embedprior.students.student import StudentMethod
from embedprior.students.training import LabelsAnd


@dataclass(frozen=True)
class ClassMeans:
    """How much nearer a radiograph's embedding lies to the mean of the positives than to that of the negatives."""

    budget: Budget = field(default_factory=Budget)
    name: str = "class-means"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data, seed):
        cases = data.target.train
        if len(np.unique(cases.label[cases.known])) < 2:
            raise CannotFit("one class only")
        means = [cases.cxr[cases.label == label].mean(0) for label in (0, 1)]
        return _Means(*means)


@dataclass(frozen=True)
class _Means:
    negative: np.ndarray
    positive: np.ndarray

    def scores(self, cases):
        far, near = (((cases.cxr - mean) ** 2).sum(1) for mean in (self.negative, self.positive))
        return far / (far + near)


@dataclass(frozen=True)
class LogitDistance(StudentMethod):
    """Labels, and the squared distance to the CT teacher's logits."""

    weight: float = 1.0
    name: str = "logit-distance"
    version: ClassVar[int] = 1

    def objective(self, data, network, seed):
        def terms(pairs):
            return {"logits": (pairs.logits - pairs.teacher).square().mean()}

        return LabelsAnd(terms, {"logits": self.weight})
