"""The evidence of a study: each design, whatever its folds, resamples or repeats, and the declared claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embedprior.evidence import Claim
from embedprior.evidence.decision import NOT_TESTABLE, status
from embedprior.evidence.evaluate import UnjudgedEvaluation, evaluation, judged
from embedprior.study.config import MACRO, Assumed, Design, Hypothesis, InferenceConfig, StudyConfig, method_infos
from embedprior.study.plan import family_size, macro_difference, planned_of
from embedprior.study.run import DesignResult, StudyResult
from embedprior.study.variants import Variant

FOLD_KEY = ["resample", "fold"]


def design_evidence(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the evidence of one design, its claims judged by themselves; arguments as ``design_evaluation``."""
    return judged([design_evaluation(*args, **kwargs)])[0]


def design_evaluation(
    predictions: pd.DataFrame, design: Design, hypotheses: Sequence[Hypothesis], oracles: Sequence[str],
    unfitted: Sequence[Mapping[str, str]], train_size: float | None = None, inference: InferenceConfig | None = None,
    expected: pd.DataFrame | None = None, unscored: Sequence[Mapping[str, str]] = (), controls: Sequence[str] = (),
    planned: tuple[float | None, float | None] | None = None, assumed: Assumed | None = None, untestable: str = "",
) -> UnjudgedEvaluation:  # fmt: skip
    """Return the evidence of one design in the form of ``evaluate_predictions``, not judged yet.

    Only methods that scored every held-out case with every seed are compared; the others have a row of None with the
    reason, and a declared claim about one stays in the family. A fold in which no method could be fitted is left out
    for all, and said. Resamples that hold out fewer than two patients of a class get mean AUCs and no interval; a
    repeated k-fold counts patients once.

    Args:
        predictions: rows of this design; those of split ``val`` give thresholds.
        design: its settings.
        hypotheses: the pre-declared claims; those of this design are the family.
        oracles: methods that need CT at inference.
        unfitted: records of fits that failed (``design, method, reason``).
        train_size: mean number of training cases of a resample (for the Nadeau-Bengio correction).
        inference: inference rules.
        expected: the held-out cases (``resample, fold, exam_id`` and, where known, ``site``); default: those scored.
        unscored: cases a method gave no score (``method, exam_id``).
        controls: methods that are shown, and left out of the family where no claim is declared.
        planned: the plan's detectable differences, at alpha and at Holm's first step.
        assumed: AUC and correlation, for the detectable difference where there is no plan.
        untestable: why no method was fitted: then every declared claim is in the family without a test.
    """
    assumed = assumed or Assumed()
    inference = inference or InferenceConfig()
    test = predictions[predictions["split"] == "test"]
    cases = test[[*FOLD_KEY, "exam_id"]].drop_duplicates()
    warnings = _left_out(test, expected)
    seeds = max(test["seed"].nunique(), 1)
    scored = test.groupby("method").size()
    complete = [m for m in design.methods if scored.get(m, 0) == len(cases) * seeds and not untestable]
    incomplete = (
        dict.fromkeys(design.methods, untestable)
        if untestable
        else _incomplete(design, complete, cases, seeds, unfitted, unscored)
    )
    held_out = predictions[predictions["method"].isin(complete)].drop(columns=["design"], errors="ignore")
    if test["resample"].nunique() <= 1:
        held_out = held_out.drop(columns="resample")
    found = evaluation(
        held_out, design.reference, _family(design, hypotheses, oracles, controls), unit=inference.unit,
        patient_label="max" if inference.unit == "patient" else None,
        oracles=[m for m in oracles if m in design.methods], train_size=train_size, bootstrap=inference.bootstrap,
        alpha=inference.alpha, relevant_delta=inference.relevant_delta, incomplete=incomplete, power=inference.power,
        assumed_auc=assumed.auc, assumed_correlation=assumed.correlation, planned=planned,
    )  # fmt: skip
    evidence = found.evidence
    named = _one_class(test, expected)  # with their names, instead of their number alone
    general = [w for w in evidence.get("warnings", []) if not (named and "hold one class only" in w)]
    evidence["warnings"] = [*general, *warnings, *named, *one_answer(test, controls)]
    return found


ONE_ANSWER, MIN_CLASS = 0.95, 0.1
"""A fit collapsed when this share of its held-out cases has one answer, unless a class is rarer than that share."""


