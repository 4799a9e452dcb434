"""One row of evidence per method and per claim, as plain JSON values: the only place that builds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from embedprior.evidence.decision import EXPLORATORY, NOT_TESTABLE, Claim, Rules, verdict
from embedprior.evidence.delong import Delong, Floats, Ints, delong, renumber
from embedprior.evidence.intervals import auc_interval
from embedprior.evidence.permutation import half_test
from embedprior.evidence.power import Folds, detectable_difference, mean_detectable
from embedprior.evidence.predictions import Block
from embedprior.evidence.tests import (
    Estimate,
    Sample,
    Test,
    against_half,
    holm,
    holm_levels,
    is_constant,
    margin_p,
    mean_over_seeds,
    omnibus,
    paired_test,
    undefined,
)

#: What a row holds where no other metric is computed.
NO_METRICS: dict[str, Any] = {"metrics": {}, "operating_point": None, "reliability": None, "decision_curve": None}


@dataclass(frozen=True)
class Joint:
    """AUCs of all methods and seeds of one block, jointly; ``at`` finds the cells of a method.

    ``one_table`` is False where several tables of scores were averaged (repeats of a k-fold, labels): permutation tests
    are then not defined. ``label_folds`` are the patients of every label, where labels were averaged.
    """

    result: Delong
    at: dict[str, Ints]
    seeds: dict[str, tuple[str, ...]]
    test: str
    clustered: bool = False
    one_table: bool = True
    label_folds: tuple[Folds, ...] = ()

    def contrast(self, method: str, other: str | None = None) -> tuple[Floats | None, str | None]:
        """Return the (R, k) weights giving per-seed AUCs, or per-seed differences, or None and why not."""
        k = self.result.auc.size
        own = self.at[method]
        if other is None:
            return np.eye(k)[own], None
        others = self.at[other]
        if len(own) > 1 and len(others) > 1 and set(self.seeds[method]) != set(self.seeds[other]):
            return None, (
                f"{method} has seeds {', '.join(self.seeds[method])}, "
                f"{other} has {', '.join(self.seeds[other])}: train both with the same seeds"
            )
        if len(own) > 1 and len(others) > 1:
            others = others[[self.seeds[other].index(s) for s in self.seeds[method]]]
        rows = max(len(own), len(others))
        weights = np.zeros((rows, k))
        weights[np.arange(rows), np.broadcast_to(own, rows)] += 1
        weights[np.arange(rows), np.broadcast_to(others, rows)] -= 1
        return weights, None

    def mean(self, weights: Floats) -> tuple[float, Any]:
        """Return the mean over seeds of a contrast and its variance over patients and seeds."""
        over_seeds = mean_over_seeds(weights @ self.result.auc, weights @ self.result.covariance @ weights.T)
        sampling = self.result.variance(weights.mean(axis=0))
        return over_seeds.mean, replace(sampling, seeds=over_seeds.seeds, df_seeds=max(len(weights) - 1, 1))

    def estimate(self, block: Block, method: str) -> Estimate:
        """Return the AUC of a method, mean over its seeds."""
        weights, _ = self.contrast(method)
        assert weights is not None
        mean, variance = self.mean(weights)
        constant = is_constant(block.scores[method], block.folds)
        return Estimate(mean, variance, self.result.independent_pairs, constant)


def joint_aucs(block: Block, clustered: bool) -> Joint:
    """Run one joint DeLong over every cell of the block."""
    at, start = {}, 0
    for method in block.methods:
        at[method] = np.arange(start, start + len(block.scores[method]))
        start += len(block.scores[method])
    scores = np.concatenate([block.scores[m] for m in block.methods])
    result = delong(block.labels, scores, block.patients if clustered else None, block.folds)
    name = "DeLong, t" + (", patient-clustered (Obuchowski)" if clustered else "")
    return Joint(result, at, block.seeds, name + (", fold-stratified" if block.folds is not None else ""), clustered)


def value(x: float | int | None) -> float | None:
    """Return a JSON number, or None for NaN and infinity."""
    return None if x is None or not math.isfinite(x) else float(x)


def method_row(block: Block, joint: Joint, method: str, oracle: bool, rules: Rules) -> dict[str, Any]:
    """Return the AUC of one method (mean over its seeds) with interval, counts and test against 0.5."""
    per_seed = joint.result.auc[joint.at[method]]
    found = joint.estimate(block, method)
    interval = auc_interval(
        found.auc, found.variance, found.independent_pairs, method=rules.ci, alpha=rules.alpha,
        reason=joint.result.reason,
    )  # fmt: skip
    half = against_half(found.auc, found.variance, _exact_half(block, joint, method), reason=interval.reason)
    return {
        "method": method,
        "label_name": block.label_name,
        "oracle": oracle,
        "auc": value(interval.estimate),
        "se": value(interval.se),
        "ci_low": value(interval.low),
        "ci_high": value(interval.high),
        "ci_method": interval.method,
        "ci_note": interval.note,
        "df": value(found.variance.df) if interval.method == "logit-t" else None,
        "n_pos": joint.result.n_pos,
        "n_neg": joint.result.n_neg,
        "n_cases": joint.result.n_pos + joint.result.n_neg,
        # labels are known for different patients: of their macro mean, the joint estimate knows how many take part
        "n_patients": block.n_patients if joint.one_table else joint.result.n_clusters,
        "n_folds": 1 if block.folds is None else len(block.fold_names),
        "n_seeds": len(per_seed),
        "auc_per_seed": [value(a) for a in per_seed] if len(per_seed) > 1 else None,
        "against_half": {
            "z": value(half.statistic), "p": value(half.p), "test": half.name,
            "reason": half.reason if np.isnan(half.p) else None,
        },
        "reason": interval.reason,
    }  # fmt: skip


def _exact_half(block: Block, joint: Joint, method: str) -> float:
    if joint.result.reason is not None or not joint.one_table:
        return np.nan
    return half_test(block.labels, block.scores[method], _clusters(block, joint), block.folds)


def _clusters(block: Block, joint: Joint) -> Ints | None:
    return renumber(block.patients)[1] if joint.clustered else None


def undefined_method(method: str, oracle: bool, reason: str) -> dict[str, Any]:
    """Return the row of a method that could not be scored on every case: no AUC, and the reason."""
    counts = dict.fromkeys(("n_pos", "n_neg", "n_cases", "n_patients"))
    return {
        "method": method, "label_name": None, "oracle": oracle, "auc": None, "se": None, "ci_low": None,
        "ci_high": None, "ci_method": None, "ci_note": None, "df": None, **counts, "n_folds": 1, "n_seeds": 1,
        "auc_per_seed": None, "against_half": {"z": None, "p": None, "test": "none", "reason": reason},
        "reason": reason, **NO_METRICS,
    }  # fmt: skip


@dataclass
class Comparison:
    """The row of one claim, and what decides its verdict once the whole family is known."""

    claim: Claim
    row: dict[str, Any]
    test: Test
    label_folds: Sequence[Folds] = ()
    in_family: bool = False
    rules: Rules = field(default_factory=Rules)
    inflation: float = 1.0
    plan_df: float = np.inf

    def detectable(self, family_size: int) -> float | None:
        """Return the difference the sizes promise to find at Holm's first step; None = none, or no sizes."""
        if self.rules.planned is not None:
            return self.rules.planned[1]
        return self._detectable(self.rules.alpha / max(family_size, 1))

    def _detectable(self, alpha: float) -> float | None:
        if not all(self.label_folds):
            return None
        found = [
            detectable_difference(
                folds, self.rules.auc, self.rules.correlation, alpha=alpha, power=self.rules.power,
                inflation=self.inflation, df=self.plan_df,
            )
            for folds in self.label_folds
        ]  # fmt: skip
        return mean_detectable([each if each <= 1 - self.rules.auc else None for each in found])

    def plan(self, family_size: int) -> None:
        """Write what the sizes promise beside the result."""
        planned = self.rules.planned
        self.row["min_detectable_delta"] = planned[0] if planned is not None else self._detectable(self.rules.alpha)
        self.row["min_detectable_delta_holm"] = self.detectable(family_size)

    def judge(self, p_holm: float, level: float, family_size: int) -> None:
        """Write the adjusted p, the interval at Holm's level, and the verdict."""
        limits = None if self.test.limits is None else self.test.limits(level)
        self.row["p_holm"] = value(p_holm)
        self.row["holm_level"] = level
        self.row["ci_low_holm"], self.row["ci_high_holm"] = limits or (None, None)
        self.row["verdict"] = verdict(self.claim, self.row, limits, self.detectable(family_size), self.rules)


