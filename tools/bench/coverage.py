"""Do the intervals and tests keep their promises? Simulated coverage, bias and family-wise error.

Every line prints the rate, its Monte-Carlo standard error and the bar it is held to; ``--quick`` runs a tenth of the
replicates and widens each bar by three Monte-Carlo standard errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from embedprior.evidence.delong import delong
from embedprior.evidence.inference import holm, mean_over_seeds
from embedprior.evidence.intervals import auc_interval, paired_test

REPLICATES = 20_000


class Ledger:
    """Prints and keeps one row per promise."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rows: list[dict[str, object]] = []

    def hold(self, name: str, rate: float, se: float, low: float, high: float) -> None:
        """Record a rate with its Monte-Carlo error against its bar."""
        slack = 3 * se if self.quick else 0.0
        rate, se = float(rate), float(se)
        met = bool(low - slack <= rate <= high + slack)
        self.rows.append({"name": name, "rate": rate, "mc_se": se, "low": float(low), "high": float(high), "met": met})
        print(f"{name:<62} {rate:8.4f} +- {se:.4f}  bar {low:g} to {high:g}  {'met' if met else 'MISSED'}", flush=True)


def rng_for(*key: int) -> np.random.Generator:
    """Return an independent stream per simulation."""
    return np.random.default_rng(np.random.SeedSequence([2026, *key]))


def shift_for(auc: float, sd: float = 1.0) -> float:
    """Return the difference of means that gives two normal classes of spread ``sd`` this AUC."""
    return float(stats.norm.ppf(auc) * sd * np.sqrt(2))


def rate_and_se(hits: np.ndarray) -> tuple[float, float]:
    """Return a proportion and its Monte-Carlo standard error."""
    p = float(np.mean(hits))
    return p, float(np.sqrt(p * (1 - p) / hits.size))


def logit_interval(ledger: Ledger, replicates: int) -> None:
    """Coverage of the logit interval at 23 positives and 63 negatives."""
    labels = np.repeat([True, False], [23, 63])
    for i, (auc, low, high) in enumerate(((0.70, 0.94, 0.965), (0.824, 0.94, 0.965), (0.95, 0.925, 0.96))):
        rng, shift = rng_for(1, i), shift_for(auc)
        hits = np.empty((2, replicates), dtype=bool)
        for r in range(replicates):
            result = delong(labels, rng.normal(size=86) + shift * labels)
            for j, method in enumerate(("logit", "wald")):
                found = auc_interval(
                    float(result.auc[0]), float(result.covariance[0, 0]), result.independent_pairs, method=method
                )
                hits[j, r] = found.low <= auc <= found.high
        ledger.hold(f"logit interval covers AUC {auc} (23+, 63-)", *rate_and_se(hits[0]), low, high)
        wald, se = rate_and_se(hits[1])
        print(f"{'    for comparison, Wald interval':<62} {wald:8.4f} +- {se:.4f}")


def clustered_interval(ledger: Ledger, replicates: int) -> None:
    """Coverage at 60 patients with 4 exams each, the label being the patient's."""
    auc, rng = 0.733, rng_for(2)
    labels, patients = np.repeat(np.repeat([True, False], 30), 4), np.repeat(np.arange(60), 4)
    shift = shift_for(auc, np.sqrt(1 + 0.5**2))
    hits = np.empty((2, replicates), dtype=bool)
    for r in range(replicates):
        scores = rng.normal(size=60)[patients] + 0.5 * rng.normal(size=240) + shift * labels
        for j, clusters in enumerate((patients, None)):
            result = delong(labels, scores, clusters)
            found = auc_interval(float(result.auc[0]), float(result.covariance[0, 0]), result.independent_pairs)
            hits[j, r] = found.low <= auc <= found.high
    ledger.hold("clustered logit interval, 60 patients x 4 exams", *rate_and_se(hits[0]), 0.93, 0.965)
    ledger.hold("  the same cases taken as independent (must fail)", *rate_and_se(hits[1]), 0.6, 0.8)


