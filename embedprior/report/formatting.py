"""Numbers and comparisons in words, and the tables of every command and report: terminal, Markdown, HTML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from embedprior.evidence.aggregate import MACRO
from embedprior.evidence.tables import latex_text

Tone = Literal["supported", "excluded", "open"]
EXPLORATORY = "exploratory"

UNDEFINED = "–"
MINUS = "−"
RESEARCH_USE = "Research use only: not a medical device, not for diagnosis."
NO_REASON = "undefined, and no reason was recorded"


def number(value: Any) -> float | None:
    """Return ``value`` as a float, or None when it is None or not finite."""
    if value is None:
        return None
    result = float(value)
    return result if math.isfinite(result) else None


def fixed(value: Any, digits: int = 3) -> str:
    """Return ``0.812``, or an en dash for an undefined value."""
    known = number(value)
    return UNDEFINED if known is None else f"{known:.{digits}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    """Return ``+0.041`` or ``−0.041`` (zero after rounding has no sign), or an en dash for an undefined value."""
    known = number(value)
    if known is None:
        return UNDEFINED
    text = f"{abs(known):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if known > 0 else MINUS) + text


def p_digits(p: float, alpha: float = 0.05) -> str:
    """Return ``= .013``, ``< .001`` or ``> .999``; more digits where rounding would hide the side of ``alpha``."""
    if p < 0.001:
        return "< .001"
    if p > 0.999:
        return "> .999"
    digits = 3
    while digits < 8 and p != alpha and round(p, digits) == round(alpha, digits):
        digits += 1
    return "= " + f"{p:.{digits}f}".lstrip("0")


def p_value(value: Any, alpha: float = 0.05) -> str:
    """Return ``p = .013``, ``p < .001``, or an en dash for an undefined value."""
    known = number(value)
    return UNDEFINED if known is None else f"p {p_digits(known, alpha)}"


def bare_p(value: Any, alpha: float = 0.05) -> str:
    """Return a p value for a table column that is headed p: ``.013``, ``< .001``, or an en dash."""
    known = number(value)
    return UNDEFINED if known is None else p_digits(known, alpha).removeprefix("= ")


def percent(alpha: float) -> str:
    """Return the confidence level of ``alpha``: ``95 %``."""
    return f"{100 * (1 - alpha):g} %"


def interval(low: Any, high: Any, *, sign: bool = False) -> str:
    """Return ``0.760–0.855``, ``−0.010 to +0.072`` with ``sign``, or an en dash when a limit is undefined."""
    if number(low) is None or number(high) is None:
        return UNDEFINED
    return f"{signed(low)} to {signed(high)}" if sign else f"{fixed(low)}–{fixed(high)}"


def estimate(value: str, limits: str) -> str:
    """Return ``0.812 (0.760–0.855)``, or a single en dash when the estimate itself is undefined."""
    return value if value == UNDEFINED else f"{value} ({limits})"


def unbroken(text: str) -> str:
    """Return ``text`` with the spaces inside figures (``p = .013``, ``95 % CI``) made non-breaking."""
    return re.sub(r" (?=[=<>≥%] ?)|(?<=[=<>≥]) |(?<=%) (?=CI)|(?<=Holm) (?=p)", "\u00a0", text)


def support(row: Mapping[str, Any]) -> str:
    """Return ``253 patients, 101 pos / 152 neg`` from ``n_patients, n_pos, n_neg``; an en dash for what is unknown."""
    patients, pos, neg = (count(row.get(name)) for name in ("n_patients", "n_pos", "n_neg"))
    noun = "patient" if patients == "1" else "patients"
    summed = " summed over labels" if row.get("label_name") == MACRO else ""
    return f"{patients} {noun}, {pos} pos / {neg} neg{summed}"


def count(value: Any) -> str:
    """Return a count; one decimal for a mean of counts, an en dash when undefined."""
    known = number(value)
    if known is None:
        return UNDEFINED
    return f"{known:,.{0 if known.is_integer() else 1}f}".replace(",", "\u202f")


def deciding_p(comparison: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the p value that decides and its name: Holm's where the comparison is in the declared family."""
    holm = number(comparison.get("p_holm"))
    return ("Holm p", holm) if holm is not None else ("p", number(comparison.get("p")))


