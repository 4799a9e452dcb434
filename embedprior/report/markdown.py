"""A report as Markdown: ``summary.md``, and ``report.md`` with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embedprior.report.content import (
    DEPLOYABLE_HEADING,
    ORACLE_HEADING,
    EvidenceSection,
    Figure,
    MethodRow,
    Report,
    Results,
    Table,
    fixed_models,
    results,
)
from embedprior.report.formatting import RESEARCH_USE, escaped, markdown_table, provenance, text_table
from embedprior.report.store import FIGURES, file_name


def results_table(evidence: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> str:
    """Return the AUC table of one evaluation: methods that need CT apart, undefined values with their reasons.

    Args:
        evidence: what ``embedprior.evidence.evaluate_predictions`` returns.
        notes: method → note, shown beside its row.
    """
    found = results(evidence, notes)
    parts = [_markdown_methods(found.deployable, DEPLOYABLE_HEADING, found.confidence)] if found.deployable else []
    if found.oracle:
        parts.append(_markdown_methods(found.oracle, ORACLE_HEADING, found.confidence))
    parts += _markdown_footnotes(found)
    return "\n\n".join(parts)


def _markdown_methods(rows: list[MethodRow], heading: str, confidence: str) -> str:
    with_note = any(row.note for row in rows)
    header = [heading, f"AUC ({confidence} CI)", "patients", "pos / neg"] + (["note"] if with_note else [])
    cells = [
        [
            row.method + (f" ({row.block})" if row.block else ""),
            row.auc + (f" [{row.mark}]" if row.mark else ""),
            row.patients,
            f"{row.positive} / {row.negative}",
            *([row.note] if with_note else []),
        ]
        for row in rows
    ]
    return markdown_table(header, cells, [False, True, True, True] + ([False] if with_note else []))


def _markdown_footnotes(found: Results) -> list[str]:
    # comparisons are sentences here, which say their reason themselves
    marks = {row.mark for row in (*found.deployable, *found.oracle)}
    notes = [f"\\[{n}\\] {escaped(text)}" for n, text in enumerate(found.footnotes, 1) if n in marks]
    return ["  \n".join(notes)] if notes else []


def _markdown_frame(frame: pd.DataFrame) -> str:
    shown = text_table(frame)
    text = markdown_table(shown.header, shown.rows, shown.numeric)
    return text + (f"\n\n{shown.cut}" if shown.cut else "")


def _markdown_section(section: EvidenceSection) -> list[str]:
    found = results(section.evidence, section.method_notes)
    warned = [f"Note: {text}." for text in section.evidence.get("warnings", ())]
    said = [*section.intro, *fixed_models(section.evidence), *warned]
    parts = [f"## {escaped(section.heading)}", *map(escaped, said)]
    parts.append(results_table(section.evidence, section.method_notes))
    if found.untested:
        parts.append(escaped(f"No comparison here can be tested: {found.untested}."))
    if found.comparisons:
        parts.append("\n".join(f"- {escaped(row.sentence)}" for row in found.comparisons))
    if found.oracle_comparisons:
        lines = "\n".join(f"- {escaped(row.sentence)}" for row in found.oracle_comparisons)
        parts.append(f"Comparisons with a method that {ORACLE_HEADING}:\n\n{lines}")
    for table in section.tables:
        parts += _markdown_table_section(table, "###")
    return parts


def _markdown_table_section(table: Table, level: str = "##") -> list[str]:
    heading, frame, note = table
    return [f"{level} {escaped(heading)}", _markdown_frame(frame), *([escaped(note)] if note else [])]


def _markdown_figures(figures: Sequence[Figure]) -> list[str]:
    return [f"![{escaped(f.caption)}]({FIGURES}/{file_name(f.name)}.png)\n\n{escaped(f.caption)}" for f in figures]


def summary_markdown(report: Report, figures: Mapping[str, Sequence[Figure]] | None = None) -> str:
    """Return ``summary.md``: the answer, the tables, the flow, the caveats and the run.

    Args:
        report: its content.
        figures: by key of a section, for ``report.md``, which also has the study's own figures and the checklists.
    """
    question = [f"*{escaped(report.question)}*"] if report.question else []
    parts = [f"# {escaped(report.title)}", *question, *map(escaped, report.verdict)]
    if len(report.lead) > 1 and report.verdict:
        parts += ["Beside the verdicts:", "\n".join(f"- {escaped(text)}" for text in report.lead)]
    else:
        parts += map(escaped, report.lead)
    if figures is not None:
        parts += _markdown_figures(report.lead_figures)
    if not report.boundary.empty:
        parts += ["## What can be concluded", _markdown_frame(report.boundary)]
    if report.caveats:
        parts += ["## What this does not show", "\n".join(f"- {escaped(c)}" for c in report.caveats)]
    if not report.flow.empty:
        parts += ["## Who was included", _markdown_frame(report.flow)]
    for section in report.evidence:
        parts += _markdown_section(section)
        if figures is not None:
            parts += _markdown_figures(figures.get(section.key, ()))
    if figures is not None:
        parts += _markdown_figures([*report.figures, *report.label_curves, *report.pictures])
    for table in report.tables:
        parts += _markdown_table_section(table)
    if figures is not None:
        for table in report.checklists:
            parts += _markdown_table_section(table)
    if not report.failures.empty:
        parts += ["## Skipped items", _markdown_frame(report.failures)]
    short, _ = provenance(report.run)
    if short:
        parts += ["## Run", "\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in short)]
    parts.append(RESEARCH_USE)
    return "\n\n".join(parts) + "\n"
