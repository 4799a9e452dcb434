"""Metrics beside the AUC as functions of patient weights, and the patient-level bootstrap of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from embedprior.evidence.delong import Bools, Floats, Ints, renumber
from embedprior.evidence.intervals import ZERO_VARIANCE, Interval, quantile
from embedprior.evidence.predictions import Block
from embedprior.evidence.tests import mean_over_seeds


@dataclass(frozen=True)
class Metric:
    """One metric: ``values`` of weights (B, P) is (B, R); ``low`` and ``high`` are its range.

    ``successes`` and ``trials`` (R,) are given for plain proportions, whose interval is Wilson's when cases are
    independent; ``undefined`` says what NaN means; ``fitted`` (R,) is the estimate where it cost an own fit.
    """

    name: str
    values: Callable[[Floats], Floats]
    low: float
    high: float
    undefined: str
    successes: Floats | None = None
    trials: Floats | None = None
    fitted: Floats | None = None

    def estimate(self, n_patients: int) -> Floats:
        """Return the (R,) values on the cases as they are."""
        return self.values(np.ones((1, n_patients)))[0] if self.fitted is None else self.fitted


@dataclass(frozen=True)
class Cases:
    """What a metric needs of a block: labels (N,), scores (R, N), patient positions (N,) in 0..P-1, folds (N,)."""

    labels: Bools
    scores: Floats
    patient: Ints
    n_patients: int
    folds: Ints | None

    def per_patient(self, features: Floats) -> Floats:
        """Sum (R, N) case values within patients: (R, P)."""
        if self.n_patients == self.labels.size:
            summed = np.empty_like(features)
            summed[:, self.patient] = features
            return summed
        return np.stack([np.bincount(self.patient, weights=row, minlength=self.n_patients) for row in features])


def cases_of(block: Block, method: str) -> Cases:
    """Return the cases of one method with patients numbered from 0."""
    patients, position = renumber(block.patients)
    return Cases(block.labels, block.scores[method], position, patients.size, block.folds)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, giving NaN where the denominator is 0."""
    empty = denominator == 0
    quotient: Floats = np.where(empty, np.nan, numerator / np.where(empty, 1.0, denominator))
    return quotient


def threshold_metrics(cases: Cases, thresholds: Floats) -> list[Metric]:
    """Confusion-matrix metrics at thresholds (R, N); "positive" is score >= threshold.

    Macro-F1 is the mean of both classes' F1. MCC, PPV and NPV are undefined, not 0, when a margin is empty.
    """
    called, truth = cases.scores >= thresholds, cases.labels[None, :]
    cells = np.stack(
        [
            cases.per_patient(x.astype(np.float64))
            for x in (truth & called, ~truth & called, ~truth & ~called, truth & ~called)
        ],
        axis=-1,
    )
    total = cells.sum(axis=1)

    def counts(weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        c = np.einsum("bp,rpc->brc", weights, cells, optimize=True)
        return c[..., 0], c[..., 1], c[..., 2], c[..., 3]

    def metric(name: str, of: Callable[[Floats, Floats, Floats, Floats], Floats], why: str, low: float = 0.0) -> Metric:
        return Metric(name, lambda w: of(*counts(w)), low, 1.0, why)

    def proportion(name: str, top: Sequence[int], bottom: Sequence[int], why: str) -> Metric:
        def values(weights: Floats) -> Floats:
            c = counts(weights)
            return ratio(_add(c, top), _add(c, bottom))

        return Metric(name, values, 0.0, 1.0, why, total[:, list(top)].sum(axis=1), total[:, list(bottom)].sum(axis=1))

    return [
        proportion("sensitivity", [0], [0, 3], "no positive cases"),
        proportion("specificity", [2], [2, 1], "no negative cases"),
        proportion("ppv", [0], [0, 1], "no case is called positive"),
        proportion("npv", [2], [2, 3], "no case is called negative"),
        proportion("accuracy", [0, 2], [0, 1, 2, 3], "no cases"),
        metric("balanced_accuracy", _balanced_accuracy, "a class is missing"),
        metric("macro_f1", _macro_f1, "a class is missing"),
        metric("mcc", _mcc, "a row or column of the confusion matrix is empty", low=-1.0),
    ]


def _add(counts: tuple[Floats, ...], which: Sequence[int]) -> Floats:
    total = counts[which[0]]
    for i in which[1:]:
        total = total + counts[i]
    return total


def _balanced_accuracy(tp: Floats, fp: Floats, tn: Floats, fn: Floats) -> Floats:
    return 0.5 * (ratio(tp, tp + fn) + ratio(tn, tn + fp))


def _macro_f1(tp: Floats, fp: Floats, tn: Floats, fn: Floats) -> Floats:
    both = 0.5 * (ratio(2 * tp, 2 * tp + fp + fn) + ratio(2 * tn, 2 * tn + fp + fn))
    one_class: Bools = (tp + fn == 0) | (tn + fp == 0)
    result: Floats = np.where(one_class, np.nan, both)
    return result


def _mcc(tp: Floats, fp: Floats, tn: Floats, fn: Floats) -> Floats:
    margins = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    return ratio(tp * tn - fp * fn, margins)


def average_precision(cases: Cases) -> Metric:
    """PR-AUC as average precision, sum over thresholds of (recall gain) x precision; ties share a threshold.

    Over folds: each fold's average precision, weighted by its positives, as scores of different folds are not on
    one scale.
    """
    fold = np.zeros(cases.labels.size, dtype=np.int64) if cases.folds is None else cases.folds
    plans = []
    for row in cases.scores:
        for f in range(int(fold.max(initial=0)) + 1):
            inside = np.flatnonzero(fold == f)
            order = inside[np.argsort(-row[inside], kind="stable")]
            ends = np.append(np.flatnonzero(np.diff(row[order])), order.size - 1)
            plans.append((cases.patient[order], cases.labels[order].astype(np.float64), ends))
    n_folds = int(fold.max(initial=0)) + 1

    def values(weights: Floats) -> Floats:
        per_seed = []
        for r in range(len(cases.scores)):
            total = np.zeros(len(weights))
            positives = np.zeros(len(weights))
            for patient, label, ends in plans[r * n_folds : (r + 1) * n_folds]:
                drawn = weights[:, patient]
                called = np.cumsum(drawn, axis=1)[:, ends]
                hits = np.cumsum(drawn * label, axis=1)[:, ends]
                gain = np.diff(hits, axis=1, prepend=0.0)
                total += (gain * np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)).sum(axis=1)
                positives += hits[:, -1]
            per_seed.append(ratio(total, positives))
        return np.stack(per_seed, axis=1)

    return Metric("pr_auc", values, 0.0, 1.0, "no positive cases")


