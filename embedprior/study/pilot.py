"""What a study's predictions allow to say: evidence by design, hypotheses, support, and the source as confounder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence import delong, evaluate_predictions
from embedprior.study.config import Design, Hypothesis, StudyConfig
from embedprior.tables import LABEL_PREFIX

NOT_TESTABLE = "not testable at this size"


def design_evidence(
    predictions: pd.DataFrame, design: Design, hypotheses: Sequence[Hypothesis], oracles: Sequence[str],
    unfitted: Sequence[Mapping[str, str]], train_size: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the evidence of one design in the form of ``evaluate_predictions``.

    Only methods that scored every held-out case are compared; the others have a row of None with the reason.
    Resamples that hold out fewer than two patients of a class get mean AUCs and no interval (see
    ``resample_evidence``).

    Args:
        predictions: rows of this design.
        design: its settings.
        hypotheses: the pre-declared claims; those of this design are the family.
        oracles: methods that need CT at inference.
        unfitted: records of methods that could not be fitted (``design, method, reason``).
        train_size: mean number of training X-rays of a resample (for the Nadeau-Bengio correction).
    """
    cases = predictions[["resample", "fold", "exam_id"]].drop_duplicates()
    table = predictions.drop(columns=["resample", "design"])
    scored = predictions.groupby("method").size()
    complete = [m for m in design.methods if scored.get(m, 0) == len(cases)]
    table = table[table["method"].isin(complete)]
    family = _family(design, hypotheses, complete, oracles)
    shown = [m for m in oracles if m in complete]
    if not complete:
        evidence = _empty(design)
    elif predictions["resample"].nunique() > 1:
        held_out = predictions[predictions["method"].isin(complete)]
        if fewest_patients(held_out) < 2:
            evidence = resample_evidence(held_out, complete, design.reference, family, shown)
        else:
            base = design.reference if design.reference in complete else complete[0]
            evidence = evaluate_predictions(
                held_out.drop(columns=["design"]), base, family, unit="exam", oracles=shown,
                train_size=train_size,
            )
    elif design.reference in complete:
        evidence = evaluate_predictions(table, design.reference, family, unit="exam", oracles=shown)
    else:
        alone = evaluate_predictions(table, complete[0], [], unit="exam", oracles=shown)
        evidence = alone | {"reference": design.reference, "comparisons": []}
    for method in design.methods:
        if method not in complete:
            own = [u for u in unfitted if u["design"] == design.name and u["method"] == method]
            reason = own[0]["reason"] if own else "not every held-out case was scored"
            note = f"not fitted in {len(own)} of {cases.groupby(['resample', 'fold']).ngroups} rounds: {reason}"
            evidence["methods"].append(_null_row(method, method in oracles, note))
    return evidence


