"""Students that imitate relations: distances between patients as in CT, and CLIP-style alignment to CT embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.config import Positive, Weight
from embedprior.students.controls import probe
from embedprior.students.feature_kd import StandardisedCt
from embedprior.students.network import ProbeReadout, StudentNetwork, student_inputs
from embedprior.students.student import LogitStudent, Sizes, StudentMethod, labelled
from embedprior.students.training import Batch, LabelsAnd, Objective, same_patient


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


@dataclass(frozen=True)
class Rkd(StudentMethod):
    """Labels and the distance term of relational distillation (Park 2019), weight 25 as in mdistiller."""

    weight: Weight = 25.0
    name: str = "rkd"
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> LabelsAnd:
        """Return both terms."""
        return LabelsAnd(lambda pairs: {"rkd": distance_relations(pairs.features, pairs.ct)}, {"rkd": self.weight})


def info_nce(
    student: Float[Tensor, "cases latent"],
    teacher: Float[Tensor, "cases latent"],
    patient: Int[Tensor, " cases"],
    scale: float,
) -> Tensor:
    """Return symmetric InfoNCE, ½[CE(s·AᵀB) + CE(s·BᵀA)] on unit vectors (X2CT-CLIP, arXiv 2503.02162).

    Batch of one patient are taken out of each other's denominators: a second radiograph, or a second reconstruction of
    one scan, is no negative.

    Args:
        student: latents of the radiographs.
        teacher: latents of the CTs, row by row.
        patient: numbers.
        scale: of the cosines (inverse temperature).

    Example:
        >>> latents = torch.eye(2)
        >>> info_nce(latents, latents, torch.tensor([0, 1]), 1.0)  # ln(1 + 1/e)
        tensor(0.3133)
    """
    cosines = scale * F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T
    own = torch.eye(len(patient), dtype=torch.bool, device=patient.device)
    cosines = cosines.masked_fill(same_patient(patient) & ~own, -torch.inf)
    rows = torch.arange(len(patient), device=patient.device)
    return (F.cross_entropy(cosines, rows) + F.cross_entropy(cosines.T, rows)) / 2


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
    with reports is left out (this package has no report embeddings), and z_CT is standardised first, since an
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
