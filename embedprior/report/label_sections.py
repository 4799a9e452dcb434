"""A study of several labels in a report: the mean over labels, then every label in a row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from embedprior.report import formatting
from embedprior.report.content import EvidenceSection, Figure, Table, alpha_of, oracles
from embedprior.report.figures import forest_figure, roc_figure
from embedprior.report.spreads import label_forest_figure, sweep_figure
from embedprior.report.store import compared_scores
from embedprior.report.study_figures import estimate_of
from embedprior.report.verdicts import label_sentences, verdict_rank
from embedprior.study.config import MACRO, Design
from embedprior.study.confounding import method_notes
from embedprior.study.run import DesignResult, StudyResult
from embedprior.study.variants import Variant

Evidence = Mapping[str, Mapping[str, Any]]
#: Inches; of a ROC figure a label, several of which stand side by side.
SMALL = 3.4


@dataclass
class LabelResults:
    """What a report says of several labels: a section a design, figures, findings by design, and the answer in words.

    ``curves`` are the ROC curves of each label.
    """

    sections: list[EvidenceSection] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    curves: list[Figure] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)


def labelled_keys(result: StudyResult) -> dict[str, tuple[str, str]]:
    """Return, by key of the evidence, the settings of the sweep and the label; empty in a study of one label."""
    found = {
        p.key: (p.variant.combination, p.variant.label_name) for p in result.designs if p.variant.label_name is not None
    }
    for macro in result.study.macros:
        found |= {macro.key(design): (macro.combination, MACRO) for design in macro.config.designs}
    return found


def label_sections(result: StudyResult, evidence: Evidence, intros: Mapping[str, str], family: int) -> LabelResults:
    """Return one section a design and combination, with figures over its labels, findings and verdicts.

    Args:
        result: of a study of several labels.
        evidence: by design, combination and label.
        intros: by design and combination: a sentence on its folds.
        family: number of claims that Holm adjusts over.
    """
    found, several = LabelResults(), len(result.study.macros or result.study.variants) > 1
    for macro in result.study.macros or [v for v in result.study.variants if v.label_name is not None]:
        for design in macro.config.designs:
            parts = _parts(result, macro, design)
            keys = [*(p.key for p in parts), *([macro.key(design)] if result.study.macros else [])]
            key, shared = macro.key(design), macro.shared_key(design)
            tables = [
                auc_by_label(keys, shared, evidence, parts), *differences_by_label(keys, shared, evidence),
                support_by_label(result, parts, shared),
            ]  # fmt: skip
            notes = method_notes(design, parts[0].targets, result.uses_ct)
            heading = (design.question or design.name) + (f" ({macro.combination})" if macro.combination else "")
            found.sections.append(
                EvidenceSection(
                    f"{heading}: mean over labels", evidence[key], pd.DataFrame(), notes,
                    [_cases(parts), intros[shared]], key,
                    [table for table in tables if len(table[1])],
                )
            )  # fmt: skip
            found.figures += _figures(keys, shared, evidence)
            found.curves += _curves(parts, shared, result, evidence)
            found.findings += [(shared, text) for text in _findings(parts, result, evidence)]
            one_design = len(macro.config.designs) == 1 and not several
            found.verdict += label_sentences([evidence[k] for k in keys], "" if one_design else shared, family)
    return found


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


def differences_by_label(keys: Sequence[str], name: str, evidence: Evidence) -> list[Table]:
    """Return a table a declared comparison: on every label the difference, Holm's p over the whole family, verdict."""
    tables: dict[str, list[dict[str, str]]] = {}
    for key in keys:
        for c in evidence[key]["comparisons"]:
            if not c["in_family"]:
                continue
            limits = formatting.interval(c["ci_low"], c["ci_high"], sign=True)
            tables.setdefault(c["claim"], []).append(
                {
                    "label": str(c["label_name"]),
                    "ΔAUC (95 % CI)": formatting.estimate(formatting.signed(c["delta"]), limits),
                    "p": formatting.bare_p(c["p"]), "Holm p": formatting.bare_p(c["p_holm"]),
                    "detectable Δ": formatting.fixed(c["min_detectable_delta_holm"]),
                    "verdict": formatting.verdict_of(c),
                }
            )  # fmt: skip
    note = (
        "Holm adjusts over all labels, their mean and all claims together, those that could not be tested included. "
        "Detectable Δ: the smallest true difference found with the planned power at Holm's first step, a dash where "
        f"these sizes can show none; of {MACRO}, the mean over labels, an upper bound."
    )
    last = list(tables)[-1:]
    return [
        (f"{claim} on each label: {name}", pd.DataFrame(rows), note if [claim] == last else "")
        for claim, rows in tables.items()
    ]


