"""Linear regression of the CT embedding, scored by the teacher head: the simplest way to transfer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.students.base import Cases, FitData, Fitted, Head, Stage


@dataclass(frozen=True)
class LinearMap:
    """Sum of ridge regressions, each on its own standardised input: one per stage."""

    terms: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]

    def __call__(self, cxr: Float[np.ndarray, "cases cxr_dim"]) -> Float[np.ndarray, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        each = [((cxr - mean) / scale) @ weights + offset for mean, scale, weights, offset in self.terms]
        return np.asarray(np.sum(each, axis=0))


@dataclass(frozen=True)
class RidgeStudent:
    """Linear map, then the teacher head."""

    regression: LinearMap
    head: Head

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the head's probability at the predicted CT embedding."""
        return np.asarray(expit(self.head.logits(self.regression(cases.cxr))), dtype=np.float64)


@dataclass(frozen=True)
class RidgeHead:
    """Ridge regression z_CXR → z_CT and the frozen CT head.

    With pretraining pairs the second stage regresses what the first one left over, so it can only correct it.

    Attributes:
        penalties: candidates; the one with the least squared error on the validation pairs is taken.
        fixed_penalty: taken when there is no validation pair.
    """

    penalties: tuple[float, ...] = tuple(10.0**k for k in range(-1, 6))
    fixed_penalty: float = 100.0
    name: str = "ridge-head"
    needs_ct: bool = False
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit in closed form; ``seed`` changes nothing.

        Raises:
            CannotFit: there is no teacher.
        """
        head = data.head()
        regression = LinearMap(())
        for stage in data.stages:
            regression = LinearMap((*regression.terms, self._term(stage, regression)))
        return RidgeStudent(regression, head)

    def _term(self, stage: Stage, before: LinearMap) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        inputs = stage.train.cxr.astype(np.float64)
        residual = self._left_over(stage.train, before)
        mean, spread = inputs.mean(0), inputs.std(0)
        scale = np.where(spread > 1e-6, spread, 1.0)
        standard, offset = (inputs - mean) / scale, residual.mean(0)
        left, values, right = np.linalg.svd(standard, full_matrices=False)
        rotated = left.T @ (residual - offset)

        def weights(penalty: float) -> np.ndarray:
            return np.asarray(right.T @ ((values / (values**2 + penalty))[:, None] * rotated))

        penalty = self.fixed_penalty
        if len(stage.val):
            wanted = self._left_over(stage.val, before) - offset
            seen = (stage.val.cxr - mean) / scale
            penalty = min(self.penalties, key=lambda p: float(((seen @ weights(p) - wanted) ** 2).sum()))
        return mean, scale, weights(penalty), offset

    @staticmethod
    def _left_over(cases: Cases, before: LinearMap) -> Float[np.ndarray, "cases ct_dim"]:
        target = cases.paired_ct().astype(np.float64)
        return target - before(cases.cxr) if before.terms else target
