"""What a study's predictions allow to say: the evidence of each design, whatever its folds, resamples or repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence import evaluate_predictions
from embedprior.evidence.delong import Delong, Floats, delong, influence
from embedprior.evidence.evaluate import NO_PANEL
from embedprior.evidence.inference import holm
from embedprior.evidence.predictions import Block, PatientLabel, blocks_of
from embedprior.evidence.schema import NOT_TESTABLE, Joint, Rules, comparison_row, method_row, value, verdict
from embedprior.study.config import Decision, Design, Hypothesis


def repeated_evidence(
    frame: pd.DataFrame, methods: Sequence[str], reference: str, family: Sequence[tuple[str, str]],
    oracles: Sequence[str], decision: Decision,
) -> dict[str, Any]:  # fmt: skip
    """Return AUCs and comparisons over repeats, in the form of ``evaluate_predictions``.

    Args:
        frame: held-out rows with ``resample`` = number of the repeat; every method scored every case.
        methods, reference, family, oracles: as there.
        decision: decision rules.
    """
    rules = Rules(decision.alpha, "logit", decision.relevant_delta, None)
    label: PatientLabel | None = "max" if decision.unit == "patient" else None
    blocks = blocks_of(frame[frame["method"].isin(methods)], decision.unit, label)
    block, joint = joined(blocks, decision.unit == "exam")
    pairs = [tuple(pair) for pair in family]
    others = [(m, reference) for m in methods if m != reference and (m, reference) not in pairs]
    rows = [
        {**method_row(block, joint, m, m in oracles, rules), "n_repeats": len(blocks), "n_seeds": len(block.seeds[m])}
        for m in methods
    ]
    comparisons = [
        {**comparison_row(block, joint, a, b, rules, len(pairs)), "in_family": (a, b) in pairs}
        for a, b in [*pairs, *others]
    ]
    members = [c for c in comparisons if c["in_family"]]
    for row, p in zip(members, holm([np.nan if c["p"] is None else c["p"] for c in members]), strict=True):
        row["p_holm"] = value(p)
        row["verdict"] = verdict(row, rules)
    return {
        "schema_version": 1, "unit": decision.unit, "reference": reference, "family": [list(p) for p in pairs],
        "family_declared": True, "oracles": list(oracles), "alpha": decision.alpha,
        "relevant_delta": decision.relevant_delta, "n_patients": block.n_patients, "methods": rows,
        "comparisons": comparisons, "repeats": len(blocks),
    }  # fmt: skip


def joined(blocks: Sequence[Block], by_exam: bool) -> tuple[Block, Joint]:
    """Return the first repeat's block, and the joint AUCs of every method in every repeat and seed.

    Raises:
        ValueError: the repeats hold different cases.
    """
    first = blocks[0]
    order = {str(case): i for i, case in enumerate(first.case_ids)}
    clustered = by_exam and first.repeats_patients
    aucs: list[Floats] = []
    shares: list[Floats] = []
    results: list[Delong] = []
    cells: list[tuple[str, str]] = []
    for number, block in enumerate(blocks):
        if {str(c) for c in block.case_ids} != set(order):
            raise ValueError("the repeats of a k-fold hold different cases")
        to_first = np.array([order[str(case)] for case in block.case_ids])
        scores = np.concatenate([block.scores[m] for m in block.methods])
        clusters = block.patients if clustered else None
        result = delong(block.labels, scores, clusters, block.folds)
        psi = influence(block.labels, scores, block.folds)
        in_order = np.empty_like(psi)
        in_order[:, to_first] = psi
        by_patient = _summed(in_order, first)
        length = np.sqrt((by_patient**2).sum(axis=1))
        wanted = np.sqrt(np.clip(np.diag(result.covariance), 0, None))
        shares.append(by_patient * (wanted / np.where(length > 0, length, 1.0))[:, None])
        aucs.append(result.auc)
        results.append(result)
        cells += [(m, f"{seed}, repeat {number}") for m in block.methods for seed in block.seeds[m]]
    stacked = np.concatenate(shares)
    covariance = stacked @ stacked.T
    reasons = [r.reason for r in results if r.reason]
    undefined = np.full_like(covariance, np.nan)
    whole = Delong(
        auc=np.concatenate(aucs), covariance=undefined if reasons else covariance, positive_part=undefined,
        negative_part=undefined, n_pos=results[0].n_pos, n_neg=results[0].n_neg, n_clusters=results[0].n_clusters,
        independent_pairs=min(r.independent_pairs for r in results), reason=reasons[0] if reasons else None,
    )  # fmt: skip
    at = {m: np.array([i for i, (name, _) in enumerate(cells) if name == m]) for m in first.methods}
    names = {m: tuple(cells[i][1] for i in rows) for m, rows in at.items()}
    test = f"influence over patients, {len(blocks)} repeats, fold-stratified" + (", clustered" if clustered else "")
    return first, Joint(whole, at, names, test)


def _summed(psi: Floats, block: Block) -> Floats:
    codes = np.unique(block.patients, return_inverse=True)[1]
    return np.stack([np.bincount(codes, weights=row) for row in psi])


ROUND = ["resample", "fold"]


def design_evidence(
    predictions: pd.DataFrame, design: Design, hypotheses: Sequence[Hypothesis], oracles: Sequence[str],
    unfitted: Sequence[Mapping[str, str]], train_size: float | None = None, decision: Decision | None = None,
    expected: pd.DataFrame | None = None, unscored: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the evidence of one design in the form of ``evaluate_predictions``.

    Only methods that scored every held-out case with every seed are compared; the others have a row of None with the
    reason. A round in which no method could be fitted is left out for all, and said. Resamples that hold out fewer
    than two patients of a class get mean AUCs and no interval (see ``resample_evidence``); a repeated k-fold counts
    patients once (see ``repeats``).

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
    held_out = predictions[predictions["method"].isin(complete)].drop(columns=["design"], errors="ignore")
    family = _family(design, hypotheses, complete, oracles)
    shown = [m for m in oracles if m in complete]
    test_rows = held_out[held_out["split"] == "test"]
    base = design.reference if design.reference in complete else (complete[0] if complete else "")
    rules: dict[str, Any] = {"alpha": decision.alpha, "relevant_delta": decision.relevant_delta}
    if not complete:
        evidence = _empty(design, decision)
    elif test_rows["resample"].nunique() > 1 and design.split == "kfold":
        evidence = repeated_evidence(test_rows, complete, base, family, shown, decision)
    elif test_rows["resample"].nunique() > 1 and fewest_patients(test_rows) < 2:
        evidence = resample_evidence(test_rows, complete, design.reference, family, shown, decision)
    else:
        resampled = test_rows["resample"].nunique() > 1
        evidence = evaluate_predictions(
            held_out if resampled else held_out.drop(columns="resample"), base, family, unit=decision.unit,
            patient_label="max" if decision.unit == "patient" else None, oracles=shown, train_size=train_size,
            bootstrap=decision.bootstrap, **rules,
        )  # fmt: skip
    if complete and base != design.reference:
        evidence |= {
            "reference": design.reference,
            "comparisons": [c for c in evidence["comparisons"] if c["in_family"]],
        }
    evidence["methods"] += _incomplete_rows(design, complete, oracles, cases, seeds, unfitted, unscored)
    named = _one_class(test, expected)  # with their names, instead of their number alone
    general = [w for w in evidence.get("warnings", []) if not (named and "hold one class only" in w)]
    evidence["warnings"] = [*general, *warnings, *named]
    return evidence


def resample_evidence(
    frame: pd.DataFrame, methods: Sequence[str], reference: str, family: Sequence[tuple[str, str]],
    oracles: Sequence[str], decision: Decision | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return mean AUCs over resamples, without intervals or tests, in the form of ``evaluate_predictions``.

    With fewer than two held-out patients of a class not even one resample's AUC has a variance, and resamples
    share patients, so their spread is no standard error either. Counts are means over the resamples.
    """
    decision = decision or Decision()
    auc: dict[str, list[float | None]] = {m: [] for m in methods}
    for _, part in frame.groupby("resample"):
        each = []
        for _, same_seed in part.groupby("seed"):
            wide = same_seed.pivot(index="exam_id", columns="method", values="score")[list(methods)]
            case = same_seed.drop_duplicates("exam_id").set_index("exam_id").loc[wide.index]
            labels, folds = case["label"].to_numpy(), case["fold"].to_numpy()
            each.append(delong(labels, wide.to_numpy().T.copy(), strata=folds).auc)
        for method, auc_mean in zip(methods, np.mean(each, axis=0), strict=True):
            auc[method].append(None if np.isnan(auc_mean) else float(auc_mean))
    reason = no_interval_reason(frame)
    cases = frame.drop_duplicates(["resample", "exam_id"])
    mean_of = {v: float((cases["label"] == v).groupby(cases["resample"]).sum().mean()) for v in (1, 0)}
    rows = []
    for method in methods:
        values = np.array([np.nan if a is None else a for a in auc[method]], dtype=float)
        rows.append(
            _null_row(method, method in oracles, reason)
            | {
                "auc": float(np.nanmean(values)) if np.isfinite(values).any() else None,
                "n_pos": mean_of[1],
                "n_neg": mean_of[0],
                "n_cases": mean_of[1] + mean_of[0],
                "n_patients": float(cases.groupby("resample")["patient_id"].nunique().mean()),
                "n_seeds": int(frame["seed"].nunique()),
                "n_resamples": len(values),
                "auc_per_resample": [None if np.isnan(v) else float(v) for v in values],
                "sd_over_resamples": float(np.nanstd(values, ddof=1)) if np.isfinite(values).sum() > 1 else None,
            }
        )
    comparisons = [_null_comparison(a, b, auc, (a, b) in family, reason) for a, b in family]
    comparisons += [
        _null_comparison(m, reference, auc, False, reason)
        for m in methods
        if reference in methods and m != reference and (m, reference) not in family
    ]
    return {
        "schema_version": 1, "unit": "exam", "reference": reference, "family": [list(pair) for pair in family],
        "family_declared": bool(family), "oracles": list(oracles), "alpha": decision.alpha,
        "n_patients": int(cases["patient_id"].nunique()), "methods": rows, "comparisons": comparisons,
    }  # fmt: skip