def judge_family(comparisons: Sequence[Comparison]) -> None:
    """Adjust the p values of all comparisons declared together (Holm) and judge each; failures count as tests."""
    members = [c for c in comparisons if c.in_family]
    p = [np.nan if c.row["p"] is None else c.row["p"] for c in members]
    adjusted = holm(p)
    levels = holm_levels(p, members[0].rules.alpha if members else 0.05)
    for c in comparisons:
        c.plan(len(members))
    for c, p_holm, level in zip(members, adjusted, levels, strict=True):
        c.judge(float(p_holm), float(level), len(members))


def comparison_row(block: Block, joint: Joint, claim: Claim, rules: Rules) -> Comparison:
    """Return AUC a - AUC b on the same cases with its test and interval."""
    a, b = claim.a, claim.b
    weights, reason = joint.contrast(a, b)
    if weights is None:
        delta = float(np.mean(joint.result.auc[joint.at[a]]) - np.mean(joint.result.auc[joint.at[b]]))
        test = undefined(delta, reason or "")
    else:
        _, variance = joint.mean(weights)
        name = joint.test
        if len(weights) > 1:
            name = f"Obuchowski-Rockette over {len(weights)} seeds; {joint.test}"
        sample = Sample(block.labels, block.scores[a], block.scores[b], _clusters(block, joint), block.folds)
        test = paired_test(
            joint.estimate(block, a), joint.estimate(block, b), variance, sample, joint.result, name,
            permute=joint.one_table,
        )  # fmt: skip
    sizes = joint.label_folds or (patient_folds(block),)
    return comparison(claim, block.label_name, test, rules, _correlation(joint, a, b), sizes)


