"""Settings of CT teachers (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from embedprior.config import Config
from embedprior.nn.config import FitConfig, SequenceConfig


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
