"""One row of evidence per method and per comparison, as plain JSON values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedprior.evidence.delong import Delong, Floats, Ints, delong
from embedprior.evidence.inference import SeedMean, mean_over_seeds
from embedprior.evidence.intervals import CiMethod, Test, against_half, auc_interval, difference_test, non_inferiority
from embedprior.evidence.power import detectable
from embedprior.evidence.predictions import Block

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
NOT_TESTABLE, EXPLORATORY = "not testable at this size", "exploratory"


#: What a row holds where no other metric is computed.
NO_PANEL: dict[str, Any] = {"metrics": {}, "operating_point": None, "reliability": None, "decision_curve": None}


@dataclass(frozen=True)
class Rules:
    """What the caller declared before looking at the scores."""

    alpha: float
    ci: CiMethod
    relevant_delta: float
    margin: float | None


@dataclass(frozen=True)
class Joint:
    """AUCs of all methods and seeds of one block, jointly; ``at`` finds the cells of a method."""

    result: Delong
    at: dict[str, Ints]
    seeds: dict[str, tuple[str, ...]]
    test: str

    def contrast(self, method: str, other: str | None = None) -> tuple[Floats | None, str | None]:
        """Return the (R, k) weights giving per-seed AUCs, or per-seed differences, or None and why not."""
        k = self.result.auc.size
        mine = self.at[method]
        if other is None:
            return np.eye(k)[mine], None
        theirs = self.at[other]
        if len(mine) > 1 and len(theirs) > 1 and set(self.seeds[method]) != set(self.seeds[other]):
            return None, (
                f"{method} has seeds {', '.join(self.seeds[method])}, "
                f"{other} has {', '.join(self.seeds[other])}: train both with the same seeds"
            )
        if len(mine) > 1 and len(theirs) > 1:
            theirs = theirs[[self.seeds[other].index(s) for s in self.seeds[method]]]
        rows = max(len(mine), len(theirs))
        weights = np.zeros((rows, k))
        weights[np.arange(rows), np.broadcast_to(mine, rows)] += 1
        weights[np.arange(rows), np.broadcast_to(theirs, rows)] -= 1
        return weights, None

    def mean(self, weights: Floats) -> SeedMean:
        """Return the mean over seeds of the contrast with its variance over patients and seeds."""
        return mean_over_seeds(weights @ self.result.auc, weights @ self.result.covariance @ weights.T)


def joint_aucs(block: Block, clustered: bool) -> Joint:
    """Run one joint DeLong over every cell of the block."""
    at, start = {}, 0
    for method in block.methods:
        at[method] = np.arange(start, start + len(block.scores[method]))
        start += len(block.scores[method])
    scores = np.concatenate([block.scores[m] for m in block.methods])
    result = delong(block.labels, scores, block.patients if clustered else None, block.folds)
    name = "DeLong" + (", patient-clustered (Obuchowski)" if clustered else "")
    return Joint(result, at, block.seeds, name + (", fold-stratified" if block.folds is not None else ""))


def value(x: float | int | None) -> float | None:
    """Return a JSON number, or None for NaN and infinity."""
    return None if x is None or not math.isfinite(x) else float(x)


def method_row(block: Block, joint: Joint, method: str, oracle: bool, rules: Rules) -> dict[str, Any]:
    """Return the AUC of one method (mean over its seeds) with interval, counts and test against 0.5."""
    weights, _ = joint.contrast(method)
    assert weights is not None
    per_seed = joint.result.auc[joint.at[method]]
    mean = joint.mean(weights)
    pairs, reason = joint.result.independent_pairs, joint.result.reason
    interval = auc_interval(
        mean.mean, mean.variance, pairs, method=rules.ci, alpha=rules.alpha, df=mean.df, reason=reason
    )
    half = against_half(mean.mean, mean.variance, df=mean.df, reason=interval.reason)
    return {
        "method": method,
        "label_name": block.label_name,
        "oracle": oracle,
        "auc": value(interval.estimate),
        "se": value(interval.se),
        "ci_low": value(interval.low),
        "ci_high": value(interval.high),
        "ci_method": interval.method,
        "df": value(mean.df),
        "n_pos": joint.result.n_pos,
        "n_neg": joint.result.n_neg,
        "n_cases": joint.result.n_pos + joint.result.n_neg,
        "n_patients": block.n_patients,
        "n_folds": 1 if block.folds is None else len(block.fold_names),
        "n_seeds": len(per_seed),
        "auc_per_seed": [value(a) for a in per_seed] if len(per_seed) > 1 else None,
        "against_half": {"z": value(half.statistic), "p": value(half.p), "reason": half.reason},
        "reason": interval.reason,
    }


def comparison_row(block: Block, joint: Joint, a: str, b: str, rules: Rules, family_size: int) -> dict[str, Any]:
    """Return AUC a - AUC b on the same cases with test, interval and minimum detectable difference."""
    weights, reason = joint.contrast(a, b)
    test_name = joint.test
    if weights is None:
        delta = float(np.mean(joint.result.auc[joint.at[a]]) - np.mean(joint.result.auc[joint.at[b]]))
        test = difference_test(delta, np.nan, alpha=rules.alpha, reason=reason)
    else:
        mean = joint.mean(weights)
        same = _same_ranking(joint, weights)
        test = difference_test(
            mean.mean,
            mean.variance,
            same_ranking=same,
            alpha=rules.alpha,
            df=mean.df,
            reason=joint.result.reason,
        )
        if len(weights) > 1:
            test_name = f"Obuchowski-Rockette over {len(weights)} seeds; {joint.test}"
    correlation = _correlation(joint, a, b)
    return comparison(a, b, block.label_name, test, test_name, rules, family_size, correlation)


def undefined_method(method: str, oracle: bool, reason: str) -> dict[str, Any]:
    """Return the row of a method that could not be scored on every case: no AUC, and the reason."""
    counts = dict.fromkeys(("n_pos", "n_neg", "n_cases", "n_patients"))
    return {
        "method": method, "label_name": None, "oracle": oracle, "auc": None, "se": None, "ci_low": None,
        "ci_high": None, "ci_method": None, "df": None, **counts, "n_folds": 1, "n_seeds": 1, "auc_per_seed": None,
        "against_half": {"z": None, "p": None, "reason": reason}, "reason": reason, **NO_PANEL,
    }  # fmt: skip


def undefined_comparison(a: str, b: str, label_name: str | None, reason: str, rules: Rules) -> dict[str, Any]:
    """Return the row of a declared comparison that has no test, because one of its methods has no AUC."""
    test = difference_test(np.nan, np.nan, alpha=rules.alpha, reason=reason)
    return comparison(a, b, label_name, test, "none", rules, 1, np.nan)


def comparison(
    a: str,
    b: str,
    label_name: str | None,
    test: Test,
    test_name: str,
    rules: Rules,
    family_size: int,
    correlation: float,
) -> dict[str, Any]:
    """Return the row of a test; ``p_holm`` and ``verdict`` are filled in once the family is complete."""
    measurable = test.se > 0
    smallest = detectable(test.se, alpha=rules.alpha, df=test.df) if measurable else np.nan
    step_one = detectable(test.se, alpha=rules.alpha / max(family_size, 1), df=test.df) if measurable else np.nan
    row: dict[str, Any] = {
        "a": a,
        "b": b,
        "label_name": label_name,
        "delta": value(test.delta),
        "se": value(test.se),
        "ci_low": value(test.low),
        "ci_high": value(test.high),
        "z": value(test.statistic),
        "df": value(test.df),
        "p": value(test.p),
        "p_holm": None,
        "in_family": False,
        "test": test_name,
        "correlation": value(correlation),
        "min_detectable_delta": value(smallest),
        "min_detectable_delta_holm": value(step_one),
        "verdict": EXPLORATORY,
        "non_inferiority": None,
        "reason": test.reason,
    }
    if rules.margin is not None:
        z, p = non_inferiority(test.delta, test.se, rules.margin, test.df)
        row["non_inferiority"] = {"margin": rules.margin, "z": value(z), "p": value(p)}
    return row


def verdict(row: dict[str, Any], rules: Rules) -> str:
    """Say whether the claim "a scores higher than b" holds, from the adjusted p and what the size could show.

    *Supported*: adjusted p <= alpha and a ahead. *Not supported*: b ahead significantly, or a gain of
    ``relevant_delta`` is excluded by the interval or would have been found with 80 % power. Otherwise the
    cases could not have told: *not testable at this size*.
    """
    if row["p_holm"] is None:
        return NOT_TESTABLE
    if row["p_holm"] <= rules.alpha:
        return SUPPORTED if row["delta"] > 0 else NOT_SUPPORTED
    if row["min_detectable_delta"] is None:
        return NOT_SUPPORTED
    excluded = row["ci_high"] < rules.relevant_delta
    return NOT_SUPPORTED if excluded or row["min_detectable_delta"] <= rules.relevant_delta else NOT_TESTABLE


def _same_ranking(joint: Joint, weights: Floats) -> bool:
    """Whether every contrast is exactly constant at 0, that is: the two methods order every pair alike."""
    variance = np.einsum("rk,kl,rl->r", weights, joint.result.covariance, weights)
    return bool((np.abs(variance) <= 1e-30).all() and (np.abs(weights @ joint.result.auc) < 1e-12).all())


def _correlation(joint: Joint, a: str, b: str) -> float:
    c = joint.result.covariance
    spread = np.sqrt(np.clip(np.diag(c), 0, None))
    block = c[np.ix_(joint.at[a], joint.at[b])]
    scale = np.outer(spread[joint.at[a]], spread[joint.at[b]])
    return float((block / scale).mean()) if (scale > 0).all() else np.nan
