"""Per-dimension standardisation, fitted on a training fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Standardiser:
    """z ↦ (z - mean) / scale, per dimension.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64, all positive; 1 where the training fold does not vary.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, embeddings: NDArray[np.float32]) -> Standardiser:
        """Return the standardiser of (..., D) embeddings; every axis but the last is a sample axis."""
        rows = embeddings.reshape(-1, embeddings.shape[-1]).astype(np.float64)
        scale = rows.std(axis=0)
        # Rounding leaves a constant column a spread near 1e-17 of its size, which must not become a unit.
        constant = scale <= 1e-7 * np.abs(rows).max(axis=0)
        return cls(rows.mean(axis=0), np.where(constant, 1.0, scale))

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def forward(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (..., D) standardised, float32."""
        return ((embeddings - self.mean) / self.scale).astype(np.float32)

    def inverse(self, standardised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (..., D) in the embedding's own scale, float32."""
        return (standardised * self.scale + self.mean).astype(np.float32)
