"""Standardisation per dimension, fitted on training cases (torch-free; as a layer: ``network.Standardised``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from threadpoolctl import threadpool_limits

Array = NDArray[np.float32]

LEAST_VARIANCE = 1e-4
"""A direction's variance is taken to be at least this share of the mean over directions."""

CONSTANT = 1e-5
"""A dimension is constant where its largest and smallest value differ by no more than this share of the larger size:
some hundred units in the last place of float32. Such a spread must not become a unit of measurement: a case that lies
elsewhere would come out at a million."""

NUMBERS_AT_ONCE = 2**22
"""Numbers that are brought back to their own scale together."""


@dataclass(frozen=True)
class Standardiser:
    """z ↦ (z - mean) / scale, per dimension.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64, positive; where the training cases do not vary (see ``CONSTANT``) 1, or 0 for a dimension
            that is left out: it is 0 forward, and its mean back.

    Example:
        >>> scaler = Standardiser.fit(np.array([[0.0, 7.0], [2.0, 7.0]]))
        >>> scaler.scale
        array([1., 1.])
        >>> scaler.forward(np.array([[4.0, 8.0]]))
        array([[3., 1.]], dtype=float32)
        >>> scaler = Standardiser.fit(np.array([[0.0, 7.0], [2.0, 7.0]]), leave_out_constants=True)
        >>> scaler.forward(np.array([[4.0, 8.0]])), scaler.inverse(np.array([[3.0, 5.0]]))
        (array([[3., 0.]], dtype=float32), array([[4., 7.]], dtype=float32))
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, embeddings: NDArray[Any] | Sequence[NDArray[Any]], leave_out_constants: bool = False) -> Standardiser:
        """Return the standardiser of embeddings, measured in double precision.

        Args:
            embeddings: (..., D), every axis but the last a sample axis; or several of them, taken together.
            leave_out_constants: give dimensions that do not vary the scale 0 instead of 1.
        """
        parts = [embeddings] if isinstance(embeddings, np.ndarray) else list(embeddings)
        rows = [part.reshape(-1, part.shape[-1]).astype(np.float64) for part in parts]
        count = sum(len(part) for part in rows)
        mean = _total([part.sum(axis=0) for part in rows]) / count
        scale = np.sqrt(_total([np.square(part - mean).sum(axis=0) for part in rows]) / count)
        low = np.min([part.min(axis=0) for part in rows if len(part)], axis=0)
        high = np.max([part.max(axis=0) for part in rows if len(part)], axis=0)
        constant = high - low <= CONSTANT * np.maximum(np.abs(low), np.abs(high))
        return cls(mean, np.where(constant, 0.0 if leave_out_constants else 1.0, scale))

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def forward(self, embeddings: NDArray[Any]) -> NDArray[np.float32]:
        """Return (..., D) standardised, float32."""
        return self.wide(embeddings).astype(np.float32)

    def wide(self, embeddings: NDArray[Any]) -> NDArray[np.float64]:
        """Return (..., D) standardised, float64."""
        if self.scale.all():
            return np.asarray((embeddings - self.mean) / self.scale)
        return np.asarray((embeddings - self.mean) / np.where(self.scale > 0, self.scale, np.inf))

    def inverse(self, standardised: NDArray[Any]) -> NDArray[np.float32]:
        """Return (..., D) in the embedding's own scale, float32."""
        return (standardised * self.scale + self.mean).astype(np.float32)


@dataclass(frozen=True)
class TargetSpace:
    """CT embeddings in the units in which they are noised: standardised, then whitened where a prior does so.

    Attributes:
        scaler: per dimension.
        whitening: (D, D) symmetric, applied to standardised rows from the right; None for the identity.
        unwhitening: its inverse; both are 0 in the dimensions that the scaler leaves out.

    Example:
        >>> units = Standardiser(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
        >>> space = TargetSpace(units).whitened(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]]))
        >>> z = np.array([[3.0, 5.0]], np.float32)
        >>> bool(np.allclose(space.inverse(space.forward(z)), z))
        True
    """

    scaler: Standardiser
    whitening: NDArray[np.float64] | None = None
    unwhitening: NDArray[np.float64] | None = None

    @property
    def dim(self) -> int:
        """D."""
        return self.scaler.dim

    def forward(self, embeddings: Array) -> Array:
        """Return (..., D) in these units, float32."""
        return self.from_standardised(self.scaler.forward(embeddings))

    def from_standardised(self, standardised: Array) -> Array:
        """Return standardised embeddings (..., D) in these units, float32."""
        return standardised if self.whitening is None else (standardised @ self.whitening).astype(np.float32)

    def inverse(self, embeddings: Array) -> Array:
        """Return (..., D) in the embedding's own scale, float32."""
        out = np.empty(embeddings.shape, np.float32)
        # In double precision, in parts: whole, samples of a thousand cases would take gigabytes.
        rows = max(1, NUMBERS_AT_ONCE * len(embeddings) // max(embeddings.size, 1))
        for start in range(0, len(embeddings), rows):
            part = embeddings[start : start + rows]
            if self.unwhitening is not None:
                part = (part @ self.unwhitening).astype(np.float32)
            out[start : start + rows] = self.scaler.inverse(part)
        return out

    def whitened(self, residuals: NDArray[np.floating]) -> TargetSpace:
        """Return this space with the whitening of (N, D) residuals, shrunk as by Ledoit and Wolf (2004).

        Symmetric, so that dimensions keep their meaning and a network of an earlier stage can go on.
        """
        varies = self.scaler.scale > 0
        rows = np.compress(varies, np.asarray(residuals, dtype=np.float64), axis=1)
        both = np.zeros((2, self.dim, self.dim))
        if not varies.any():
            return replace(self, whitening=both[0], unwhitening=both[1])
        with threadpool_limits(1):
            covariance, _ = ledoit_wolf(rows, assume_centered=True)
            variance, axes = np.linalg.eigh(covariance)
            mean = float(variance.mean())
            spread = np.sqrt(np.maximum(variance, LEAST_VARIANCE * mean)) if mean > 0 else np.ones(len(variance))
            both[:, np.outer(varies, varies)] = ((axes / spread) @ axes.T).ravel(), ((axes * spread) @ axes.T).ravel()
            return replace(self, whitening=both[0], unwhitening=both[1])


def _total(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return parts[0] if len(parts) == 1 else np.sum(parts, axis=0)
