"""The pilot study's rows (arXiv 2603.29167): a network reads the CT slice as a picture, and teaches the radiograph's.

Each row is the known labels, the CT network's softened output, and one term between feature maps. All read pixels, of
the radiograph and of the CT. Every network may be the pilot's own (``pilot_networks``); a study may give one student to
all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import gaussian_filter
from scipy.ndimage import label as label_parts
from torch import Tensor, nn

from embedprior.nn.losses import label_loss
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.config import Count, InputKind, NetworkKind, Positive, Share, TeacherKind, Weight
from embedprior.students.gated_kd import Gate, confidence_gate
from embedprior.students.logit_kd import CxrOnly, hinton
from embedprior.students.network import StudentNetwork
from embedprior.students.pilot_networks import MapOutput
from embedprior.students.student import StudentMethod, shared_network
from embedprior.students.training import Batch, Objective

Maps = Float[Tensor, "cases channels rows columns"]


SharedNetwork = tuple[StudentNetwork, float]
"""A trained network, and the seconds that another fit spent on it."""


def ct_as_radiograph(data: FitData, labels: Literal["ct", "radiograph"]) -> FitData:
    """Return the last stage with the CT slices in the place of the radiographs, for a network that reads them alone.

    Args:
        data: pairs with pictures of the CT.
        labels: the CTs' own (the radiograph's where the CT has none), or the radiographs'.

    Raises:
        CannotFit: there are no pictures of the CT.
    """

    def turned(cases: Cases) -> Cases:
        own = np.where(np.isnan(cases.ct_label), cases.label, cases.ct_label)
        label = own if labels == "ct" else cases.label
        return replace(cases.without_ct(), pixels=cases.paired_ct_pixels(), label=label)

    return FitData((Stage(turned(data.target.train), turned(data.target.val)),), None, "it reads pictures")


class CtNetworkTeaches(Objective):
    """Labels, softened logits of a frozen CT network, and a term between both networks' deepest maps.

    Args:
        shared: the network that reads CT slices, with the seconds that another fit spent on it.
        temperature: of the softened logits.
        soft_share: their weight; the labels have the rest.
        weight: of the term, which ``transfer`` gives.
    """

    reads_ct = False
    term = ""

    def __init__(self, shared: SharedNetwork, temperature: float, soft_share: float, weight: float = 0.0) -> None:
        super().__init__({"label": 1 - soft_share, "kd": soft_share, self.term: weight})
        self.teacher, self.shared_seconds = shared[0].eval().requires_grad_(False), shared[1]
        self.temperature = temperature
        self.trained_before = (self.teacher,)

    def train(self, mode: bool = True) -> CtNetworkTeaches:
        """Change the mode of this module; the teacher stays as it was trained."""
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``, ``kd`` and the term."""
        taught = self.taught(pairs)
        named = {"label": label_loss(labelled.logits, labelled.label, labelled.weight), "kd": self.soft(pairs, taught)}
        return {**named, self.term: self.transfer(pairs, taught)} if self.term else named

    def taught(self, rows: Batch) -> MapOutput:
        """Return what the CT network makes of the CT slices of these rows, without gradient."""
        assert rows.ct_pixels is not None
        with torch.no_grad():
            features, logits, maps = self.teacher.outputs(rows.ct_pixels)
        assert maps is not None
        return MapOutput(features, logits, maps)

    def soft(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term of the softened logits."""
        return hinton(pairs.logits, taught.logits, self.temperature)

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term."""
        raise NotImplementedError


@dataclass(frozen=True)
class CtNetworkMethod(StudentMethod):
    """Base of the rows that learn from a network of CT slices.

    Attributes:
        student: the network that learns: the pilot's, or a pretrained trunk.
        teacher: the network that reads CT slices: the pilot's, with or without DPE (as published, or rescaled) and
            MHRA, or a pretrained trunk.
        teacher_labels: the CTs' own, or, as in the pilot's code, the radiographs'.
    """

    inputs: InputKind = "pixels"
    student: NetworkKind = "pilot"
    teacher: TeacherKind = "pilot-teacher"
    teacher_labels: Literal["ct", "radiograph"] = "ct"
    needs_teacher: ClassVar[bool] = False
    input_kinds: ClassVar[tuple[InputKind, ...]] = ("pixels",)

    def ct_network(self, data: FitData, seed: int) -> SharedNetwork:
        """Return the network that reads CT slices, trained on the last stage; all rows of a study share it."""
        own = CxrOnly(self.budget, inputs="pixels", student=self.teacher)
        return shared_network(own, ct_as_radiograph(data, self.teacher_labels), seed + 1)

    def _stages(self, data: FitData, seed: int) -> tuple[Stage, ...]:
        # DRRs come without pictures here.
        return tuple(s for s in super()._stages(data, seed) if s.train.source != "drr")


@dataclass(frozen=True)
class SliceKd(CtNetworkMethod):
    """Plain cross-modal logit distillation from a network that reads the CT slice.

    With the teacher ``pilot-teacher-full`` and the student ``pilot-dfpn`` it is the pilot's full system, JDCNet.

    Attributes:
        temperature: 4.
        soft_share: weight of the softened logits, 0.6; the labels have the rest.
    """

    temperature: Positive = 4.0
    soft_share: Share = 0.6
    name: str = "slice-kd"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return CtNetworkTeaches(self.ct_network(data, seed), self.temperature, self.soft_share)


class AttentionMaps(CtNetworkTeaches):
    """Mean over places of (Q_s − Q_t)², Q the unit-length map of the channels' mean square; the teacher's resized."""

    term = "attention"

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term."""
        return attention_transfer(maps_of(pairs), taught.maps)


def attention_transfer(student: Maps, teacher: Maps) -> Tensor:
    """Return the mean over cases and places of (Q_s − Q_t)² (Zagoruyko and Komodakis 2017, arXiv 1612.03928).

    Example:
        >>> maps = torch.rand(2, 8, 4, 4)
        >>> round(float(attention_transfer(maps, 3 * maps)), 9), float(attention_transfer(maps, maps.flip(3))) > 0
        (0.0, True)
    """
    q_student, q_teacher = attention(student), attention(teacher, student.shape[2:])
    return (q_student - q_teacher).square().mean()


def attention(maps: Maps, size: torch.Size | None = None) -> Float[Tensor, "cases places"]:
    """Return the channels' mean square at every place, at unit length over the places.

    Args:
        maps: of either network.
        size: rows and columns to resize to (bilinear) before that; None keeps them.
    """
    energy = maps.square().mean(dim=1, keepdim=True)
    if size is not None:
        energy = F.interpolate(energy, size=size, mode="bilinear", align_corners=False)
    return F.normalize(energy.flatten(1), dim=1)


def maps_of(rows: Batch) -> Maps:
    """Return the student's deepest maps."""
    assert rows.maps is not None
    return rows.maps


@dataclass(frozen=True)
class SliceAttention(SliceKd):
    """Logits, and attention transfer between the deepest maps of both networks.

    Attributes:
        weight: of the attention term, 0.2.
    """

    weight: Weight = 0.2
    name: str = "slice-attention"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return AttentionMaps(self.ct_network(data, seed), self.temperature, self.soft_share, self.weight)


class HintMaps(CtNetworkTeaches):
    """Squared difference of unit-length linear projections of both networks' maps, place by place."""

    term = "hint"

    def __init__(self, channels: int, width: int, shared: SharedNetwork, temperature: float, soft_share: float,
                 weight: float) -> None:  # fmt: skip
        super().__init__(shared, temperature, soft_share, weight)
        self.student_map = nn.Conv2d(channels, width, 1, bias=False)
        self.teacher_map = nn.Conv2d(self.teacher.channels, width, 1, bias=False)

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term."""
        student = maps_of(pairs)
        resized = F.interpolate(taught.maps, size=student.shape[2:], mode="bilinear", align_corners=False)
        ours, theirs = F.normalize(self.student_map(student), dim=1), F.normalize(self.teacher_map(resized), dim=1)
        return (ours - theirs).square().mean()


@dataclass(frozen=True)
class SliceHint(SliceKd):
    """Logits, and a feature hint (FitNets) between the deepest maps.

    As in the pilot both projections are trained, so they may agree on a constant. That they act at every place, and not
    on the maps' means, is this package's reading: the description does not say.

    Attributes:
        weight: of the hint, 0.2.
        width: of both projections, 128.
    """

    weight: Weight = 0.2
    width: Count = 128
    name: str = "slice-hint"
    reconstruction: ClassVar[bool] = True

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        shared, channels = self.ct_network(data, seed), network.channels
        return HintMaps(channels, self.width, shared, self.temperature, self.soft_share, self.weight)


class HallucinatedMean(CtNetworkTeaches):
    """Squared error of a small network's guess of the mean CT map from the mean radiograph map."""

    term = "hallucination"

    def __init__(self, channels: int, shared: SharedNetwork, weight: float) -> None:
        super().__init__(shared, 1.0, 0.0, weight)
        width = self.teacher.channels
        self.guess = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width))

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term."""
        return F.mse_loss(self.guess(maps_of(pairs).mean((2, 3))), taught.maps.mean((2, 3)))


@dataclass(frozen=True)
class SliceHallucination(CtNetworkMethod):
    """Modality hallucination (Hoffman 2016): labels, and a guess of the CT network's features; no softened logits.

    Attributes:
        weight: of the guess, 1.
    """

    weight: Weight = 1.0
    name: str = "slice-hallucination"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return HallucinatedMean(network.channels, self.ct_network(data, seed), self.weight)


MIN_FIELD = 0.01
"""The smallest part of a picture that counts as a lung."""


def lung_field(pictures: UInt8[Tensor, "cases height width"]) -> Bool[Tensor, "cases height width"]:
    """Return where a radiograph shows lung, by its grey values alone: a simple stand-in for a network's mask.

    A smoothed picture is cut at Otsu's threshold (1979); of its dark parts those that touch the left, right or upper
    edge are air beside the patient; of the others the two largest count, each of at least 1 % of the picture. All
    False where there is none, as in a picture that is cropped to the lungs.
    """
    return torch.from_numpy(np.stack([_field(picture) for picture in pictures.numpy()]))


def _field(picture: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    smooth = gaussian_filter(picture.astype(np.float32), len(picture) / 64)
    parts, count = label_parts(smooth < otsu(smooth))
    outside = np.unique(np.concatenate([parts[0], parts[:, 0], parts[:, -1]]))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    sizes[outside] = 0
    largest = [i for i in np.argsort(sizes, kind="stable")[::-1][:2] if sizes[i] >= MIN_FIELD * picture.size]
    return np.asarray(np.isin(parts, largest))


def otsu(picture: Float[np.ndarray, "height width"]) -> float:
    """Return the grey value that splits a picture of 0 to 255 into two classes of the largest variance between them."""
    counts = np.bincount(picture.astype(int).ravel().clip(0, 255), minlength=256).astype(float)
    below, grey = counts.cumsum(), (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (grey[-1] * below / below[-1] - grey) ** 2 / (below * (below[-1] - below))
    return float(np.nan_to_num(between, posinf=0.0).argmax()) + 1


def field_at(pictures: UInt8[Tensor, "cases height width"], maps: Maps) -> Float[Tensor, "cases places"]:
    """Return the share of each place of the maps that lies in the lung field."""
    rows, columns = maps.shape[2:]
    return F.adaptive_avg_pool2d(lung_field(pictures).float().unsqueeze(1), (rows, columns)).flatten(1)


class LungMask(CtNetworkTeaches):
    """Mean over places of (Q_s − M)², M the lung field at the map's size and at unit length."""

    term = "lung"

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term, over the radiographs in which a lung field was found."""
        maps = maps_of(pairs)
        field = field_at(pairs.inputs, maps)
        found = field.sum(1) > 0
        each = (attention(maps) - F.normalize(field, dim=1)).square().mean(1)
        return (each * found).sum() / found.sum().clamp(min=1)


@dataclass(frozen=True)
class SliceLungMask(SliceKd):
    """Logits, and a student whose attention lies on the lungs of the radiograph.

    Where the pilot's code has the mask of a trained network (PSPNet of torchxrayvision), this row has ``lung_field``;
    the weight is that of attention transfer, for the description gives none.

    Attributes:
        weight: of the term, 0.2.
    """

    weight: Weight = 0.2
    name: str = "slice-lung-mask"
    reconstruction: ClassVar[bool] = True

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        objective = LungMask(self.ct_network(data, seed), self.temperature, self.soft_share, self.weight)
        objective.notes = (_field_note(data.target.train),)
        return objective


class ProjectedAttention(CtNetworkTeaches):
    """Attention transfer at the places of the lung field, each case weighed by how sure the CT network is."""

    term = "attention"

    def __init__(self, shared: SharedNetwork, method: SliceProjectedAttention) -> None:
        super().__init__(shared, method.temperature, method.soft_share, method.weight)
        self.method = method

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return Σ w · l / max(Σ w, 1), l the mean over the field of (Q_s − Q_t)²."""
        student = maps_of(pairs)
        square = (attention(student) - attention(taught.maps, student.shape[2:])).square()
        places = torch.ones_like(square)
        if self.method.mask:
            field = field_at(pairs.inputs, student)
            places = torch.where(field.sum(1, keepdim=True) > 0, field, places)
        each = (places * square).sum(1) / places.sum(1)
        weight = torch.ones_like(each)
        if self.method.gate:
            weight = confidence_gate(taught.logits, pairs.label, self.method)
        return (weight * each).sum() / weight.sum().clamp(min=1)


@dataclass(frozen=True)
class SliceProjectedAttention(Gate, SliceKd):
    """Attention transfer where the picture of the CT is a projection (a DRR or a MIP), so that places correspond.

    On an axial slice they do not, whatever the row is called. Masked after both maps are at unit length; mask,
    thresholds and weight are this package's, for the description gives none.

    Attributes:
        weight: of the attention term, 0.2.
        mask: count the places of the radiograph's lung field alone (all places where none is found).
        gate: weigh the cases as ``confidence-gate`` does (see ``gated_kd.Gate``).
    """

    weight: Weight = 0.2
    mask: bool = True
    gate: bool = True
    name: str = "slice-projected-attention"
    reconstruction: ClassVar[bool] = True

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        objective = ProjectedAttention(self.ct_network(data, seed), self)
        objective.notes = (_field_note(data.target.train),) if self.mask else ()
        return objective


def _field_note(train: Cases) -> str:
    assert train.pixels is not None
    found = int(lung_field(torch.from_numpy(np.ascontiguousarray(train.pixels))).any(dim=(1, 2)).sum())
    return f"a lung field was found in {found} of {len(train)} training radiographs"
