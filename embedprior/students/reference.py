"""How far an embedding lies from those a model was fitted on: a distance, and where it stands among held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import special

from embedprior.errors import BadInput
from embedprior.runs import write_tensors

FILE = "reference.safetensors"
MAX_COMPONENTS = 64
FOLDS = 5
SMALLEST = 1e-9
UNKNOWN = np.full(3, np.nan)


@dataclass(frozen=True)
class Reference:
    """Distance from the training embeddings: Mahalanobis in their principal components, plus what these leave over.

    With k components of variance v, d² = (Σ s²/v + |residual|² / r) / (k + 1), r the mean square of the residual of
    training embeddings; about 1 for embeddings like these. Tipping and Bishop, J. R. Stat. Soc. B 1999 (the model that
    it is the distance of).

    Attributes:
        mean: (D,) of the training embeddings.
        components: (k, D) orthonormal directions.
        variances: (k,) along them.
        residual: mean square of the rest; 0 where nothing is left over.
        spread: (3,) mean and standard deviation of the logarithm of the distance, over embeddings that took no part in
            mean and components, and how many these were.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    variances: NDArray[np.float64]
    residual: float
    spread: NDArray[np.float64]

    @classmethod
    def fit(cls, train: Float[np.ndarray, "cases dim"], held_out: Float[np.ndarray, "others dim"]) -> Reference:
        """Return the reference of training embeddings.

        Args:
            train: (N, D), that models were fitted on.
            held_out: (M, D) others of the same kind, such as the validation patients'. With fewer than 20 the distances
                of five folds of ``train`` stand in, each from the other four.
        """
        rows = np.asarray(train, dtype=np.float64)
        model = _model(rows)
        if len(held_out) >= 20:
            distances = cls(*model, UNKNOWN).distance(held_out)
        else:
            fold = np.arange(len(rows)) % FOLDS
            parts = [
                cls(*_model(rows[fold != f]), UNKNOWN).distance(rows[fold == f])
                for f in range(FOLDS)
                if (fold == f).any() and (fold != f).sum() > 1
            ]
            distances = np.concatenate(parts) if parts else np.ones(1)
        logs = np.log(np.maximum(distances, SMALLEST))
        sd = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
        return cls(*model, np.array([logs.mean(), sd, len(logs)]))

    def distance(self, embeddings: Float[np.ndarray, "cases dim"]) -> Float[np.ndarray, " cases"]:
        """Return (N,) distances; about 1 for embeddings like those of training.

        Raises:
            BadInput: embeddings of another length.
        """
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.mean.size:
            raise BadInput(f"embeddings of shape {rows.shape}. Allowed: (N, {self.mean.size}).")
        centred = rows - self.mean
        scores = centred @ self.components.T
        total = (scores**2 / self.variances).sum(axis=1)
        if self.residual > 0:
            total += ((centred - scores @ self.components) ** 2).sum(axis=1) / self.residual
        return np.asarray(np.sqrt(total / (len(self.variances) + 1)))

    def percentile(self, embeddings: Float[np.ndarray, "cases dim"]) -> Float[np.ndarray, " cases"]:
        """Return (N,) how unusual each distance is, in per cent: 99 = one held-out embedding in a hundred lies farther.

        Student's prediction distribution of the logarithm of the distance; NaN with fewer than three held-out ones.
        """
        mean, sd, count = (float(v) for v in self.spread)
        logs = np.log(np.maximum(self.distance(embeddings), SMALLEST))
        if count < 3 or sd == 0:
            return np.full(len(logs), np.nan)
        return np.asarray(100 * special.stdtr(count - 1, (logs - mean) / (sd * np.sqrt(1 + 1 / count))))

    def save(self, folder: Path | str) -> None:
        """Write it into an existing folder (safetensors)."""
        arrays = {"mean": self.mean, "components": self.components, "variances": self.variances}
        write_tensors(Path(folder) / FILE, {**arrays, "residual": np.array([self.residual]), "spread": self.spread})

    @classmethod
    def load(cls, folder: Path | str) -> Reference:
        """Read it back."""
        found = load_file(Path(folder) / FILE)
        return cls(found["mean"], found["components"], found["variances"], float(found["residual"][0]), found["spread"])


def _model(
    rows: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    mean = rows.mean(axis=0)
    _, values, directions = np.linalg.svd(rows - mean, full_matrices=False)
    variances = values**2 / max(len(rows) - 1, 1)
    # half as many as there are rows at most: the variance along the last ones is guessed too small
    wanted = min(MAX_COMPONENTS, max(1, len(rows) // 4), int((variances > 1e-10 * variances[:1].max(initial=0)).sum()))
    kept = max(1, wanted)
    rest = float(variances[kept:].sum())
    scale = variances[:kept] if variances[:1].max(initial=0) > 0 else np.ones(1)
    return mean, np.ascontiguousarray(directions[:kept]), scale, rest if rest > 1e-10 * scale.sum() else 0.0
