"""More rows of the pilot study: what a network of CT slices teaches by its logits and its features, and two oracles.

The gate, the pseudo-labels, the contrast and the relations are those of the rows that learn from CT embeddings; here
the teacher is a network that reads the CT slice (``map_kd``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from embedprior.nn.losses import info_nce, label_loss
from embedprior.runs import read_json, write_json
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Stage
from embedprior.students.config import Budget, Count, InputKind, Positive, Share, TeacherKind, Weight
from embedprior.students.fit_summary import FitSummary
from embedprior.students.gated_kd import Gate, Sure, confidence_gate, pseudo_label_loss
from embedprior.students.logit_kd import CxrOnly, softened_divergence
from embedprior.students.map_kd import CtNetworkMethod, CtNetworkTeaches, SharedNetwork, SliceKd, ct_as_radiograph
from embedprior.students.network import StudentNetwork
from embedprior.students.pilot_networks import MapOutput
from embedprior.students.relational_kd import angle_relations, distance_relations
from embedprior.students.student import LogitStudent
from embedprior.students.training import Batch, Objective


class GatedLogits(CtNetworkTeaches):
    """Labels, and T² · Σ w · KL / max(Σ w, 1), w how sure the CT network is."""

    def __init__(self, shared: SharedNetwork, method: SliceGate) -> None:
        super().__init__(shared, method.temperature, method.soft_share)
        self.method = method

    def soft(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the weighed term."""
        weight = confidence_gate(taught.logits, pairs.label, self.method)
        each = softened_divergence(pairs.logits, taught.logits, self.temperature)
        return self.temperature**2 * (weight * each).sum() / weight.sum().clamp(min=1)


@dataclass(frozen=True)
class SliceGate(Gate, SliceKd):
    """``confidence-gate`` with a network that reads the CT slice (GAP-KD, the pilot study's revision)."""

    name: str = "slice-gate"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        objective = GatedLogits(self.ct_network(data, seed), self)
        train = data.target.train
        logits = torch.from_numpy(objective.teacher.logits(replace(train, pixels=train.paired_ct_pixels())))
        opened = int((confidence_gate(logits, torch.from_numpy(train.label), self) > self.floor).sum())
        objective.notes = (f"the gate is open for {opened} of {len(train)} training pairs",)
        return objective


