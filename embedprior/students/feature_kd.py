"""Students that imitate the CT embedding beside the labels: AFT-KD, ProtoKD, contrastive, FitNets, DisCoM-KD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from embedprior.errors import BadInput
from embedprior.nn.losses import class_prototypes, label_loss, prototype_cosines
from embedprior.nn.network import Standardised
from embedprior.nn.training import tensor
from embedprior.prior.losses import aft, contrast
from embedprior.students.base import FitData
from embedprior.students.config import Count, Counts, Positive, Weight
from embedprior.students.logit_kd import hinton
from embedprior.students.network import DisentangledReadout, StudentNetwork
from embedprior.students.student import Sizes, StudentMethod
from embedprior.students.training import Batch, Objective, same_patient


class StandardisedCt(Standardised):
    """z_CT with mean 0 and spread 1 by dimension, as measured on the training pairs."""

    def __init__(self, data: FitData) -> None:
        ct = tensor(data.target.train.paired_ct())
        super().__init__(ct.shape[1])
        self.fit_scale(ct)

    @property
    def dim(self) -> int:
        """Length of z_CT."""
        return self.mean.numel()

    def forward(self, ct: Float[Tensor, "cases dim"]) -> Float[Tensor, "cases dim"]:
        """Return it standardised."""
        return self.standardise(ct)


class Projected(Objective):
    """Base: the labels, and a projector W from the student's features to the CT embedding's space."""

    def __init__(self, data: FitData, network: StudentNetwork, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.ct = StandardisedCt(data)
        self.projector = nn.Linear(network.config.hidden, self.ct.dim)

    def labels(self, labelled: Batch) -> Tensor:
        """Return the label term."""
        return label_loss(labelled.logits, labelled.label, labelled.weight)


class AttentionFeatures(Projected):
    """Labels, attention ⊗ feature blocks at several block sizes, and softened logits, adaptively weighted.

    The weight of block term i is n · softmax(r_i / T), r_i = its mean training loss since the last validation
    by that between the two validations before: terms that fall slowly get more weight.
    """

    def __init__(self, data: FitData, network: StudentNetwork, method: AftKd) -> None:
        super().__init__(data, network, {"kd": method.kd_weight})
        self.groups = tuple(g for g in method.groups if g <= self.ct.dim) or (self.ct.dim,)
        self.method = method
        self.before: list[float] | None = None
        self.weights |= {f"afb-{g}": method.weight for g in self.groups}

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``, ``afb-G`` for every number of blocks, and ``kd``."""
        prediction, target = self.projector(pairs.features), self.ct(pairs.ct)
        named = {"label": self.labels(labelled)}
        for g in self.groups:
            named[f"afb-{g}"] = aft(prediction, target, g).mean()
        named["kd"] = hinton(pairs.logits, pairs.teacher, self.method.temperature)
        return named

    def advance(self, share: float, losses: Mapping[str, float]) -> None:
        """Set the weights of the block terms for the next steps."""
        now = [losses[f"afb-{g}"] for g in self.groups]
        if self.before is not None:
            rates = torch.tensor([n / max(b, 1e-12) for n, b in zip(now, self.before, strict=True)])
            adapted = len(now) * torch.softmax(rates / self.method.weighting_temperature, 0)
            self.weights |= {
                f"afb-{g}": self.method.weight * float(w) for g, w in zip(self.groups, adapted, strict=True)
            }
        self.before = now

    def validation_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return labels and logits: the block terms' weights change over the training, so their sum can't choose."""
        return losses["label"] + self.method.kd_weight * losses["kd"]


@dataclass(frozen=True)
class AftKd(StudentMethod):
    """Attention and feature transfer (Yang 2023, Sci Rep 13:18369), a RECONSTRUCTION from its abstract.

    Known: blocks that hold attention and feature together are imitated at several stages; block pooling aligns their
    shapes; the terms are weighted by the rate at which they fall. Filled in here: the vector z_CT has no spatial
    attention, so it is cut into G consecutive blocks, whose energy stands for attention; "stages" are several G; the
    weighting is of the DWA kind; the distillation term is Hinton's. A vector's order is arbitrary, so blocks mean
    nothing in themselves.

    Attributes:
        groups: numbers of blocks.
        weight: of each block term before adaptation.
        kd_weight: of the softened logits.
        temperature: of the softened logits.
        weighting_temperature: T above.
    """

    groups: Counts = (4, 16, 64)
    weight: Weight = 1.0
    kd_weight: Weight = 1.0
    temperature: Positive = 4.0
    weighting_temperature: Positive = 2.0
    name: str = "aft-kd"
    reconstruction: ClassVar[bool] = True

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the terms."""
        return AttentionFeatures(data, network, self)


