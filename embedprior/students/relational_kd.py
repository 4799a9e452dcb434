"""Students that imitate relations: distances between patients as in CT, and CLIP-style alignment to CT embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from embedprior.nn.losses import info_nce, label_loss
from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.config import Count, Positive, Share, Weight
from embedprior.students.controls import probe
from embedprior.students.feature_kd import StandardisedCt
from embedprior.students.logit_kd import hinton
from embedprior.students.network import ProbeReadout, StudentNetwork, student_inputs
from embedprior.students.student import LogitStudent, Sizes, StudentMethod, labelled
from embedprior.students.training import Batch, LabelsAnd, Objective


def distance_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Return smooth L1 between pairwise distances, each divided by its mean (RKD-D, arXiv 1904.05068).

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> distance_relations(10 * points, points)  # the same relations, in another unit
        tensor(0.)
    """
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


def relative_distances(features: Float[Tensor, "cases dim"]) -> Float[Tensor, "cases cases"]:
    """Return the distances between cases by their mean, whatever the unit; all 0 where no two cases differ."""
    tiny = torch.finfo(features.dtype).tiny
    unit = features.detach().abs().amax().clamp(min=tiny)
    gap = (rearrange(features, "case dim -> case 1 dim") - rearrange(features, "case dim -> 1 case dim")) / unit
    square = gap.square().sum(2)
    distance = square.clamp(min=1e-12).sqrt() * (square > 0)
    return distance / (distance.sum() / (square > 0).sum().clamp(min=1)).clamp(min=tiny)


def angle_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Return smooth L1 between the cosines of the angles that every three cases form (RKD-A, arXiv 1904.05068).

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> turned = 3 * points.flip(1)
        >>> angle_relations(turned, points)  # turned and enlarged: the same angles
        tensor(0.)
    """
    return F.smooth_l1_loss(angle_cosines(student), angle_cosines(teacher))


def angle_cosines(features: Float[Tensor, "cases dim"]) -> Float[Tensor, "apex case other"]:
    """Return the cosine of the angle at each apex between each two cases; 0 where a case is the apex itself."""
    unit = features.detach().abs().amax().clamp(min=torch.finfo(features.dtype).tiny)
    gap = (rearrange(features, "case dim -> 1 case dim") - rearrange(features, "apex dim -> apex 1 dim")) / unit
    direction = F.normalize(gap, dim=2, eps=1e-6)
    return einsum(direction, direction, "apex case dim, apex other dim -> apex case other")


@dataclass(frozen=True)
class Rkd(StudentMethod):
    """Labels, and the distance and angle terms of relational distillation (Park 2019, weights 25 and 50 as there).

    Attributes:
        weight: of the distance term.
        angle_weight: of the angle term.
    """

    weight: Weight = 25.0
    angle_weight: Weight = 50.0
    name: str = "rkd"
    version: ClassVar[int] = 4
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> LabelsAnd:
        """Return the terms; one without weight is left out."""

        def terms(pairs: Batch) -> dict[str, Tensor]:
            found = {"distance": distance_relations(pairs.features, pairs.ct)}
            if self.angle_weight:
                found["angle"] = angle_relations(pairs.features, pairs.ct)
            return found

        return LabelsAnd(terms, {"distance": self.weight, "angle": self.angle_weight})


class InBatchContrast(Objective):
    """(1 − share) · labels + share · softened logits, and InfoNCE between projections of the student and of the CT."""

    def __init__(self, data: FitData, network: StudentNetwork, method: CrdKd) -> None:
        super().__init__({"label": 1 - method.kd_share, "kd": method.kd_share, "crd": method.weight})
        self.method = method
        self.ct = StandardisedCt(data)
        self.student_projection = nn.Linear(network.config.hidden, method.width)
        self.ct_projection = nn.Linear(self.ct.dim, method.width)

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``, ``kd`` and ``crd``."""
        student, ct = self.student_projection(pairs.features), self.ct_projection(self.ct(pairs.ct))
        return {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "kd": hinton(pairs.logits, pairs.teacher, self.method.temperature),
            "crd": info_nce(student, ct, pairs.patient, 1 / self.method.contrast_temperature),
        }


