"""Settings of trained encoders (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from embedprior.config import Config


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
