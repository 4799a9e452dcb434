"""The pilot study's rows (arXiv 2603.29167): a network reads the CT slice as a picture, and teaches the radiograph's.

Each row is the known labels, the CT network's softened output, and one term between feature maps. All read pixels, of
the radiograph and of the CT. Every network may be the pilot's own (``pilot_networks``); a study may give one student to
all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.nn.losses import label_loss
from embedprior.runs import read_json, write_json
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Stage
from embedprior.students.config import Budget, Count, InputKind, NetworkKind, Positive, Share, TeacherKind, Weight
from embedprior.students.logit_kd import CxrOnly, hinton
from embedprior.students.network import StudentNetwork
from embedprior.students.student import LogitStudent, StudentMethod, shared_network
from embedprior.students.training import Batch, FitSummary, Objective

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
        assert pairs.ct_pixels is not None
        with torch.no_grad():
            _, logits, maps = self.teacher.outputs(pairs.ct_pixels)
        named = {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "kd": hinton(pairs.logits, logits, self.temperature),
        }
        assert pairs.maps is not None
        assert maps is not None
        return {**named, self.term: self.transfer(pairs.maps, maps)} if self.term else named

    def transfer(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the term."""
        raise NotImplementedError


@dataclass(frozen=True)
class SliceKd(StudentMethod):
    """Plain cross-modal logit distillation from a network that reads the CT slice.

    With the teacher ``pilot-teacher-full`` and the student ``pilot-dfpn`` it is the pilot's full system, JDCNet.

    Attributes:
        teacher: the network that reads CT slices, with or without DPE (as published, or rescaled) and MHRA.
        teacher_labels: the CTs' own, or, as in the pilot's code, the radiographs'.
        temperature: 4.
        soft_share: weight of the softened logits, 0.6; the labels have the rest.
    """

    inputs: InputKind = "pixels"
    student: NetworkKind = "pilot"
    teacher: TeacherKind = "pilot-teacher"
    teacher_labels: Literal["ct", "radiograph"] = "ct"
    temperature: Positive = 4.0
    soft_share: Share = 0.6
    name: str = "slice-kd"
    needs_teacher: ClassVar[bool] = False
    input_kinds: ClassVar[tuple[InputKind, ...]] = ("pixels",)

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return CtNetworkTeaches(self.ct_network(data, seed), self.temperature, self.soft_share)

    def ct_network(self, data: FitData, seed: int) -> SharedNetwork:
        """Return the network that reads CT slices, trained on the last stage; all rows of a study share it."""
        own = CxrOnly(self.budget, inputs="pixels", student=self.teacher)
        return shared_network(own, ct_as_radiograph(data, self.teacher_labels), seed + 1)

    def _stages(self, data: FitData, seed: int) -> tuple[Stage, ...]:
        # DRRs come without pictures here.
        return tuple(s for s in super()._stages(data, seed) if s.train.source != "drr")


