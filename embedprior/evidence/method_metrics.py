"""Every metric beside the AUC for the methods of one block, each with an interval or the reason it has none.

Operating points are declared, or chosen on validation rows, never read off the cases they are applied to.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from embedprior.evidence import calibration
from embedprior.evidence.delong import Bools, Floats
from embedprior.evidence.intervals import ZERO_VARIANCE, Interval, clopper_pearson, quantile, wilson
from embedprior.evidence.metrics import (
    Cases,
    Metric,
    average_precision,
    cases_of,
    interval,
    partial_auc,
    patient_strata,
    predictive_values,
    replicate_values,
    roc_auc,
    stream,
    threshold_metrics,
    weights,
)
from embedprior.evidence.predictions import Block, PatientLabel, Unit, blocks_of
from embedprior.evidence.schema import value

Key = tuple[str | None, str | None, str, str, str]
ProportionCi = Literal["wilson", "clopper-pearson"]


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold is chosen on validation: ``youden``, ``specificity`` or ``sensitivity`` at least ``target``."""

    kind: str
    target: float | None = None


YOUDEN = ThresholdRule("youden")


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one method: (R, N) per seed and case, the distinct values, where they come from."""

    per_case: Floats
    values: tuple[float, ...]
    source: str


def validation_scores(
    rows: pd.DataFrame, unit: Unit, patient_label: PatientLabel | None
) -> dict[Key, tuple[Bools, Floats]]:
    """Return (labels, scores) of the validation rows per (label_name, resample, method, seed, fold).

    Folds are read one at a time, as a case may validate in several of them.
    """
    found: dict[Key, tuple[Bools, Floats]] = {}
    if rows.empty:
        return found
    by = ["method", "fold"] if "fold" in rows.columns and not rows["fold"].isna().all() else ["method"]
    for _, part in rows.groupby(by, sort=False, observed=True):
        for block in blocks_of(part, unit, patient_label):
            (method,) = block.methods
            for seed, scores in zip(block.seeds[method], block.scores[method], strict=True):
                key = (block.label_name, block.resample, method, seed, block.fold_names[0])
                found[key] = (block.labels, scores)
    return found


def choose_threshold(labels: Bools, scores: Floats, rule: ThresholdRule) -> float | None:
    """Return the threshold t ("positive" = score >= t) that the rule picks, or None when a class is missing.

    ``youden`` maximises sensitivity + specificity (the lowest such score); ``specificity`` is the lowest score
    reaching the target, ``sensitivity`` the highest one. A specificity that no score reaches gives infinity.
    """
    positives = int(np.count_nonzero(labels))
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        return None
    values, group = np.unique(scores, return_inverse=True)
    positive_at = np.bincount(group, weights=labels, minlength=values.size)
    total_at = np.bincount(group, minlength=values.size)
    sensitivity = np.cumsum(positive_at[::-1])[::-1] / positives
    specificity = 1 - np.cumsum((total_at - positive_at)[::-1])[::-1] / negatives
    if rule.kind == "youden":
        gain = sensitivity + specificity
        return float(values[np.flatnonzero(gain >= gain.max() - 1e-12)[0]])
    assert rule.target is not None
    if rule.kind == "specificity":
        reached = np.flatnonzero(specificity >= rule.target - 1e-12)
        return float(values[reached[0]]) if reached.size else float("inf")
    reached = np.flatnonzero(sensitivity >= rule.target - 1e-12)
    return float(values[reached[-1]])


def thresholds_of(
    block: Block, method: str, rule: ThresholdRule, validation: dict[Key, tuple[Bools, Floats]], declared: float | None
) -> tuple[Thresholds | None, str | None]:
    """Return the thresholds of a method on the block's cases, or None and the reason."""
    shape = block.scores[method].shape
    if declared is not None and rule == YOUDEN:
        return Thresholds(np.full(shape, declared), (declared,), "declared"), None
    per_case = np.empty(shape)
    values: list[float] = []
    for r, seed in enumerate(block.seeds[method]):
        for f, fold in enumerate(block.fold_names):
            rows = validation.get((block.label_name, block.resample, method, seed, fold))
            place = "" if block.folds is None else f" of fold {fold}"
            if rows is None:
                return None, f"no validation rows{place} and no declared threshold: no operating point"
            chosen = choose_threshold(*rows, rule)
            if chosen is None:
                return None, f"the validation rows{place} hold one class: no operating point"
            values.append(chosen)
            here = slice(None) if block.folds is None else block.folds == f
            per_case[r, here] = chosen
    name = rule.kind if rule.target is None else f"{rule.kind} >= {rule.target:g}"
    return Thresholds(per_case, tuple(dict.fromkeys(values)), f"{name} on validation"), None


THRESHOLD_NAMES = (
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "mcc",
)


