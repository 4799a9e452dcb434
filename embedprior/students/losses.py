"""The losses that methods transfer by: pure functions of one batch, each with its source (more in ``prior.losses``).

One logit z stands for the two-class logits (0, z). Teacher-side inputs carry no gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, " cases"]
Matrix = Float[Tensor, "cases dim"]


def label_loss(logits: Logits, label: Logits, weight: Logits | None = None) -> Tensor:
    """Return binary cross-entropy over the cases whose label is known (0 when there is none).

    Args:
        logits: of the student.
        label: 1, 0, or NaN where unknown.
        weight: of each case; the sum of weights over the known ones is what the loss is divided by.
    """
    known = ~label.isnan()
    each = F.binary_cross_entropy_with_logits(logits, label.nan_to_num(0.0), reduction="none")
    weights = known.float() if weight is None else known * weight
    return (each * weights).sum() / weights.sum().clamp(min=1e-6)


def soft_label_loss(logits: Logits, teacher: Logits) -> Tensor:
    """Return cross-entropy against the teacher's probability."""
    return F.binary_cross_entropy_with_logits(logits, teacher.sigmoid())


def hinton(logits: Logits, teacher: Logits, temperature: float, squared: bool = True) -> Tensor:
    """Return T² · KL(teacher ‖ student) at temperature T (Hinton 2015, arXiv 1503.02531).

    Args:
        logits: of the student.
        teacher: logits.
        temperature: T.
        squared: False leaves T² out, as ProtoKD's released code does.
    """
    wanted, got = teacher / temperature, logits / temperature
    p = wanted.sigmoid()
    divergence = p * (F.logsigmoid(wanted) - F.logsigmoid(got)) + (1 - p) * (F.logsigmoid(-wanted) - F.logsigmoid(-got))
    return (temperature**2 if squared else 1.0) * divergence.mean()


def decoupled(
    logits: Float[Tensor, "cases classes"],
    teacher: Float[Tensor, "cases classes"],
    target: Int[Tensor, " cases"],
    temperature: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """Return (TCKD, NCKD), each times T² (Zhao 2022, arXiv 2203.08679).

    With two classes the one non-target class has probability 1 in teacher and student: NCKD is 0, its gradient too,
    and TCKD is Hinton's term. ``students.registry`` therefore refuses DKD as a row of a two-class study.
    """
    own = F.one_hot(target, logits.shape[1]).bool()

    def split(z: Tensor) -> tuple[Tensor, Tensor]:
        scaled = z / temperature
        of_target = F.log_softmax(scaled, 1)[own]
        others = torch.logsumexp(scaled.masked_fill(own, -torch.inf), 1) - torch.logsumexp(scaled, 1)
        return torch.stack([of_target, others], 1), F.log_softmax(scaled[~own].view(len(z), -1), 1)

    (binary_s, rest_s), (binary_t, rest_t) = split(logits), split(teacher)
    target_term = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    rest_term = F.kl_div(rest_s, rest_t, reduction="batchmean", log_target=True)
    return temperature**2 * target_term, temperature**2 * rest_term


def dist(
    logits: Float[Tensor, "cases classes"], teacher: Float[Tensor, "cases classes"], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return DIST's inter-class and intra-class terms (Huang 2022, arXiv 2205.10536): 1 − Pearson correlation.

    With two classes the probabilities of a case are p and 1 − p: their correlation across classes is ±1 whatever p
    is, so the inter-class term has no gradient. The intra-class term, across the batch, works.
    """
    p, q = (z.div(temperature).softmax(1) for z in (logits, teacher))
    return _one_minus_pearson(p, q).mean(), _one_minus_pearson(p.T, q.T).mean()


def prototypes(features: Matrix, label: Logits) -> tuple[Float[Tensor, "2 dim"], bool]:
    """Return the mean feature of class 0 and of class 1, and whether both are there."""
    means, counts = [], []
    for value in (0.0, 1.0):
        own = (label == value).to(features.dtype)
        counts.append(int(own.sum()))
        means.append((own[:, None] * features).sum(0) / own.sum().clamp(min=1))
    return torch.stack(means), min(counts) > 0


def similarity_map(features: Matrix, centres: Float[Tensor, "2 dim"]) -> Float[Tensor, "cases 2"]:
    """Return M_k(i) = cos(f_i, c_k), the map that ProtoKD compares (Wang 2023, arXiv 2303.09830)."""
    return F.cosine_similarity(features[:, None], centres[None], dim=2)


def info_nce(student: Matrix, teacher: Matrix, patient: Int[Tensor, " cases"], scale: float) -> Tensor:
    """Return symmetric InfoNCE, ½[CE(s·AᵀB) + CE(s·BᵀA)] on unit vectors (X2CT-CLIP, arXiv 2503.02162).

    Rows of one patient are taken out of each other's denominators: a second radiograph, or a second reconstruction of
    one scan, is no negative.

    Args:
        student: latents of the radiographs.
        teacher: latents of the CTs, row by row.
        patient: numbers.
        scale: of the cosines (inverse temperature).
    """
    cosines = scale * F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T
    own = torch.eye(len(patient), dtype=torch.bool, device=patient.device)
    cosines = cosines.masked_fill(same_patient(patient) & ~own, -torch.inf)
    rows = torch.arange(len(patient), device=patient.device)
    return (F.cross_entropy(cosines, rows) + F.cross_entropy(cosines.T, rows)) / 2


def orthogonality(a: Matrix, b: Matrix) -> Tensor:
    """Return mean |cos(a, b)|. The released DisCoM-KD code has cos itself, whose minimum is −1: opposite, not
    orthogonal."""
    return F.cosine_similarity(a, b, dim=1).abs().mean()


def same_patient(patient: Int[Tensor, " cases"]) -> Bool[Tensor, "cases cases"]:
    """Return which rows are of one patient."""
    return patient[:, None] == patient[None]


def _one_minus_pearson(a: Float[Tensor, "rows values"], b: Float[Tensor, "rows values"]) -> Float[Tensor, " rows"]:
    return 1 - F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)
