"""A study of several labels in a report: the mean over labels, then every label in a row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from embedprior.report import formatting
from embedprior.report.content import EvidenceSection, Figure, Table
from embedprior.report.figures import forest_figure
from embedprior.report.spreads import sweep_figure
from embedprior.report.study_figures import estimate_of
from embedprior.report.verdicts import verdict_sentences
from embedprior.study.config import MACRO, Design
from embedprior.study.confounding import method_notes
from embedprior.study.run import DesignResult, StudyResult
from embedprior.study.variants import Variant

Evidence = Mapping[str, Mapping[str, Any]]


def labelled_keys(result: StudyResult) -> dict[str, tuple[str, str]]:
    """Return, by key of the evidence, the settings of the sweep and the label; empty in a study of one label."""
    found = {
        p.key: (p.variant.combination, p.variant.label_name) for p in result.designs if p.variant.label_name is not None
    }
    for macro in result.study.macros:
        found |= {macro.key(design): (macro.combination, MACRO) for design in macro.config.designs}
    return found


def label_sections(
    result: StudyResult, evidence: Evidence, intros: Mapping[str, str]
) -> tuple[list[EvidenceSection], list[Figure], list[tuple[str, str]], list[str]]:
    """Return one section a design and combination, figures over its labels, findings by design, and verdicts in words.

    Args:
        result: of a study of several labels.
        evidence: by design, combination and label.
        intros: by design and combination: a sentence on its folds.
    """
    sections, figures, verdict = list[EvidenceSection](), list[Figure](), list[str]()
    findings: list[tuple[str, str]] = []
    for macro in result.study.macros or [v for v in result.study.variants if v.label_name is not None]:
        for design in macro.config.designs:
            parts = _parts(result, macro, design)
            keys = [*(p.key for p in parts), *([macro.key(design)] if result.study.macros else [])]
            key, shared = macro.key(design), macro.shared_key(design)
            tables = [
                auc_by_label(keys, shared, evidence, parts), differences_by_label(keys, shared, evidence),
                support_by_label(result, parts, shared),
            ]  # fmt: skip
            notes = method_notes(design, parts[0].targets, result.uses_ct)
            heading = (design.question or design.name) + (f" ({macro.combination})" if macro.combination else "")
            sections.append(
                EvidenceSection(
                    f"{heading}: mean over labels", evidence[key], pd.DataFrame(), notes,
                    [_cases(parts), intros[shared]], key,
                    [table for table in tables if len(table[1])],
                )
            )  # fmt: skip
            figures += _figures(keys, shared, evidence)
            findings += [(shared, text) for text in _findings(parts, result, evidence)]
            merged = {"comparisons": [c for k in keys for c in evidence[k]["comparisons"]], "methods": []}
            merged["family_declared"] = evidence[key].get("family_declared", True)
            verdict += verdict_sentences(merged, shared)
    return sections, figures, findings, verdict


def _cases(parts: Sequence[DesignResult]) -> str:
    everyone = pd.concat([p.targets[["exam_id", "patient_id"]] for p in parts]).drop_duplicates()
    return (
        f"{len(everyone)} X-rays of {everyone['patient_id'].nunique()} patients, on whom any of {len(parts)} labels is "
        "known; the same patients are held out for every label."
    )


def _parts(result: StudyResult, macro: Variant, design: Design) -> list[DesignResult]:
    return [p for p in result.designs if p.design.name == design.name and p.variant.combination == macro.combination]


def auc_by_label(keys: Sequence[str], name: str, evidence: Evidence, parts: Sequence[DesignResult]) -> Table:
    """Return the AUC of every method on every label, a row a label and the mean over labels below them."""
    rows, patients = [], {p.key: p.targets.groupby("patient_id")["label"].max() for p in parts}
    for key in keys:
        methods = evidence[key]["methods"]
        highest = patients.get(key)
        counts = {"patients +": "", "patients −": ""}
        if highest is not None:
            counts = {"patients +": str(int((highest == 1).sum())), "patients −": str(int((highest == 0).sum()))}
        label = str(methods[0]["label_name"])
        rows.append({"label": label, **counts, **{_method(m): estimate_of(m) for m in methods}})
    note = (
        "AUC (95 % CI) on the patients whose label is known; counts over all folds. A dash: not defined, for the "
        f"reason given under 'Support by label'. {MACRO}: the mean over the labels that can be tested."
    )
    return (f"AUC by label: {name}", pd.DataFrame(rows), note)


def _method(row: Mapping[str, Any]) -> str:
    return f"{row['method']} (needs CT)" if row["oracle"] else str(row["method"])


def differences_by_label(keys: Sequence[str], name: str, evidence: Evidence) -> Table:
    """Return every declared comparison on every label: difference, Holm's p over the whole family, verdict."""
    rows = []
    for key in keys:
        for c in evidence[key]["comparisons"]:
            if not c["in_family"]:
                continue
            limits = formatting.interval(c["ci_low"], c["ci_high"], sign=True)
            rows.append(
                {
                    "label": str(c["label_name"]), "claim": c["claim"],
                    "ΔAUC (95 % CI)": formatting.estimate(formatting.signed(c["delta"]), limits),
                    "p": formatting.bare_p(c["p"]), "p, Holm": formatting.bare_p(c["p_holm"]),
                    "detects": formatting.fixed(c["min_detectable_delta_holm"]),
                    "verdict": formatting.verdict_of(c),
                }
            )  # fmt: skip
    rows.sort(key=lambda row: row["claim"])  # stable: labels keep their order within a claim
    note = (
        "Holm adjusts over all labels, their mean and all claims together, those that could not be tested included. "
        "Detects: the smallest difference found with the planned power at Holm's first step; of the mean over labels "
        "an upper bound."
    )
    return (f"Differences by label: {name}", pd.DataFrame(rows), note)