@dataclass(frozen=True)
class Settings:
    """Bootstrap size and seed, error rate, declared threshold, fixed operating points, validation scores.

    ``proportions`` names the interval of a proportion, ``max_fpr`` the end of the partial AUC, ``prevalence`` the share
    of positives that PPV and NPV are also given for.
    """

    bootstrap: int
    seed: int
    alpha: float
    threshold: float | None
    at_specificity: float
    at_sensitivity: float
    validation: dict[Key, tuple[Bools, Floats]]
    proportions: ProportionCi = "wilson"
    max_fpr: float = 0.1
    prevalence: float | None = None


@dataclass
class _Entry:
    """A metric on its way to a JSON value."""

    name: str
    metric: Metric | None
    reason: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    wald_se: Floats | None = None


def method_metrics(block: Block, methods: Sequence[str], settings: Settings) -> dict[str, dict[str, Any]]:
    """Return per method its ``metrics``, ``operating_point``, ``reliability`` and ``decision_curve``.

    Wilson for proportions and a closed form for Brier score, slope and intercept where one seed was trained (the
    proportions also need one case per patient); elsewhere the patient bootstrap, or None and why.
    """
    cases = {m: cases_of(block, m) for m in methods}
    # Sorting and counting release the interpreter: two methods at once take hardly longer than one.
    with ThreadPoolExecutor() as pool:
        each = pool.map(lambda m: _entries(block, m, cases[m], settings), methods)
        entries = dict(zip(methods, each, strict=True))
    flat = [(m, e) for m in methods for e in entries[m] if e.metric is not None]
    estimates = [e.metric.estimate(cases[m].n_patients) for m, e in flat if e.metric is not None]
    drawn: dict[int, Floats] = {}
    if settings.bootstrap:
        need = [
            i for i, (m, e) in enumerate(flat) if not np.isnan(estimates[i]).any() and not _has_closed_form(e, cases[m])
        ]
        first = cases[methods[0]]
        strata = patient_strata(block.labels, first.patient, first.n_patients)
        generator = stream(settings.seed, "metrics", str(block.label_name), str(block.resample))
        chunks = weights(strata, settings.bootstrap, generator)
        metrics = [e.metric for i in need if (e := flat[i][1]).metric is not None]
        drawn = dict(zip(need, replicate_values(metrics, chunks), strict=True))
    found_metrics: dict[str, dict[str, Any]] = {}
    for m in methods:
        chosen, reason = thresholds_of(block, m, YOUDEN, settings.validation, settings.threshold)
        found_metrics[m] = {"metrics": {e.name: _missing(e) for e in entries[m]}}
        found_metrics[m]["operating_point"] = {
            "source": chosen.source if chosen else None,
            "thresholds": [value(t) for t in chosen.values] if chosen else None,
            "reason": reason,
        }
        refused = calibration.refusal(cases[m].scores) or not block.labels.size
        found_metrics[m]["reliability"] = None if refused else calibration.reliability(cases[m])
        found_metrics[m]["decision_curve"] = None if refused else calibration.decision_curve(cases[m], settings.alpha)
    for i, (m, e) in enumerate(flat):
        found = _interval(e, cases[m], estimates[i], drawn.get(i), settings)
        found_metrics[m]["metrics"][e.name] = {
            "value": value(found.estimate), "se": value(found.se), "ci_low": value(found.low),
            "ci_high": value(found.high), "ci_method": found.method, "reason": found.reason, **e.extra,
        }  # fmt: skip
    return found_metrics


def point_metrics(block: Block, method: str, settings: Settings) -> dict[str, tuple[float | None, str | None]]:
    """Return the metrics of one method (for one resample among many): each value, or None and why it is undefined."""
    cases = cases_of(block, method)
    return {
        entry.name: (
            None if entry.metric is None else value(float(entry.metric.estimate(cases.n_patients).mean())), entry.reason
        )
        for entry in _entries(block, method, cases, settings)
    }  # fmt: skip


def _entries(block: Block, method: str, cases: Cases, settings: Settings) -> list[_Entry]:
    names = ("brier", f"ece_{calibration.ECE_BINS}_bins", "calibration_slope", "calibration_intercept")
    if not block.labels.size:
        return [_Entry(name, None, "no case has a known label") for name in ("pr_auc", *THRESHOLD_NAMES, *names)]
    prevalence = float(block.labels.mean())
    found = [_Entry("pr_auc", average_precision(cases), extra={"prevalence": value(prevalence)})]
    both = bool(block.labels.any() and not block.labels.all())
    name = f"partial_auc_fpr_{settings.max_fpr:g}"
    partial = partial_auc(cases, settings.max_fpr) if both else None
    found.append(_Entry(name, partial, None if both else "a class is missing"))
    if settings.bootstrap:
        found.append(_Entry("roc_auc_bootstrap", roc_auc(cases)))
    found += _operating_point(block, method, cases, settings)
    found += _fixed(block, method, cases, settings, "specificity", settings.at_specificity)
    found += _fixed(block, method, cases, settings, "sensitivity", settings.at_sensitivity)
    refused = calibration.refusal(cases.scores)
    if refused:
        return found + [_Entry(name, None, refused) for name in names]
    found.append(_Entry(names[0], calibration.brier(cases)))
    found.append(
        _Entry(names[1], calibration.ece(cases), extra={"bins": calibration.ECE_BINS, "binning": "equal width"})
    )
    fitted, errors, reason = calibration.logistic_recalibration(cases)
    if errors is None:
        return found + [_Entry(name, None, reason) for name in names[2:]]
    return found + [_Entry(f.name, f, wald_se=se) for f, se in zip(fitted, errors, strict=True)]


