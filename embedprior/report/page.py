"""A report as one HTML file (no script, no network, every picture inside) and as Markdown (``summary.md``)."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from embedprior.errors import BadInput
from embedprior.report.content import (
    DEPLOYABLE_HEADING,
    ORACLE_HEADING,
    ComparisonRow,
    EvidenceSection,
    MethodRow,
    Report,
    Results,
    fixed_models,
    results,
)
from embedprior.report.embedding_map import embedding_figure
from embedprior.report.figures import draw_curves, forest_figure, roc_figure
from embedprior.report.formatting import (
    RESEARCH_USE,
    TextTable,
    escaped,
    markdown_table,
    number,
    provenance,
    text_table,
    unbroken,
)
from embedprior.runs import write_text

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: One ROC figure a label, up to this many.
MAX_ROC_FIGURES = 6


@dataclass(frozen=True)
class Picture:
    """A picture as a data address, with its size in pixels, its caption and what it shows in words."""

    src: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """One evidence section, ready for the page."""

    anchor: str
    heading: str
    intro: list[str]
    counted: str
    results: Results
    figures: list[Picture] = field(default_factory=list)
    no_figure: list[str] = field(default_factory=list)
    curves: list[Picture] = field(default_factory=list)

    @property
    def comparison_rows(self) -> list[ComparisonRow]:
        """All comparisons, those with an oracle last."""
        return self.results.comparisons + self.results.oracle_comparisons


@dataclass(frozen=True)
class TableSection:
    """One further table, ready for the page."""

    anchor: str
    heading: str
    cells: TextTable
    note: str


def picture(data: bytes, caption: str, alt: str = "") -> Picture:
    """Return PNG bytes as a picture that lies inside the page.

    Raises:
        BadInput: the bytes are not a PNG.
    """
    if not data.startswith(PNG_SIGNATURE) or len(data) < 33:
        raise BadInput(f"the picture '{caption}' is not a PNG ({len(data)} bytes). Reports take PNG bytes only.")
    width, height = struct.unpack(">II", data[16:24])
    src = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(src, width, height, caption, alt or caption)


def write_report(out: Path, report: Report) -> Path:
    """Write ``out/report.html``, one self-contained file, and return its path.

    Raises:
        BadInput: a picture is not a PNG, or the embeddings cannot be drawn together.
    """
    page = report_html(report)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_text(path, page)
    return path


def report_html(report: Report) -> str:
    """Return the page as text.

    Raises:
        BadInput: see :func:`write_report`.
    """
    sections = [_section(section, f"result-{number}") for number, section in enumerate(report.evidence, 1)]
    pictures, embedding_note = [picture(data, caption) for caption, data in report.pictures], ""
    if report.embeddings is not None:
        data, text = embedding_figure(report.embeddings)
        if data is None:
            embedding_note = text
        else:
            pictures.insert(0, picture(data, text))
    tables = [
        TableSection(f"table-{number}", heading, text_table(frame), note)
        for number, (heading, frame, note) in enumerate(report.tables, 1)
    ]
    run_short, run_long = provenance(report.run)
    environment = Environment(
        loader=PackageLoader("embedprior.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template("report.html.j2").render(
        css=Markup(resources.files("embedprior.report").joinpath("report.css").read_text(encoding="utf-8")),
        report=report,
        sections=sections,
        pictures=pictures,
        embedding_note=embedding_note,
        flow=None if report.flow.empty else text_table(report.flow),
        tables=tables,
        failures=None if report.failures.empty else text_table(report.failures),
        run_short=run_short,
        run_long=run_long,
        contents=_contents(report, sections, tables, bool(pictures or embedding_note)),
        research_use=RESEARCH_USE,
        oracle_heading=ORACLE_HEADING,
        deployable_heading=DEPLOYABLE_HEADING,
    )


def _contents(
    report: Report, sections: list[Section], tables: list[TableSection], pictures: bool
) -> list[tuple[str, str]]:
    links = [(section.anchor, section.heading) for section in sections]
    links += [("pictures", "Pictures")] if pictures else []
    links += [] if report.flow.empty else [("flow", "Who was included")]
    links += [(table.anchor, table.heading) for table in tables]
    links += [("caveats", "What this does not show")] if report.caveats else []
    return [*links, ("skipped", "Skipped items"), ("run", "How it was made")]


def _section(section: EvidenceSection, anchor: str) -> Section:
    evidence = section.evidence
    ready = Section(
        anchor=anchor,
        heading=section.heading,
        intro=[
            *section.intro,
            *fixed_models(evidence),
            *(f"Note: {text}." for text in evidence.get("warnings", ())),
        ],
        counted="pos / neg" if evidence.get("unit", "patient") == "patient" else f"{evidence['unit']}s pos / neg",
        results=results(evidence, section.method_notes),
    )
    if not _any_interval(evidence.get("methods", ())):
        ready.no_figure.append("No figures: no AUC here has an interval, and curves alone would promise too much.")
        return ready
    labels = list(section.predictions["label_name"].unique()) if "label_name" in section.predictions else []
    labels = labels or [None]
    for label in labels[:MAX_ROC_FIGURES]:
        _add_roc(ready, section, label if len(labels) > 1 else None)
    if len(labels) > MAX_ROC_FIGURES:
        ready.no_figure.append(f"ROC curves are drawn for the first {MAX_ROC_FIGURES} of {len(labels)} labels.")
    forest = forest_figure(evidence)
    if forest is not None and _any_interval(evidence.get("comparisons", ())):
        caption = (
            "Differences of AUC. Filled points are significant, hollow ones are not; orange brackets mark the "
            "smallest detectable difference."
        )
        ready.figures.append(picture(forest, caption, " ".join(row.sentence for row in ready.comparison_rows)))
    elif evidence.get("comparisons"):
        ready.no_figure.append("No figure of differences: none has an interval on these cases.")
    if "patient_label" in evidence and not section.predictions.empty:
        drawn = draw_curves(section.predictions, evidence)
        ready.curves.extend(
            picture(data, name.removesuffix(".png").replace("_", " ").replace("-", ", ").capitalize())
            for name, data in drawn.items()
            if not name.startswith("roc")
        )
    return ready


def _any_interval(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(number(row.get("ci_low")) is not None and number(row.get("ci_high")) is not None for row in rows)


def _add_roc(ready: Section, section: EvidenceSection, label: str | None) -> None:
    drawn = roc_figure(section.evidence, section.predictions, label)
    suffix = f" for {label}" if label else ""
    if drawn is None:
        ready.no_figure.append(f"No ROC curves{suffix}: no fold of the held-out predictions holds both classes.")
        return
    how = _averaging(section.evidence)
    aucs = ", ".join(f"{row.method} {row.auc}" for row in ready.results.deployable + ready.results.oracle)
    ready.figures.append(picture(drawn, f"ROC curves on the held-out cases{suffix}{how}.", f"ROC curves; AUC: {aucs}"))


def _averaging(evidence: Mapping[str, Any]) -> str:
    rows = evidence.get("methods", ())
    names = [
        name for key, name in (("n_folds", "folds"), ("n_seeds", "seeds")) if any((m.get(key) or 1) > 1 for m in rows)
    ]
    return f", averaged over {' and '.join(names)} at equal false positive rate" if names else ""


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
    parts = [f"## {escaped(section.heading)}", *map(escaped, [*section.intro, *fixed_models(section.evidence)])]
    parts.append(results_table(section.evidence, section.method_notes))
    if found.comparisons:
        parts.append("\n".join(f"- {escaped(row.sentence)}" for row in found.comparisons))
    if found.oracle_comparisons:
        lines = "\n".join(f"- {escaped(row.sentence)}" for row in found.oracle_comparisons)
        parts.append(f"Comparisons with a method that {ORACLE_HEADING}:\n\n{lines}")
    return parts


def summary_markdown(report: Report) -> str:
    """Return ``summary.md``: the answer, the tables, the flow, the caveats and the run."""
    question = [f"*{escaped(report.question)}*"] if report.question else []
    parts = [f"# {escaped(report.title)}", *question, *map(escaped, report.lead)]
    for section in report.evidence:
        parts += _markdown_section(section)
    if not report.flow.empty:
        parts += ["## Who was included", _markdown_frame(report.flow)]
    for heading, frame, note in report.tables:
        parts += [f"## {escaped(heading)}", _markdown_frame(frame), *([escaped(note)] if note else [])]
    if report.caveats:
        parts += ["## What this does not show", "\n".join(f"- {escaped(c)}" for c in report.caveats)]
    if not report.failures.empty:
        parts += ["## Skipped items", _markdown_frame(report.failures)]
    short, _ = provenance(report.run)
    if short:
        parts += ["## Run", "\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in short)]
    parts.append(RESEARCH_USE)
    return "\n\n".join(parts) + "\n"
