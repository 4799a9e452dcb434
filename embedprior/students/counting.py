"""Parameters of every method, for tables: counted on a made-up cohort of the right sizes, nothing is learned."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from embedprior.students.base import Cases, FitData, Method, Stage
from embedprior.students.config import Budget
from embedprior.teachers.fitting import new_mlp
from embedprior.teachers.head import TeacherHead


@runtime_checkable
class Counted(Protocol):
    """A method that says what it would train."""

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total): total counts the frozen ones that it reads, too."""


def counted(method: Method, cxr_dim: int, ct_dim: int, pairs: int, budget: Budget) -> tuple[int, int] | None:
    """Return (trainable, total) parameters, or None for a method that can't say.

    Args:
        method: with its budget.
        cxr_dim, ct_dim: lengths of the embeddings.
        pairs: training pairs; kernel ridge has a coefficient for each.
        budget: ``fit`` sizes the teacher head.
    """
    if not isinstance(method, Counted):
        return None
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(pairs)]
    label = (np.arange(pairs) % 2).astype(np.float64)
    cxr, ct = (rng.normal(size=(pairs, dim)).astype(np.float32) for dim in (cxr_dim, ct_dim))
    train = Cases(names, names, label, cxr, ct, label)
    head = TeacherHead(new_mlp(ct, 1, budget.fit, 0), budget.fit)
    return method.parameters(FitData((Stage(train, train.take([])),), head))