def verdict_of(comparison: Mapping[str, Any]) -> str:
    """Return the verdict on a declared claim, as the evidence gives it; empty for what was only looked at."""
    verdict = str(comparison.get("verdict") or "")
    return "" if verdict == EXPLORATORY else verdict


def tone_of(comparison: Mapping[str, Any]) -> Tone:
    """Return how a comparison is coloured: by its verdict alone, so that colour and words can't disagree."""
    verdict = verdict_of(comparison)
    if verdict.startswith("supported"):
        return "supported"
    return "excluded" if verdict.startswith("excluded") else "open"


def claim_words(comparison: Mapping[str, Any]) -> str:
    """Return what is claimed: ``prior better than cxr-only``, ``… not worse than … by 0.03``, ``… within ±0.03 of …``.

    Example:
        >>> claim_words({"a": "prior", "b": "direct-head", "kind": "non-inferior", "margin": 0.03})
        'prior not worse than direct-head by 0.03'
    """
    a, b, margin = comparison["a"], comparison["b"], number(comparison.get("margin"))
    if margin is None:
        return f"{a} better than {b}"
    return f"{a} within ±{margin:g} of {b}" if comparison.get("kind") == "equivalent" else (
        f"{a} not worse than {b} by {margin:g}")  # fmt: skip


def comparison_sentence(
    comparison: Mapping[str, Any], alpha: float = 0.05, cases: str = "", reason_given: bool = False
) -> str:
    """Return what a comparison of AUC a - AUC b shows, in words: the verdict first, then the figures it rests on.

    A comparison that was not declared has no verdict: its figures are described, and p is not adjusted.

    Args:
        comparison: one entry of ``evidence["comparisons"]``.
        alpha: level of the tests and intervals.
        cases: the support in words, appended.
        reason_given: whether the reason for the lack of a test was given before, for several comparisons together.
    """
    verdict, reason = verdict_of(comparison), comparison.get("reason")
    tail = f"; {cases}" if cases else ""
    head = f"{claim_words(comparison)}: {verdict}" if verdict else f"{comparison['a']} against {comparison['b']}"
    if number(comparison.get("delta")) is None:
        return f"{head}: no difference can be computed: {reason or NO_REASON}{tail}."
    figures = f"ΔAUC {signed(comparison['delta'])}"
    if number(comparison.get("ci_low")) is not None and number(comparison.get("ci_high")) is not None:
        figures += f" ({percent(alpha)} CI {interval(comparison['ci_low'], comparison['ci_high'], sign=True)})"
    name, p = deciding_p(comparison)
    if p is None:
        return f"{head}: {figures}, no test{'' if reason_given else f': {reason or NO_REASON}'}{tail}."
    figures += f", {name} {p_digits(p, alpha)}"
    raw = number(comparison.get("p"))
    if name == "p":
        figures += " (not adjusted: outside the declared family)"
    elif raw is not None and raw <= alpha < p:
        figures += f" ({p_value(raw, alpha)} before adjustment)"
    corrected = comparison.get("corrected") or {}
    if number(corrected.get("p")) is not None:
        figures += f"; paying for the choice of training cases {p_value(corrected['p'], alpha)} ({corrected['test']})"
    if verdict and not verdict.startswith("supported"):
        figures += f"; {detectable_words(comparison)}"
    return f"{head}: {figures}{tail}."


def detectable_words(comparison: Mapping[str, Any]) -> str:
    """Return which difference the sizes, planned beforehand, promise to find; observed figures never enter."""
    found = number(comparison.get("min_detectable_delta"))
    if found is None or found >= 1:
        return "these sizes could detect no difference"
    return f"these sizes could detect Δ ≥ {fixed(found)}"