def roc_auc(cases: Cases) -> Metric:
    """Fold-stratified AUC of weighted cases by one sort: the bootstrap counterpart of DeLong."""
    fold = np.zeros(cases.labels.size, dtype=np.int64) if cases.folds is None else cases.folds
    n_folds = int(fold.max(initial=0)) + 1
    plans = []
    for row in cases.scores:
        for f in range(n_folds):
            inside = np.flatnonzero(fold == f)
            order = inside[np.argsort(row[inside], kind="stable")]
            ends = np.append(np.flatnonzero(np.diff(row[order])), order.size - 1)
            plans.append((cases.patient[order], cases.labels[order], ends))

    def values(weights: Floats) -> Floats:
        per_seed = []
        for r in range(len(cases.scores)):
            won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
            for patient, label, ends in plans[r * n_folds : (r + 1) * n_folds]:
                drawn = weights[:, patient]
                up_to_pos = np.cumsum(drawn * label, axis=1)[:, ends]
                up_to_neg = np.cumsum(drawn * ~label, axis=1)[:, ends]
                pos = np.diff(up_to_pos, axis=1, prepend=0.0)
                neg = np.diff(up_to_neg, axis=1, prepend=0.0)
                won += (pos * (up_to_neg - 0.5 * neg)).sum(axis=1)
                pairs += up_to_pos[:, -1] * up_to_neg[:, -1]
            per_seed.append(ratio(won, pairs))
        return np.stack(per_seed, axis=1)

    return Metric("roc_auc", values, 0.0, 1.0, "a class is missing")


def partial_auc(cases: Cases, max_fpr: float) -> Metric:
    """Area under the ROC curve up to a false positive rate, scaled to 0.5 for chance and 1 for perfect (McClish 1989).

    Several seeds each; over folds the folds' areas weigh by their pairs, as in the fold-stratified AUC.
    """
    fold = np.zeros(cases.labels.size, dtype=np.int64) if cases.folds is None else cases.folds
    n_folds = int(fold.max(initial=0)) + 1
    plans = []
    for row in cases.scores:
        for f in range(n_folds):
            inside = np.flatnonzero(fold == f)
            order = inside[np.argsort(-row[inside], kind="stable")]
            ends = np.append(np.flatnonzero(np.diff(row[order])), order.size - 1)
            plans.append((cases.patient[order], cases.labels[order], ends))
    lowest, most = 0.5 * max_fpr**2, max_fpr

    def area(drawn: Floats, label: Bools, ends: Ints) -> tuple[Floats, Floats]:
        hits = np.cumsum(drawn * label, axis=1)[:, ends]
        false = np.cumsum(drawn * ~label, axis=1)[:, ends]
        pairs = hits[:, -1] * false[:, -1]
        start = np.zeros((len(drawn), 1))
        tpr = np.concatenate([start, ratio(hits, hits[:, -1:])], axis=1)
        fpr = np.concatenate([start, ratio(false, false[:, -1:])], axis=1)
        width = np.diff(fpr, axis=1)
        used = np.clip(max_fpr - fpr[:, :-1], 0.0, width)
        share = np.divide(used, width, out=np.zeros_like(used), where=width > 0)
        return (used * (tpr[:, :-1] + 0.5 * share * np.diff(tpr, axis=1))).sum(axis=1), pairs

    def values(weights: Floats) -> Floats:
        per_seed = []
        for r in range(len(cases.scores)):
            total, pairs = np.zeros(len(weights)), np.zeros(len(weights))
            for patient, label, ends in plans[r * n_folds : (r + 1) * n_folds]:
                found, n = area(weights[:, patient], label, ends)
                total += np.where(n > 0, np.nan_to_num(found) * n, 0.0)
                pairs += n
            per_seed.append(0.5 * (1 + (ratio(total, pairs) - lowest) / (most - lowest)))
        return np.stack(per_seed, axis=1)

    return Metric(f"partial_auc_fpr_{max_fpr:g}", values, 0.0, 1.0, "a class is missing")


