"""Agreement of scores with probabilities: Brier, slope and intercept, ECE, reliability and decision curves.

All of it is defined for scores in [0, 1] only, and refuses others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from embedprior.evidence.delong import Floats
from embedprior.evidence.intervals import quantile
from embedprior.evidence.metrics import Cases, Metric, ratio

ECE_BINS = 10


def refusal(scores: Floats) -> str | None:
    """Return why calibration is undefined for these scores, or None."""
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        return f"scores run from {scores.min():.4g} to {scores.max():.4g}: calibration needs probabilities in [0, 1]"
    return None


def brier(cases: Cases) -> Metric:
    """Mean squared difference of score and label."""
    errors = cases.per_patient((cases.scores - cases.labels) ** 2)
    sizes = cases.per_patient(np.ones((1, cases.labels.size)))[0]
    return Metric("brier", lambda w: ratio(w @ errors.T, (w @ sizes)[:, None]), 0.0, 1.0, "no cases")


def ece(cases: Cases, bins: int = ECE_BINS) -> Metric:
    """Expected calibration error: mean |observed - predicted| over equal-width bins, weighted by their cases."""
    bin_of = np.minimum((cases.scores * bins).astype(np.int64), bins - 1)
    gap = cases.labels - cases.scores
    per_bin = np.stack([cases.per_patient(np.where(bin_of == b, gap, 0.0)) for b in range(bins)])
    sizes = cases.per_patient(np.ones((1, cases.labels.size)))[0]

    def values(weights: Floats) -> Floats:
        gaps = np.abs(np.einsum("bp,krp->brk", weights, per_bin, optimize=True)).sum(axis=2)
        return ratio(gaps, (weights @ sizes)[:, None])

    return Metric(f"ece_{bins}_bins", values, 0.0, 1.0, "no cases")


def platt_scaling(logits: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Return (intercept, slope) of the logistic regression of the label on one logit.

    Platt, Advances in Large Margin Classifiers 1999: targets (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2) in place of 1 and 0, so
    that it stays finite where the logits separate the classes.

    Args:
        logits: one a case, not all equal.
        positive: whether the case has the label.

    Example:
        >>> intercept, slope = platt_scaling(np.array([-1.0, 1.0]), np.array([False, True]))
        >>> abs(round(intercept, 4)), round(slope, 4)  # targets 1/3 and 2/3: ln 2 at logit 1
        (0.0, 0.6931)
    """
    target = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    # a target t between 0 and 1 is the case twice, as positive with weight t and as negative with weight 1 − t
    x, y = np.tile(logits, 2)[:, None], np.repeat([1, 0], len(logits))
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(x, y, np.concatenate([target, 1 - target]))
    return float(fitted.intercept_[0]), float(fitted.coef_[0, 0])


def logistic_recalibration(
    cases: Cases,
) -> tuple[list[Metric], Floats | None, str | None]:
    """Slope and intercept of a logistic regression of the label on logit(score) (Cox 1958).

    The intercept is calibration-in-the-large: fitted with the slope held at 1.

    Returns:
        The two metrics; their standard errors (2, R) from the patient-clustered sandwich; or no metrics and why.
    """
    if (cases.scores <= 0).any() or (cases.scores >= 1).any():
        return [], None, "a score is exactly 0 or 1: its logit is infinite, so slope and intercept are undefined"
    if cases.labels.all() or not cases.labels.any():
        return [], None, "a class is missing"
    x = np.log(cases.scores / (1 - cases.scores))
    y = cases.labels.astype(np.float64)

    def fit(weights: Floats, row: Floats, offset_only: bool) -> Floats:
        drawn = weights[:, cases.patient]
        return _newton(drawn, row, y, offset_only)

    def slope(weights: Floats) -> Floats:
        return np.stack([fit(weights, row, False)[:, 1] for row in x], axis=1)

    def intercept(weights: Floats) -> Floats:
        return np.stack([fit(weights, row, True)[:, 0] for row in x], axis=1)

    separated = "the fit does not converge: scores separate the classes"
    ones = np.ones((1, cases.n_patients))
    slopes = np.stack([fit(ones, row, False)[0] for row in x])
    intercepts = np.stack([fit(ones, row, True)[0] for row in x])
    metrics = [
        Metric("calibration_slope", slope, -np.inf, np.inf, separated, fitted=slopes[:, 1]),
        Metric("calibration_intercept", intercept, -np.inf, np.inf, separated, fitted=intercepts[:, 0]),
    ]
    errors = np.stack(
        [
            [_sandwich(cases, row, beta, False) for row, beta in zip(x, slopes, strict=True)],
            [_sandwich(cases, row, beta, True) for row, beta in zip(x, intercepts, strict=True)],
        ]
    )
    return metrics, errors, None


