"""Settings of trained encoders (torch-free)."""

from __future__ import annotations

from embedprior.config import Config


class CnnConfig(Config):
    """Network and training budget of a small encoder.

    Attributes:
        channels: of the stride-2 convolutions, first to last.
        dim: length of the embedding.
        epochs: passes over the training exams; the one with the lowest validation loss is kept.
        batch_size: exams a step.
        lr: peak of the one-cycle learning rate.
        weight_decay: AdamW weight decay.
        dropout: on the embedding while training.
        shift: largest random shift of the picture while training, in pixels.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    dim: int = 64
    epochs: int = 10
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    shift: int = 3
