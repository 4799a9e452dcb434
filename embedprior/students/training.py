"""One way to train a student: the same draws, optimiser and checkpoint rule whatever a method transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from embedprior.errors import BadInput
from embedprior.nn.losses import case_weights, label_loss
from embedprior.nn.stages import patient_folds
from embedprior.nn.training import ValidationHistory, generator, minimise, seeded, tensor
from embedprior.students.base import Cases, Head, refuse_not_finite
from embedprior.students.config import Augmentation, Balance, Budget, InputKind
from embedprior.students.network import StudentNetwork, student_inputs

JACKKNIFE_GROUPS = 10
"""Of the validation patients, for the standard error of a validation loss."""


@dataclass(frozen=True)
class Batch:
    """A batch as an objective sees it. ``ct`` and ``teacher`` are frozen; gradients run through the first two.

    Attributes:
        features, logits: of the student.
        inputs: what the student read (after augmentation).
        label: 1, 0 or NaN.
        weight: of the label terms (class weights).
        ct: CT embeddings; no column where there is no CT.
        ct_label: label of the CT itself, or the radiograph's where the CT has none of its own.
        teacher: logits of the CT head; NaN without one.
        patient: numbers; equal for rows of one patient.
        maps: deepest maps (cases, channels, rows, columns) of a student of pixels; None of any other.
        ct_pixels: the CT slices as pictures, flipped with the radiograph; None where there are none.
    """

    features: Float[Tensor, "cases hidden"]
    logits: Float[Tensor, " cases"]
    inputs: Tensor
    label: Float[Tensor, " cases"]
    weight: Float[Tensor, " cases"]
    ct: Float[Tensor, "cases ct_dim"]
    ct_label: Float[Tensor, " cases"]
    teacher: Float[Tensor, " cases"]
    patient: Int[Tensor, " cases"]
    maps: Tensor | None = None
    ct_pixels: Tensor | None = None


class Objective(nn.Module):
    """Named losses of a batch. Modules held here are trained with the student and thrown away afterwards.

    Attributes:
        weights: by name; a loss that is not named weighs 1.
        reads_labels: needs labelled rows in every batch.
        reads_pairs: needs rows of CT–radiograph pairs, labelled or not.
        reads_ct: reads the CT's embedding, or its head's logit; not so where a network reads the CT's picture.
        trained_before: modules that the method trained first, and froze; they count as trained.
        notes: what a reader of the result must know of these terms on these cases.
        shared_seconds: that modules of ``trained_before`` took in another fit, which left them.
    """

    reads_labels = True
    reads_pairs = True
    reads_ct = True

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.weights = dict(weights or {})
        self.trained_before: tuple[nn.Module, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.shared_seconds = 0.0

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return the losses by name, before weighting.

        Args:
            labelled: rows whose label is known.
            pairs: rows drawn from all cases.
        """
        raise NotImplementedError

    def validation_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return what a checkpoint is chosen by on the validation cases: the weighted sum."""
        return self.total(losses)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum."""
        return torch.stack([self.weights.get(name, 1.0) * value for name, value in losses.items()]).sum()

    def advance(self, share: float, losses: Mapping[str, float]) -> None:
        """Adapt weights after a validation; ``share`` of the steps are done. Nothing by default."""


class LabelsAnd(Objective):
    """The label term, and terms of the pairs that need no module of their own.

    Args:
        terms: a batch of pairs ↦ losses by name.
        weights: of the terms.
    """

    def __init__(self, terms: Callable[[Batch], dict[str, Tensor]], weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.terms = terms

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, Tensor]:
        """Return ``label`` and the terms."""
        return {"label": label_loss(labelled.logits, labelled.label, labelled.weight), **self.terms(pairs)}