def support_by_label(result: StudyResult, parts: Sequence[DesignResult], name: str) -> Table:
    """Return held-out and training patients of every label, and why one was not tested."""
    rows = []
    for part in parts:
        prepared = result.study.data[result.study.variants.index(part.variant)]
        own = result.support[result.support["design"] == part.key]
        row: dict[str, Any] = {"label": part.variant.label_name}
        for column, shown in SUPPORT.items():
            if column in result.support:
                row[shown] = "–" if own.empty else _range(own[column])
        row["not tested, because"] = prepared.untestable.get(part.design.name, "")
        rows.append(row)
    frame = pd.DataFrame(rows)
    note = "Of each fold; a range where folds differ. Patients whose label is unknown train nothing that reads labels."
    return (f"Support by label: {name}", frame if frame["not tested, because"].any() else frame.iloc[:, :-1], note)


SUPPORT = {
    "held_out_patients_pos": "held-out patients +", "held_out_patients_neg": "held-out patients −",
    "train_patients_pos": "training patients +", "train_patients_neg": "training patients −",
    "val_patients_pos": "checkpoint patients +", "val_patients_neg": "checkpoint patients −",
    "teacher_ct_pos": "teacher CT +", "teacher_ct_neg": "teacher CT −",
}  # fmt: skip


def _range(values: pd.Series) -> str:
    known = values.dropna().astype(int)
    if known.empty:
        return "–"
    return str(known.min()) if known.nunique() == 1 else f"{known.min()}–{known.max()}"


def _figures(keys: Sequence[str], name: str, evidence: Evidence) -> list[Figure]:
    values = [
        {"label": str(m["label_name"]), "method": m["method"], "auc": m["auc"]}
        for key in keys
        for m in evidence[key]["methods"]
    ]
    heat = sweep_figure(name, pd.DataFrame(values).astype({"auc": float}), ["label"])
    found = [] if heat is None else [replace(heat, name=f"labels-{name}", caption=f"AUC by label and method ({name}).")]
    declared = [c for key in keys for c in evidence[key]["comparisons"] if c["in_family"]]
    if any(c["ci_low"] is not None for c in declared):
        first = evidence[keys[0]]
        forest = forest_figure({**first, "comparisons": declared})
        if forest is not None:
            found.append(replace(forest, name=f"label-differences-{name}", caption=f"{name}: {forest.caption}"))
    return found


def _findings(parts: Sequence[DesignResult], result: StudyResult, evidence: Evidence) -> list[str]:
    """Say which labels could not be tested, and which methods have no AUC on some of them."""
    found, lacking = [], dict[tuple[str, str], list[str]]()
    for part in parts:
        why = result.study.data[result.study.variants.index(part.variant)].untestable.get(part.design.name)
        if why is not None:
            found.append(f"{part.variant.label_name} can't be tested: {why}.")
            continue
        for row in evidence[part.key]["methods"]:
            if row["auc"] is None:
                lacking.setdefault((row["method"], row["reason"]), []).append(str(part.variant.label_name))
    return [*found, *(f"{m} has no AUC on {', '.join(on)}: {why}." for (m, why), on in lacking.items())]
