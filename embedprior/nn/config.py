"""Settings of networks on embeddings (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

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


class SequenceShape(Config):
    """A sequence model over an exam's tokens (slices, patches): what it is made of.

    Attributes:
        cell: of the bidirectional recurrent layers, or ``transformer``: DINOv2's blocks without patch embedding.
        hidden: width of each direction, or half the transformer's.
        layers: recurrent layers, or blocks.
        pool: how the outputs of all tokens become one vector; ``attention and max`` concatenates both; ``class token``
            is the transformer's own.
        dim: length of the CT embedding it yields.
        dropout: on the tokens and on the pooled vector while training.
        max_tokens: longer exams are cropped to this many tokens, around their middle.
    """

    cell: Literal["gru", "lstm", "transformer"] = "gru"
    hidden: int = Field(128, ge=1)
    layers: int = Field(1, ge=1)
    pool: Literal["attention and max", "attention", "max", "mean", "class token"] = "attention and max"
    dim: int = Field(128, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    max_tokens: int = Field(250, ge=1)

    @model_validator(mode="after")
    def _class_token_of_a_transformer(self) -> Self:
        if self.pool == "class token" and self.cell != "transformer":
            raise ValueError(f"pool 'class token' is a transformer's; cell is '{self.cell}'")
        return self


class SequenceConfig(SequenceShape):
    """A teacher's sequence model, and how its cases are drawn.

    Attributes:
        balanced: draw both classes equally often.
    """

    balanced: bool = True