@dataclass(frozen=True)
class CaseTensors:
    """Cases as tensors, and the teacher's logits of their CTs."""

    inputs: Tensor
    label: Tensor
    weight: Tensor
    ct: Tensor
    ct_label: Tensor
    teacher: Tensor
    patient: Tensor
    mirrored: tuple[Tensor, Tensor] | None = None
    ct_pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> CaseTensors:
        """Return some of the cases."""
        index = torch.from_numpy(rows)
        mirrored = None if self.mirrored is None else (self.mirrored[0][index], self.mirrored[1][index])
        parts = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return CaseTensors(**parts, mirrored=mirrored)


def to_tensors(cases: Cases, kind: InputKind, head: Head | None, balance: Balance) -> CaseTensors:
    """Return the tensors of these cases.

    Args:
        cases: to learn from.
        kind: of the student's input.
        head: frozen CT head, where the method uses one.
        balance: class weights are those of these cases' labels.

    Raises:
        BadInput: an embedding that is read holds a number that is not finite.
    """
    refuse_not_finite(cases, "ct", "ct_mirrored", *(("cxr",) if kind == "embedding" else ("tokens",)))
    label = cases.label.astype(np.float32)
    count = len(cases)
    ct = cases.ct if cases.ct is not None else np.empty((count, 0))
    teacher = np.full(count, np.nan) if head is None or cases.ct is None else head.logits(cases.ct)
    mirrored = None
    if cases.ct_mirrored is not None:
        logits = np.full(count, np.nan) if head is None else head.logits(cases.ct_mirrored)
        mirrored = (tensor(cases.ct_mirrored), tensor(logits))
    codes = {patient: number for number, patient in enumerate(dict.fromkeys(cases.patient_ids))}
    return CaseTensors(
        inputs=student_inputs(cases, kind),
        label=tensor(label),
        weight=tensor(case_weights(label) if balance == "class-weights" else np.ones(count)),
        ct=tensor(ct),
        ct_label=tensor(np.where(np.isnan(cases.ct_label), label, cases.ct_label)),
        teacher=tensor(teacher),
        patient=torch.tensor([codes[p] for p in cases.patient_ids], dtype=torch.long),
        mirrored=mirrored,
        ct_pixels=None if cases.ct_pixels is None else torch.from_numpy(np.ascontiguousarray(cases.ct_pixels)),
    )


def train_student(
    network: StudentNetwork, objective: Objective, train: CaseTensors, val: CaseTensors, budget: Budget, seed: int
) -> ValidationHistory:
    """Train in place and keep the state with the lowest validation loss; without one, the last step.

    A step draws ``batch_size`` labelled cases for the label terms and ``batch_size`` cases for the transfer terms.
    When every case is labelled and nothing is balanced, one draw serves both.

    Args:
        network: the student.
        objective: what it learns by.
        train: cases it learns from.
        val: cases that choose the step; may be empty. Without a label among them an objective that reads labels can't
            choose by them.
        budget: ``fit``, ``balance`` and ``augment`` are read.
        seed: of draws, dropout and augmentation.

    Returns:
        One record a validation: ``step``, ``loss`` (the weighted sum), every term by name, ``val_loss``.

    Raises:
        BadInput: radiographs are to be flipped, CT is used, and there is no embedding of the flipped CT.
        EmbedpriorError: a loss was not a number.
    """
    config, pixels = budget.fit, network.settings["kind"] == "pixels"
    augment = budget.augment if pixels else Augmentation()
    if augment.flip and objective.reads_pairs and objective.reads_ct and train.ct.shape[1] and train.mirrored is None:
        raise BadInput(
            "augment.flip mirrors the radiograph, but these pairs have no embedding of the mirrored CT. "
            "Allowed: ct_mirrored beside ct. Next: embed the CTs flipped too, or set augment.flip to false"
        )
    draws = generator(seed, "batches")
    batches = _batches(train, objective, budget, draws)
    terms: list[dict[str, Tensor]] = []

    def loss(step: int) -> Tensor:
        named = objective.losses(*_draw_batch(network, train, *next(batches), augment, draws))
        terms.append({name: value.detach() for name, value in named.items()})
        return objective.total(named)

    def validate() -> float:
        return validation_loss(network, objective, val)

    def after_validation(record: dict[str, float]) -> None:
        record |= {name: float(torch.stack([t[name] for t in terms]).double().mean()) for name in terms[0]}
        terms.clear()
        objective.advance(record["step"] / config.steps, record)

    with seeded(seed, "dropout"):
        return minimise(
            nn.ModuleList([network, objective]), loss, config.steps, lr=config.lr,
            weight_decay=config.weight_decay, validate=validate if can_validate(objective, val) else None,
            validate_every=config.validate_every, after_validation=after_validation,
        )  # fmt: skip