class PseudoLabels(CtNetworkTeaches):
    """Labels, and the CT network's prediction as a label where it is surer than the threshold."""

    term = "pseudo"

    def __init__(self, shared: SharedNetwork, method: SlicePseudoLabel) -> None:
        super().__init__(shared, 1.0, 0.0, method.weight)
        self.method = method

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term."""
        return pseudo_label_loss(pairs.logits, taught.logits, self.method)


@dataclass(frozen=True)
class SlicePseudoLabel(Sure, CtNetworkMethod):
    """``pseudo-label`` with a network that reads the CT slice (the pilot study's revision); no softened logits."""

    name: str = "slice-pseudo-label"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return PseudoLabels(self.ct_network(data, seed), self)


class CentroidCosines(CtNetworkTeaches):
    """Cross-entropy of the cosines, by a temperature, of the projected student features with the CT classes' centroids.

    The centroids are of the frozen CT network's features, and follow the batches' class means by a moving average; a
    class that no batch has shown yet takes no part.
    """

    term = "prototype"

    def __init__(self, width: int, shared: SharedNetwork, method: SlicePrototype) -> None:
        super().__init__(shared, method.temperature, method.soft_share, method.weight)
        self.method = method
        dim = self.teacher.config.hidden
        self.project = nn.Linear(width, dim)
        self.register_buffer("centroids", torch.zeros(2, dim))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``, ``kd`` and ``prototype``."""
        taught = self.taught(pairs)
        own = taught if labelled is pairs else self.taught(labelled)
        if self.training:
            self._follow(own.features, labelled.label)
        return {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "kd": self.soft(pairs, taught),
            self.term: self._cosines(labelled),
        }

    def _follow(self, features: Tensor, label: Tensor) -> None:
        centroids, seen = self.get_buffer("centroids"), self.get_buffer("seen")
        for value in (0, 1):
            rows = label == value
            if rows.any():
                mean, keep = features[rows].mean(0), self.method.momentum if seen[value] else 0.0
                centroids[value] = keep * centroids[value] + (1 - keep) * mean
                seen[value] = True

    def _cosines(self, rows: Batch) -> Tensor:
        known = ~rows.label.isnan()
        if not known.any() or not self.get_buffer("seen").all():
            return 0.0 * rows.features.sum()
        unit = F.normalize(self.project(rows.features[known]), dim=1)
        cosines = unit @ F.normalize(self.get_buffer("centroids"), dim=1).T
        return F.cross_entropy(cosines / self.method.cosine_temperature, rows.label[known].long())


@dataclass(frozen=True)
class SlicePrototype(SliceKd):
    """Logits, and radiographs near the centroid of their class among the CT network's features.

    The linear map between the two widths, the first centroid (the first batch's mean) and the term's weight are this
    package's, for the description gives none.

    Attributes:
        weight: of the term, 0.2.
        momentum: of the centroids, .95.
        cosine_temperature: .1.
    """

    weight: Weight = 0.2
    momentum: Share = 0.95
    cosine_temperature: Positive = 0.1
    name: str = "slice-prototype"
    reconstruction: ClassVar[bool] = True

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return CentroidCosines(network.config.hidden, self.ct_network(data, seed), self)


class SliceContrast(CtNetworkTeaches):
    """In-batch InfoNCE between projections of both networks' features."""

    term = "crd"

    def __init__(self, features: int, shared: SharedNetwork, method: SliceCrd) -> None:
        super().__init__(shared, method.temperature, method.soft_share, method.weight)
        self.scale = 1 / method.contrast_temperature
        self.student_projection = nn.Linear(features, method.width)
        self.ct_projection = nn.Linear(self.teacher.config.hidden, method.width)

    def transfer(self, pairs: Batch, taught: MapOutput) -> Tensor:
        """Return the term."""
        ours, theirs = self.student_projection(pairs.features), self.ct_projection(taught.features)
        return info_nce(ours, theirs, pairs.patient, self.scale)


@dataclass(frozen=True)
class SliceCrd(SliceKd):
    """``crd`` with a network that reads the CT slice: the batch for a memory bank, labels unused by the contrast.

    Attributes:
        soft_share: of the softened logits, .3.
        weight: of the contrast, .5.
        contrast_temperature: of the cosines, .07.
        width: of both projections, 128.
    """

    soft_share: Share = 0.3
    weight: Weight = 0.5
    contrast_temperature: Positive = 0.07
    width: Count = 128
    name: str = "slice-crd"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return SliceContrast(network.config.hidden, self.ct_network(data, seed), self)


class SliceRelations(CtNetworkTeaches):
    """Distances between patients, and angles of triples, as among the CT network's features."""

    def __init__(self, shared: SharedNetwork, method: SliceRkd) -> None:
        super().__init__(shared, 1.0, 0.0)
        self.weights |= {"distance": method.distance_weight, "angle": method.angle_weight}

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label``, ``distance`` and ``angle``."""
        features = self.taught(pairs).features
        return {
            "label": label_loss(labelled.logits, labelled.label, labelled.weight),
            "distance": distance_relations(pairs.features, features),
            "angle": angle_relations(pairs.features, features),
        }


@dataclass(frozen=True)
class SliceRkd(CtNetworkMethod):
    """``rkd`` with a network that reads the CT slice: labels and relations, no softened logits.

    Attributes:
        distance_weight, angle_weight: 25 and 50 (Park 2019).
    """

    distance_weight: Weight = 25.0
    angle_weight: Weight = 50.0
    name: str = "slice-rkd"

    def objective(self, data: FitData, network: StudentNetwork, seed: int) -> Objective:
        """Fit the CT network, and return the terms."""
        return SliceRelations(self.ct_network(data, seed), self)


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
