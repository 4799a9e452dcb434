"""How small a difference of AUCs a cohort can show, and how many patients a difference needs.

Standard errors are those of the equal-variance binormal model, at the AUCs that are assumed: an observed standard
error is never used, since with few seeds or cases it is mostly noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import quantile

#: Beyond this the answer "patients needed" is of no use to anyone.
MAX_PATIENTS = 100_000_000
#: (positive, negative) patients of every fold that holds both.
Folds = Sequence[tuple[float, float]]


def auc_se(auc: float, folds: Folds) -> float:
    """Return the standard error of a fold-stratified AUC under the equal-variance binormal model.

    Var = (A (1 - A) + (m - 1) (Q - A^2) + (n - 1) (Q - A^2)) / (m n) for m positives and n negatives, Q the chance
    that two positives both score above one negative: a bivariate normal probability, in closed form by Owen's T.

    Example:
        >>> round(auc_se(0.8, [(23, 63)]), 4)
        0.0533
    """
    z = float(special.ndtri(auc))
    q = auc - 2 * float(special.owens_t(z, 1 / np.sqrt(3)))
    pairs = np.array([m * n for m, n in folds], dtype=np.float64)
    each = [(auc * (1 - auc) + (m + n - 2) * (q - auc**2)) / (m * n) for m, n in folds]
    return float(np.sqrt((pairs / pairs.sum()) ** 2 @ np.array(each)))


def difference_se(auc: float, other: float, correlation: float, folds: Folds) -> float:
    """Return the standard error of the difference of two AUCs whose estimates have this correlation."""
    a, b = auc_se(auc, folds), auc_se(other, folds)
    return float(np.sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0)))


def detectable_difference(
    folds: Folds, auc: float, correlation: float, *, alpha: float = 0.05, power: float = 0.8, inflation: float = 1.0,
    df: float = np.inf,
) -> float:  # fmt: skip
    """Return the smallest true difference above ``auc`` that a two-sided test finds with ``power``.

    Args:
        folds: patients of both classes in every fold that holds both.
        auc: of the weaker method. correlation: of the two AUC estimates on the same cases.
        alpha, power: error rate and wished power.
        inflation: factor of the standard error (resamples). df: degrees of freedom of the test.

    Returns:
        It may exceed 1 - auc: then no AUC is far enough away, and nothing can be shown.

    Example:
        >>> round(detectable_difference([(40, 90)], 0.8, 0.5), 3)
        0.103
    """
    factor = (quantile(1 - alpha / 2, df) + quantile(power, df)) * inflation
    most = 1 - auc - 1e-9

    def lacking(delta: float) -> float:
        return float(factor * difference_se(auc, auc + delta, correlation, folds) - delta)

    return float(optimize.brentq(lacking, 0.0, most)) if lacking(most) < 0 else most + lacking(most)


def mean_detectable(each: Sequence[float | None]) -> float | None:
    """Return the detectable difference of a mean over labels, at most; None where one label can show none.

    The standard error of a mean is the mean of the labels' own where their estimates move together, and smaller
    otherwise: the mean of their detectable differences is an upper bound.

    Example:
        >>> mean_detectable([0.1, 0.3]), mean_detectable([0.1, None])
        (0.2, None)
    """
    known = [value for value in each if value is not None]
    return sum(known) / len(known) if known and len(known) == len(each) else None


def power_of(
    delta: float, folds: Folds, auc: float, correlation: float, *, alpha: float = 0.05, inflation: float = 1.0,
    df: float = np.inf,
) -> float:  # fmt: skip
    """Return the chance that a two-sided test finds a true difference ``delta`` above ``auc``."""
    ratio = delta / (inflation * difference_se(auc, auc + delta, correlation, folds)) - quantile(1 - alpha / 2, df)
    return float(special.ndtr(ratio) if np.isinf(df) else special.stdtr(df, ratio))


@dataclass(frozen=True)
class Design:
    """A paired comparison being planned.

    Attributes:
        n_pos, n_neg: patients of each class. auc: AUC of the weaker method, or of both if they are equal.
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
            ("n_pos", self.n_pos, 2, MAX_PATIENTS),
            ("n_neg", self.n_neg, 2, MAX_PATIENTS),
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

    @property
    def folds(self) -> Folds:
        """The patients, counted as independent exams."""
        gain = self.exams_per_patient / (1 + (self.exams_per_patient - 1) * self.icc)
        return [(self.n_pos * gain, self.n_neg * gain)]

    def se(self) -> float:
        """Standard error of one AUC."""
        return auc_se(self.auc, self.folds)

    def se_difference(self) -> float:
        """Standard error of the difference of two equal AUCs with correlated estimates."""
        return difference_se(self.auc, self.auc, self.corr, self.folds)

    def minimum_detectable(self, *, first_holm_step: bool = False) -> float:
        """Smallest true difference found with the wished power; may exceed 1 - auc, then nothing can be shown."""
        alpha = self.alpha / self.comparisons if first_holm_step else self.alpha
        return detectable_difference(self.folds, self.auc, self.corr, alpha=alpha, power=self.power)


def patients_needed(design: Design, delta: float) -> tuple[int, int]:
    """Return the positives and negatives needed to detect ``delta`` at the design's prevalence and alpha.

    Holm's first step is used when the design has several comparisons.

    Raises:
        EvidenceError: ``delta`` is not in (0, 1 - auc], or no sensible number of patients is enough.

    Example:
        >>> patients_needed(Design(40, 90, 0.8), 0.05)
        (190, 426)
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
        if high > MAX_PATIENTS:
            raise EvidenceError(f"a difference of {delta} would need more than {MAX_PATIENTS:,} patients.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) > delta else (low, middle)
    n_pos = max(2, round(high * share))
    return n_pos, max(2, high - n_pos)
