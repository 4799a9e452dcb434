"""Rows that need CT at inference: shown as the upper reference, never ranked with deployable rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.students.base import Cases, FitData, Fitted, Head
from embedprior.students.config import Budget
from embedprior.students.plain import CxrOnly
from embedprior.students.student import LogitStudent, head_size, save_head
from embedprior.students.training import Account
from embedprior.teachers.head import TeacherHead


@dataclass(frozen=True)
class HeadOnCt:
    """The teacher head on the true CT embedding."""

    head: Head
    account: Account | None = field(default=None, compare=False)
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

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Return the frozen teacher; nothing is fitted here, so ``seed`` changes nothing.

        Raises:
            CannotFit: there is no teacher.
        """
        head = data.head()
        return HeadOnCt(head, Account(0, head_size(head), 0, 0.0))

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (0, those of the head): the teacher was trained before."""
        return 0, head_size(data.teacher)


@dataclass(frozen=True)
class FusedStudent:
    """A student on both embeddings."""

    student: LogitStudent
    kind: ClassVar[str] = "fused"

    @property
    def account(self) -> Account | None:
        """What the fit cost."""
        return self.student.account

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

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit on the labelled pairs of the last stage.

        Raises:
            CannotFit: they hold one class only.
        """
        network, account = CxrOnly(self.budget).trained(_fused(data), seed)
        return FusedStudent(LogitStudent(network, account))

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