def one_answer(test: pd.DataFrame, controls: Sequence[str] = ()) -> list[str]:
    """Say which methods call (almost) every held-out case of a fit alike at the threshold .5; one sentence at most.

    That is no finding where nearly all cases are of one class: then nothing is said. A method may rank cases well and
    still collapse: its scores then lie on one side of .5.

    Args:
        test: held-out predictions: ``method, resample, fold, seed, label, score``.
        controls: of these, one that gives every case one score means to.

    Example:
        >>> rows = {"resample": 0, "fold": 0, "seed": 0, "label": [0, 1] * 10, "method": "m", "score": 0.7}
        >>> one_answer(pd.DataFrame(rows))[0][:78]
        'm collapsed to one answer: at .5 it calls 100 % of the held-out cases positive'
    """
    found = []
    for method, rows in test.groupby("method", sort=False):
        if not MIN_CLASS <= rows["label"].mean() <= 1 - MIN_CLASS:
            continue
        parts = [part["score"] for _, part in rows.groupby([*FOLD_KEY, "seed"])]
        if method in controls and all(part.nunique() == 1 for part in parts):
            continue
        fits = [(part >= 0.5).mean() for part in parts]
        alike = sum(max(share, 1 - share) >= ONE_ANSWER for share in fits)
        if 2 * alike < len(fits) or alike == 0:
            continue
        positive = float((rows["score"] >= 0.5).mean())
        calls = f"{max(positive, 1 - positive):.0%}".replace("%", " %")
        answer = "positive" if positive >= 0.5 else "negative"
        found.append((method, calls, answer, f"{alike} of {len(fits)} fits"))
    if len(found) < 2:
        return [
            f"{method} collapsed to one answer: at .5 it calls {calls} of the held-out cases {answer} (nearly all "
            f"alike in {alike})"
            for method, calls, answer, alike in found
        ]
    listed = "; ".join(f"{method} ({calls} {answer}, {alike})" for method, calls, answer, alike in found)
    return [
        f"{len(found)} methods collapsed to one answer (calls at .5 over all held-out cases, and fits in which nearly "
        f"all are alike): {listed}"
    ]


def balanced_accuracies(rows: pd.DataFrame, thresholds: Sequence[float]) -> dict[float, float]:
    """Return one method's balanced accuracy at each threshold: the mean over its fits that hold out both classes.

    Args:
        rows: held-out predictions of the method: ``resample, fold, seed, label, score``.
        thresholds: a score at or above one is a positive answer.

    Example:
        >>> fit = {"resample": 0, "fold": 0, "seed": 0, "label": [0, 0, 1, 1], "score": [0.2, 0.6, 0.4, 0.8]}
        >>> balanced_accuracies(pd.DataFrame(fit), [0.3, 0.5, 0.9])
        {0.3: 0.75, 0.5: 0.5, 0.9: 0.5}
    """
    fits = [part for _, part in rows.groupby([*FOLD_KEY, "seed"]) if part["label"].nunique() == 2]
    if not fits:
        return dict.fromkeys(thresholds, float("nan"))
    right = {
        t: [((part["score"] >= t) == (part["label"] == 1)).groupby(part["label"]).mean().mean() for part in fits]
        for t in thresholds
    }
    return {t: float(sum(values) / len(values)) for t, values in right.items()}


def _left_out(test: pd.DataFrame, expected: pd.DataFrame | None) -> list[str]:
    """Say which folds no method could be fitted in: their cases are in no comparison."""
    if expected is None:
        return []
    have = set(map(tuple, test[FOLD_KEY].drop_duplicates().to_numpy().tolist()))
    lost = expected[[key not in have for key in zip(expected["resample"], expected["fold"], strict=True)]]
    return [
        f"no method could be fitted in {_fold_name(key, part)}: its {len(part)} cases are in no comparison"
        for key, part in lost.groupby(FOLD_KEY)
    ]


def _one_class(test: pd.DataFrame, expected: pd.DataFrame | None) -> list[str]:
    """Name the folds whose held-out cases are of one class."""
    cases = test.drop_duplicates([*FOLD_KEY, "exam_id"])
    if expected is not None and "site" in expected:
        cases = cases.merge(expected[[*FOLD_KEY, "exam_id", "site"]], on=[*FOLD_KEY, "exam_id"], how="left")
    found = []
    for key, part in cases.groupby(FOLD_KEY):
        if part["label"].nunique() == 1:
            have, lack = ("positive", "negative") if part["label"].iloc[0] == 1 else ("negative", "positive")
            found.append(
                f"{_fold_name(key, part)} holds no {lack} case: its {len(part)} {have} cases form no pairs and no "
                "part of the AUC"
            )
    return found