def resample_evidence(
    frame: pd.DataFrame, methods: Sequence[str], reference: str, family: Sequence[tuple[str, str]],
    oracles: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return mean AUCs over resamples, without intervals or tests, in the form of ``evaluate_predictions``.

    With fewer than two held-out patients of a class not even one resample's AUC has a variance, and resamples
    share patients, so their spread is no standard error either. Counts are means over the resamples.
    """
    auc: dict[str, list[float | None]] = {m: [] for m in methods}
    for _, part in frame.groupby("resample"):
        wide = part.pivot(index="exam_id", columns="method", values="score")[list(methods)]
        case = part.drop_duplicates("exam_id").set_index("exam_id").loc[wide.index]
        found = delong(case["label"].to_numpy(), wide.to_numpy().T.copy(), strata=case["fold"].to_numpy())
        for method, value in zip(methods, found.auc, strict=True):
            auc[method].append(None if np.isnan(value) else float(value))
    reason = no_interval_reason(frame)
    cases = frame.drop_duplicates(["resample", "exam_id"])
    mean_of = {v: float((cases["label"] == v).groupby(cases["resample"]).sum().mean()) for v in (1, 0)}
    rows = []
    for method in methods:
        values = np.array([np.nan if a is None else a for a in auc[method]], dtype=float)
        rows.append(
            _null_row(method, method in oracles, reason)
            | {
                "auc": _mean(values),
                "n_pos": mean_of[1],
                "n_neg": mean_of[0],
                "n_cases": mean_of[1] + mean_of[0],
                "n_patients": float(cases.groupby("resample")["patient_id"].nunique().mean()),
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
        "family_declared": bool(family), "oracles": list(oracles), "alpha": 0.05,
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


def hypothesis_table(
    hypotheses: Sequence[Hypothesis], evidence: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Return each hypothesis with its status and the reason: ``hypothesis, claim, status, why``."""
    rows = []
    for h in hypotheses:
        status, why = NOT_TESTABLE, f"{h.missing}{_size_reason(evidence[h.design])}"
        if h.a is not None and h.b is not None:
            found = [c for c in evidence[h.design]["comparisons"] if (c["a"], c["b"]) == (h.a, h.b)]
            status = found[0]["verdict"] if found else NOT_TESTABLE
            why = _why(found[0]) if found else f"{h.a} or {h.b} could not be fitted in every round"
        rows.append({"hypothesis": h.name, "claim": h.claim, "status": status, "why": why})
    return pd.DataFrame(rows, columns=["hypothesis", "claim", "status", "why"])


def method_notes(design: Design, targets: pd.DataFrame, uses_ct: Mapping[str, bool]) -> dict[str, str]:
    """Return, for every row that uses CT, what the CTs of the negative pairs show; and what a control is."""
    notes = {}
    negative = targets[targets["label"] == 0]
    positive_on_ct = int((negative["ct_label"] == 1).sum())
    share = f"all {len(negative)}" if positive_on_ct == len(negative) else f"{positive_on_ct} of {len(negative)}"
    for method in design.methods:
        if uses_ct.get(method) and len(negative) and positive_on_ct:
            notes[method] = f"uses CT; {share} negative pairs are positive on CT"
        elif method == "source-only":
            notes[method] = "control: never sees a picture, guesses from where it was published"
    return notes


def source_by_label(targets: pd.DataFrame) -> pd.DataFrame:
    """Return X-rays and patients by source and label."""
    rows = []
    for source, part in targets.groupby("source"):
        positive = int((part["label"] == 1).sum())
        rows.append(
            {
                "source": source, "patients": int(part["patient_id"].nunique()), "X-rays": len(part),
                "positive": positive, "negative": len(part) - positive,
                "positive share": round(positive / len(part), 3),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values("X-rays", ascending=False).reset_index(drop=True)


def within_source(predictions: pd.DataFrame, method: str, sources: Mapping[str, str]) -> pd.DataFrame:
    """Return one method's fold-stratified AUC inside each source that holds both labels.

    Columns ``source, AUC, 95 % CI, positive, negative, patients, why no interval``.
    """
    frame = predictions[predictions["method"] == method].drop(columns=["resample", "design"])
    rows = []
    for source, part in frame.groupby(frame["exam_id"].map(sources)):
        if part["label"].nunique() < 2:
            continue
        found = evaluate_predictions(part, method, [], unit="exam")["methods"][0]
        known = found["ci_low"] is not None
        rows.append(
            {
                "source": source, "AUC": found["auc"],
                "95 % CI": f"{found['ci_low']:.3f}–{found['ci_high']:.3f}" if known else "–",
                "positive": found["n_pos"], "negative": found["n_neg"], "patients": found["n_patients"],
                "why no interval": found["reason"] or "",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def label_conflicts(exams: pd.DataFrame, label: str) -> int:
    """Return the number of patients whose exams carry both labels."""
    values = exams.groupby("patient_id")[LABEL_PREFIX + label].nunique()
    return int((values > 1).sum())


def all_evidence(
    config: StudyConfig, predictions: pd.DataFrame, support: pd.DataFrame, oracles: Sequence[str],
    unfitted: Sequence[Mapping[str, str]],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return the evidence of every design by its name."""
    found = {}
    for design in config.designs:
        own = support[support["design"] == design.name]
        found[design.name] = design_evidence(
            predictions[predictions["design"] == design.name], design, config.hypotheses,
            [m for m in oracles if m in design.methods], unfitted,
            float((own["train_images_pos"] + own["train_images_neg"]).mean()),
        )  # fmt: skip
    return found


def _family(
    design: Design, hypotheses: Sequence[Hypothesis], complete: Sequence[str], oracles: Sequence[str]
) -> list[tuple[str, str]]:
    declared = [(h.a, h.b) for h in hypotheses if h.design == design.name and h.a and h.b]
    default = [(m, design.reference) for m in design.methods if m != design.reference and m not in oracles]
    return [(a, b) for a, b in declared or default if a in complete and b in complete]


def _why(comparison: Mapping[str, Any]) -> str:
    if comparison["p"] is None:
        return str(comparison["reason"])
    limits = ("delta", "ci_low", "ci_high")
    shown = {key: "–" if comparison[key] is None else f"{comparison[key]:+.3f}" for key in limits}
    parts = [f"ΔAUC {shown['delta']} ({shown['ci_low']} to {shown['ci_high']}), Holm p {comparison['p_holm']:.3f}"]
    if comparison["min_detectable_delta"] is not None:
        parts.append(f"detectable {comparison['min_detectable_delta']:.3f}")
    return ", ".join([*parts, *([comparison["reason"]] if comparison["reason"] else [])])


def _size_reason(evidence: Mapping[str, Any]) -> str:
    reasons = {m["reason"] for m in evidence["methods"]}
    shared = reasons.pop() if len(reasons) == 1 else None
    return f"; and {shared}" if shared else ""


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _null_row(method: str, oracle: bool, reason: str) -> dict[str, Any]:
    return {
        "method": method, "label_name": None, "oracle": oracle, "auc": None, "se": None, "ci_low": None,
        "ci_high": None, "ci_method": None, "df": None, "n_pos": None, "n_neg": None, "n_cases": None,
        "n_patients": None, "n_folds": 1, "n_seeds": 1, "auc_per_seed": None,
        "against_half": {"z": None, "p": None, "reason": reason}, "reason": reason,
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


def _empty(design: Design) -> dict[str, Any]:
    return {
        "schema_version": 1, "unit": "exam", "reference": design.reference, "family": [], "family_declared": False,
        "oracles": [], "alpha": 0.05, "n_patients": 0, "methods": [], "comparisons": [],
    }  # fmt: skip