def predictive_values(cases: Cases, thresholds: Floats, prevalence: float) -> list[Metric]:
    """PPV and NPV where this share of patients is positive, from sensitivity and specificity on these cases (Bayes)."""
    by_name = {m.name: m for m in threshold_metrics(cases, thresholds)}
    sensitivity, specificity = by_name["sensitivity"].values, by_name["specificity"].values

    def ppv(weights: Floats) -> Floats:
        right, wrong = sensitivity(weights) * prevalence, (1 - specificity(weights)) * (1 - prevalence)
        return ratio(right, right + wrong)

    def npv(weights: Floats) -> Floats:
        right, wrong = specificity(weights) * (1 - prevalence), (1 - sensitivity(weights)) * prevalence
        return ratio(right, right + wrong)

    why = "no case is called so, or a class is missing"
    return [
        Metric(f"{name}_at_prevalence_{prevalence:g}", of, 0.0, 1.0, why) for name, of in (("ppv", ppv), ("npv", npv))
    ]


#: Weights computed at a time, in numbers (32 MiB).
CHUNK = 4_000_000
#: Share of replicates that may be undefined (no case called positive, say) before the interval is withheld.
MAX_UNDEFINED = 0.05


def stream(seed: int, *purpose: str) -> np.random.Generator:
    """Return a generator of its own for every purpose: equal seeds never share numbers across purposes."""
    digest = hashlib.sha256("/".join(purpose).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")]))


def patient_strata(labels: Bools, patient: Ints, n_patients: int) -> Ints:
    """Return (P,) codes: patients with positives only, negatives only, or both, are drawn within their kind."""
    positive = np.bincount(patient, weights=labels, minlength=n_patients) > 0
    negative = np.bincount(patient, weights=~labels, minlength=n_patients) > 0
    return positive.astype(np.int64) + 2 * negative.astype(np.int64)


def weights(strata: Ints, replicates: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield (b, P) counts of how often each patient is drawn, b replicates at a time, ``replicates`` in all."""
    groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    step = max(1, min(replicates, CHUNK // max(strata.size, 1)))
    for start in range(0, replicates, step):
        b = min(step, replicates - start)
        drawn = np.empty((b, strata.size))
        for members in groups:
            drawn[:, members] = generator.multinomial(members.size, np.full(members.size, 1 / members.size), size=b)
        yield drawn


def replicate_values(metrics: Sequence[Metric], chunks: Iterator[Floats]) -> list[Floats]:
    """Return each metric's (B, R) values over all replicates."""
    parts: list[list[Floats]] = [[] for _ in metrics]
    for chunk in chunks:
        for part, metric in zip(parts, metrics, strict=True):
            part.append(metric.values(chunk))
    return [np.concatenate(p) for p in parts]


def interval(estimates: Floats, replicates: Floats, low: float, high: float, alpha: float) -> Interval:
    """Interval of a metric from its estimates (R,) and bootstrap values (B, R).

    One seed: percentiles. Several: Obuchowski-Rockette on the per-seed estimates with the bootstrap covariance, so
    that patients *and* seeds count; t quantiles, cut at the metric's range.
    """
    mean = float(estimates.mean())
    defined = ~np.isnan(replicates).any(axis=1)
    lost = 1 - defined.mean()
    if lost > MAX_UNDEFINED:
        return Interval(mean, np.nan, np.nan, np.nan, None, f"undefined in {lost:.0%} of bootstrap replicates")
    kept = replicates[defined]
    if estimates.size == 1:
        se = float(kept.std(ddof=1))
        if se**2 <= ZERO_VARIANCE:
            return Interval(mean, np.nan, np.nan, np.nan, None, "the bootstrap shows no variation")
        lower, upper = np.quantile(kept[:, 0], [alpha / 2, 1 - alpha / 2])
        return Interval(mean, se, float(lower), float(upper), "patient bootstrap, percentile")
    summary = mean_over_seeds(estimates, np.cov(kept.T))
    if summary.variance <= ZERO_VARIANCE:
        return Interval(mean, np.nan, np.nan, np.nan, None, "the bootstrap shows no variation")
    se = float(np.sqrt(summary.variance))
    half = quantile(1 - alpha / 2, summary.df) * se
    name = "patient bootstrap and seeds (Obuchowski-Rockette)"
    return Interval(mean, se, max(low, mean - half), min(high, mean + half), name)
