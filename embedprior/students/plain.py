"""The student that never sees CT, and the fitted form every embedding student shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.students.base import CannotFit, Cases, FitData, Fitted
from embedprior.teachers.config import FitConfig
from embedprior.teachers.fitting import Mlp, fit, label_loss, new_mlp, predict


@dataclass(frozen=True)
class LogitStudent:
    """A network from radiograph embedding to logit."""

    network: Mlp

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return sigmoid of the logit."""
        return np.asarray(expit(predict(self.network, cases.cxr)[:, 0]), dtype=np.float64)


@dataclass(frozen=True)
class CxrOnly:
    """Labels and radiographs only: the row every other deployable row is compared with."""

    fit_config: FitConfig = field(default_factory=FitConfig)
    name: str = "cxr-only"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit on the labelled radiographs of the last stage.

        Raises:
            CannotFit: they hold one class only.
        """
        train, val = labelled(data.target.train), data.target.val
        network = new_mlp(train.cxr, 1, self.fit_config, seed)
        fit(
            network, train.cxr, label_loss(train.label), val.cxr[val.known], label_loss(val.label[val.known]),
            self.fit_config, seed,
        )  # fmt: skip
        return LogitStudent(network)


def labelled(cases: Cases) -> Cases:
    """Return the cases that have a label.

    Raises:
        CannotFit: fewer than two classes are left.
    """
    kept = cases.take(np.flatnonzero(cases.known))
    if len(np.unique(kept.label)) < 2:
        raise CannotFit(f"the {len(kept)} labelled training cases hold fewer than two classes")
    return kept
