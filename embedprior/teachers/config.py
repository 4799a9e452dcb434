"""Settings of CT teachers (torch-free)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from embedprior.config import Config
from embedprior.nn.config import FitConfig


class SequenceConfig(Config):
    """A sequence model over an exam's tokens (slices, patches): what it is made of, and how cases are drawn.

    Attributes:
        cell: of the bidirectional recurrent layers, or ``transformer``: DINOv2's blocks without patch embedding.
        hidden: width of each direction, or half the transformer's.
        layers: recurrent layers, or blocks.
        pool: how the outputs of all tokens become one vector; ``attention and max`` concatenates both; ``class token``
            is the transformer's own.
        dim: length of the CT embedding it yields.
        dropout: on the tokens and on the pooled vector while training.
        max_tokens: longer exams are cropped to this many tokens, around their middle.
        balanced: draw both classes equally often.
    """

    cell: Literal["gru", "lstm", "transformer"] = "gru"
    hidden: int = Field(128, ge=1)
    layers: int = Field(1, ge=1)
    pool: Literal["attention and max", "attention", "max", "mean", "class token"] = "attention and max"
    dim: int = Field(128, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    max_tokens: int = Field(250, ge=1)
    balanced: bool = True

    @model_validator(mode="after")
    def _class_token_of_a_transformer(self) -> Self:
        if self.pool == "class token" and self.cell != "transformer":
            raise ValueError(f"pool 'class token' is a transformer's; cell is '{self.cell}'")
        return self


class TeacherConfig(Config):
    """A CT teacher.

    Attributes:
        kind: ``head`` reads one embedding an exam; ``sequence`` reads an exam's tokens and makes the embedding itself.
        fit: the head, and the budget of the whole training.
        sequence: read by kind ``sequence`` only.
        seed: of weights, batches and dropout.
    """

    kind: Literal["head", "sequence"] = "head"
    fit: FitConfig = FitConfig()
    sequence: SequenceConfig = SequenceConfig()
    seed: int = Field(0, ge=0)


class TrainTeacherConfig(Config):
    """What ``embedprior train teacher`` reads, and where it writes.

    Attributes:
        cache: of the CT exams: embeddings for kind ``head``, tokens for kind ``sequence``.
        exams: exam table with the label.
        splits: split table.
        label: name of the label, without the ``label:`` prefix.
        out: folder of the teacher.
        design: rows of the split table to use; may be left out when it has one design.
        resample: likewise.
        fold: likewise.
        embeddings: folder for the CT embedding cache that a sequence teacher makes of the token cache; none is made
            without it.
        made_by: the command that makes the inputs, named when they are missing.
        teacher: what is trained.
    """

    cache: str
    exams: str
    splits: str
    label: str
    out: str
    design: str | None = None
    resample: int = 0
    fold: int = 0
    embeddings: str | None = None
    made_by: str = "embedprior embed"
    teacher: TeacherConfig = TeacherConfig()