def _operating_point(block: Block, method: str, cases: Cases, settings: Settings) -> list[_Entry]:
    chosen, reason = thresholds_of(block, method, YOUDEN, settings.validation, settings.threshold)
    if chosen is None:
        return [_Entry(name, None, reason) for name in THRESHOLD_NAMES]
    metrics = threshold_metrics(cases, chosen.per_case)
    if settings.prevalence is not None:
        metrics += predictive_values(cases, chosen.per_case, settings.prevalence)
    return [_Entry(metric.name, metric) for metric in metrics]


def _fixed(block: Block, method: str, cases: Cases, settings: Settings, fixed: str, target: float) -> list[_Entry]:
    """Sensitivity where validation specificity reaches ``target``, or the reverse, and the fixed one on these cases."""
    other = "sensitivity" if fixed == "specificity" else "specificity"
    name = f"{other}_at_{fixed}_{target:g}"
    chosen, reason = thresholds_of(block, method, ThresholdRule(fixed, target), settings.validation, None)
    if chosen is None:
        return [_Entry(name, None, reason)]
    by_name = {metric.name: metric for metric in threshold_metrics(cases, chosen.per_case)}
    achieved = float(by_name[fixed].estimate(cases.n_patients).mean())
    extra = {
        "threshold": [value(t) for t in chosen.values], "threshold_source": chosen.source,
        f"{fixed}_on_these_cases": value(achieved),
    }  # fmt: skip
    return [_Entry(name, by_name[other], extra=extra)]


def _missing(entry: _Entry) -> dict[str, Any]:
    return {"value": None, "se": None, "ci_low": None, "ci_high": None, "ci_method": None, "reason": entry.reason}


def _independent(cases: Cases) -> bool:
    return cases.n_patients == cases.labels.size


def _has_closed_form(entry: _Entry, cases: Cases) -> bool:
    if len(cases.scores) > 1 or entry.metric is None:
        return False
    wilson = entry.metric.successes is not None and _independent(cases)
    return wilson or entry.wald_se is not None or entry.name == "brier"


def _interval(entry: _Entry, cases: Cases, estimates: Floats, drawn: Floats | None, settings: Settings) -> Interval:
    assert entry.metric is not None
    metric, alpha = entry.metric, settings.alpha
    mean = float(estimates.mean())
    if np.isnan(mean):
        return Interval(np.nan, np.nan, np.nan, np.nan, None, metric.undefined)
    if not _has_closed_form(entry, cases):
        if metric.successes is not None and mean in (0.0, 1.0):
            return _bound_over_patients(metric, cases, mean, alpha)
        if drawn is None:
            return Interval(mean, np.nan, np.nan, np.nan, None, "no interval: the bootstrap is off")
        return interval(estimates, drawn, metric.low, metric.high, alpha)
    if metric.successes is not None and metric.trials is not None:
        of = clopper_pearson if settings.proportions == "clopper-pearson" else wilson
        low, high = of(float(metric.successes[0]), float(metric.trials[0]), alpha)
        return Interval(mean, np.nan, low, high, settings.proportions)
    se = _brier_se(cases, mean) if entry.wald_se is None else float(entry.wald_se[0])
    if not se**2 > ZERO_VARIANCE:
        return Interval(mean, np.nan, np.nan, np.nan, None, "no variance")
    half = quantile(1 - alpha / 2) * se
    return Interval(mean, se, max(metric.low, mean - half), min(metric.high, mean + half), "wald")


def _bound_over_patients(metric: Metric, cases: Cases, mean: float, alpha: float) -> Interval:
    """One-sided bound of a proportion of exactly 0 or 1 with several exams a patient: each patient counts once."""
    inside = {"sensitivity": cases.labels, "specificity": ~cases.labels}.get(metric.name)
    if inside is None:
        why = f"exactly {mean:g} in every case: no interval with several exams of a patient"
        return Interval(mean, np.nan, np.nan, np.nan, None, why)
    n = np.unique(cases.patient[inside]).size
    bound = alpha ** (1 / n)
    low, high = (bound, 1.0) if mean == 1 else (0.0, 1.0 - bound)
    return Interval(mean, np.nan, low, high, "one-sided bound", f"exactly {mean:g} in all {n} patients of the class")


def _brier_se(cases: Cases, mean: float) -> float:
    deviations = cases.per_patient((cases.scores - cases.labels) ** 2 - mean)[0]
    if deviations.size < 2:
        return np.nan
    return float(np.sqrt(deviations.size / (deviations.size - 1) * (deviations**2).sum()) / cases.labels.size)