def held_out_patients(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, by resample, the held-out patients with a positive X-ray and those without (columns 1 and 0)."""
    highest = frame.groupby(["resample", "patient_id"])["label"].max().reset_index()
    return pd.crosstab(highest["resample"], highest["label"]).reindex(columns=[1, 0], fill_value=0)


def fewest_patients(frame: pd.DataFrame) -> int:
    """Return the smallest number of held-out patients of a class in any resample."""
    return int(held_out_patients(frame).to_numpy().min())


def no_interval_reason(frame: pd.DataFrame) -> str:
    """Say why these AUCs have no interval, with the smallest number of held-out patients by class."""
    counts = held_out_patients(frame)
    few = [
        f"{least} {name} patient{'s' if least != 1 else ''}"
        for name, least in (("positive", int(counts[1].min())), ("negative", int(counts[0].min())))
        if least < 2
    ]
    return f"only {' and '.join(few)} held out in a resample: no variance, no interval, no test"


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


def _incomplete_rows(
    design: Design, complete: Sequence[str], oracles: Sequence[str], cases: pd.DataFrame, seeds: int,
    unfitted: Sequence[Mapping[str, str]], unscored: Sequence[Mapping[str, str]],
) -> list[dict[str, Any]]:  # fmt: skip
    rounds = cases.groupby(ROUND).ngroups * seeds
    rows = []
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
        rows.append(_null_row(method, method in oracles, "; ".join(notes) or "not every held-out case was scored"))
    return rows


def _family(
    design: Design, hypotheses: Sequence[Hypothesis], complete: Sequence[str], oracles: Sequence[str]
) -> list[tuple[str, str]]:
    declared = [(h.a, h.b) for h in hypotheses if h.design == design.name and h.a and h.b]
    default = [(m, design.reference) for m in design.methods if m != design.reference and m not in oracles]
    return [(a, b) for a, b in dict.fromkeys(declared or default) if a in complete and b in complete]


def _null_row(method: str, oracle: bool, reason: str) -> dict[str, Any]:
    return {
        "method": method, "label_name": None, "oracle": oracle, "auc": None, "se": None, "ci_low": None,
        "ci_high": None, "ci_method": None, "df": None, "n_pos": None, "n_neg": None, "n_cases": None,
        "n_patients": None, "n_folds": 1, "n_seeds": 1, "auc_per_seed": None,
        "against_half": {"z": None, "p": None, "reason": reason}, "reason": reason, **NO_PANEL,
    }  # fmt: skip


def _null_comparison(
    a: str, b: str, auc: Mapping[str, Sequence[float | None]], in_family: bool, reason: str
) -> dict[str, Any]:
    both = [x - y for x, y in zip(auc[a], auc[b], strict=True) if x is not None and y is not None]
    return {
        "a": a, "b": b, "label_name": None, "delta": float(np.mean(both)) if both else None, "se": None,
        "ci_low": None, "ci_high": None, "z": None, "df": None, "p": None, "p_holm": None, "in_family": in_family,
        "test": "none", "correlation": None, "min_detectable_delta": None, "min_detectable_delta_holm": None,
        "verdict": NOT_TESTABLE if in_family else "exploratory", "non_inferiority": None, "reason": reason,
    }  # fmt: skip


def _empty(design: Design, decision: Decision) -> dict[str, Any]:
    return {
        "schema_version": 1, "unit": decision.unit, "reference": design.reference, "family": [],
        "family_declared": False, "oracles": [], "alpha": decision.alpha, "n_patients": 0, "methods": [],
        "comparisons": [],
    }  # fmt: skip