def _newton(weights: Floats, x: Floats, y: Floats, offset_only: bool, steps: int = 40) -> Floats:
    """Weighted logistic fits, one per row of weights (B, N): (B, 2) intercept and slope; NaN without a finite fit."""
    beta = np.tile([0.0, 1.0], (len(weights), 1))
    change = np.full(len(weights), np.inf)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(beta[:, :1] + beta[:, 1:] * x, -500, 500)))
        residual, spread = weights * (y - p), weights * p * (1 - p)
        g0, h00 = residual.sum(axis=1), spread.sum(axis=1)
        if offset_only:
            step = np.stack([ratio(g0, h00), np.zeros_like(g0)], axis=1)
        else:
            g1, h01, h11 = residual @ x, spread @ x, spread @ (x * x)
            det = h00 * h11 - h01 * h01
            step = np.stack([ratio(h11 * g0 - h01 * g1, det), ratio(h00 * g1 - h01 * g0, det)], axis=1)
        # a full step from a flat start can overshoot into saturation; the likelihood is concave, so short ones arrive
        beta = beta + np.clip(step, -2.0, 2.0)
        change = np.abs(step).max(axis=1)
        if not (change > 1e-9).any():
            break
    beta[~(change <= 1e-6)] = np.nan
    return beta


def _sandwich(cases: Cases, x: Floats, beta: Floats, offset_only: bool) -> float:
    """Standard error of the slope (or of the intercept alone), robust to several cases per patient."""
    if np.isnan(beta).any():
        return np.nan
    p = 1 / (1 + np.exp(-(beta[0] + beta[1] * x)))
    design = np.ones((1, x.size)) if offset_only else np.stack([np.ones_like(x), x])
    bread = np.linalg.pinv((design * (p * (1 - p))) @ design.T)
    score = cases.per_patient(design * (cases.labels - p))
    meat = score @ score.T * (cases.n_patients / max(cases.n_patients - 1, 1))
    covariance = bread @ meat @ bread
    return float(np.sqrt(covariance[-1, -1]))


def reliability(cases: Cases, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Return the reliability curve: per equal-width bin the cases, the mean score and the observed share.

    Several seeds are counted together, ``n`` being their mean.
    """
    seeds = len(cases.scores)
    bin_of = np.minimum((cases.scores * bins).astype(np.int64), bins - 1)
    truth = np.broadcast_to(cases.labels, cases.scores.shape)
    rows = []
    for b in range(bins):
        inside = bin_of == b
        n = int(inside.sum())
        rows.append(
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "n": n / seeds,
                "mean_score": float(cases.scores[inside].mean()) if n else None,
                "observed": float(truth[inside].mean()) if n else None,
            }
        )
    return rows


def decision_curve(cases: Cases, alpha: float = 0.05, points: int = 49) -> list[dict[str, float | None]]:
    """Return net benefit TP/n - FP/n * t/(1 - t) against treating all (treating none is 0) for t in (0, 1).

    Vickers & Elkin, Med. Decis. Making 2006. Several seeds: their mean. ``ci_low`` and ``ci_high`` are a pointwise
    band: net benefit is a mean over cases, whose variance adds up within patients.
    """
    thresholds = np.arange(1, points + 1) / (points + 1)
    n, positives = cases.labels.size, int(np.count_nonzero(cases.labels))
    odds = thresholds / (1 - thresholds)
    z, u = float(quantile(1 - alpha / 2)), cases.n_patients
    treat_all = (positives - (n - positives) * odds) / n
    rows: list[dict[str, float | None]] = []
    for t, w, everyone in zip(thresholds, odds, treat_all, strict=True):
        called = (cases.scores >= t).mean(axis=0)
        gain = np.where(cases.labels, called, -w * called)
        mean = float(gain.mean())
        sums = cases.per_patient((gain - mean)[None])[0]
        half = z * float(np.sqrt(u / (u - 1) * (sums**2).sum())) / n if u > 1 else None
        rows.append(
            {
                "threshold": float(t), "net_benefit": mean, "treat_all": float(everyone),
                "ci_low": None if half is None else mean - half, "ci_high": None if half is None else mean + half,
            }
        )  # fmt: skip
    return rows