class AttentionMaps(CtNetworkTeaches):
    """Mean over places of (Q_s − Q_t)², Q the unit-length map of the channels' mean square; the teacher's resized."""

    term = "attention"

    def transfer(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the term."""
        return attention_transfer(student, teacher)


def attention_transfer(student: Maps, teacher: Maps) -> Tensor:
    """Return the mean over cases and places of (Q_s − Q_t)² (Zagoruyko and Komodakis 2017, arXiv 1612.03928).

    Example:
        >>> maps = torch.rand(2, 8, 4, 4)
        >>> round(float(attention_transfer(maps, 3 * maps)), 9), float(attention_transfer(maps, maps.flip(3))) > 0
        (0.0, True)
    """
    energy = [maps.square().mean(dim=1, keepdim=True) for maps in (student, teacher)]
    energy[1] = F.interpolate(energy[1], size=student.shape[2:], mode="bilinear", align_corners=False)
    q_student, q_teacher = (F.normalize(one.flatten(1), dim=1) for one in energy)
    return (q_student - q_teacher).square().mean()


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

    def transfer(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the term."""
        resized = F.interpolate(teacher, size=student.shape[2:], mode="bilinear", align_corners=False)
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

    def transfer(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the term."""
        return F.mse_loss(self.guess(student.mean((2, 3))), teacher.mean((2, 3)))


@dataclass(frozen=True)
class SliceHallucination(SliceKd):
    """Modality hallucination (Hoffman 2016): labels, and a guess of the CT network's features; no softened logits.

    Attributes:
        weight: of the guess, 1.
    """

    weight: Weight = 1.0
    name: str = "slice-hallucination"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return HallucinatedMean(network.channels, self.ct_network(data, seed), self.weight)


def one_above_the_other(cases: Cases) -> Cases:
    """Return the cases with the radiograph above the CT slice as one picture.

    Raises:
        CtNotAvailable: the cases come without CT.
        CannotFit: there are no pictures.
    """
    ct = cases.paired_ct_pixels()
    if cases.pixels is None:
        raise CannotFit("late fusion reads pixels of the radiographs. Next: give a pixels-128 cache of these exams")
    return replace(cases, pixels=np.concatenate([cases.pixels, ct], axis=1))


@dataclass(frozen=True)
class PictureOracle:
    """A network that reads the CT slice, alone or below the radiograph, at inference too.

    Attributes:
        student: the network.
        reads: ``ct`` or ``both``.
    """

    student: LogitStudent
    reads: Literal["ct", "both"]
    kind: ClassVar[str] = "picture-oracle"

    @property
    def fit_summary(self) -> FitSummary | None:
        """What the fit cost."""
        return self.student.fit_summary

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the probability of a positive label."""
        alone = self.reads == "ct"
        return self.student.scores(
            replace(cases, pixels=cases.paired_ct_pixels()) if alone else one_above_the_other(cases)
        )

    def save(self, folder: Path) -> None:
        """Write the network, and what it reads."""
        self.student.save(folder)
        write_json(folder / "reads.json", {"reads": self.reads})

    @classmethod
    def load(cls, folder: Path) -> PictureOracle:
        """Read it back."""
        return cls(LogitStudent.load(folder), read_json(folder / "reads.json")["reads"])


@dataclass(frozen=True)
class SliceCtOnly:
    """The CT network alone: what the CT slice itself knows (an oracle).

    Attributes:
        teacher: the network that reads CT slices.
        labels: the CTs' own, or the radiographs'.
    """

    budget: Budget = field(default_factory=Budget)
    teacher: TeacherKind = "pilot-teacher"
    labels: Literal["ct", "radiograph"] = "ct"
    name: str = "slice-ct-only"
    needs_ct: bool = True
    uses_ct: bool = True
    needs_teacher: ClassVar[bool] = False
    input_kinds: ClassVar[tuple[InputKind, ...]] = ("pixels",)

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit it.

        Raises:
            CannotFit: one class only, or no pictures of the CT.
        """
        return PictureOracle(LogitStudent(*self._student().trained(ct_as_radiograph(data, self.labels), seed)), "ct")

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total)."""
        return self._student().parameters(ct_as_radiograph(data, self.labels))

    def _student(self) -> CxrOnly:
        return CxrOnly(self.budget, inputs="pixels", student=self.teacher)


@dataclass(frozen=True)
class SliceLateFusion:
    """Radiograph and CT slice, each with an encoder of its own, fused before the head (an oracle: it needs the CT)."""

    budget: Budget = field(default_factory=Budget)
    name: str = "slice-late-fusion"
    needs_ct: bool = True
    uses_ct: bool = True
    needs_teacher: ClassVar[bool] = False
    input_kinds: ClassVar[tuple[InputKind, ...]] = ("pixels",)

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit it with the budget of the students.

        Raises:
            CannotFit: one class only, or no pictures.
        """
        return PictureOracle(LogitStudent(*self._student().trained(_fused(data), seed)), "both")

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total)."""
        return self._student().parameters(_fused(data))

    def _student(self) -> CxrOnly:
        return CxrOnly(self.budget, inputs="pixels", student="pilot-fusion")


def _fused(data: FitData) -> FitData:
    parts = [one_above_the_other(cases).without_ct() for cases in data.target.parts]
    return FitData((Stage(*parts),), None, "it reads pictures")
