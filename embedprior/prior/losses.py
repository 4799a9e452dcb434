"""Losses of the prior: squared error of x0, and feature losses on the predicted CT embedding. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from embedprior.errors import BadInput
from embedprior.nn.losses import class_prototypes, class_weights, cross_entropy_of_known, prototype_cosines
from embedprior.nn.standardise import TargetSpace
from embedprior.prior.config import ObjectiveConfig, ProcessConfig
from embedprior.prior.diffusion import Parametrisation, Schedule


def attention_blocks(embedding: Tensor, groups: int) -> Tensor:
    """Return (B, G, ceil(D/G)): the embedding cut into G blocks, each weighted by its share of the energy.

    A reconstruction of the "attentional and feature blocks" of AFT-KD (Yang et al. 2023, Sci Rep 13:18369), whose
    equations are not public: attention = normalise(sum over channels of |F|²), block = attention · F. An embedding
    has no positions, so runs of dimensions take their place (zeros fill the last). The published weighting of
    several network stages by their loss rates is void for the one stage there is here.
    """
    width = -(-embedding.shape[1] // groups)
    blocks: Tensor = rearrange(
        F.pad(embedding, (0, groups * width - embedding.shape[1])),
        "batch (groups width) -> batch groups width",
        groups=groups,
    )
    attention: Tensor = F.normalize(blocks.square().sum(dim=2), dim=1)
    return attention[..., None] * blocks


def aft(predicted: Tensor, target: Tensor, groups: int) -> Tensor:
    """Return (B,): squared distance of the attention blocks, averaged over the D dimensions."""
    distance = attention_blocks(predicted, groups) - attention_blocks(target, groups)
    return distance.square().sum(dim=(1, 2)) / target.shape[1]


def proto(predicted: Tensor, target: Tensor, prototypes: Tensor) -> Tensor:
    """Return (B,): squared difference of the cosines to the class prototypes, averaged over classes.

    ProtoKD (Wang et al. 2023, ICASSP) with M_k = cos(f, c_k). Student and teacher features live in one space here,
    so both are compared with the prototypes of the training fold's true CT embeddings, not with a batch's.
    """
    maps = [prototype_cosines(f, prototypes) for f in (predicted, target)]
    return (maps[0] - maps[1]).square().mean(dim=1)


def contrast(predicted: Tensor, target: Tensor, negatives: Tensor, is_negative: Tensor, margin: float) -> Tensor:
    """Return (B,): d² to the own CT, plus the mean over other patients' CTs of max(0, margin - d)².

    Chopra et al. 2005 with d = ||f - g|| of l2-normalised embeddings. A negative may have the same label.

    Args:
        predicted, target: (B, D).
        negatives: (R, D) CT embeddings to keep away from.
        is_negative: (B, R) False where the negative is of the same patient; a case without negatives keeps
            its first part.
        margin: where repulsion ends; two unit vectors are at most 2 apart.

    Example:
        >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> round(float(contrast(one, one, other, torch.tensor([[True]]), margin=2.0)), 4)  # (2 - sqrt 2)²
        0.3431
    """
    own = F.normalize(predicted, dim=1)
    attract = (own - F.normalize(target, dim=1)).square().sum(dim=1)
    # d² = 2 - 2cos; the floor keeps the root's gradient finite where both coincide.
    distance = (2.0 - 2.0 * own @ F.normalize(negatives, dim=1).T).clamp(min=1e-12).sqrt()
    repel = (margin - distance).clamp(min=0.0).square() * is_negative
    return attract + repel.sum(dim=1) / is_negative.sum(dim=1).clamp(min=1)


Head = Callable[[Tensor], Tensor]
"""(B, D) CT embeddings in their own scale ↦ (B,) logits, differentiable."""


@dataclass(frozen=True)
class Negatives:
    """CT embeddings that a prediction is contrasted with: those of the whole batch, over all processes.

    Attributes:
        target: (R, D) standardised.
        patient: (R,) patient numbers.
    """

    target: Tensor
    patient: Tensor


@dataclass(frozen=True)
class NoisyBatch:
    """One noised batch, in the units that are noised (see ``TargetSpace``).

    Attributes:
        x0, noise, x: (B, D) clean target, the noise, and x_n.
        n: (B,) timesteps.
        labels: (B,) 1 / 0 / NaN.
        patient: (B,) patient numbers; None when nothing is contrasted.
        negatives: what the contrastive term keeps away from; None when nothing is contrasted.
        ridge_prediction: (B, D) what the ridge regression predicts; it is subtracted from ``x0``, and its share from
            ``x``, as the network sees them. None when there is no regression.
    """

    x0: Tensor
    noise: Tensor
    x: Tensor
    n: Tensor
    labels: Tensor
    patient: Tensor | None = None
    negatives: Negatives | None = None
    ridge_prediction: Tensor | None = None


class Objective:
    """Turns a network output into named losses whose sum is minimised.

    Args:
        config, process: loss weights, and what the network predicts.
        schedule: the process.
        space: the units of the target, so that the head reads embeddings in their own scale.
        teacher: frozen CT classifier; needed by the BCE term alone.
        target, labels: training targets (N, D) in these units and their labels (N,) 1 / 0 / NaN.

    Raises:
        BadInput: a term without what it needs (a teacher that reads this embedding, labels), or more blocks than
            dimensions.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        process: ProcessConfig,
        schedule: Schedule,
        space: TargetSpace,
        teacher: Head | None,
        target: Tensor,
        labels: Tensor,
    ) -> None:
        device = target.device
        self._config, self._parametrisation = config, Parametrisation.of(process, schedule)
        self._mean = torch.from_numpy(space.scaler.mean).float().to(device)
        self._scale = torch.from_numpy(space.scaler.scale).float().to(device)
        matrix = space.unwhitening
        self._unwhitening = None if matrix is None else torch.from_numpy(matrix).float().to(device)
        self._teacher = None if teacher is None else frozen(teacher, device)
        self._known = float(labels.isfinite().double().mean())
        weights = class_weights(labels.cpu().numpy()) if config.bce_balanced else np.ones(2)
        self._class_weight = torch.from_numpy(weights).float().to(device)
        self._prototypes = class_prototypes(self.standardised(target), labels)
        self._check(target)

    @property
    def l2_weight(self) -> float:
        """Weight of the squared error."""
        return self._config.l2

    def measurable(self, labels: NDArray[np.floating] | None) -> bool:
        """Return whether anything that is learned can be measured on cases with these labels."""
        others = {k: v for k, v in self._config.auxiliary_weights.items() if k != "bce"}
        soft = self._config.bce > 0 and self._config.bce_target == "teacher"
        labelled = labels is not None and bool(np.isfinite(labels).any())
        return self._config.l2 > 0 or bool(others) or soft or labelled

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher head."""
        return self._teacher is not None

    def losses(self, output: Tensor, batch: NoisyBatch) -> dict[str, Tensor]:
        """Return the weighted losses by name: ``l2``, and each further term whose weight is above 0."""
        config = self._config
        target = self._parametrisation.target(batch.x0, batch.x, batch.n)
        weight = self._parametrisation.loss_weight(config.min_snr_gamma, batch.n)
        named = {"l2": config.l2 * (weight * (output - target).square().mean(dim=1)).mean()}
        if not config.auxiliary_weights:
            return named
        return named | self.auxiliary_losses(self.x0hat(output, batch), batch)

    def auxiliary_losses(self, predicted: Tensor, batch: NoisyBatch) -> dict[str, Tensor]:
        """Return the weighted losses of x0hat (B, D), in the units that are noised, by name."""
        config, named = self._config, {}
        whole = batch.x0 if batch.ridge_prediction is None else batch.x0 + batch.ridge_prediction
        if config.bce > 0:
            named["bce"] = config.bce * self._bce(predicted, replace(batch, x0=whole))
        predicted, whole = self.standardised(predicted), self.standardised(whole)
        if config.aft > 0:
            named["aft"] = config.aft * aft(predicted, whole, config.aft_groups).mean()
        if config.proto > 0:
            named["proto"] = config.proto * proto(predicted, whole, self._prototypes.to(predicted.dtype)).mean()
        if config.contrastive > 0:
            assert batch.negatives is not None
            assert batch.patient is not None
            apart = batch.patient[:, None] != batch.negatives.patient
            negatives = self.standardised(batch.negatives.target)
            each = contrast(predicted, whole, negatives, apart, config.contrastive_margin)
            named["contrastive"] = config.contrastive * each.mean()
        return named

    def error(self, output: Tensor, batch: NoisyBatch) -> Tensor:
        """Return (B, D) x0hat less x0, in the units that are noised, whatever the network predicts."""
        return self._parametrisation.x0hat(output, batch.x, batch.n) - batch.x0

    def standardised(self, embedding: Tensor) -> Tensor:
        """Return embeddings (B, D), or differences of such, standardised per dimension and not whitened."""
        return embedding if self._unwhitening is None else embedding @ self._unwhitening

    def x0hat(self, output: Tensor, batch: NoisyBatch) -> Tensor:
        """Return the clean embedding (B, D), in the units that are noised, that a network output implies."""
        x0hat = self._parametrisation.x0hat(output, batch.x, batch.n)
        return x0hat if batch.ridge_prediction is None else x0hat + batch.ridge_prediction

    def teacher_logits(self, embedding: Tensor) -> Tensor:
        """Return the teacher's (B,) logits of CT embeddings (B, D) in the units that are noised, read in their own."""
        assert self._teacher is not None
        return self._teacher(self.standardised(embedding) * self._scale + self._mean).reshape(len(embedding))

    def _bce(self, predicted: Tensor, batch: NoisyBatch) -> Tensor:
        """Mean cross-entropy of the head on x0hat; PE paper, eq. for L_total, with the gradient its code lacks."""
        logits = self.teacher_logits(predicted)
        if self._config.bce_target == "teacher":
            with torch.no_grad():
                soft = self.teacher_logits(batch.x0).sigmoid()
            return F.binary_cross_entropy_with_logits(logits, soft)
        weight = self._class_weight[batch.labels.nan_to_num(0.0).long()]
        each, _ = cross_entropy_of_known(logits, batch.labels, weight)
        # Divided by the share known in the whole fold, not in this slice: the processes' gradients then average right.
        return each.mean() / self._known

    def _check(self, target: Tensor) -> None:
        config, dim = self._config, target.shape[1]
        if config.bce > 0 and self._teacher is None:
            raise BadInput(
                f"objective.bce is {config.bce}, but no teacher was given. Next: give the folder of a trained teacher "
                "(--teacher DIR; made by embedprior train teacher), or set objective.bce to 0"
            )
        if config.bce > 0 and config.bce_target == "labels" and self._known == 0.0:
            raise BadInput("objective.bce_target is 'labels', but no pair has a known label. Allowed: 'teacher'.")
        if config.aft > 0 and config.aft_groups > dim:
            raise BadInput(f"objective.aft_groups {config.aft_groups}. Allowed: 1 to {dim}, the target's dimensions.")
        if config.proto > 0 and not bool(self._prototypes.isfinite().all()):
            raise BadInput(
                "objective.proto needs a labelled training pair of each class. Next: give labels "
                "(--exams exams.csv --label NAME), or set objective.proto to 0"
            )
        if self._teacher is not None:
            try:
                self.teacher_logits(target[:1])
            except RuntimeError as error:
                raise BadInput(
                    f"the teacher can't read CT embeddings of {dim} dimensions ({str(error).splitlines()[0]}). "
                    "Next: train it on the same CT embeddings"
                ) from error


def frozen(teacher: Head, device: torch.device) -> Head:
    """Return the teacher with its weights frozen, in evaluation mode and on the device."""
    module = module_of(teacher)
    if module is not None:
        module.requires_grad_(False).eval().to(device)
    return teacher


def module_of(teacher: Head) -> nn.Module | None:
    """Return the network behind a teacher (itself, or what it holds as ``network``), or None."""
    inner = teacher if isinstance(teacher, nn.Module) else getattr(teacher, "network", None)
    return inner if isinstance(inner, nn.Module) else None