def fold_stratified(ledger: Ledger, replicates: int) -> None:
    """Bias of the fold-stratified and of the pooled AUC when every fold's scores are shifted."""
    auc, rng = 0.824, rng_for(3)
    labels = np.repeat([True, False], [23, 63])
    folds = np.concatenate([np.arange(23) % 6, np.arange(63) % 6])
    shift = shift_for(auc)
    values = np.empty((2, replicates))
    for r in range(replicates):
        scores = rng.normal(size=86) + shift * labels + rng.normal(size=6)[folds]
        values[0, r] = delong(labels, scores, strata=folds).auc[0]
        values[1, r] = delong(labels, scores).auc[0]
    se = values.std(axis=1, ddof=1) / np.sqrt(replicates)
    bias = values.mean(axis=1) - auc
    ledger.hold("bias of the fold-stratified AUC, fold shifts of SD 1", bias[0], se[0], -3 * se[0], 3 * se[0])
    ledger.hold("  bias of the pooled AUC (must fail)", bias[1], se[1], -0.1, -0.03)


def family_wise_error(ledger: Ledger, replicates: int) -> None:
    """Chance of any false claim among 4 comparisons with one reference, all methods being equally good."""
    rng, k = rng_for(4), 5
    labels = np.repeat([True, False], [40, 90])
    shift = shift_for(0.8)
    wrong = np.empty((2, replicates), dtype=bool)
    for r in range(replicates):
        scores = np.sqrt(0.5) * (rng.normal(size=130) + rng.normal(size=(k, 130))) + shift * labels
        joint = delong(labels, scores)
        p = np.array([paired_test(joint, i, 0).p for i in range(1, k)])
        wrong[:, r] = (holm(p) <= 0.05).any(), (p <= 0.05).any()
    rate, se = rate_and_se(wrong[0])
    ledger.hold("family-wise error of Holm over 4 comparisons", rate, se, 0.0, 0.05 + 2 * se)
    raw, raw_se = rate_and_se(wrong[1])
    print(f"{'    for comparison, unadjusted':<62} {raw:8.4f} +- {raw_se:.4f}")


def seed_interval(ledger: Ledger, replicates: int) -> None:
    """Coverage of the mean AUC over 3 seeds (Obuchowski-Rockette), seeds differing in how good they are."""
    rng = rng_for(5)
    labels = np.repeat([True, False], [23, 63])
    case_sd, noise_sd, quality_sd, centre = 0.8, 0.6, 0.2, shift_for(0.8)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(41)
    truth = float(np.average(stats.norm.cdf((centre + quality_sd * nodes) / np.sqrt(2)), weights=node_weights))
    hits = np.empty((2, replicates), dtype=bool)
    for r in range(replicates):
        quality = centre + quality_sd * rng.normal(size=(3, 1))
        scores = case_sd * rng.normal(size=86) + noise_sd * rng.normal(size=(3, 86)) + quality * labels
        joint = delong(labels, scores)
        mean = mean_over_seeds(joint.auc, joint.covariance)
        found = auc_interval(mean.mean, mean.variance, joint.independent_pairs, df=mean.df)
        alone = auc_interval(float(joint.auc[0]), float(joint.covariance[0, 0]), joint.independent_pairs)
        hits[:, r] = found.low <= truth <= found.high, alone.low <= truth <= alone.high
    ledger.hold("mean AUC over 3 seeds, patients and seeds", *rate_and_se(hits[0]), 0.93, 0.975)
    one, se = rate_and_se(hits[1])
    print(f"{'    for comparison, one seed alone':<62} {one:8.4f} +- {se:.4f}")


def main() -> int:
    """Print every promise; return 1 when one is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the replicates")
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    replicates = options.replicates // 10 if options.quick else options.replicates
    ledger = Ledger(options.quick)
    print(f"{replicates} replicates")
    for simulate in (logit_interval, clustered_interval, fold_stratified, family_wise_error, seed_interval):
        simulate(ledger, replicates)
    met = all(bool(row["met"]) for row in ledger.rows)
    if options.json:
        options.json.write_text(
            json.dumps({"replicates": replicates, "rows": ledger.rows, "met": met}, indent=2) + "\n"
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
