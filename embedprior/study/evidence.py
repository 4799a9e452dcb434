"""What a study's predictions allow to say: the evidence of each design, whatever its folds, resamples or repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embedprior.evidence import evaluate_predictions
from embedprior.study.config import Decision, Design, Hypothesis

ROUND = ["resample", "fold"]


def design_evidence(
    predictions: pd.DataFrame, design: Design, hypotheses: Sequence[Hypothesis], oracles: Sequence[str],
    unfitted: Sequence[Mapping[str, str]], train_size: float | None = None, decision: Decision | None = None,
    expected: pd.DataFrame | None = None, unscored: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the evidence of one design in the form of ``evaluate_predictions``.

    Only methods that scored every held-out case with every seed are compared; the others have a row of None with the
    reason, and a declared claim about one stays in the family. A round in which no method could be fitted is left out
    for all, and said. Resamples that hold out fewer than two patients of a class get mean AUCs and no interval; a
    repeated k-fold counts patients once.

    Args:
        predictions: rows of this design; those of split ``val`` give thresholds.
        design: its settings.
        hypotheses: the pre-declared claims; those of this design are the family.
        oracles: methods that need CT at inference.
        unfitted: records of fits that failed (``design, method, reason``).
        train_size: mean number of training cases of a resample (for the Nadeau-Bengio correction).
        decision: decision rules.
        expected: the held-out cases (``resample, fold, exam_id`` and, where known, ``site``); default: those scored.
        unscored: cases a method gave no score (``method, exam_id``).
    """
    decision = decision or Decision()
    test = predictions[predictions["split"] == "test"]
    cases = test[[*ROUND, "exam_id"]].drop_duplicates()
    warnings = _left_out(test, expected)
    seeds = max(test["seed"].nunique(), 1)
    scored = test.groupby("method").size()
    complete = [m for m in design.methods if scored.get(m, 0) == len(cases) * seeds]
    incomplete = _incomplete(design, complete, cases, seeds, unfitted, unscored)
    held_out = predictions[predictions["method"].isin(complete)].drop(columns=["design"], errors="ignore")
    if test["resample"].nunique() <= 1:
        held_out = held_out.drop(columns="resample")
    evidence = evaluate_predictions(
        held_out, design.reference, _family(design, hypotheses, oracles), unit=decision.unit,
        patient_label="max" if decision.unit == "patient" else None,
        oracles=[m for m in oracles if m in design.methods], train_size=train_size, bootstrap=decision.bootstrap,
        alpha=decision.alpha, relevant_delta=decision.relevant_delta, incomplete=incomplete,
    )  # fmt: skip
    named = _one_class(test, expected)  # with their names, instead of their number alone
    general = [w for w in evidence.get("warnings", []) if not (named and "hold one class only" in w)]
    evidence["warnings"] = [*general, *warnings, *named]
    return evidence


def _left_out(test: pd.DataFrame, expected: pd.DataFrame | None) -> list[str]:
    """Say which rounds no method could be fitted in: their cases are in no comparison."""
    if expected is None:
        return []
    have = set(map(tuple, test[ROUND].drop_duplicates().to_numpy().tolist()))
    lost = expected[[key not in have for key in zip(expected["resample"], expected["fold"], strict=True)]]
    return [
        f"no method could be fitted in {_round_name(key, part)}: its {len(part)} cases are in no comparison"
        for key, part in lost.groupby(ROUND)
    ]


def _one_class(test: pd.DataFrame, expected: pd.DataFrame | None) -> list[str]:
    """Name the rounds whose held-out cases are of one class."""
    cases = test.drop_duplicates([*ROUND, "exam_id"])
    if expected is not None and "site" in expected:
        cases = cases.merge(expected[[*ROUND, "exam_id", "site"]], on=[*ROUND, "exam_id"], how="left")
    found = []
    for key, part in cases.groupby(ROUND):
        if part["label"].nunique() == 1:
            have, lack = ("positive", "negative") if part["label"].iloc[0] == 1 else ("negative", "positive")
            found.append(
                f"{_round_name(key, part)} holds no {lack} case: its {len(part)} {have} cases form no pairs and no "
                "part of the AUC"
            )
    return found


def _round_name(key: Any, part: pd.DataFrame) -> str:
    sites = sorted({str(s) for s in part["site"] if s}) if "site" in part else []
    where = f"resample {key[0]}, fold {key[1]}" if key[0] else f"fold {key[1]}"
    return f"site {', '.join(sites)} ({where})" if sites else where


def _incomplete(
    design: Design, complete: Sequence[str], cases: pd.DataFrame, seeds: int, unfitted: Sequence[Mapping[str, str]],
    unscored: Sequence[Mapping[str, str]],
) -> dict[str, str]:  # fmt: skip
    """Say of each method that lacks a held-out case what happened to it."""
    rounds = cases.groupby(ROUND).ngroups * seeds
    found = {}
    for method in design.methods:
        if method in complete:
            continue
        own = [u for u in unfitted if u["design"].split("@")[0] == design.name and u["method"] == method]
        lost = sorted({u["exam_id"] for u in unscored if u["method"] == method})
        notes = [f"not fitted in {len(own)} of {max(rounds, len(own))} rounds: {own[0]['reason']}"] if own else []
        if lost:
            more = " and others" if len(lost) > 3 else ""
            notes.append(
                f"it gave {len(lost)} of {cases['exam_id'].nunique()} held-out cases no score "
                f"({', '.join(lost[:3])}{more}), and a paired comparison needs the same cases for every row"
            )
        found[method] = "; ".join(notes) or "not every held-out case was scored"
    return found


def _family(design: Design, hypotheses: Sequence[Hypothesis], oracles: Sequence[str]) -> list[tuple[str, str]]:
    """Return the declared claims of a design; without any, every method that is no oracle against the reference."""
    declared = [(h.a, h.b) for h in hypotheses if h.design == design.name and h.a and h.b]
    default = [(m, design.reference) for m in design.methods if m != design.reference and m not in oracles]
    return list(dict.fromkeys(declared or default))
