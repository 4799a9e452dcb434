"""Networks on embeddings: a base that standardises its input, and the perceptron of CT heads and regressions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.nn import losses
from embedprior.nn.config import FitConfig
from embedprior.nn.standardise import CONSTANT
from embedprior.nn.training import ValidationHistory, generator, minimise, seeded, tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs of the network, row numbers they belong to) → scalar."""


class Standardised(nn.Module):
    """Base of networks whose input is standardised: mean and spread of the training cases are part of the weights.

    Args:
        shape: of mean and scale: one number per dimension, or ``()`` for one number in all.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def fit_scale(self, inputs: Tensor) -> None:
        """Take mean and spread from the training cases (cases, *shape); what is constant keeps spread 1.

        They are measured in the precision of the inputs.
        """
        mean, scale, low, high = inputs.mean(0), inputs.std(0, correction=0), inputs.amin(0), inputs.amax(0)
        constant = high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, torch.ones_like(scale), scale))

    def standardise(self, inputs: Float[Tensor, "*cases dim"]) -> Float[Tensor, "*cases dim"]:
        """Return the inputs less the mean, by the spread."""
        return (inputs - self.mean) / self.scale


class Mlp(Standardised):
    """Standardise → dropout → linear → GELU → dropout → linear."""

    def __init__(self, inputs: int, outputs: int, config: FitConfig) -> None:
        super().__init__(inputs)
        self.layers = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(inputs, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, outputs),
        )

    def forward(self, inputs: Float[Tensor, "cases inputs"]) -> Float[Tensor, "cases outputs"]:
        """Return raw outputs (logits, or embeddings)."""
        out: Tensor = self.layers(self.standardise(inputs))
        return out


def new_mlp(inputs: Float[np.ndarray, "cases inputs"], outputs: int, config: FitConfig, seed: int) -> Mlp:
    """Return an untrained network whose scale is that of ``inputs``."""
    with seeded(seed, "initial weights"):
        network = Mlp(inputs.shape[1], outputs, config)
    network.fit_scale(tensor(inputs))
    return network


def fit_network(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    validate: Callable[[], float] | None,
    config: FitConfig,
    seed: int,
    weights: Tensor | None = None,
) -> ValidationHistory:
    """Fit a network on batches drawn at random; see ``minimise`` for the checkpoint that is kept.

    Args:
        network: changed in place.
        loss: row numbers of the training cases → scalar.
        count: training cases.
        validate: the validation loss; None keeps the last step: a fixed budget, nothing selected.
        config: budget.
        seed: of batches and dropout.
        weights: (count,) how often a case is drawn; None draws all alike.

    Raises:
        EmbedpriorError: see ``minimise``.
    """
    draws, size = generator(seed, "batches"), min(config.batch_size, count)

    def batch_loss(step: int) -> Tensor:
        if weights is None:
            return loss(torch.randint(count, (size,), generator=draws))
        return loss(torch.multinomial(weights, size, replacement=True, generator=draws))

    with seeded(seed, "dropout"):
        return minimise(
            network, batch_loss, config.steps, lr=config.lr, weight_decay=config.weight_decay,
            validate=validate, validate_every=config.validate_every,
        )  # fmt: skip


def fit_mlp(
    network: Mlp,
    train: Float[np.ndarray, "cases inputs"],
    loss: Loss,
    val: Float[np.ndarray, "others inputs"],
    val_loss: Loss,
    config: FitConfig,
    seed: int,
    weights: Tensor | None = None,
) -> ValidationHistory:
    """Fit on inputs in memory; arguments as in ``fit_network``. Without a validation case the last step is kept.

    Args:
        network: changed in place.
        train: inputs.
        loss: of outputs and the row numbers of ``train`` they belong to.
        val: inputs that choose the step.
        val_loss: the same for ``val``.
        config: budget.
        seed: of batches and dropout.
        weights: (cases,) how often a training case is drawn.
    """
    inputs, val_inputs = tensor(train), tensor(val)

    def batch_loss(rows: Tensor) -> Tensor:
        return loss(network(inputs[rows]), rows)

    def validate() -> float:
        return float(val_loss(network(val_inputs), torch.arange(len(val_inputs))))

    return fit_network(network, batch_loss, len(inputs), validate if len(val_inputs) else None, config, seed, weights)


def predict(network: Mlp, inputs: Float[np.ndarray, "cases inputs"]) -> Float[np.ndarray, "cases outputs"]:
    """Return the network's outputs without dropout."""
    network.eval()
    with torch.no_grad():
        return np.asarray(network(tensor(inputs)).numpy())


def loss_of_labels(labels: Float[np.ndarray, " cases"], weights: Float[np.ndarray, " cases"] | None = None) -> Loss:
    """Return binary cross-entropy against these labels (1, 0 or NaN = unknown); see ``losses.label_loss``."""
    label, weight = tensor(labels), None if weights is None else tensor(weights)
    return lambda outputs, rows: losses.label_loss(outputs[:, 0], label[rows], None if weight is None else weight[rows])