@dataclass(frozen=True)
class CrdKd(StudentMethod):
    """Contrastive representation distillation (Tian 2020, arXiv 1910.10699) with the batch for a memory bank.

    As the pilot study's code has it: in-batch InfoNCE at temperature .07, weight .5, beside .7 labels and .3 softened
    logits. Here it is symmetric, and other cases of one patient are no negatives (cases of one class are).

    Attributes:
        weight: of the contrast.
        contrast_temperature: of the cosines.
        kd_share: of the softened logits; the labels weigh the rest.
        temperature: of the softened logits.
        width: of both projections.
    """

    weight: Weight = 0.5
    contrast_temperature: Positive = 0.07
    kd_share: Share = 0.3
    temperature: Positive = 4.0
    width: Count = 128
    name: str = "crd"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the terms."""
        return InBatchContrast(data, network, self)


class Aligned(Objective):
    """Symmetric InfoNCE between the student's latents and the CT embeddings."""

    reads_labels = False

    def __init__(self, data: FitData, network: StudentNetwork, scale: float) -> None:
        super().__init__()
        self.ct = StandardisedCt(data)
        # In a list, so that the student's own readout is not counted and trained twice.
        self.readout = [cast(ProbeReadout, network.readout)]
        self.scale = scale

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``info-nce``."""
        latent = self.readout[0].latent(pairs.features)
        return {"info-nce": info_nce(latent, self.ct(pairs.ct), pairs.patient, self.scale)}


@dataclass(frozen=True)
class ClipAlignment(StudentMethod):
    """Radiographs aligned to CT embeddings of every pair (X2CT-CLIP, arXiv 2503.02162), then logistic regression.

    The CT side is frozen, the student and a linear map without bias are trained, the temperature is fixed. The term
    with reports is left out (``embedprior train alignment`` has it), and z_CT is standardised first, since an
    arbitrary encoder's embeddings share a large common direction that a CLIP encoder's do not. The probe is fitted on
    the labelled radiographs' latents.

    Attributes:
        scale: of the cosines, 1 / 0.07 (CLIP's starting temperature).
    """

    scale: Positive = 1 / 0.07
    name: str = "clip-alignment"
    readout: ClassVar[str] = "probe"
    needs_teacher: ClassVar[bool] = False

    def latent(self, sizes: Sizes) -> int:
        """Return the CT embedding's length."""
        return sizes.ct

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the alignment term."""
        return Aligned(data, network, self.scale)

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Align on every pair, then fit the probe on the labelled ones.

        Raises:
            CannotFit: one class only.
        """
        train, val = labelled(data.target.train), data.target.val
        network, fit_summary = self.trained(data, seed)
        readout = cast(ProbeReadout, network.readout)
        known = val.take(np.flatnonzero(val.known))
        x, spread = _latents(network, train), 1.0
        if x.std() > 0:
            spread = float(x.std())
        weights, bias = probe(
            x / spread, train.label, _latents(network, known) / spread, known.label, self.budget.balance
        )
        with torch.no_grad():
            readout.probe.weight.copy_(torch.from_numpy(weights[None] / spread))
            readout.probe.bias.fill_(float(bias))
        return LogitStudent(network, fit_summary)


def _latents(network: StudentNetwork, cases: Cases) -> np.ndarray:
    inputs = student_inputs(cases, network.settings["kind"])
    readout = cast(ProbeReadout, network.readout)
    if not len(cases):
        return np.empty((0, readout.project.out_features))
    with torch.no_grad():
        return readout.latent(network.eval().backbone(inputs)).numpy().astype(np.float64)