#: A longer table is cut, and says so: its file holds the rest.
MAX_ROWS = 200


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        header: column names.
        rows: cells.
        numeric: per column, whether it is set to the right.
        cut: what was left out, or an empty string.
    """

    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    cut: str


def cell(value: Any, digits: int = 3) -> str:
    """Return one value as text: undefined as an en dash, booleans as yes/no, numbers with a true minus sign."""
    if value is None or value is pd.NA or value is pd.NaT:
        return UNDEFINED
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", MINUS)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return UNDEFINED if np.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
        small = value != 0 and abs(value) < 10**-digits
        return (f"{value:.1e}" if small else f"{value:.{digits}f}").replace("-", MINUS)
    return str(value)


def text_table(frame: pd.DataFrame, rows: int = MAX_ROWS) -> TextTable:
    """Return the first rows of a data frame as texts; a float column of whole numbers is shown without decimals.

    A column of zeros and ones beside columns of fractions holds fractions too (an AUC of 1 in every row).
    """
    shown = frame.head(rows)
    fractions = any(
        pd.api.types.is_float_dtype(column) and not all(float(v).is_integer() for v in column.dropna())
        for _, column in shown.items()
    )
    columns, numeric = [], []
    for position in range(shown.shape[1]):
        column = shown.iloc[:, position]
        values = column.tolist()
        is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        numeric.append(bool(is_number))
        known = [float(v) for v in values if not pd.isna(v)] if is_number else []
        fraction = fractions and pd.api.types.is_float_dtype(column) and all(0 <= v <= 1 for v in known)
        whole = is_number and not fraction and all(v.is_integer() for v in known)
        columns.append([cell(int(v)) if whole and not pd.isna(v) else cell(v) for v in values])
    cut = f"The first {len(shown)} of {len(frame)} rows." if len(frame) > len(shown) else ""
    return TextTable([str(c) for c in frame.columns], [list(row) for row in zip(*columns, strict=True)], numeric, cut)


def provenance(run: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (short entries, long entries as indented JSON) of a run description; what is empty is left out."""
    short, long = [], []
    for name, value in run.items():
        if isinstance(value, (Mapping, list, tuple)) and not value:
            continue
        if isinstance(value, Mapping) and any(isinstance(v, (Mapping, list, tuple)) for v in value.values()):
            long.append((name, json.dumps(value, indent=2, default=str, ensure_ascii=False)))
        elif isinstance(value, Mapping):
            short.append((name, ", ".join(f"{k} {cell(v)}" for k, v in value.items())))
        elif isinstance(value, (list, tuple)):
            short.append((name, ", ".join(cell(v) for v in value)))
        else:
            plain = isinstance(value, int) and not isinstance(value, bool)
            short.append((name, f"{value:.6g}" if isinstance(value, float) else str(value) if plain else cell(value)))
    return short, long


def escaped(text: str) -> str:
    """Return ``text`` on one line so that Markdown shows it as it is, in a table cell too."""
    plain = re.sub(r"([\\|*`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", plain))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Return a Markdown table of escaped cells.

    Args:
        header: names of the columns.
        rows: cells.
        numeric: for each column, whether it is set to the right.

    Example:
        >>> print(markdown_table(["method", "AUC"], [["prior", "0.81"]], [False, True]))
        | method | AUC |
        | --- | ---: |
        | prior | 0.81 |
    """
    rule = ["---:" if right else "---" for right in numeric]
    lines = [[escaped(h) for h in header], rule, *([escaped(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex_table(caption: str, frame: pd.DataFrame, note: str = "") -> str:
    """Return a data frame as a LaTeX table (booktabs), all rows, every text escaped.

    Example:
        >>> print(latex_table("AUC", pd.DataFrame({"method": ["cxr_only"], "AUC": [0.8]})))
        \\begin{table}
        \\caption{AUC}
        \\begin{tabular}{lr}
        \\toprule
        method & AUC \\\\
        \\midrule
        cxr\\_only & 0.800 \\\\
        \\bottomrule
        \\end{tabular}
        \\end{table}
        <BLANKLINE>
    """
    shown = text_table(frame, len(frame))
    columns = "".join("r" if right else "l" for right in shown.numeric)
    lines = [r"\begin{table}", rf"\caption{{{latex_text(caption)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(map(latex_text, shown.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(latex_text, row)) + r" \\" for row in shown.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex_text(note)}"] if note else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return rows of text in columns for a terminal, two blanks between them.

    Args:
        rows: cells, the header first; every row has as many.
        right: columns set to the right.

    Example:
        >>> print(aligned([("method", "AUC"), ("prior", "0.81")], right=[1]))
        method   AUC
        prior   0.81
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
