"""Rows that need CT at inference: shown as the upper reference, never ranked with deployable rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.students.base import Cases, FitData, Fitted, Head
from embedprior.students.plain import labelled
from embedprior.teachers.config import FitConfig
from embedprior.teachers.fitting import Mlp, fit, label_loss, new_mlp, predict


@dataclass(frozen=True)
class HeadOnCt:
    """The teacher head on the true CT embedding."""

    head: Head

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the head's probability."""
        return np.asarray(expit(self.head.logits(cases.paired_ct())), dtype=np.float64)


@dataclass(frozen=True)
class CtOnly:
    """The CT teacher itself."""

    name: str = "ct-only"
    needs_ct: bool = True
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Return the frozen teacher; nothing is fitted here, so ``seed`` changes nothing.

        Raises:
            CannotFit: there is no teacher.
        """
        return HeadOnCt(data.head())


@dataclass(frozen=True)
class FusedStudent:
    """A network on both embeddings."""

    network: Mlp

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return sigmoid of the logit."""
        return np.asarray(expit(predict(self.network, both(cases))[:, 0]), dtype=np.float64)


@dataclass(frozen=True)
class LateFusion:
    """Radiograph and CT embeddings, concatenated."""

    fit_config: FitConfig = field(default_factory=FitConfig)
    name: str = "late-fusion"
    needs_ct: bool = True
    uses_ct: bool = True

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit on the labelled pairs of the last stage.

        Raises:
            CannotFit: they hold one class only.
        """
        train, val = labelled(data.target.train), data.target.val
        known = val.take(np.flatnonzero(val.known))
        network = new_mlp(both(train), 1, self.fit_config, seed)
        fit(
            network, both(train), label_loss(train.label), both(known), label_loss(known.label), self.fit_config, seed
        )
        return FusedStudent(network)


def both(cases: Cases) -> Float[np.ndarray, "cases both"]:
    """Return radiograph and CT embedding side by side."""
    return np.concatenate([cases.cxr, cases.paired_ct()], axis=1)
