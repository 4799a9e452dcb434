"""The CT head: embedding → logit, trained on the training fold, then frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.runs import read_json, write_json
from embedprior.teachers.config import Balance, FitConfig
from embedprior.teachers.fitting import Mlp, class_weights, fit, label_loss, new_mlp, predict, tensor

WEIGHTS, SETTINGS = "head.safetensors", "head.json"


class OneClass(BadInput):
    """A classifier needs both classes."""


class TeacherHead:
    """A frozen classifier on CT embeddings."""

    def __init__(self, network: Mlp, config: FitConfig) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = config

    def logits(self, embeddings: Float[np.ndarray, "cases dim"]) -> Float[np.ndarray, " cases"]:
        """Return one logit a case."""
        return predict(self.network, embeddings)[:, 0]

    def __call__(self, embeddings: Float[Tensor, "cases dim"]) -> Float[Tensor, " cases"]:
        """Return logits with gradients to the embeddings (the weights stay frozen)."""
        out: Tensor = self.network(embeddings)[:, 0]
        return out

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON)."""
        save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / SETTINGS, {"dim": self.network.mean.numel(), "config": self.config})

    @classmethod
    def load(cls, folder: Path) -> TeacherHead:
        """Read a head back; runs no code from the file."""
        settings = read_json(folder / SETTINGS)
        config = parse_config(FitConfig, settings["config"], str(folder / SETTINGS))
        network = Mlp(int(settings["dim"]), 1, config)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return cls(network, config)


def train_head(
    embeddings: Float[np.ndarray, "cases dim"],
    labels: Float[np.ndarray, " cases"],
    val_embeddings: Float[np.ndarray, "others dim"],
    val_labels: Float[np.ndarray, " others"],
    config: FitConfig,
    seed: int,
    looks: list[dict[str, float]] | None = None,
    balance: Balance = "none",
) -> TeacherHead:
    """Train a head on labelled CT embeddings.

    Args:
        embeddings: of training CTs.
        labels: 1, 0 or NaN (left out).
        val_embeddings: of CTs that choose the step; may be empty.
        val_labels: their labels.
        config: network and budget.
        seed: of weights, batches and dropout.
        looks: filled with the validation losses by step, when given.
        balance: ``class-weights`` weighs the loss (that of the validation CTs by their own classes, too); ``sampler``
            draws both classes alike.

    Raises:
        OneClass: fewer than two classes among the training labels.
    """
    known = ~np.isnan(labels)
    classes = sorted({int(v) for v in labels[known]})
    if len(classes) < 2:
        have = "none" if not classes else f"only class {classes[0]}"
        raise OneClass(f"a CT head needs both classes; the {int(known.sum())} labelled CTs hold {have}.")
    val_known = ~np.isnan(val_labels)
    network = new_mlp(embeddings[known], 1, config, seed)
    train, val = labels[known], val_labels[val_known]
    loss, val_loss = (label_loss(y, class_weights(y) if balance == "class-weights" else None) for y in (train, val))
    fit(
        network, embeddings[known], loss, val_embeddings[val_known], val_loss, config, seed, looks,
        tensor(class_weights(train)) if balance == "sampler" else None,
    )  # fmt: skip
    return TeacherHead(network, config)