def omnibus_row(block: Block, joint: Joint, methods: list[str]) -> dict[str, Any]:
    """Return the test that all these methods share one AUC."""
    if any(len(joint.at[m]) > 1 for m in methods):
        return {
            "label_name": block.label_name, "methods": methods, "chi2": None, "df": None, "p": None,
            "reason": "omnibus test not defined over several seeds",
        }  # fmt: skip
    at = np.concatenate([joint.at[m] for m in methods])
    chi2, df, p, reason = omnibus(joint.result.auc[at], joint.result.covariance[np.ix_(at, at)])
    return {
        "label_name": block.label_name, "methods": methods, "chi2": value(chi2),
        "df": df if reason is None or df else None, "p": value(p), "reason": reason,
    }  # fmt: skip


def patient_folds(block: Block) -> Folds:
    """Return the patients with a positive case and those without, in every fold that holds both."""
    folds = np.zeros(block.labels.size, dtype=np.int64) if block.folds is None else block.folds
    found = []
    for f in np.unique(folds):
        positive = np.unique(block.patients[(folds == f) & block.labels]).size
        everyone = np.unique(block.patients[folds == f]).size
        # patients with cases of both classes count on the positive side
        found.append((positive, everyone - positive))
    return [(m, n) for m, n in found if m and n]


def undefined_comparison(claim: Claim, label_name: str | None, reason: str, rules: Rules) -> Comparison:
    """Return the row of a declared claim that has no test, because one of its methods has no AUC."""
    return comparison(claim, label_name, undefined(np.nan, reason), rules, np.nan, ())


def comparison(
    claim: Claim, label_name: str | None, test: Test, rules: Rules, correlation: float, label_folds: Sequence[Folds]
) -> Comparison:
    """Return the row of a test; ``judge_family`` fills in what needs the whole family.

    ``label_folds`` are the patients of the label, of a mean over labels those of each; empty where no size counts.
    ``p`` is that of the claim: of no difference for superiority, of the margin for the other kinds.
    """
    low, high = test.limits(rules.alpha) if test.limits is not None else (np.nan, np.nan)
    p = test.p
    if claim.margin is not None and test.limits is not None:
        p = margin_p(test.limits, -claim.margin, claim.margin if claim.kind == "equivalent" else None)
    row: dict[str, Any] = {
        "a": claim.a,
        "b": claim.b,
        "claim": claim.text,
        "kind": claim.kind,
        "margin": claim.margin,
        "label_name": label_name,
        "delta": value(test.delta),
        "se": value(test.se),
        "ci_low": value(low),
        "ci_high": value(high),
        "z": value(test.statistic),
        "df": value(test.df),
        "p": value(p),
        "p_delong": value(test.p_delong),
        "p_permutation": value(test.p_permutation),
        "p_holm": None,
        "holm_level": None,
        "ci_low_holm": None,
        "ci_high_holm": None,
        "in_family": False,
        "test": test.name if claim.margin is None else f"{claim.kind}, by the interval",
        "correlation": value(correlation),
        "min_detectable_delta": None,
        "min_detectable_delta_holm": None,
        "verdict": EXPLORATORY,
        "corrected": None,
        "metrics": {},
        "reason": test.reason,
    }
    return Comparison(claim, row, test, label_folds, rules=rules)


def _correlation(joint: Joint, a: str, b: str) -> float:
    c = joint.result.covariance
    spread = np.sqrt(np.clip(np.diag(c), 0, None))
    block = c[np.ix_(joint.at[a], joint.at[b])]
    scale = np.outer(spread[joint.at[a]], spread[joint.at[b]])
    return float((block / scale).mean()) if (scale > 0).all() else np.nan


__all__ = [
    "NOT_TESTABLE",
    "NO_METRICS",
    "Comparison",
    "Joint",
    "comparison",
    "comparison_row",
    "joint_aucs",
    "judge_family",
    "method_row",
    "omnibus_row",
    "patient_folds",
    "undefined_comparison",
    "undefined_method",
    "value",
]
