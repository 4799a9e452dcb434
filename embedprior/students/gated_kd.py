"""Students that follow the CT teacher only where it is sure: a confidence gate, and pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from embedprior.students.base import FitData
from embedprior.students.config import Positive, Share, Weight
from embedprior.students.logit_kd import Logits, softened_divergence
from embedprior.students.network import StudentNetwork
from embedprior.students.student import StudentMethod
from embedprior.students.training import Batch, LabelsAnd, Objective


@dataclass(frozen=True)
class Gate:
    """Where the CT teacher is followed.

    Attributes:
        gate_temperature: of the teacher's probability in the gate.
        threshold_positive, threshold_negative: least confidence, by the class that the teacher predicts.
        power: of the confidence in the weight; 0 makes the gate open or shut.
        floor: least weight.
        only_where_right: shut where the teacher contradicts a known label.
    """

    gate_temperature: Positive = 1.0
    threshold_positive: Share = 0.7
    threshold_negative: Share = 0.7
    power: Weight = 1.0
    floor: Share = 0.0
    only_where_right: bool = True


@dataclass(frozen=True)
class Sure:
    """Where the CT teacher's prediction counts as a label.

    Attributes:
        weight: λ of the term: .5, 1 or 1.5 in its grid.
        threshold: τ of the teacher's confidence: .7 or .8.
        gate_temperature: T_g of the teacher's probability in the threshold.
        kind: ``hard`` or ``soft``.
    """

    weight: Weight = 1.0
    threshold: Share = 0.7
    gate_temperature: Positive = 1.0
    kind: Literal["hard", "soft"] = "soft"


def confidence_gate(teacher: Logits, label: Logits, method: Gate) -> Float[Tensor, " cases"]:
    """Return the weight of each case: confidence^power where the teacher is sure and right, else the floor.

    confidence = max(p, 1 − p) of the teacher's probability p. A case without a label can't show the teacher wrong.
    """
    probability = (teacher / method.gate_temperature).sigmoid()
    confidence = torch.maximum(probability, 1 - probability)
    positive = probability >= 0.5
    threshold = torch.where(positive, method.threshold_positive, method.threshold_negative)
    passes = confidence >= threshold
    if method.only_where_right:
        passes = passes & (label.isnan() | (positive == (label == 1)))
    return torch.where(passes, confidence**method.power, torch.zeros_like(confidence)).clamp(min=method.floor)


@dataclass(frozen=True)
class ConfidenceGate(Gate, StudentMethod):
    """Softened logits, each case weighed by how sure the CT teacher is (GAP-KD, the pilot study's revision).

    (1 − share) · labels + share · T² · Σ w · KL / max(Σ w, 1). The code that this follows has thresholds of margin and
    of entropy too: with two classes both rise and fall with the confidence, so its thresholds say all.

    Attributes:
        soft_share: weight of the softened logits.
        temperature: T.
    """

    soft_share: Share = 0.6
    temperature: Positive = 4.0
    name: str = "confidence-gate"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return both terms."""

        def terms(pairs: Batch) -> dict[str, Tensor]:
            weight = confidence_gate(pairs.teacher, pairs.label, self)
            each = softened_divergence(pairs.logits, pairs.teacher, self.temperature)
            return {"gated": self.temperature**2 * (weight * each).sum() / weight.sum().clamp(min=1)}

        objective = LabelsAnd(terms, {"label": 1 - self.soft_share, "gated": self.soft_share})
        train = data.target.train
        logits = torch.from_numpy(np.asarray(data.head().logits(train.paired_ct()), dtype=np.float64))
        weight = confidence_gate(logits, torch.from_numpy(train.label), self)
        objective.notes = (f"the gate is open for {int((weight > self.floor).sum())} of {len(train)} training pairs",)
        return objective


def pseudo_label_loss(logits: Logits, teacher: Logits, method: Sure) -> Tensor:
    """Return the mean over the cases where the teacher is surer than the threshold; 0 where there is none.

    ``hard``: cross-entropy against the class that the teacher predicts; ``soft``: KL from its probability at T = 1.
    """
    probability = (teacher / method.gate_temperature).sigmoid()
    sure = torch.maximum(probability, 1 - probability) > method.threshold
    if method.kind == "hard":
        each = F.binary_cross_entropy_with_logits(logits, (teacher > 0).to(logits.dtype), reduction="none")
    else:
        each = softened_divergence(logits, teacher, 1.0)
    return (each * sure).sum() / sure.sum().clamp(min=1)


@dataclass(frozen=True)
class PseudoLabel(Sure, StudentMethod):
    """Labels, and the CT teacher's prediction as a label wherever it is sure (the pilot study's revision)."""

    name: str = "pseudo-label"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return both terms."""
        objective = LabelsAnd(
            lambda pairs: {"pseudo": pseudo_label_loss(pairs.logits, pairs.teacher, self)}, {"pseudo": self.weight}
        )
        train = data.target.train
        probability = expit(np.asarray(data.head().logits(train.paired_ct()), dtype=np.float64) / self.gate_temperature)
        sure = int((np.maximum(probability, 1 - probability) > self.threshold).sum())
        objective.notes = (f"the teacher is sure of {sure} of {len(train)} training pairs",)
        return objective
