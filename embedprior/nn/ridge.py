"""Ridge regression of one embedding on another in closed form; the penalty is chosen on validation pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

PENALTIES = tuple(10.0 ** (k / 2) for k in range(-2, 13))
"""Candidates for the ridge penalty, on sums over the training pairs: from hardly any to little but the mean left."""
FIXED_PENALTY = 100.0
"""Taken where there is no validation pair."""


@dataclass(frozen=True)
class Ridge:
    """x ↦ x · weights + offset.

    Attributes:
        weights: (inputs, outputs) float64.
        offset: (outputs,) float64.
        penalty: that was chosen.
    """

    weights: NDArray[np.float64]
    offset: NDArray[np.float64]
    penalty: float

    def __call__(self, inputs: Float[np.ndarray, "cases inputs"]) -> Float[np.ndarray, "cases outputs"]:
        """Return the predictions, float64."""
        return np.asarray(inputs @ self.weights + self.offset)


def fit_ridge(
    inputs: Float[np.ndarray, "cases inputs"],
    target: Float[np.ndarray, "cases outputs"],
    val_inputs: Float[np.ndarray, "others inputs"],
    val_target: Float[np.ndarray, "others outputs"],
    before: NDArray[np.float64] | None = None,
    penalties: Sequence[float] = PENALTIES,
    fixed_penalty: float = FIXED_PENALTY,
) -> Ridge:
    """Return the ridge regression whose penalty has the least squared error on the validation pairs.

    min ‖target − x · W − offset‖² + penalty · ‖W − before‖² by one singular value decomposition of the inputs, which
    serves all penalties.

    Args:
        inputs, target: what is fitted; the penalty treats dimensions alike, so standardise the inputs.
        val_inputs, val_target: pairs that choose the penalty; may be empty.
        before: weights of an earlier fit (None: 0) that the penalty holds the new ones near, so that few pairs correct
            what many have taught.
        penalties: candidates.
        fixed_penalty: taken where there is no validation pair.

    Example:
        >>> x = np.array([[-1.0], [0.0], [1.0]])
        >>> fit_ridge(x, 2 * x + 3, x, 2 * x + 3, penalties=(0.5, 2.0)).weights  # 2 · Σx² / (Σx² + 0.5)
        array([[1.6]])
    """
    start = np.zeros((inputs.shape[1], target.shape[1])) if before is None else before
    mean, left = inputs.mean(axis=0), target - inputs @ start
    # One thread: sums in one order, so that a resumed training finds the same digits on any number of cores.
    with threadpool_limits(1):
        u, values, v = np.linalg.svd(inputs - mean, full_matrices=False)
        rotated = u.T @ (left - left.mean(axis=0))

        def at(penalty: float) -> Ridge:
            weights = start + v.T @ ((values / (values**2 + penalty))[:, None] * rotated)
            return Ridge(weights, target.mean(axis=0) - mean @ weights, penalty)

        if not len(val_target):
            return at(fixed_penalty)
        return min((at(p) for p in penalties), key=lambda fit: float(np.square(fit(val_inputs) - val_target).sum()))
