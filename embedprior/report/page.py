"""A report as one HTML file: one small script that sorts tables, no network, every picture inside."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from embedprior.errors import BadInput
from embedprior.report.content import (
    DEPLOYABLE_HEADING,
    ORACLE_HEADING,
    ComparisonRow,
    EvidenceSection,
    Figure,
    Report,
    Results,
    Table,
    fixed_models,
    is_mean_over_labels,
    results,
)
from embedprior.report.flow import flow_svg
from embedprior.report.formatting import RESEARCH_USE, TextTable, provenance, text_table, unbroken

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Bytes of PNG that fit into a page under 5 MB; figures beyond stand in ``figures/`` alone.
MAX_PNG_BYTES = 3_300_000
#: Pixels; a figure of one panel has 884 (5.2 inches at 170 dpi).
BROAD = 1150


@dataclass(frozen=True)
class Picture:
    """A picture as a data address, with its size in pixels, its caption and what it shows in words."""

    src: str
    width: int
    height: int
    caption: str
    alt: str

    @property
    def is_broad(self) -> bool:
        """Whether it holds several panels side by side, whose letters a column would make too small to read."""
        return self.width > BROAD


@dataclass(frozen=True)
class TableSection:
    """One further table, ready for the page."""

    anchor: str
    heading: str
    cells: TextTable
    note: str


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
    tables: list[TableSection] = field(default_factory=list)

    @property
    def comparison_rows(self) -> list[ComparisonRow]:
        """All comparisons, those with an oracle last."""
        return self.results.comparisons + self.results.oracle_comparisons


def picture(figure: Figure) -> Picture:
    """Return a figure as a picture that lies inside the page.

    Raises:
        BadInput: its bytes are not a PNG.
    """
    data = figure.png
    if not data.startswith(PNG_SIGNATURE) or len(data) < 33:
        raise BadInput(f"the picture '{figure.caption}' is not a PNG ({len(data)} bytes). Reports take PNG bytes only.")
    width, height = struct.unpack(">II", data[16:24])
    src = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(src, width, height, figure.caption, figure.alt or figure.caption)


def render_page(report: Report, figures: Mapping[str, Sequence[Figure]], no_figure: Mapping[str, Sequence[str]]) -> str:
    """Return the page as text.

    Args:
        report: its content.
        figures: by key of a section.
        no_figure: by key of a section: why a figure that a reader looks for is not there.

    Raises:
        BadInput: a picture is not a PNG.
    """
    room = [MAX_PNG_BYTES]
    lead = _placed(report.lead_figures, room)
    pictures = _placed(report.pictures, room)
    sections = [
        _section(section, f"result-{number}", _placed(figures.get(section.key, ()), room),
                 list(no_figure.get(section.key, ())))
        for number, section in enumerate(report.evidence, 1)
    ]  # fmt: skip
    own = _placed(report.figures, room)
    curves = _placed(report.label_curves, room)
    tables = _tables(report.tables, "table")
    checklists = _tables(report.checklists, "checklist")
    run_short, run_long = provenance(report.run)
    environment = Environment(
        loader=PackageLoader("embedprior.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["unbroken"] = unbroken
    environment.filters["cell"] = _cell
    script = _file("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("report.html.j2").render(
        css=Markup(_file("report.css")),
        script=Markup(script),
        script_digest=digest,
        report=report,
        lead_figures=lead,
        sections=sections,
        figures=own,
        label_curves=curves,
        pictures=pictures,
        cut_figures=room[0] < 0,
        flow_drawn=flow_svg(report.flow),
        flow=None if report.flow.empty else text_table(report.flow),
        boundary=None if report.boundary.empty else text_table(report.boundary),
        tables=tables,
        checklists=checklists,
        failures=None if report.failures.empty else text_table(report.failures),
        run_short=run_short,
        run_long=run_long,
        contents=_contents(report, sections, tables, bool(own), bool(pictures)),
        research_use=RESEARCH_USE,
        oracle_heading=ORACLE_HEADING,
        deployable_heading=DEPLOYABLE_HEADING,
    )


def _file(name: str) -> str:
    return resources.files("embedprior.report").joinpath(name).read_text(encoding="utf-8")


def _cell(text: str) -> Markup:
    """Return a cell whose interval stays on one line: ``0.81 (0.76–0.86)`` breaks before the parenthesis alone."""
    found = re.fullmatch(r"(\S+) (\([^()]*\))", text)
    if found is None:
        return escape(unbroken(text))
    return Markup('{} <span class="ci">{}</span>').format(*found.groups())


def _placed(figures: Sequence[Figure], room: list[int]) -> list[Picture]:
    """Return the figures that still fit into the page; the room left goes below 0 once one does not."""
    found = []
    for figure in figures:
        ready = picture(figure)
        if len(figure.png) > room[0]:
            room[0] = -1
        else:
            room[0] -= len(figure.png)
            found.append(ready)
    return found


def _tables(tables: Sequence[Table], prefix: str) -> list[TableSection]:
    return [
        TableSection(f"{prefix}-{number}", heading, text_table(frame), note)
        for number, (heading, frame, note) in enumerate(tables, 1)
    ]


def _contents(
    report: Report, sections: list[Section], tables: list[TableSection], figures: bool, pictures: bool
) -> list[tuple[str, str]]:
    links = [("boundary", "What can be concluded")] if not report.boundary.empty or report.caveats else []
    links += [] if report.flow.empty else [("flow", "Who was included")]
    links += [(section.anchor, section.heading) for section in sections]
    links += [("figures", "Over all designs")] if figures else []
    links += [("pictures", "Pictures")] if pictures else []
    links += [(table.anchor, table.heading) for table in tables]
    links += [("checklists", "Reporting checklists")] if report.checklists else []
    return [*links, ("skipped", "Skipped items"), ("run", "How it was made")]


def _counted(evidence: Mapping[str, Any]) -> str:
    unit = str(evidence.get("unit", "patient"))
    what = "pos / neg" if unit == "patient" else f"{unit}s pos / neg"
    return f"{what}, summed over labels" if is_mean_over_labels(evidence) else what


def _section(section: EvidenceSection, anchor: str, figures: list[Picture], no_figure: list[str]) -> Section:
    evidence = section.evidence
    return Section(
        anchor=anchor,
        heading=section.heading,
        intro=[
            *section.intro,
            *fixed_models(evidence),
            *(f"Note: {text}." for text in evidence.get("warnings", ())),
        ],
        counted=_counted(evidence),
        results=results(evidence, section.method_notes),
        figures=figures,
        no_figure=no_figure,
        tables=_tables(section.tables, f"{anchor}-table"),
    )
