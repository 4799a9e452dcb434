"""A multilayer perceptron on embeddings, one way to fit it, and class-balanced losses: shared by heads and students."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.errors import EmbedpriorError
from embedprior.nn.config import FitConfig
from embedprior.runs import seed_for

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs of the network, row numbers they belong to) → scalar."""


class Mlp(nn.Module):
    """Standardise → dropout → linear → GELU → dropout → linear.

    The mean and spread of the input are those of the training cases, and are part of the weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int, config: FitConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(inputs, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, outputs),
        )

    def fit_scale(self, inputs: Float[Tensor, "cases inputs"]) -> None:
        """Take mean and spread from the training cases; a constant dimension keeps spread 1."""
        self.mean.copy_(inputs.mean(0))
        spread = inputs.std(0, unbiased=False)
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, inputs: Float[Tensor, "cases inputs"]) -> Float[Tensor, "cases outputs"]:
        """Return raw outputs (logits, or embeddings)."""
        out: Tensor = self.layers((inputs - self.mean) / self.scale)
        return out


def tensor(array: Float[np.ndarray, ...]) -> Tensor:
    """Return a float32 tensor of a NumPy array."""
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32)


def new_mlp(inputs: Float[np.ndarray, "cases inputs"], outputs: int, config: FitConfig, seed: int) -> Mlp:
    """Return an untrained network whose scale is that of ``inputs``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initial weights"))
        network = Mlp(inputs.shape[1], outputs, config)
    network.fit_scale(tensor(inputs))
    return network


def fit(
    network: Mlp,
    train: Float[np.ndarray, "cases inputs"],
    loss: Loss,
    val: Float[np.ndarray, "others inputs"],
    val_loss: Loss,
    config: FitConfig,
    seed: int,
    looks: list[dict[str, float]] | None = None,
    weights: Tensor | None = None,
) -> Mlp:
    """Fit by AdamW and return the network as it was at its lowest validation loss.

    With no validation case the last step is kept: a fixed budget, nothing selected.

    Args:
        network: changed in place and returned.
        train: inputs.
        loss: of outputs and the row numbers of ``train`` they belong to.
        val: inputs that choose the step.
        val_loss: the same for ``val``.
        config: budget.
        seed: of batches and dropout.
        looks: filled with one record (``step``, ``val_loss``) a look, when given.
        weights: (cases,) how often a training case is drawn; None draws all alike.
    """
    inputs, val_inputs = tensor(train), tensor(val)

    def look() -> float:
        return float(val_loss(network(val_inputs), torch.arange(len(val_inputs))))

    def batch_loss(rows: Tensor) -> Tensor:
        return loss(network(inputs[rows]), rows)

    seen = descend(network, batch_loss, len(inputs), look if len(val_inputs) else None, config, seed, weights)
    if looks is not None:
        looks += seen
    return network


def descend(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    look: Callable[[], float] | None,
    config: FitConfig,
    seed: int,
    weights: Tensor | None = None,
) -> list[dict[str, float]]:
    """Minimise ``loss`` by AdamW; the network ends as it was at its lowest validation loss, in evaluation mode.

    Args:
        network: changed in place.
        loss: row numbers of the training cases → scalar.
        count: training cases.
        look: the validation loss; None keeps the last step.
        config: budget.
        seed: of batches and dropout.
        weights: (count,) how often a case is drawn; None draws all alike.

    Returns:
        One record (``step``, ``val_loss``) for every look.

    Raises:
        EmbedpriorError: the validation loss was never a number.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    order = torch.Generator().manual_seed(seed_for(seed, "batches"))
    best_loss, best = float("inf"), copy.deepcopy(network.state_dict())
    size, looks = min(config.batch_size, count), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "dropout"))
        for step in range(1, config.steps + 1):
            network.train()
            if weights is None:
                rows = torch.randint(count, (size,), generator=order)
            else:
                rows = torch.multinomial(weights, size, replacement=True, generator=order)
            value = loss(rows)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            if look is not None and step % config.check_every == 0:
                network.eval()
                with torch.no_grad():
                    now = look()
                looks.append({"step": step, "val_loss": now})
                if now < best_loss:
                    best_loss, best = now, copy.deepcopy(network.state_dict())
    if looks and best_loss == float("inf"):
        raise EmbedpriorError(
            "the validation loss was never a number. Next: look for numbers that are not finite among the inputs, "
            "or lower lr"
        )
    # A budget shorter than the first look has chosen nothing: its last step is kept.
    if looks:
        network.load_state_dict(best)
    network.eval()
    return looks


def predict(network: Mlp, inputs: Float[np.ndarray, "cases inputs"]) -> Float[np.ndarray, "cases outputs"]:
    """Return the network's outputs without dropout."""
    network.eval()
    with torch.no_grad():
        return np.asarray(network(tensor(inputs)).numpy())


def class_weights(labels: Float[np.ndarray, " cases"]) -> Float[np.ndarray, " cases"]:
    """Return n / (2 · n_class) for every labelled case, 1 for the others; n counts the labelled ones."""
    weights = np.ones(len(labels))
    for value in (0.0, 1.0):
        own = labels == value
        if own.any():
            weights[own] = (~np.isnan(labels)).sum() / (2 * own.sum())
    return weights


def label_loss(labels: Float[np.ndarray, " cases"], weights: Float[np.ndarray, " cases"] | None = None) -> Loss:
    """Return binary cross-entropy against these labels; cases without a label do not count.

    Args:
        labels: 1, 0 or NaN (unknown).
        weights: of each case, 1 without them; the weights of a batch's known cases are what its sum is divided by.
    """
    targets = tensor(labels)
    weight = torch.ones_like(targets) if weights is None else tensor(weights)

    def loss(outputs: Tensor, rows: Tensor) -> Tensor:
        wanted = targets[rows]
        known = ~torch.isnan(wanted)
        each = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], torch.nan_to_num(wanted), reduction="none")
        counted = known * weight[rows]
        return (each * counted).sum() / counted.sum().clamp(min=1e-6)

    return loss