def hypotheses_by_label(hypotheses: pd.DataFrame) -> pd.DataFrame:
    """Return one row a hypothesis (and combination), with the labels of each status; see ``hypothesis_table``.

    The figures of each label stand in ``differences_by_label``.

    Example:
        >>> rows = [("H1", "CT helps", name, status) for name, status in (("a", "excluded"), ("b", "supported"))]
        >>> hypotheses_by_label(pd.DataFrame(rows, columns=["hypothesis", "claim", "label", "status"])).iloc[0].tolist()
        ['H1', 'CT helps', 'b', 'a']
    """
    keys = [name for name in ("hypothesis", "claim", "settings") if name in hypotheses.columns]
    rows = []
    for values, own in hypotheses.groupby(keys, sort=False):
        labels = {str(status): ", ".join(part["label"]) for status, part in own.groupby("status", sort=False)}
        rows.append({**dict(zip(keys, values, strict=True)), **labels})
    statuses = sorted(map(str, hypotheses["status"].unique()), key=verdict_rank)
    return pd.DataFrame(rows, columns=[*keys, *statuses]).fillna("")


def support_by_label(result: StudyResult, parts: Sequence[DesignResult], name: str) -> Table:
    """Return held-out and training patients of every label, and why one was not tested."""
    rows, untested = [], list[str]()
    for part in parts:
        prepared = result.study.data[result.study.variants.index(part.variant)]
        own = result.support[result.support["design"] == part.key]
        row: dict[str, Any] = {"label": part.variant.label_name}
        for column, shown in SUPPORT.items():
            if column in result.support:
                row[shown] = "–" if own.empty else _range(own[column])
        why = prepared.untestable.get(part.design.name)
        untested += [f" Not tested: {part.variant.label_name} ({why})."] if why else []
        rows.append(row)
    note = "Of each fold; a range where folds differ. Patients whose label is unknown train nothing that reads labels."
    return (f"Support by label: {name}", pd.DataFrame(rows), note + "".join(untested))


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
    values = pd.DataFrame(
        [
            {"label": str(m["label_name"]), **{k: m[k] for k in ("method", "auc", "ci_low", "ci_high")}}
            for key in keys
            for m in evidence[key]["methods"]
        ]
    ).astype(dict.fromkeys(("auc", "ci_low", "ci_high"), float))
    heat = sweep_figure(name, values[["label", "method", "auc"]], ["label"])
    found = [] if heat is None else [replace(heat, name=f"labels-{name}", caption=f"AUC by label and method ({name}).")]
    of_all = evidence[keys[-1]]
    intervals = label_forest_figure(name, values, oracles(of_all), alpha_of(of_all))
    found += [] if intervals is None else [intervals]
    declared = [c for key in keys for c in evidence[key]["comparisons"] if c["in_family"]]
    if any(c["ci_low"] is not None for c in declared):
        first = evidence[keys[0]]
        forest = forest_figure({**first, "comparisons": declared})
        if forest is not None:
            found.append(replace(forest, name=f"label-differences-{name}", caption=f"{name}: {forest.caption}"))
    return found


def _curves(parts: Sequence[DesignResult], name: str, result: StudyResult, evidence: Evidence) -> list[Figure]:
    """Return the ROC curves of each label, where an AUC has an interval (see docs/report.md)."""
    found = []
    for part in parts:
        own, label = evidence[part.key], str(part.variant.label_name)
        if not any(m["ci_low"] is not None for m in own["methods"]):
            continue
        rows = result.predictions[result.predictions["design"] == part.key].drop(columns="design")
        figure = roc_figure(own, compared_scores(own, rows), label, SMALL)
        if figure is not None:
            highest = part.targets.groupby("patient_id")["label"].max()
            counts = f"{int((highest == 1).sum())} positive, {int((highest == 0).sum())} negative patients"
            found.append(replace(figure, name=f"roc-{name}-{label}", caption=f"{label} ({name}): {counts}."))
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
