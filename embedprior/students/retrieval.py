"""Nearest-neighbour retrieval of CT embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.neighbors import NearestNeighbors

from embedprior.nn.losses import soft_cross_entropy
from embedprior.nn.standardise import Standardiser
from embedprior.runs import read_json, write_json, write_tensors
from embedprior.students.base import Cases, FitData, Fitted, refuse_not_finite
from embedprior.students.config import Budget, Count, Counts
from embedprior.students.fit_summary import FitSummary
from embedprior.students.regression_maps import Array
from embedprior.students.student import head_size


@dataclass(frozen=True)
class NeighbourStudent:
    """The head's mean probability over the CTs of the nearest training radiographs."""

    mean: Array
    scale: Array
    anchors: Array
    probability: Array
    neighbours: int
    fit_summary: FitSummary | None = field(default=None, compare=False)
    kind: ClassVar[str] = "neighbours"

    def scores(self, cases: Cases) -> Float[Array, " cases"]:
        """Return the mean probability."""
        return _retrieved(self.anchors, self.probability, (cases.cxr - self.mean) / self.scale, (self.neighbours,))[0]

    def save(self, folder: Path) -> None:
        """Write anchors and their probabilities (safetensors)."""
        names = ("mean", "scale", "anchors", "probability")
        write_tensors(folder / "neighbours.safetensors", {n: np.ascontiguousarray(getattr(self, n)) for n in names})
        write_json(folder / "neighbours.json", {"neighbours": self.neighbours})

    @classmethod
    def load(cls, folder: Path) -> NeighbourStudent:
        """Read it back; runs no code from the files."""
        return cls(neighbours=int(read_json(folder / "neighbours.json")["neighbours"]), **_arrays(folder))


@dataclass(frozen=True)
class KnnHead:
    """Retrieve CT embeddings by cosine between standardised radiographs, and average the head over them.

    Only the pairs of the last stage are searched: a DRR is no radiograph.

    Attributes:
        neighbours: candidates; the one with the least cross-entropy against the head's own probability of the
            validation CTs is taken.
        fixed_neighbours: taken when there is no validation pair.
    """

    budget: Budget = field(default_factory=Budget)
    neighbours: Counts = (5, 10, 20, 40, 80)
    fixed_neighbours: Count = 20
    name: str = "knn-head"
    needs_ct: bool = False
    uses_ct: bool = True
    budget_part: ClassVar[str] = "nothing"

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Keep the training pairs; ``seed`` changes nothing.

        Raises:
            CannotFit: there is no teacher.
            BadInput: an embedding holds a number that is not finite.
        """
        started, head, train, val = perf_counter(), data.head(), data.target.train, data.target.val
        for cases in (train, val):
            refuse_not_finite(cases, "cxr", "ct")
        scaler = Standardiser.fit(train.cxr)
        anchors = scaler.wide(train.cxr)
        probability = expit(head.logits(train.paired_ct()).astype(np.float64))
        allowed = [k for k in self.neighbours if k <= len(train)] or [len(train)]
        chosen = min(self.fixed_neighbours, len(train))
        if len(val):
            target = expit(head.logits(val.paired_ct()).astype(np.float64))
            found = _retrieved(anchors, probability, scaler.wide(val.cxr), allowed)
            chosen = allowed[int(np.argmin([soft_cross_entropy(target, f) for f in found]))]
        fit_summary = FitSummary(0, head_size(head), 0, perf_counter() - started)
        return NeighbourStudent(scaler.mean, scaler.scale, anchors, probability, chosen, fit_summary)

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (0, those of the head): nothing is trained."""
        return 0, head_size(data.teacher)


def _retrieved(anchors: Array, probability: Array, x: Array, counts: Sequence[int]) -> list[Array]:
    search = NearestNeighbors(n_neighbors=max(counts), metric="cosine").fit(anchors)
    order = search.kneighbors(x, return_distance=False)
    return [np.asarray(probability[order[:, :k]].mean(1)) for k in counts]


def _arrays(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "neighbours.safetensors"))
