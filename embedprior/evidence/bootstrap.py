"""Patient-level stratified bootstrap as multinomial weights, and the intervals read off it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from embedprior.evidence.delong import Bools, Floats, Ints
from embedprior.evidence.intervals import ZERO_VARIANCE, Interval, quantile
from embedprior.evidence.metrics import Metric
from embedprior.evidence.seeds import mean_over_seeds

#: Weights held at a time, in numbers (32 MiB).
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