class Prototypes(Objective):
    """Labels, softened logits, and the cosines to the class prototypes, teacher's against student's.

    Student prototypes are means over the batch's labelled rows; the frozen teacher's are exact means over all labelled
    training CTs. A batch without both classes leaves the term out.
    """

    def __init__(self, data: FitData, method: ProtoKd) -> None:
        super().__init__({"kd": method.kd_weight, "proto": method.proto_weight})
        self.ct = StandardisedCt(data)
        self.temperature = method.temperature
        train = data.target.train
        self.register_buffer("prototypes", class_prototypes(self.ct(tensor(train.paired_ct())), tensor(train.label)))

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``, ``kd`` and ``proto``."""
        own = class_prototypes(labelled.features, labelled.label)
        target = prototype_cosines(self.ct(pairs.ct), self.get_buffer("prototypes"))
        both = len(labelled.label.unique()) == 2
        proto = (
            (prototype_cosines(pairs.features, own) - target).square().mean() if both else 0.0 * pairs.features.sum()
        )
        return {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "kd": hinton(pairs.logits, pairs.teacher, self.temperature, squared=False),
            "proto": proto,
        }


@dataclass(frozen=True)
class ProtoKd(StudentMethod):
    """Prototype distillation (Wang 2023, arXiv 2303.09830), from voxels to cases.

    A case stands for a voxel; prototypes are over cases, not over one picture. Weights and T are the released ones
    (10 · KL at T = 10 without T², 0.1 · prototypes). Teacher and student keep their own spaces: no projector.

    Attributes:
        kd_weight: of the softened logits.
        proto_weight: of the prototype term.
        temperature: of the softened logits.
    """

    kd_weight: Weight = 10.0
    proto_weight: Weight = 0.1
    temperature: Positive = 10.0
    name: str = "proto-kd"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the terms."""
        return Prototypes(data, self)


class MarginPairs(Projected):
    """Labels, and a projected student embedding near its own CT, a margin away from other patients'."""

    def __init__(self, data: FitData, network: StudentNetwork, method: ContrastiveKd) -> None:
        super().__init__(data, network, {"contrastive": method.weight})
        self.margin = method.margin

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label`` and ``contrastive``."""
        prediction, target = self.projector(pairs.features), self.ct(pairs.ct)
        each = contrast(prediction, target, target, ~same_patient(pairs.patient), self.margin)
        return {"label": self.labels(labelled), "contrastive": each.mean()}


@dataclass(frozen=True)
class ContrastiveKd(StudentMethod):
    """Chopra and Hadsell's margin loss between radiograph and CT embedding, beside the labels.

    Patients with the same label are negatives of each other, as in the original: the loss tells patients apart.

    Attributes:
        margin: distance of unit vectors at which repulsion ends.
        weight: of the term.
    """

    margin: Positive = 1.0
    weight: Weight = 1.0
    name: str = "contrastive-kd"
    reconstruction: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the terms."""
        return MarginPairs(data, network, self)


class Hints(Projected):
    """Labels, and ‖W f − z_CT‖² by dimension."""

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label`` and ``hint``."""
        hint = (self.projector(pairs.features) - self.ct(pairs.ct)).square().mean()
        return {"label": self.labels(labelled), "hint": hint}


@dataclass(frozen=True)
class FitNets(StudentMethod):
    """Feature hints (Romero 2015, arXiv 1412.6550): a linear map of the student's features regresses z_CT.

    Attributes:
        weight: of the hint; 1, for a standardised z_CT (mdistiller's 100 belongs to feature maps).
    """

    weight: Weight = 1.0
    name: str = "fitnets"
    needs_teacher: ClassVar[bool] = False

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the terms."""
        return Hints(data, network, {"hint": self.weight})


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


def orthogonality(a: Float[Tensor, "cases dim"], b: Float[Tensor, "cases dim"]) -> Tensor:
    """Return mean |cos(a, b)|. The released DisCoM-KD code has cos itself, whose minimum is −1: opposite, not
    orthogonal."""
    return F.cosine_similarity(a, b, dim=1).abs().mean()


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

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``cl``, ``aux``, ``mod``, ``adv`` and ``perp``."""
        cxr, ct = self._parts(labelled)
        ct_logits = self.ct_network(labelled.ct)[1]
        classified = self._both(labelled, (labelled.logits, labelled.label), (ct_logits, labelled.ct_label))
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
            "adv": F.cross_entropy(self.discriminator(ReverseGradient.apply(invariant, self.strength)), modality),
            "perp": orthogonality(informative, irrelevant) + orthogonality(informative, invariant),
        }

    def validation_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the classification term: an adversarial sum has no minimum to look for."""
        return losses["cl"]

    def advance(self, share: float, losses: Mapping[str, float]) -> None:
        """Raise the reversal strength: λ · (2 / (1 + e^(−10 p)) − 1), p the share of steps done."""
        if self.method.schedule:
            self.strength = self.method.reversal * (2 / (1 + math.exp(-10 * share)) - 1)

    def _parts(self, rows: Batch) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        ct = cast(DisentangledReadout, self.ct_network.readout)
        return self.readout[0].parts(rows.features), ct.parts(self.ct_network.backbone(rows.ct))

    def _both(self, rows: Batch, *sides: tuple[Tensor, Tensor]) -> Tensor:
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
        super().__post_init__()
        for name in self.weights:
            if name not in TERMS:
                raise BadInput(f"method '{self.name}': no term '{name}' to weigh. Allowed: {', '.join(TERMS)}.")

    def latent(self, sizes: Sizes) -> int:
        """Return the width of each part."""
        return self.width

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Return the five terms."""
        return Disentangled(data, network, self)
