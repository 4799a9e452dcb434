"""Settings of encoders and of their training (torch-free)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from embedprior.config import Config
from embedprior.nn.config import SequenceShape

Precision = Literal["fp32", "bf16", "bf16-autocast", "fp16-autocast"]
"""Of an encoder's arithmetic: float32; bfloat16 weights; float32 weights under torch's autocast."""


class CnnConfig(Config):
    """Network and training budget of a small encoder.

    Attributes:
        channels: of the stride-2 convolutions, first to last.
        grid: cells per side that average pooling keeps; 1 forgets where in the picture something was.
        dim: features of one picture.
        slices: how a stack of pictures becomes one embedding; with ``mean and max`` its length is twice ``dim``.
        epochs: passes over the training pictures; the one with the lowest validation loss is kept.
        batch_size: pictures a step.
        lr: peak of the one-cycle learning rate.
        weight_decay: AdamW weight decay.
        dropout: before and after the features while training.
        shift: largest random shift of a batch while training, in pixels.
    """

    channels: tuple[int, ...] = (16, 32, 48)
    grid: int = Field(1, ge=1)
    dim: int = Field(64, ge=1)
    slices: Literal["mean", "mean and max"] = "mean"
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    dropout: float = Field(0.3, ge=0, lt=1)
    shift: int = Field(3, ge=0)

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding of one exam."""
        return self.dim * (2 if self.slices == "mean and max" else 1)


class LabelTrainingConfig(Config):
    """How an encoder is trained on labels.

    Attributes:
        epochs: passes over the training exams; the one with the highest validation AUC is kept.
        batch_size: exams a step.
        lr: AdamW learning rate.
        weight_decay: AdamW weight decay.
        balance: ``class-weights`` weighs the loss by n / (2 · n_class).
        precision: of the arithmetic; ``bf16`` and ``fp16`` are automatic mixed precision, ``fp16`` on a GPU only.
        patience: epochs in a row without a higher validation AUC after which the training ends.
        dropout: before the classifier.
        shift: largest random shift of a radiograph while training, in pixels.
        batch_norm: ``frozen`` keeps the statistics that the weights came with; small batches have none of their own.
    """

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    balance: Literal["none", "class-weights"] = "class-weights"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    patience: int = Field(5, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    shift: int = Field(0, ge=0)
    batch_norm: Literal["frozen", "trained"] = "frozen"


class TrainEncoderConfig(Config):
    """What ``embedprior train encoder`` reads, and where it writes.

    Attributes:
        kind: ``network`` trains every weight of a network on radiographs or whole volumes; ``sequence`` keeps the
            network and trains a sequence model over its slice tokens.
        encoder: the network to start from, as in ``embedprior embed --encoder``.
        options: of that encoder, such as weights, random_init, reader or profile.
        exams: exam table with paths and the label.
        splits: split table.
        label: name of the label, without the ``label:`` prefix.
        out: folder of the trained encoder.
        design: rows of the split table to use; may be left out when it has one design.
        resample: likewise.
        fold: likewise.
        training: budget.
        sequence: the sequence model; read by kind ``sequence`` only.
        workers: processes that decode while the network computes.
        seed: of weights, batches, shifts and dropout.
    """

    kind: Literal["network", "sequence"] = "network"
    encoder: str
    options: dict[str, Any] = Field(default_factory=dict)
    exams: str
    splits: str
    label: str
    out: str
    design: str | None = None
    resample: int = 0
    fold: int = 0
    training: LabelTrainingConfig = LabelTrainingConfig()
    sequence: SequenceShape = SequenceShape()
    workers: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
