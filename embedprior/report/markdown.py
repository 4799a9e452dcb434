"""The report in Markdown: ``summary.md`` and the table of the README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embedprior.report.content import (
    DEPLOYABLE_HEADING,
    ORACLE_HEADING,
    EvidenceSection,
    MethodRow,
    Report,
    Results,
    results,
)
from embedprior.report.formatting import grid, provenance

RESEARCH_USE = "Research use only: not a medical device, not for diagnosis."


def escaped(text: str) -> str:
    """Return ``text`` on one line so that Markdown shows it as it is, in a table cell too."""
    plain = re.sub(r"([\\|*`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", plain))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Return a Markdown table of escaped cells."""
    rule = ["---:" if right else "---" for right in numeric]
    lines = [[escaped(h) for h in header], rule, *([escaped(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results_table(evidence: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> str:
    """Return the AUC table of one evaluation: rows that need CT apart, undefined values with their reasons.

    Args:
        evidence: what ``embedprior.evidence.evaluate_predictions`` returns.
        notes: method → note, shown beside its row.
    """
    found = results(evidence, notes)
    parts = [_method_table(found.deployable, DEPLOYABLE_HEADING, found.confidence)] if found.deployable else []
    if found.oracle:
        parts.append(_method_table(found.oracle, ORACLE_HEADING, found.confidence))
    parts += _footnotes(found)
    return "\n\n".join(parts)


def _method_table(rows: list[MethodRow], heading: str, confidence: str) -> str:
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
    return table(header, cells, [False, True, True, True] + ([False] if with_note else []))


def _footnotes(found: Results) -> list[str]:
    # comparisons are sentences here, which say their reason themselves
    marks = {row.mark for row in (*found.deployable, *found.oracle)}
    notes = [f"\\[{n}\\] {escaped(text)}" for n, text in enumerate(found.footnotes, 1) if n in marks]
    return ["  \n".join(notes)] if notes else []


def _frame(frame: pd.DataFrame) -> str:
    shown = grid(frame)
    text = table(shown.header, shown.rows, shown.numeric)
    return text + (f"\n\n{shown.cut}" if shown.cut else "")


def _section(section: EvidenceSection) -> list[str]:
    found = results(section.evidence, section.method_notes)
    parts = [f"## {escaped(section.heading)}", *map(escaped, section.intro)]
    parts.append(results_table(section.evidence, section.method_notes))
    if found.comparisons:
        parts.append("\n".join(f"- {escaped(row.sentence)}" for row in found.comparisons))
    if found.oracle_comparisons:
        lines = "\n".join(f"- {escaped(row.sentence)}" for row in found.oracle_comparisons)
        parts.append(f"Comparisons with a row that {ORACLE_HEADING}:\n\n{lines}")
    return parts


def summary_markdown(report: Report) -> str:
    """Return ``summary.md``: the answer, the tables, the flow, the caveats and the run."""
    question = [f"*{escaped(report.question)}*"] if report.question else []
    parts = [f"# {escaped(report.title)}", *question, *map(escaped, report.lead)]
    for section in report.evidence:
        parts += _section(section)
    if not report.flow.empty:
        parts += ["## Who was included", _frame(report.flow)]
    for heading, frame, note in report.tables:
        parts += [f"## {escaped(heading)}", _frame(frame), *([escaped(note)] if note else [])]
    if report.caveats:
        parts += ["## What this does not show", "\n".join(f"- {escaped(c)}" for c in report.caveats)]
    if not report.failures.empty:
        parts += ["## Skipped items", _frame(report.failures)]
    short, _ = provenance(report.run)
    if short:
        parts += ["## Run", "\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in short)]
    parts.append(RESEARCH_USE)
    return "\n\n".join(parts) + "\n"