def _fold_name(key: Any, part: pd.DataFrame) -> str:
    sites = sorted({str(s) for s in part["site"] if s}) if "site" in part else []
    where = f"resample {key[0]}, fold {key[1]}" if key[0] else f"fold {key[1]}"
    return f"site {', '.join(sites)} ({where})" if sites else where


def _incomplete(
    design: Design, complete: Sequence[str], cases: pd.DataFrame, seeds: int, unfitted: Sequence[Mapping[str, str]],
    unscored: Sequence[Mapping[str, str]],
) -> dict[str, str]:  # fmt: skip
    """Say of each method that lacks a held-out case what happened to it."""
    folds = cases.groupby(FOLD_KEY).ngroups * seeds
    found = {}
    for method in design.methods:
        if method in complete:
            continue
        own = [u for u in unfitted if u["design"].split("@")[0] == design.name and u["method"] == method]
        lost = sorted({u["exam_id"] for u in unscored if u["method"] == method})
        notes = [f"not fitted in {len(own)} of {max(folds, len(own))} folds: {own[0]['reason']}"] if own else []
        if lost:
            more = " and others" if len(lost) > 3 else ""
            notes.append(
                f"it gave {len(lost)} of {cases['exam_id'].nunique()} held-out cases no score "
                f"({', '.join(lost[:3])}{more}), and a paired comparison needs the same cases for every method"
            )
        found[method] = "; ".join(notes) or "not every held-out case was scored"
    return found


def _family(
    design: Design, hypotheses: Sequence[Hypothesis], oracles: Sequence[str], controls: Sequence[str]
) -> list[Claim]:
    """Return the declared claims of a design; without any, its methods against the reference.

    Oracles and controls are then left out, unless there are controls alone.
    """
    declared = [h.declared for h in hypotheses if h.design == design.name]
    claims = list(dict.fromkeys(c for c in declared if c is not None))
    others = [m for m in design.methods if m != design.reference and m not in oracles]
    chosen = [m for m in others if m not in controls] or others
    return claims or [Claim(m, design.reference) for m in chosen]


def all_evidence(config: StudyConfig, result: StudyResult) -> dict[str, dict[str, Any]]:
    """Return the evidence of every design (and combination) by its name in the tables.

    Claims that are declared together are judged together: Holm adjusts over the hypotheses of all designs, of all
    labels (and their mean) and of all combinations of a sweep, those whose methods failed included. A design without
    hypotheses is judged by itself, over all labels and combinations: looking at ten settings is looking ten times.
    """
    found = {part.key: _evaluation(part, config, result) for part in result.designs}
    designs = {part.key: part.design.name for part in result.designs}
    for macro in result.study.macros:
        for design in macro.config.designs:
            found[macro.key(design)] = _macro_evaluation(macro, design, config, result, found)
            designs[macro.key(design)] = design.name
    together: dict[str, list[UnjudgedEvaluation]] = {}
    declaring = {h.design for h in config.hypotheses if h.declared is not None}
    for key, design_name in designs.items():
        family = "hypotheses" if design_name in declaring else f"design {design_name}"
        together.setdefault(family, []).append(found[key])
    for evaluations in together.values():
        judged(evaluations)
    return {key: evaluation.evidence for key, evaluation in found.items()}


def _evaluation(part: DesignResult, config: StudyConfig, result: StudyResult) -> UnjudgedEvaluation:
    settings = part.variant.config
    infos = method_infos(settings)
    prepared = result.study.data[result.study.variants.index(part.variant)]
    shown = planned_of(part.variant, prepared, part.design, _claims_together(part.design, config, result))
    found = design_evaluation(
        result.predictions[result.predictions["design"] == part.key], part.design, config.hypotheses,
        [m for m, needs in result.needs_ct.items() if needs and m in part.design.methods],
        [u for u in result.unfitted if u["design"] == part.key],
        _train_size([part], result), settings.inference, expected_cases(part),
        [u for u in result.unscored if u["design"] == part.key],
        controls=[m for m in part.design.methods if infos[m].role == "control"],
        planned=(shown.delta, shown.delta_holm), assumed=settings.assumed,
        untestable=prepared.untestable.get(part.design.name, ""),
    )  # fmt: skip
    for row in [*found.evidence["methods"], *found.evidence["comparisons"]]:
        row["label_name"] = part.variant.label_name  # a method without a score has no case to read it from
    return found


