"""Ridge regression of the CT embedding on the radiograph's, in closed form: which a prior may start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedprior.nn.ridge import fit_ridge
from embedprior.prior.data import Array


@dataclass(frozen=True)
class Regression:
    """Mean over a case's real condition tokens ↦ that · weights + offset; both sides standardised.

    Attributes:
        weights: (Dc, D) float64.
        offset: (D,) float64.
    """

    weights: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, tokens: Array, real: NDArray[np.bool_] | None) -> Array:
        """Return (N, D) for standardised tokens (N, C, Dc), of which ``real`` (N, C) are no padding (None: all)."""
        return np.asarray(pooled(tokens, real) @ self.weights + self.offset, dtype=np.float32)


def pooled(tokens: Array, real: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Return (N, Dc), the mean over a case's real tokens: the same for any amount of padding."""
    wide = tokens.astype(np.float64)
    if real is None:
        return np.asarray(wide.mean(axis=1))
    return np.asarray(np.where(real[..., None], wide, 0.0).sum(axis=1) / real.sum(axis=1, keepdims=True))


def fit_regression(
    inputs: NDArray[np.float64],
    target: Array,
    val_inputs: NDArray[np.float64],
    val_target: Array,
    before: Regression | None = None,
) -> Regression:
    """Return the ridge regression whose penalty has the least squared error on the validation pairs.

    Args:
        inputs, target: (N, Dc) and (N, D), what is fitted.
        val_inputs, val_target: likewise, for the choice of the penalty.
        before: of an earlier stage; the penalty then holds the weights near these and not near 0, so that few pairs
            correct what was learned from many.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> z = (x @ np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]) + 1.0).astype(np.float32)
        >>> fitted = fit_regression(x[:150], z[:150], x[150:], z[150:])
        >>> np.allclose(fitted.weights, [[1, 0], [0, 2], [0, 0]], atol=0.01), np.allclose(fitted.offset, 1, atol=0.01)
        (True, True)
    """
    found = fit_ridge(inputs, target, val_inputs, val_target, None if before is None else before.weights)
    return Regression(found.weights, found.offset)


def coefficients(kind: str, condition_dim: int, target_dim: int) -> int:
    """Return how many numbers a regression of this kind ("none", "ridge") holds."""
    return (condition_dim + 1) * target_dim if kind == "ridge" else 0
