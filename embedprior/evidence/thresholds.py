"""Operating points: declared, or chosen on validation rows; never read off the cases they are applied to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from embedprior.evidence.delong import Bools, Floats
from embedprior.evidence.predictions import Block, PatientLabel, Unit, blocks_of

Key = tuple[str | None, str | None, str, str, str]


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen on validation: ``youden``, ``specificity`` or ``sensitivity`` at least ``target``."""

    kind: str
    target: float | None = None


YOUDEN = Rule("youden")


@dataclass(frozen=True)
class Cut:
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


def choose(labels: Bools, scores: Floats, rule: Rule) -> float | None:
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


def cut(
    block: Block, method: str, rule: Rule, validation: dict[Key, tuple[Bools, Floats]], declared: float | None
) -> tuple[Cut | None, str | None]:
    """Return the thresholds of a method on the block's cases, or None and the reason."""
    shape = block.scores[method].shape
    if declared is not None and rule == YOUDEN:
        return Cut(np.full(shape, declared), (declared,), "declared"), None
    per_case = np.empty(shape)
    values: list[float] = []
    for r, seed in enumerate(block.seeds[method]):
        for f, fold in enumerate(block.fold_names):
            rows = validation.get((block.label_name, block.resample, method, seed, fold))
            place = "" if block.folds is None else f" of fold {fold}"
            if rows is None:
                return None, f"no validation rows{place} and no declared threshold: no operating point"
            chosen = choose(*rows, rule)
            if chosen is None:
                return None, f"the validation rows{place} hold one class: no operating point"
            values.append(chosen)
            here = slice(None) if block.folds is None else block.folds == f
            per_case[r, here] = chosen
    name = rule.kind if rule.target is None else f"{rule.kind} >= {rule.target:g}"
    return Cut(per_case, tuple(dict.fromkeys(values)), f"{name} on validation"), None