def _claims_together(design: Design, config: StudyConfig, result: StudyResult) -> int:
    """Return how many claims Holm adjusts over, for what the plan can detect."""
    if any(h.design == design.name and h.declared is not None for h in config.hypotheses):
        return family_size(config, result.study)
    return (len(design.methods) - 1) * (1 + len(result.study.macros) if result.study.macros else 1)


def _macro_evaluation(
    macro: Variant, design: Design, config: StudyConfig, result: StudyResult, found: Mapping[str, UnjudgedEvaluation]
) -> UnjudgedEvaluation:
    """Return the evidence on the mean over the labels that can be tested, not judged yet.

    A method takes part that scored every held-out case of each of these labels.

    Args:
        macro: the combination, for the mean over labels.
        design: its settings.
        config: of the study.
        result: what it found.
        found: the evaluations of the labels.
    """
    parts = [p for p in result.designs if p.design.name == design.name and p.variant.combination == macro.combination]
    tested, family = [], _claims_together(design, config, result)
    planned = []
    for part in parts:
        prepared = result.study.data[result.study.variants.index(part.variant)]
        if design.name not in prepared.untestable:
            tested.append(part)
            planned.append(planned_of(part.variant, prepared, design, family))
    shown, settings = macro_difference(planned), macro.config
    reasons: dict[str, str] = {}
    for method in design.methods:
        lacking = {
            str(part.variant.label_name): row["reason"]
            for part in tested
            for row in found[part.key].evidence["methods"]
            if row["method"] == method and row["auc"] is None
        }
        if lacking:
            reasons[method] = "; ".join(f"label {name}: {reason}" for name, reason in lacking.items())
    if len(tested) < 2:
        reasons = dict.fromkeys(design.methods, shown.reason)
    rows = result.predictions[result.predictions["design"].isin([p.key for p in tested])]
    rows = rows[(rows["split"] == "test") & ~rows["method"].isin(reasons)].drop(columns="design")
    rows = rows.drop(columns="resample") if rows["resample"].nunique() <= 1 else rows
    infos, inference = method_infos(settings), settings.inference
    oracles = [m for m in design.methods if result.needs_ct[m]]
    controls = [m for m in design.methods if infos[m].role == "control"]
    whole = evaluation(
        rows, design.reference, _family(design, config.hypotheses, oracles, controls), unit=inference.unit,
        patient_label="max" if inference.unit == "patient" else None, oracles=oracles,
        train_size=_train_size(tested, result), alpha=inference.alpha, relevant_delta=inference.relevant_delta,
        incomplete=reasons, power=inference.power, assumed_auc=settings.assumed.auc,
        assumed_correlation=settings.assumed.correlation, planned=(shown.delta, shown.delta_holm),
    )  # fmt: skip
    named = [str(p.variant.label_name) for p in tested]
    left_out = [str(p.variant.label_name) for p in parts if p not in tested]
    warnings = [f"mean over {len(named)} labels: {', '.join(named)}"]
    if left_out:
        warnings.append(f"left out of the mean, because no test is possible: {', '.join(left_out)}")
    return _only_macro(whole, warnings)


def _only_macro(whole: UnjudgedEvaluation, warnings: list[str]) -> UnjudgedEvaluation:
    """Keep what an evaluation of several labels says of their mean, and of methods that have none."""
    kept = [c for c in whole.comparisons if c.row["label_name"] in (MACRO, None)]
    evidence = whole.evidence | {"comparisons": [c.row for c in kept], "warnings": warnings}
    for name in ("methods", "omnibus"):
        evidence[name] = [row for row in evidence[name] if row["label_name"] in (MACRO, None)]
    if evidence["resamples"] is not None:
        own = {
            name: [row for row in evidence["resamples"][name] if row["label_name"] == MACRO]
            for name in ("rows", "rank_stability")
        }
        evidence["resamples"] = evidence["resamples"] | own
    for row in [*evidence["methods"], *evidence["comparisons"]]:
        row["label_name"] = MACRO
    return UnjudgedEvaluation(evidence, kept)


def _train_size(parts: Sequence[DesignResult], result: StudyResult) -> float | None:
    """Return the mean number of training cases of a fold over some labels; None where nothing was fitted."""
    own = result.support[result.support["design"].isin([p.key for p in parts])]
    if own.empty:
        return None
    unit = "images" if parts[0].variant.config.inference.unit == "exam" else "patients"
    return float(own[[f"train_{unit}_pos", f"train_{unit}_neg"]].sum(axis=1).mean())


