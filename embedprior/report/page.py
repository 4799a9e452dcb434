"""The report as one HTML file: no script, no network, every picture inside."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from embedprior.errors import BadInput
from embedprior.report.content import (
    DEPLOYABLE_HEADING,
    ORACLE_HEADING,
    ComparisonRow,
    EvidenceSection,
    Report,
    Results,
    results,
)
from embedprior.report.embedding_map import embedding_figure
from embedprior.report.figures import draw_curves, forest_figure, roc_figure
from embedprior.report.formatting import Grid, grid, number, provenance, unbroken
from embedprior.report.markdown import RESEARCH_USE
from embedprior.runs import write_text

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: One ROC figure a label, up to this many.
MOST_ROC_FIGURES = 6


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
    grid: Grid
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
    page = render(report)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_text(path, page)
    return path


def render(report: Report) -> str:
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
        TableSection(f"table-{number}", heading, grid(frame), note)
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
        flow=None if report.flow.empty else grid(report.flow),
        tables=tables,
        failures=None if report.failures.empty else grid(report.failures),
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
        intro=[*section.intro, *(f"Mind: {text}." for text in evidence.get("warnings", ()))],
        counted="pos / neg" if evidence.get("unit", "patient") == "patient" else f"{evidence['unit']}s pos / neg",
        results=results(evidence, section.method_notes),
    )
    if not _any_interval(evidence.get("methods", ())):
        ready.no_figure.append("No figures: no AUC here has an interval, and curves alone would promise too much.")
        return ready
    labels = list(section.predictions["label_name"].unique()) if "label_name" in section.predictions else []
    labels = labels or [None]
    for label in labels[:MOST_ROC_FIGURES]:
        _add_roc(ready, section, label if len(labels) > 1 else None)
    if len(labels) > MOST_ROC_FIGURES:
        ready.no_figure.append(f"ROC curves are drawn for the first {MOST_ROC_FIGURES} of {len(labels)} labels.")
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
