"""The named losses of the prior, and the frozen teacher head they may look through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from embedprior.errors import BadInput
from embedprior.prior.config import ObjectiveConfig, ProcessConfig
from embedprior.prior.diffusion import Schedule, loss_weight, to_x0, training_target
from embedprior.prior.scaling import Standardiser

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Noised:
    """One noised batch, standardised units.

    Attributes:
        x0, noise, x: (B, D) clean target, the noise, and x_n.
        n: (B,) timesteps.
        labels: (B,) 1 / 0 / NaN.
    """

    x0: Tensor
    noise: Tensor
    x: Tensor
    n: Tensor
    labels: Tensor


class Objective:
    """Turns a network output into named losses whose sum is minimised.

    Args:
        config, process: loss weights, and what the network predicts.
        schedule: the process.
        scaler: of the target, so that the head reads embeddings in their own scale.
        head: frozen CT classifier, (B, D) embeddings ↦ (B,) logits; needed by the BCE term alone.
        known: share of training cases whose label is known (hard labels).

    Raises:
        BadInput: the BCE term without a head, or with hard labels of which none is known.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        process: ProcessConfig,
        schedule: Schedule,
        scaler: Standardiser,
        head: Head | None,
        known: float,
        device: torch.device,
    ) -> None:
        if config.bce > 0 and head is None:
            raise BadInput(
                f"objective.bce is {config.bce}, but no teacher head was given. Next: give train_prior a head, "
                "or set objective.bce to 0"
            )
        if config.bce > 0 and config.bce_target == "labels" and known == 0.0:
            raise BadInput("objective.bce_target is 'labels', but no pair has a known label. Allowed: 'teacher'.")
        if isinstance(head, torch.nn.Module):
            head = head.requires_grad_(False).eval().to(device)
        self._config, self._process, self._schedule = config, process, schedule
        self._head, self._known = head, known
        self._mean = torch.from_numpy(scaler.mean).float().to(device)
        self._scale = torch.from_numpy(scaler.scale).float().to(device)

    def losses(self, output: Tensor, batch: Noised) -> dict[str, Tensor]:
        """Return the weighted losses by name: ``l2``, and ``bce`` when its weight is above 0."""
        prediction = self._process.prediction
        target = training_target(self._schedule, prediction, batch.x0, batch.noise, batch.n)
        weight = loss_weight(self._schedule, prediction, self._config.min_snr_gamma, batch.n)
        named = {"l2": self._config.l2 * (weight * (output - target).square().mean(dim=1)).mean()}
        if self._config.bce > 0:
            predicted = to_x0(self._schedule, prediction, output, batch.x, batch.n)
            named["bce"] = self._config.bce * self._bce(predicted, batch)
        return named

    def squared_error(self, output: Tensor, batch: Noised) -> Tensor:
        """Return (B, D) squared error of x0, standardised units, whatever the network predicts."""
        return (to_x0(self._schedule, self._process.prediction, output, batch.x, batch.n) - batch.x0).square()

    def _bce(self, predicted: Tensor, batch: Noised) -> Tensor:
        """Mean cross-entropy of the head on x0hat; PE paper, eq. for L_total, with the gradient its code lacks."""
        assert self._head is not None
        logits = self._head(predicted * self._scale + self._mean).reshape(len(predicted))
        if self._config.bce_target == "teacher":
            with torch.no_grad():
                soft = self._head(batch.x0 * self._scale + self._mean).reshape(len(predicted)).sigmoid()
            return F.binary_cross_entropy_with_logits(logits, soft)
        known = batch.labels.isfinite()
        each = F.binary_cross_entropy_with_logits(logits, batch.labels.nan_to_num(0.0), reduction="none")
        # Divided by the share known in the whole fold, not in this slice: the processes' gradients then average right.
        return (each * known).mean() / self._known