def can_validate(objective: Objective, val: CaseTensors) -> bool:
    """Return whether the objective can be measured on the validation cases: some, with labels where it reads labels.

    Without labels the label term is 0 at every step, and the first step would be taken for the best.
    """
    return len(val) > 0 and not (objective.reads_labels and bool(val.label.isnan().all()))


def can_choose_stage(objective: Objective, val: CaseTensors) -> bool:
    """Return whether the validation cases can show by more than chance what a first stage was worth.

    An objective of labels alone needs as many patients of each class as the jackknife has groups: with fewer, some
    groups hold none of a class, and the standard error rests on a handful of cases. One that reads pairs is measured on
    every pair, labelled or not.
    """
    if objective.reads_pairs or not can_validate(objective, val):
        return can_validate(objective, val)
    patients = [val.patient[val.label == value].unique() for value in (0.0, 1.0)]
    return min(len(of_class) for of_class in patients) >= JACKKNIFE_GROUPS


def validation_loss(network: StudentNetwork, objective: Objective, val: CaseTensors) -> float:
    """Return what a step is chosen by, on all these cases, without dropout."""
    nn.ModuleList([network, objective]).eval()
    with torch.no_grad():
        return float(objective.validation_loss(objective.losses(*_whole(network, val))))


def validation_losses(
    network: StudentNetwork, objective: Objective, val: CaseTensors, seed: int
) -> Float[np.ndarray, " groups"]:
    """Return numbers whose mean is the validation loss, and whose standard error of the mean is the loss's own.

    They are the jackknife's pseudo-values over groups of patients (Tukey 1958), moved so that their mean is the loss
    itself: an objective that compares cases with one another has no loss of a single case.

    Args:
        network, objective: trained.
        val: validation cases.
        seed: of the groups; the same for everything that is to be compared.
    """
    whole = validation_loss(network, objective, val)
    patients = [str(number) for number in val.patient.tolist()]
    if len(set(patients)) < 2:
        return np.array([whole])
    groups = patient_folds(patients, seed, JACKKNIFE_GROUPS)
    without = np.array([validation_loss(network, objective, val.take(kept)) for kept, _ in groups])
    return np.asarray(whole + (len(groups) - 1) * (without.mean() - without))


def augmented(inputs: Tensor, augment: Augmentation, draws: torch.Generator) -> tuple[Tensor, Bool[Tensor, " cases"]]:
    """Return pictures (cases, height, width) changed at random, and which of them were flipped left to right.

    A shifted picture is filled up with its own edge.

    Example:
        >>> picture = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
        >>> out, flipped = augmented(picture, Augmentation(flip=True), torch.Generator().manual_seed(0))
        >>> flipped.tolist(), out.tolist()
        ([True], [[[2, 1], [4, 3]]])
    """
    count = len(inputs)
    flipped = torch.zeros(count, dtype=torch.bool)
    if augment.flip:
        flipped = torch.rand(count, generator=draws) < 0.5
        inputs = torch.where(rearrange(flipped, "cases -> cases 1 1"), inputs.flip(2), inputs)
    if augment.shift:
        offsets = torch.randint(-augment.shift, augment.shift + 1, (count, 2), generator=draws)
        for axis in (1, 2):
            size = inputs.shape[axis]
            moved = rearrange(offsets[:, axis - 1], "cases -> cases 1") + torch.arange(size)
            pattern = "cases place -> cases place 1" if axis == 1 else "cases place -> cases 1 place"
            inputs = inputs.gather(axis, rearrange(moved.clamp(0, size - 1), pattern).expand_as(inputs))
    return inputs, flipped