def expected_cases(part: DesignResult) -> pd.DataFrame:
    """Return the cases a design holds out: ``resample, fold, exam_id`` and, by site, ``site``."""
    columns = ["exam_id", *(["site"] if part.design.split in ("site", "external") else [])]
    parts = [
        part.targets.loc[part.targets["patient_id"].isin(r.patients("test")), columns].assign(
            resample=r.resample, fold=r.fold
        )
        for r in part.folds
    ]
    return pd.concat(parts, ignore_index=True)[[*FOLD_KEY, *columns]]


def hypothesis_table(
    hypotheses: Sequence[Hypothesis], evidence: Mapping[str, Mapping[str, Any]], fixed: Sequence[str] = (),
    labelled: Mapping[str, tuple[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return each hypothesis with its status and the reason: ``hypothesis, claim, status, why``.

    With a sweep there is one row a combination, named in a column ``settings``; with several labels one row a label,
    named in a column ``label``. A claim that is declared both on a
    fixed split and on folds or resamples has one status: support on the fixed split alone is tentative.

    Args:
        hypotheses: as declared. evidence: by design (and combination).
        fixed: names of the designs with one fixed split.
        labelled: of several labels, by key of ``evidence``: the settings of the sweep in words, and the label.
    """
    rows, labelled = [], labelled or {}
    for h in hypotheses:
        for key in [k for k in evidence if k.split("@")[0] == h.design]:
            verdict, why = NOT_TESTABLE, f"{h.missing}{_size_reason(evidence[key])}"
            if h.declared is not None:
                found = _row_of(h.declared, evidence[key])
                verdict = found["verdict"] if found else NOT_TESTABLE
                why = _why(found) if found else _absent(h, evidence[key])
                if h.design in fixed:
                    verdict = status(verdict, _elsewhere(h, hypotheses, evidence, key, fixed))
            settings, label = labelled.get(key, (key.partition("@")[2], ""))
            named = {"hypothesis": h.name, "claim": h.claim, "settings": settings, "label": label}
            rows.append({**named, "status": verdict, "why": why})
    table = pd.DataFrame(rows, columns=["hypothesis", "claim", "settings", "label", "status", "why"])
    return table.drop(columns=[name for name in ("settings", "label") if not table[name].any()])


def _elsewhere(
    h: Hypothesis, hypotheses: Sequence[Hypothesis], evidence: Mapping[str, Mapping[str, Any]], key: str,
    fixed: Sequence[str],
) -> str | None:  # fmt: skip
    """Return the verdict of the same claim on folds or resamples; None where it is not declared there."""
    settings = key.partition("@")[1:]
    for other in hypotheses:
        if other.declared == h.declared and h.declared is not None and other.design not in fixed:
            found = _row_of(h.declared, evidence.get("".join((other.design, *settings)), {"comparisons": []}))
            return str(found["verdict"]) if found else None
    return None


def _row_of(claim: Claim, evidence: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((c for c in evidence["comparisons"] if c["claim"] == claim.text), None)


def _absent(h: Hypothesis, evidence: Mapping[str, Any]) -> str:
    reasons = [
        f"{m['method']}: {m['reason']}" for m in evidence["methods"] if m["method"] in (h.a, h.b) and m["auc"] is None
    ]
    return f"{h.a} or {h.b} could not be fitted in every fold ({'; '.join(reasons)})"


def _why(comparison: Mapping[str, Any]) -> str:
    if comparison["p"] is None:
        return str(comparison["reason"])
    limits = ("delta", "ci_low", "ci_high")
    shown = {key: "–" if comparison[key] is None else _signed(comparison[key]) for key in limits}
    p = comparison["p_holm"]
    p_text = "< .001" if p < 0.001 else "> .999" if p > 0.999 else f"= {p:.3f}".replace("0.", ".")
    parts = [f"ΔAUC {shown['delta']} ({shown['ci_low']} to {shown['ci_high']}), Holm p {p_text}"]
    planned = comparison["min_detectable_delta_holm"]
    parts.append("no difference detectable at this size" if planned is None else f"detectable {planned:.3f}")
    return ", ".join([*parts, *([comparison["reason"]] if comparison["reason"] else [])])


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def _size_reason(evidence: Mapping[str, Any]) -> str:
    reasons = {m["reason"] for m in evidence["methods"]}
    shared = reasons.pop() if len(reasons) == 1 else None
    return f"; and {shared}" if shared else ""
