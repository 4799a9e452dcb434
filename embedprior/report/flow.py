"""The flow of exams, drawn: boxes of what was left, and beside each arrow what was dropped and why."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from embedprior.report.formatting import count

BOX, SIDE, GAP, LEFT = 290, 250, 34, 24
LINE, PAD, LETTERS, SIDE_LETTERS = 17, 9, 38, 34


@dataclass(frozen=True)
class _Box:
    lines: list[str]
    side: list[str]
    group: str
    chained: bool

    @property
    def height(self) -> int:
        return max(len(self.lines), len(self.side)) * LINE + 2 * PAD


def flow_svg(flow: pd.DataFrame) -> Markup:
    """Return the flow as SVG; empty where a column of ``step, exams, patients, dropped, reason`` is missing.

    Steps named ``design: step`` branch off the cohort's last box. A step whose count is not that of the step before
    less what was dropped is a part, and no arrow leads to it.

    Args:
        flow: one row a step, in order.

    Example:
        >>> rows = [["read", 10, 5, 0, ""], ["with a label", 8, 4, 2, "the label is unknown"]]
        >>> drawn = flow_svg(pd.DataFrame(rows, columns=["step", "exams", "patients", "dropped", "reason"]))
        >>> "2 exams left out" in drawn, drawn.count("<rect"), drawn.count("marker-end")
        (True, 2, 2)
    """
    if flow.empty or not {"step", "exams", "patients", "dropped", "reason"} <= set(flow.columns):
        return Markup("")
    boxes = _boxes(flow)
    y, last, trunk = 6, 0, 0
    parts: list[str] = []
    for place, box in enumerate(boxes):
        first = place > 0 and box.group != boxes[place - 1].group
        indent = LEFT if box.group or not box.chained else 0
        if first:
            parts.append(_text(indent, y + 12, [f"design {box.group}"], bold=True))
            y += 24
        height = len(box.lines) * LINE + 2 * PAD
        if place and box.chained and not first:
            x = indent + 40
            parts.append(_line(x, last, x, y))
            if box.side:
                middle = (last + y) // 2
                parts.append(_line(x, middle, BOX + LEFT + 18, middle))
                parts.append(_text(BOX + LEFT + 24, middle - (len(box.side) - 1) * LINE // 2 + 4, box.side, small=True))
        elif place:
            parts.append(_line(12, trunk, 12, y + height // 2, arrow=False))
            parts.append(_line(12, y + height // 2, indent, y + height // 2))
            if box.side:
                parts.append(_text(BOX + LEFT + 24, y + PAD + 13, box.side, small=True))
        parts.append(
            f'<rect x="{indent}" y="{y}" width="{BOX}" height="{height}" rx="4" fill="none" stroke="currentColor"/>'
        )
        parts.append(_text(indent + 10, y + PAD + 12, box.lines))
        last = y + height
        if not box.group and box.chained:
            trunk = last
        following = boxes[place + 1] if place + 1 < len(boxes) else None
        y = last + max(GAP, len(following.side) * LINE + 12 if following and following.chained else GAP // 2)
    said = "; ".join(" ".join([*box.lines, *(f"({s})" for s in [" ".join(box.side)] if s)]) for box in boxes)
    return Markup(
        f'<svg class="flow" viewBox="0 0 {BOX + LEFT + 24 + SIDE} {last + 8}" role="img" aria-label="{escape(said)}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
        f"{''.join(parts)}</svg>"
    )


def _boxes(flow: pd.DataFrame) -> list[_Box]:
    boxes: list[_Box] = []
    before: dict[str, int] = {}
    for row in flow.to_dict("records"):
        group, _, name = str(row["step"]).rpartition(": ")
        exams, dropped = int(row["exams"]), int(row["dropped"])
        start = before.get(group, before.get("", exams))
        chained = start - dropped == exams
        counts = f"{count(exams)} exams of {count(row['patients'])} patients"
        if boxes and chained and not dropped and boxes[-1].group == group and boxes[-1].lines[-1] == counts:
            boxes[-1].lines[:-1] = textwrap.wrap(" ".join([*boxes[-1].lines[:-1]]) + f"; {name}", LETTERS)
            continue
        reason = str(row["reason"] or "")
        if dropped:
            said = f"{count(dropped)} exams left out: {reason}"
        else:
            said = reason if not chained else ""
        boxes.append(
            _Box([*textwrap.wrap(name, LETTERS), counts], textwrap.wrap(said, SIDE_LETTERS), group, chained)
        )  # fmt: skip
        if chained or group not in before:
            before[group] = exams
    return boxes


def _text(x: int, y: int, lines: list[str], *, bold: bool = False, small: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    size = 12 if small else 13
    spans = "".join(f'<tspan x="{x}" dy="{LINE if i else 0}">{escape(line)}</tspan>' for i, line in enumerate(lines))
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="currentColor"{weight}>{spans}</text>'


def _line(x1: int, y1: int, x2: int, y2: int, *, arrow: bool = True) -> str:
    end: Any = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor"{end}/>'