def _batches(
    train: CaseTensors, objective: Objective, budget: Budget, draws: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    known = torch.nonzero(~train.label.isnan())[:, 0]
    everyone, none = torch.arange(len(train)), torch.empty(0, dtype=torch.long)
    shared = len(known) == len(train) and budget.balance != "sampler"
    of_class = [known[train.label[known] == value] for value in (0.0, 1.0)]
    balanced = budget.balance == "sampler" and all(len(c) for c in of_class)
    for _ in range(budget.fit.steps):
        pairs = labelled = none
        if objective.reads_pairs or shared:
            pairs = _draw(everyone, budget, draws)
        if objective.reads_labels and shared:
            labelled = pairs
        elif objective.reads_labels and balanced:
            size = min(budget.fit.batch_size, len(known))
            coin = torch.rand(size, generator=draws) < 0.5
            place = torch.rand(size, generator=draws)
            picks = [c[(place * len(c)).long()] for c in of_class]
            labelled = torch.where(coin, picks[1], picks[0])
        elif objective.reads_labels:
            labelled = _draw(known, budget, draws)
        yield labelled, pairs if objective.reads_pairs else labelled


def _draw(rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
    if not len(rows):
        return rows
    return rows[torch.randint(len(rows), (min(budget.fit.batch_size, len(rows)),), generator=draws)]


def _draw_batch(
    network: StudentNetwork, data: CaseTensors, for_labels: Tensor, for_pairs: Tensor, augment: Augmentation,
    draws: torch.Generator,
) -> tuple[Batch, Batch]:  # fmt: skip
    one = for_labels is for_pairs
    rows = for_pairs if one else torch.cat([for_labels, for_pairs])
    inputs = data.inputs[rows]
    flipped = torch.zeros(len(rows), dtype=torch.bool)
    if augment.flip or augment.shift:
        inputs, flipped = augmented(inputs, augment, draws)
    whole = _forward(network, data, rows, inputs, flipped)
    if augment.flip and whole.ct_pixels is not None:
        turned = torch.rand(len(rows), generator=draws) < 0.5 if augment.independent else flipped
        pictures = torch.where(rearrange(turned, "cases -> cases 1 1"), whole.ct_pixels.flip(2), whole.ct_pixels)
        whole = replace(whole, ct_pixels=pictures)
    if one:
        return whole, whole
    return _select(whole, slice(0, len(for_labels))), _select(whole, slice(len(for_labels), None))


def _whole(network: StudentNetwork, data: CaseTensors) -> tuple[Batch, Batch]:
    everyone = torch.arange(len(data))
    whole = _forward(network, data, everyone, data.inputs, torch.zeros(len(data), dtype=torch.bool))
    return _select(whole, torch.nonzero(~data.label.isnan())[:, 0]), whole


def _forward(network: StudentNetwork, data: CaseTensors, rows: Tensor, inputs: Tensor, flipped: Tensor) -> Batch:
    features, logits, maps = network.outputs(inputs)
    ct, teacher = data.ct[rows], data.teacher[rows]
    if data.mirrored is not None and flipped.any():
        ct = torch.where(flipped[:, None], data.mirrored[0][rows], ct)
        teacher = torch.where(flipped, data.mirrored[1][rows], teacher)
    return Batch(
        features, logits, inputs, data.label[rows], data.weight[rows], ct, data.ct_label[rows], teacher,
        data.patient[rows], maps, None if data.ct_pixels is None else data.ct_pixels[rows],
    )  # fmt: skip


def _select(rows: Batch, index: slice | Tensor) -> Batch:
    parts: dict[str, Any] = {name: None if value is None else value[index] for name, value in vars(rows).items()}
    return Batch(**parts)


def same_patient(patient: Int[Tensor, " cases"]) -> Bool[Tensor, "cases cases"]:
    """Return which rows are of one patient."""
    return patient[:, None] == patient[None]
