"""The files of a report: page, Markdown, every figure with its numbers, every table as CSV and LaTeX."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.report import formatting
from embedprior.report.content import EvidenceSection, Figure, Report, Table, is_mean_over_labels
from embedprior.report.curves import calibration_figure, decision_figure, threshold_figure
from embedprior.report.figures import auc_figure, forest_figure, roc_figure
from embedprior.report.markdown import summary_markdown
from embedprior.report.page import render_page
from embedprior.report.spreads import dots_figure, subgroup_figure
from embedprior.report.store import (
    FIGURES,
    TABLES,
    drawn,
    file_name,
    load_report,
    save_content,
    shown_record,
    stored_tables,
)
from embedprior.runs import Run, read_json, write_text
from embedprior.runs.integrity import note_results, reseal

#: One ROC figure a label, up to this many; the same for calibration, decision curves and thresholds.
MAX_LABELS = 6
#: Designs (and combinations of a sweep) that get figures of their own.
MAX_DRAWN = 12


def section_figures(section: EvidenceSection) -> tuple[list[Figure], list[str]]:
    """Return the figures of one set of methods, and why a figure that a reader looks for is not there."""
    evidence, predictions = section.evidence, section.predictions
    labels = list(predictions["label_name"].dropna().unique()) if "label_name" in predictions else []
    several: list[Any] = labels if len(labels) > 1 else [None]
    found: list[Figure | None] = []
    reasons: list[str] = []
    with_interval = _any_interval(evidence.get("methods", ()))
    curves_of: Sequence[Any] = () if is_mean_over_labels(evidence) else several[:MAX_LABELS]
    if not with_interval:
        reasons.append("No curves: no AUC here has an interval, and curves alone would promise too much.")
    else:
        for label in curves_of:
            curve = roc_figure(evidence, predictions, label)
            found.append(curve)
            if curve is None:
                which = f" for {label}" if label else ""
                reasons.append(f"No ROC curves{which}: no fold of the held-out predictions holds both classes.")
        if len(several) > MAX_LABELS:
            reasons.append(f"Curves are drawn for the first {MAX_LABELS} of {len(several)} labels.")
        found.append(auc_figure(evidence))
    if with_interval and _any_interval(evidence.get("comparisons", ())):
        found.append(forest_figure(evidence))
    elif evidence.get("comparisons"):
        reasons.append("No figure of differences: none has an interval on these cases.")
    found += [dots_figure(evidence, "auc_per_resample", "resample"), dots_figure(evidence, "auc_per_seed", "seed")]
    for label in curves_of if with_interval else ():
        calibration, why = calibration_figure(evidence, label)
        found += [calibration, decision_figure(evidence, label), threshold_figure(evidence, predictions, label)]
        reasons += [why] if why else []
    found.append(subgroup_figure(evidence))
    prefix = f"{section.key}-" if section.key else ""
    return [replace(f, name=f"{prefix}{f.name}") for f in found if f is not None], list(dict.fromkeys(reasons))


def _any_interval(rows: Sequence[Any]) -> bool:
    return any(
        formatting.number(row.get("ci_low")) is not None and formatting.number(row.get("ci_high")) is not None
        for row in rows
    )


def all_figures(report: Report) -> tuple[dict[str, list[Figure]], dict[str, list[str]]]:
    """Return the figures of every section by its key, and why some that a reader looks for are not there."""
    figures: dict[str, list[Figure]] = {}
    reasons: dict[str, list[str]] = {}
    for place, section in enumerate(report.evidence):
        if place < MAX_DRAWN:
            figures[section.key], reasons[section.key] = section_figures(section)
        else:
            reasons[section.key] = [f"Figures are drawn for the first {MAX_DRAWN} sets of cases."]
    return figures, reasons


def report_html(report: Report) -> str:
    """Return the page of a report as text.

    Raises:
        BadInput: see ``write_report``.
    """
    report = stored_tables(drawn(report))
    return render_page(report, *all_figures(report))


def write_report(out: Path, report: Report) -> Path:
    """Write a report into the folder of its run, and return the path of its page.

    ``report.html`` (one self-contained file) · ``report.md`` · ``report.json`` (what the page is made from) ·
    ``figures/NAME.png`` and ``NAME.csv`` · ``tables/NAME.csv`` and ``NAME.tex``.

    Raises:
        BadInput: a picture is not a PNG, or the embeddings cannot be drawn together; nothing was written.
    """
    report = stored_tables(drawn(report))
    figures, reasons = all_figures(report)
    page = render_page(report, figures, reasons)
    out.mkdir(parents=True, exist_ok=True)
    for name in (FIGURES, TABLES):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
    of_sections = (figure for own in figures.values() for figure in own)
    every = [*report.lead_figures, *of_sections, *report.figures, *report.label_curves, *report.pictures]
    for figure in every:
        name = file_name(figure.name)
        (out / FIGURES / f"{name}.png").write_bytes(figure.png)
        if not figure.data.empty:
            figure.data.to_csv(out / FIGURES / f"{name}.csv", index=False)
    for name, table in _named_tables(report).items():
        write_table_files(out / TABLES, name, table)
    save_content(out, report)
    write_text(out / "report.md", summary_markdown(report, figures))
    path = out / "report.html"
    write_text(path, page)
    return path


def _named_tables(report: Report) -> dict[str, Table]:
    """Return every table of a report by the name of its files; a name that stands twice gets a number."""
    every: list[tuple[str, Table]] = []
    if not report.boundary.empty:
        every.append(("conclusions", ("What can be concluded", report.boundary, "")))
    if not report.flow.empty:
        every.append(("flow", ("Who was included", report.flow, "")))
    for section in report.evidence:
        prefix = f"{section.key}-" if section.key else ""
        methods, comparisons = (pd.DataFrame(list(section.evidence.get(k, ()))) for k in ("methods", "comparisons"))
        for name, frame in (("auc", methods), ("differences", comparisons)):
            if len(frame):
                kept = [c for c in RESULT_COLUMNS[name] if c in frame.columns]
                every.append((f"{prefix}{name}", (f"{section.heading}: {name}", frame[kept], "")))
        every += [(f"{prefix}{table[0].split(':')[0]}", table) for table in section.tables]
    every += [(table[0], table) for table in [*report.tables, *report.checklists]]
    found: dict[str, Table] = {}
    for name, table in every:
        safe = file_name(name.lower())
        while safe in found:
            stem, _, number = safe.rpartition("_")
            safe = f"{stem}_{int(number) + 1}" if number.isdigit() and stem else f"{safe}_2"
        found[safe] = table
    return found


RESULT_COLUMNS = {
    "auc": ["method", "label_name", "auc", "ci_low", "ci_high", "n_patients", "n_pos", "n_neg", "n_seeds", "oracle"],
    "differences": ["a", "b", "label_name", "kind", "margin", "delta", "ci_low", "ci_high", "p", "p_holm",
                    "min_detectable_delta", "verdict"],
}  # fmt: skip


def write_table_files(folder: Path, name: str, table: Table) -> None:
    """Write one table as ``name.csv``, all rows, and ``name.tex``."""
    heading, frame, note = table
    frame.to_csv(folder / f"{name}.csv", index=False)
    write_text(folder / f"{name}.tex", formatting.latex_table(heading, frame, note))


def remake_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a finished run anew, from what it left; nothing is fitted. Return the path of its page.

    Args:
        run: folder of a study or demo.
        out: where to write; None = into the run, whose checksums are then brought up to date.

    Raises:
        BadInput: see ``store.load_report``.
    """
    report = load_report(run)
    path = write_report(run if out is None else out, report)
    written = ("report.html", "report.md", "report.json", FIGURES, TABLES)
    if out is None:
        reseal(run, written)
    else:
        note_results(out, written)
    return path


def finish_report(run: Run, report: Report, failures: list[dict[str, str]], **extra: Any) -> str:
    """End a run: record, page and summary, with checksums over them; return the summary."""
    run.finish("", failures, **extra)
    report = replace(report, run=shown_record(read_json(run.out / "run.json")))
    summary = summary_markdown(report)
    write_text(run.out / "summary.md", summary)
    write_report(run.out, report)
    run.seal()
    return summary
