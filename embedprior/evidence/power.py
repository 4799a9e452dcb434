"""How small a difference of AUCs a cohort can show, and how many patients a difference needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import quantile

#: Beyond this the answer "patients needed" is of no use to anyone.
MOST_PATIENTS = 100_000_000


def detectable(se: float, *, alpha: float = 0.05, power: float = 0.8, df: float = np.inf) -> float:
    """Return the true difference that a two-sided test with standard error ``se`` finds with ``power``.

    Normal quantiles; Student's for finite ``df`` (several seeds or resamples).
    """
    return (quantile(1 - alpha / 2, df) + quantile(power, df)) * se


def hanley_mcneil_se(auc: float, n_pos: float, n_neg: float) -> float:
    """Standard error of an AUC from its value and the counts alone (Hanley & McNeil, Radiology 1982, eq. 1)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_pos - 1) * (q1 - auc**2) + (n_neg - 1) * (q2 - auc**2)
    return float(np.sqrt(variance / (n_pos * n_neg)))


@dataclass(frozen=True)
class Design:
    """A paired comparison being planned.

    Attributes:
        n_pos, n_neg: patients of each class. auc: AUC both methods are thought to have.
        corr: correlation of the two AUC estimates on the same cases (0 = different cases).
        exams_per_patient, icc: exams of each patient, all with the patient's label, and the intraclass
            correlation of their placement values; e exams count as e / (1 + (e - 1) icc) independent ones.
        alpha, power: two-sided error rate and wished power. comparisons: Holm's first step divides alpha by it.
    """

    n_pos: int
    n_neg: int
    auc: float
    corr: float = 0.5
    exams_per_patient: float = 1.0
    icc: float = 1.0
    alpha: float = 0.05
    power: float = 0.8
    comparisons: int = 1

    def __post_init__(self) -> None:
        limits: list[tuple[str, float, float, float]] = [
            ("n_pos", self.n_pos, 2, MOST_PATIENTS),
            ("n_neg", self.n_neg, 2, MOST_PATIENTS),
            ("comparisons", self.comparisons, 1, 10_000),
            ("exams_per_patient", self.exams_per_patient, 1, 10_000),
            ("icc", self.icc, 0, 1),
        ]
        for name, given, low, high in limits:
            if not low <= given <= high:
                raise EvidenceError(f"{name} must be between {low} and {high}; got {given}.")
        for name, given, low, high in [
            ("auc", self.auc, 0.5, 1.0),
            ("corr", self.corr, -1.0, 1.0),
            ("alpha", self.alpha, 0.0, 0.5),
            ("power", self.power, 0.5, 1.0),
        ]:
            if not (low < given < high or (name == "auc" and given == 0.5)):
                raise EvidenceError(
                    f"{name} must lie in ({low}, {high}), e.g. --{name} {(low + high) / 2:g}; got {given}."
                )

    def _effective(self) -> float:
        return self.exams_per_patient / (1 + (self.exams_per_patient - 1) * self.icc)

    def se(self) -> float:
        """Standard error of one AUC."""
        gain = self._effective()
        return hanley_mcneil_se(self.auc, self.n_pos * gain, self.n_neg * gain)

    def se_difference(self) -> float:
        """Standard error of the difference of two AUCs with correlated estimates (Hanley & McNeil 1983)."""
        return self.se() * float(np.sqrt(2 * (1 - self.corr)))

    def minimum_detectable(self, *, first_holm_step: bool = False) -> float:
        """Smallest true difference found with the wished power; may exceed 1 - auc, then nothing can be shown."""
        alpha = self.alpha / self.comparisons if first_holm_step else self.alpha
        return detectable(self.se_difference(), alpha=alpha, power=self.power)


def patients_needed(design: Design, delta: float) -> tuple[int, int]:
    """Return the positives and negatives needed to detect ``delta`` at the design's prevalence and alpha.

    Holm's first step is used when the design has several comparisons.

    Raises:
        EvidenceError: ``delta`` is not in (0, 1 - auc], or no sensible number of patients is enough.
    """
    if not 0 < delta <= 1 - design.auc:
        raise EvidenceError(f"a difference above AUC {design.auc} must lie in (0, {1 - design.auc:g}]; got {delta}.")
    share = design.n_pos / (design.n_pos + design.n_neg)

    def found(total: int) -> float:
        n_pos = max(2, round(total * share))
        grown = Design(**{**design.__dict__, "n_pos": n_pos, "n_neg": max(2, total - n_pos)})
        return grown.minimum_detectable(first_holm_step=True)

    low, high = 4, 4
    while found(high) > delta:
        low, high = high, high * 2
        if high > MOST_PATIENTS:
            raise EvidenceError(f"a difference of {delta} would need more than {MOST_PATIENTS:,} patients.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) > delta else (low, middle)
    n_pos = max(2, round(high * share))
    return n_pos, max(2, high - n_pos)
