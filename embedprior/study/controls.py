"""Controls that look at something other than the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.plain import labelled


@dataclass(frozen=True)
class SourceRates:
    """Share of positives by source in the training cases."""

    sources: Mapping[str, str]
    rates: Mapping[str, float]
    overall: float

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the training share of positives of each case's source (the overall share for a new source)."""
        return np.array([self.rates.get(self.sources[i], self.overall) for i in cases.exam_ids], dtype=np.float64)


@dataclass(frozen=True)
class SourceOnly:
    """Guess the label from where the picture was published: what a model gains by telling sources apart.

    Attributes:
        sources: source of every exam.
    """

    sources: Mapping[str, str]
    name: str = "source-only"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Count positives by source, with one pseudo-case at the overall share; ``seed`` changes nothing.

        Raises:
            CannotFit: one class only.
        """
        train = labelled(data.target.train)
        overall = float(train.label.mean())
        of = np.array([self.sources[i] for i in train.exam_ids])
        rates = {
            str(name): float((train.label[of == name].sum() + overall) / ((of == name).sum() + 1))
            for name in np.unique(of)
        }
        return SourceRates(self.sources, rates, overall)
