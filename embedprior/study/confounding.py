"""What else than the finding could tell the labels apart, and the control that looks at the source alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from embedprior.evidence import evaluate_predictions
from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.logit_kd import labelled
from embedprior.study.config import SOURCE_ONLY, Design
from embedprior.tables import LABEL_PREFIX


def method_notes(design: Design, targets: pd.DataFrame, uses_ct: Mapping[str, bool]) -> dict[str, str]:
    """Return, for every method that uses CT, what the CTs of the negative pairs show; and what a control is."""
    notes = {}
    negative = targets[targets["label"] == 0]
    positive_on_ct = int((negative["ct_label"] == 1).sum())
    share = f"all {len(negative)}" if positive_on_ct == len(negative) else f"{positive_on_ct} of {len(negative)}"
    for method in design.methods:
        if uses_ct.get(method) and len(negative) and positive_on_ct:
            notes[method] = f"uses CT; {share} negative pairs are positive on CT"
        elif method == SOURCE_ONLY:
            notes[method] = "control: sees no picture, guesses the label from the source of the picture"
    return notes


def source_by_label(targets: pd.DataFrame) -> pd.DataFrame:
    """Return X-rays and patients by source and label."""
    rows = []
    for source, part in targets.groupby("source"):
        positive = int((part["label"] == 1).sum())
        rows.append(
            {
                "source": source, "patients": int(part["patient_id"].nunique()), "X-rays": len(part),
                "positive": positive, "negative": len(part) - positive,
                "positive share": round(positive / len(part), 3),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values("X-rays", ascending=False).reset_index(drop=True)


def within_source(predictions: pd.DataFrame, method: str, sources: Mapping[str, str]) -> pd.DataFrame:
    """Return one method's fold-stratified AUC inside each source that holds both labels.

    Columns ``source, AUC, 95 % CI, positive, negative, patients, why no interval``.
    """
    own = (predictions["method"] == method) & (predictions["split"] == "test")
    frame = predictions[own].drop(columns=["resample", "design"])
    rows = []
    for source, part in frame.groupby(frame["exam_id"].map(sources)):
        if part["label"].nunique() < 2:
            continue
        found = evaluate_predictions(part, method, [], unit="exam")["methods"][0]
        known = found["ci_low"] is not None
        rows.append(
            {
                "source": source, "AUC": found["auc"],
                "95 % CI": f"{found['ci_low']:.3f}–{found['ci_high']:.3f}" if known else "–",
                "positive": found["n_pos"], "negative": found["n_neg"], "patients": found["n_patients"],
                "why no interval": found["reason"] or "",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def label_conflicts(exams: pd.DataFrame, label: str) -> int:
    """Return the number of patients whose exams carry both labels."""
    values = exams.groupby("patient_id")[LABEL_PREFIX + label].nunique()
    return int((values > 1).sum())


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
    budget_part: ClassVar[str] = "nothing"

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
