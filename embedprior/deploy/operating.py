"""Operating point and calibration, fitted on validation patients alone; and how the first does on held-out ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from embedprior.evidence import evaluate_predictions
from embedprior.evidence.calibration import platt_scaling
from embedprior.evidence.method_metrics import YOUDEN, choose_threshold
from embedprior.evidence.predictions import Unit

MIN_PATIENTS = 10
"""Validation patients of each class that a calibration needs."""
EDGE = 1e-6
REPLICATES = 1000
SHOWN = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class Calibration:
    """Logistic recalibration: probability = 1 / (1 + exp(−(intercept + slope · logit(score)))).

    Fitted by Platt scaling, so that it stays finite where scores separate the classes.

    Attributes:
        intercept, slope: of the formula.
        n_pos, n_neg: validation patients it was fitted on.

    Example:
        >>> import numpy as np
        >>> unchanged = Calibration(0.0, 1.0, 20, 20)
        >>> unchanged.apply(np.array([0.2, 0.7])).round(6).tolist()
        [0.2, 0.7]
    """

    intercept: float
    slope: float
    n_pos: int
    n_neg: int

    def apply(self, scores: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Return the probabilities that belong to scores in [0, 1]; the order of scores stays."""
        return np.asarray(special.expit(self.intercept + self.slope * _logit(scores)))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


def fit_calibration(rows: pd.DataFrame) -> tuple[Calibration | None, str]:
    """Fit the calibration on the validation rows of a bundle's models; or say why there is none.

    Every model scores its own validation patients; with several models their rows are fitted together.

    Args:
        rows: ``patient_id, label, score`` of validation patients alone.

    Returns:
        The calibration and an empty reason, or None and the reason.
    """
    rows = rows[rows["label"].isin((0, 1))]
    patients = {value: int(rows.loc[rows["label"] == value, "patient_id"].nunique()) for value in (1, 0)}
    if min(patients.values()) < MIN_PATIENTS:
        found = f"{patients[1]} positive and {patients[0]} negative"
        return None, f"{found} validation patients; {MIN_PATIENTS} of each are needed"
    scores, positive = rows["score"].to_numpy(dtype=float), (rows["label"] == 1).to_numpy()
    if scores.min() < 0 or scores.max() > 1:
        return None, f"scores run from {scores.min():.4g} to {scores.max():.4g}, not from 0 to 1"
    if np.ptp(scores) == 0:
        return None, "every validation patient has the same score"
    intercept, slope = platt_scaling(_logit(scores), positive)
    if slope <= 0:
        return None, f"validation patients with the label score no higher than the others (slope {slope:.2g})"
    return Calibration(intercept, slope, patients[1], patients[0]), ""


def choose_operating_point(rows: pd.DataFrame, models: pd.DataFrame) -> dict[str, Any]:
    """Return Youden's point of each model on its own validation patients, and their mean for several models.

    Args:
        rows: ``resample, fold, seed, label, score`` of validation patients alone.
        models: ``resample, fold, seed`` of the bundle's models.

    Returns:
        ``threshold`` and its ``source``; or None with the ``reason``.
    """
    found = []
    for place in models[["resample", "fold", "seed"]].itertuples(index=False):
        own = rows[(rows["resample"] == place.resample) & (rows["fold"] == place.fold) & (rows["seed"] == place.seed)]
        value = choose_threshold((own["label"] == 1).to_numpy(), own["score"].to_numpy(dtype=float), YOUDEN)
        found += [] if value is None else [value]
    if len(found) < len(models):
        reason = "no validation patients of both classes: set 'validation: true' in the design, or give --threshold"
        return {"threshold": None, "source": None, "reason": reason}
    source = "Youden's point on the validation patients" + (", mean over the models" if len(found) > 1 else "")
    return {"threshold": float(np.mean(found)), "source": source, "of_each_model": found}


def held_out_rates(rows: pd.DataFrame, unit: Unit, declared: float | None) -> dict[str, dict[str, Any]]:
    """Return sensitivity, specificity, PPV and NPV on the study's held-out cases, with 95 % intervals.

    Each fold's cases are judged at the threshold of that fold's own validation patients, or at the declared one.
    Wilson's interval where it holds (one fit, one case a patient), else 1,000 patient-level bootstrap replicates.

    Args:
        rows: every row of one method in one design, ``val`` and ``test``.
        unit: of the study: ``exam`` or ``patient``.
        declared: operating point; None = Youden's of the validation rows.
    """
    method = str(rows["method"].iloc[0])
    rows = rows.drop(columns=["design"], errors="ignore")
    if rows.loc[rows["split"] == "test", "resample"].nunique() <= 1:
        rows = rows.drop(columns="resample")
    evidence = evaluate_predictions(
        rows, method, unit=unit, bootstrap=REPLICATES, threshold=declared,
        patient_label="max" if unit == "patient" else None,
    )  # fmt: skip
    panel = evidence["methods"][0].get("metrics") or {}
    kept = ("value", "ci_low", "ci_high", "ci_method", "reason")
    return {name: {field: panel[name].get(field) for field in kept} for name in SHOWN if name in panel}


def _logit(scores: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.asarray(special.logit(np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE)))
