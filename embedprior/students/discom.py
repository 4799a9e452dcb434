"""DisCoM-KD: no teacher; radiograph and CT are disentangled together, and the radiograph's side is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedprior.errors import BadInput
from embedprior.students.base import FitData
from embedprior.students.losses import label_loss, orthogonality
from embedprior.students.network import DisentangledReadout, StudentNetwork
from embedprior.students.settings import Count, Weight
from embedprior.students.student import Sizes, StudentMethod
from embedprior.students.training import Objective, Rows
from embedprior.teachers.fitting import tensor

CXR, CT = 0, 1
TERMS = ("cl", "aux", "mod", "adv", "perp")


class ReverseGradient(torch.autograd.Function):
    """Identity forwards; −λ times the gradient backwards (Ganin 2015, arXiv 1409.7495)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        """Return the values."""
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the reversed gradient."""
        return -ctx.strength * gradient, None


class Disentangled(Objective):
    """The five terms: classification, auxiliary, modality, adversarial, orthogonality."""

    def __init__(self, data: FitData, network: StudentNetwork, method: DiscomKd) -> None:
        super().__init__(method.weights)
        self.method = method
        self.strength = 0.0 if method.schedule else method.reversal
        ct, config, latent = tensor(data.target.train.paired_ct()), network.config, method.width
        # In a list, so that the student's own readout is not counted and trained twice.
        self.readout = [cast(DisentangledReadout, network.readout)]
        self.ct_network = StudentNetwork("embedding", ct.shape[1], config, "disentangled", latent)
        self.ct_network.backbone.fit_scale(ct)
        self.shared = nn.Linear(latent, 1)
        self.modality_informative, self.modality_irrelevant, self.discriminator = (
            nn.Linear(latent, 2), nn.Linear(latent, 2), nn.Linear(latent, 2),
        )  # fmt: skip

    def losses(self, labelled: Rows, pairs: Rows) -> dict[str, Tensor]:
        """Return ``cl``, ``aux``, ``mod``, ``adv`` and ``perp``."""
        cxr, ct = self._parts(labelled)
        ct_logits = self.ct_network(labelled.ct)[1]
        classified = self._both(
            labelled, (labelled.logits, labelled.label), (ct_logits, labelled.ct_label)
        )
        auxiliary = torch.stack(
            [
                label_loss(self.shared(part)[:, 0], label, labelled.weight)
                for parts, label in ((cxr, labelled.label), (ct, labelled.ct_label))
                for part in parts[:2]
            ]
        )
        sides = self._parts(pairs)
        modality = torch.cat([torch.full((len(pairs.label),), side) for side in (CXR, CT)])
        invariant, informative, irrelevant = (torch.cat([sides[CXR][i], sides[CT][i]]) for i in range(3))
        return {
            "cl": classified,
            "aux": auxiliary.sum() / 2,
            "mod": F.cross_entropy(self.modality_informative(informative), modality)
            + F.cross_entropy(self.modality_irrelevant(irrelevant), modality),
            "adv": F.cross_entropy(
                self.discriminator(ReverseGradient.apply(invariant, self.strength)), modality
            ),
            "perp": orthogonality(informative, irrelevant) + orthogonality(informative, invariant),
        }

    def chosen_by(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the classification term: an adversarial sum has no minimum to look for."""
        return losses["cl"]

    def advance(self, share: float, losses: Mapping[str, float]) -> None:
        """Raise the reversal strength: λ · (2 / (1 + e^(−10 p)) − 1), p the share of steps done."""
        if self.method.schedule:
            self.strength = self.method.reversal * (2 / (1 + math.exp(-10 * share)) - 1)

    def _parts(self, rows: Rows) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        ct = cast(DisentangledReadout, self.ct_network.readout)
        return self.readout[0].parts(rows.features), ct.parts(self.ct_network.backbone(rows.ct))

    def _both(self, rows: Rows, *sides: tuple[Tensor, Tensor]) -> Tensor:
        logits, labels = (torch.cat([side[i] for side in sides]) for i in (0, 1))
        return label_loss(logits, labels, rows.weight.repeat(2))


@dataclass(frozen=True)
class DiscomKd(StudentMethod):
    """Disentanglement for cross-modal distillation (Ienco and Dantas, BMVC 2024, arXiv 2408.07080).

    Both modalities are split into invariant, informative and irrelevant parts. All five terms weigh 1.

    What differs from the released code. (1) Its domain targets are all-ones and all-zeros vectors, which carry no
    modality; here they are integers. (2) Its orthogonality term is a signed cosine, least at −1; here |cos|. (3) Its
    encoders are two ResNet-18 a modality; here the shared backbone with two linear maps, so that this row has the
    other rows' capacity. (4) Radiograph and CT come from the same pair (its batches need not be paired); the terms
    that need no label read unlabelled pairs too. (5) The checkpoint is chosen by the classification loss, not by F1.

    Attributes:
        width: of each part.
        reversal: strength λ of the reversed gradient.
        schedule: raise λ from 0 by 2 / (1 + e^(−10 p)) − 1 instead of keeping it.
        weights: of ``cl``, ``aux``, ``mod``, ``adv``, ``perp``; 1 where not named.
    """

    width: Count = 64
    reversal: Weight = 1.0
    schedule: bool = False
    weights: Mapping[str, Weight] = field(default_factory=dict)
    name: str = "discom-kd"
    readout: ClassVar[str] = "disentangled"
    needs_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in self.weights:
            if name not in TERMS:
                raise BadInput(f"method '{self.name}': no term '{name}' to weigh. Allowed: {', '.join(TERMS)}.")

    def latent(self, sizes: Sizes) -> int:
        """Return the width of each part."""
        return self.width

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the five terms."""
        return Disentangled(data, network, self)
