"""Students taught by another model's outputs: Hinton distillation and ``direct-head``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.plain import LogitStudent, labelled
from embedprior.teachers.config import FitConfig
from embedprior.teachers.fitting import Loss, fit, label_loss, new_mlp, predict, tensor


def distillation_loss(teacher_logits: Float[np.ndarray, " cases"], temperature: float) -> Loss:
    """Return T² · KL(teacher ‖ student) at temperature T (Hinton 2015, arXiv 1503.02531).

    One logit z stands for the two-class logits (0, z).
    """
    logits = tensor(teacher_logits) / temperature

    def loss(outputs: Tensor, rows: Tensor) -> Tensor:
        wanted = logits[rows]
        got = outputs[:, 0] / temperature
        p = wanted.sigmoid()
        divergence = p * (nn.functional.logsigmoid(wanted) - nn.functional.logsigmoid(got)) + (1 - p) * (
            nn.functional.logsigmoid(-wanted) - nn.functional.logsigmoid(-got)
        )
        return temperature**2 * divergence.mean()

    return loss


def mixed(first: Loss, second: Loss, share: float) -> Loss:
    """Return ``(1 − share) · first + share · second``."""
    return lambda outputs, rows: (1 - share) * first(outputs, rows) + share * second(outputs, rows)


def soft_loss(probabilities: Float[np.ndarray, " cases"]) -> Loss:
    """Return binary cross-entropy against soft targets."""
    targets = tensor(probabilities)
    return lambda outputs, rows: nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets[rows])


@dataclass(frozen=True)
class HintonKd:
    """Plain cross-modal logit distillation: labels, and the CT teacher's softened output, on the same pairs.

    Attributes:
        temperature: 4 (the pilot study's protocol).
        soft_share: weight of the distillation term, 0.6 (the pilot study's protocol).
    """

    fit_config: FitConfig = field(default_factory=FitConfig)
    temperature: float = 4.0
    soft_share: float = 0.6
    name: str = "hinton-kd"
    needs_ct: bool = False
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit stage after stage (DRR–CT pairs first where there are any).

        Raises:
            CannotFit: no teacher, or one class only.
        """
        head = data.head()

        def loss(cases: Cases) -> Loss:
            soft = distillation_loss(head.logits(cases.paired_ct()), self.temperature)
            return mixed(label_loss(cases.label), soft, self.soft_share)

        labelled(data.target.train)
        return _staged(data, loss, self.fit_config, seed)


@dataclass(frozen=True)
class DirectHead:
    """Regress the CT head's probability straight from the radiograph, no label used.

    Over the same pairs it has the same optimum as the mean of the head over a perfect prior's samples, so it is
    the control a prior must match.
    """

    fit_config: FitConfig = field(default_factory=FitConfig)
    name: str = "direct-head"
    needs_ct: bool = False
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit stage after stage.

        Raises:
            CannotFit: no teacher.
        """
        head = data.head()
        return _staged(
            data, lambda cases: soft_loss(_sigmoid(head.logits(cases.paired_ct()))), self.fit_config, seed
        )


@dataclass(frozen=True)
class SameModalityKd:
    """Distillation from a radiograph teacher: the control for gains that owe nothing to CT.

    Attributes:
        teacher_width: hidden width of the radiograph teacher, as a multiple of the student's.
    """

    fit_config: FitConfig = field(default_factory=FitConfig)
    temperature: float = 4.0
    soft_share: float = 0.6
    teacher_width: int = 4
    name: str = "same-modality-kd"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit the radiograph teacher, then the student, on the last stage.

        Raises:
            CannotFit: one class only.
        """
        train, val = labelled(data.target.train), data.target.val
        val = val.take(np.flatnonzero(val.known))
        wide = self.fit_config.model_copy(update={"hidden": self.fit_config.hidden * self.teacher_width})
        teacher = new_mlp(train.cxr, 1, wide, seed)
        fit(teacher, train.cxr, label_loss(train.label), val.cxr, label_loss(val.label), wide, seed)

        def loss(cases: Cases) -> Loss:
            soft = distillation_loss(predict(teacher, cases.cxr)[:, 0], self.temperature)
            return mixed(label_loss(cases.label), soft, self.soft_share)

        student = new_mlp(train.cxr, 1, self.fit_config, seed + 1)
        fit(student, train.cxr, loss(train), val.cxr, loss(val), self.fit_config, seed + 1)
        return LogitStudent(student)


def _staged(data: FitData, loss: Callable[[Cases], Loss], config: FitConfig, seed: int) -> LogitStudent:
    network = new_mlp(data.stages[0].train.cxr, 1, config, seed)
    for number, stage in enumerate(data.stages):
        network.fit_scale(tensor(stage.train.cxr))
        fit(network, stage.train.cxr, loss(stage.train), stage.val.cxr, loss(stage.val), config, seed + number)
    return LogitStudent(network)


def _sigmoid(logits: Float[np.ndarray, " cases"]) -> Float[np.ndarray, " cases"]:
    return np.asarray(1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64))))
