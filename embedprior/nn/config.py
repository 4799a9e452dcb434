"""Settings of networks on embeddings (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from embedprior.config import Config

Balance = Literal["none", "class-weights", "sampler"]
"""Of labelled training cases: as they come; their loss weighed by n / (2 · n_class); both classes drawn alike."""


class FitConfig(Config):
    """Size and budget of a network on embeddings.

    Attributes:
        hidden: width of the hidden layer.
        dropout: on the input and after the hidden layer.
        lr: AdamW learning rate.
        weight_decay: AdamW weight decay.
        batch_size: cases a step.
        steps: optimiser steps.
        validate_every: steps between two validations; the step with the lowest validation loss is kept.
    """

    hidden: int = 128
    dropout: float = 0.2
    lr: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    steps: int = 600
    validate_every: int = 20

    renamed: ClassVar[Mapping[str, str]] = {"check_every": "validate_every"}
