"""What is known before diffusion: a ridge regression of the CT embedding, and the covariance of what it leaves over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from embedprior.nn.ridge import Ridge, fit_ridge
from embedprior.nn.stages import StageWeight, choose_weight
from embedprior.prior.data import Array

MAX_LEVERAGE = 1 - 1e-6
"""Nearer 1 than that, too few digits are left of a residual to divide it by 1 - leverage."""


@dataclass(frozen=True)
class Regression:
    """Mean over a case's real condition tokens ↦ that · weights + offset; both sides standardised.

    Attributes:
        weights: (Dc, D) float64.
        offset: (D,) float64.
        first_stage: how much of an earlier stage's map it started from; None when there was no earlier stage.
    """

    weights: NDArray[np.float64]
    offset: NDArray[np.float64]
    first_stage: StageWeight | None = None

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
) -> tuple[Regression, NDArray[np.float64]]:
    """Return the ridge regression with the least squared error on the validation pairs, and its left-out residuals.

    Args:
        inputs, target: (N, Dc) and (N, D), what is fitted.
        val_inputs, val_target: likewise, for the choice of the penalty and of the weight below.
        before: of an earlier stage; the penalty then holds the weights near a multiple of these, so that few pairs
            correct what was learned from many. The multiple may be 0: a map learned on DRRs need not hold for
            radiographs.

    Returns:
        The regression, and (N, D) what is left of each training target by the fit without it (Allen 1974): the residual
        divided by 1 - leverage.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> z = (x @ np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]) + 1.0).astype(np.float32)
        >>> fitted, residuals = fit_regression(x[:150], z[:150], x[150:], z[150:])
        >>> np.allclose(fitted.weights, [[1, 0], [0, 2], [0, 0]], atol=0.01), np.allclose(fitted.offset, 1, atol=0.01)
        (True, True)
    """

    def fit(weight: float) -> Ridge:
        start = None if before is None else weight * before.weights
        return fit_ridge(inputs, target, val_inputs, val_target, start)

    taken_over = None
    if before is not None:
        taken_over = choose_weight(lambda weight: np.square(fit(weight)(val_inputs) - val_target).mean(axis=1))
    ridge = fit(0.0 if taken_over is None else taken_over.weight)
    residuals = (target - ridge(inputs)) / (1.0 - leverage(inputs, ridge.penalty))[:, None]
    return Regression(ridge.weights, ridge.offset, taken_over), residuals


def leverage(inputs: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return (N,) the share of its own target in each row's ridge prediction, below 1.

    Example:
        >>> leverage(np.array([[-1.0], [0.0], [1.0]]), penalty=2.0).round(3)  # 1/3 + x² / (Σx² + 2)
        array([0.583, 0.333, 0.583])
    """
    with threadpool_limits(1):
        u, values, _ = np.linalg.svd(inputs - inputs.mean(axis=0), full_matrices=False)
    shares = 1.0 / len(inputs) + np.square(u) @ (values**2 / (values**2 + penalty))
    return np.asarray(np.minimum(shares, MAX_LEVERAGE))


def coefficients(kind: str, condition_dim: int, target_dim: int) -> int:
    """Return how many numbers a regression of this kind ("none", "ridge") holds."""
    return (condition_dim + 1) * target_dim if kind == "ridge" else 0
