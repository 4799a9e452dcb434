"""``table.md`` and ``table.tex`` of an evaluation: methods, comparisons, and a note for every undefined number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DASH = "–"
#: Rows of a table that are printed; all stand in evidence.json.
MAX_ROWS = 60
METRICS = {
    "pr_auc": "PR-AUC",
    "partial_auc": "Partial AUC",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "sensitivity_at_specificity": "Sens. at spec.",
    "specificity_at_sensitivity": "Spec. at sens.",
    "ppv": "PPV",
    "npv": "NPV",
    "macro_f1": "Macro-F1",
    "mcc": "MCC",
    "brier": "Brier",
    "ece": "ECE",
    "calibration_slope": "Slope",
}


@dataclass
class Table:
    """A header, rows of text, and the notes that raised marks in the rows point to."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def tables_of(evidence: Mapping[str, Any]) -> list[Table]:
    """Return the AUC table, the comparisons and the other metrics of an evaluation."""
    several = len({r["label_name"] for r in evidence["methods"]}) > 1
    level = f"{100 * (1 - evidence['alpha']):g} % CI"
    tables = [
        _methods(evidence["methods"], several, level),
        _comparisons(evidence["comparisons"], several, level),
        _differences(evidence["comparisons"], several, level),
        _subgroups(evidence["subgroup_comparisons"], level),
        _metrics([r for r in evidence["methods"] if r["metrics"]], several),
    ]
    return [_cut(t) for t in tables]


def _cut(table: Table) -> Table:
    if len(table.rows) > MAX_ROWS:
        table.notes.append(f"the first {MAX_ROWS} of {len(table.rows)} rows; evidence.json holds all")
        del table.rows[MAX_ROWS:]
    return table


def markdown(evidence: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for table in tables_of(evidence):
        if not table.rows:
            continue
        header = [_markdown(name) for name in table.header]
        lines = [f"### {_markdown(table.title)}", "", _pipe(header), _pipe(["---"] * len(header))]
        lines += [_pipe([_markdown(cell) for cell in row]) for row in table.rows]
        lines += ["", *(f"[{i}] {_markdown(note)}  " for i, note in enumerate(table.notes, 1))]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join([*parts, *(f"- {_markdown(w)}" for w in evidence["warnings"])]).rstrip() + "\n"


def latex(evidence: Mapping[str, Any]) -> str:
    """Return the tables as LaTeX (booktabs)."""
    parts = []
    for table in tables_of(evidence):
        if not table.rows:
            continue
        lines = [
            r"\begin{table}",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
        ]
        lines += [r"\toprule", " & ".join(map(latex_text, table.header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(latex_text, row)) + r" \\" for row in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize [{i}] {latex_text(note)}" for i, note in enumerate(table.notes, 1)]
        parts.append("\n".join([*lines, r"\end{table}"]) + "\n")
    return "\n".join(parts)


def _methods(rows: Sequence[Mapping[str, Any]], by_label: bool, level: str) -> Table:
    header = ["Method", *(["Label"] if by_label else []), f"AUC ({level})", "Patients", "Positive", "Negative", "Seeds"]
    table = Table("AUC", header, [])
    for row in sorted(rows, key=lambda r: r["oracle"]):
        name = row["method"] + (" (oracle: needs CT)" if row["oracle"] else "")
        table.rows.append(
            [
                name,
                *([str(row["label_name"])] if by_label else []),
                _estimate(row["auc"], row["ci_low"], row["ci_high"]) + _mark(table, row["reason"] or row["ci_note"]),
                *(DASH if row[k] is None else f"{row[k]:g}" for k in ("n_patients", "n_pos", "n_neg")),
                str(row["n_seeds"]),
            ]
        )
    return table


def _comparisons(rows: Sequence[Mapping[str, Any]], by_label: bool, level: str) -> Table:
    header = ["Claim", *(["Label"] if by_label else []), f"ΔAUC ({level})", "p", "Holm p", "Detectable Δ", "Verdict"]
    table = Table("Comparisons", header, [])
    for row in rows:
        table.rows.append(
            [
                row["claim"],
                *([str(row["label_name"])] if by_label else []),
                _estimate(row["delta"], row["ci_low"], row["ci_high"]) + _mark(table, row["reason"]),
                _p(row["p"]),
                _p(row["p_holm"]),
                DASH if row["min_detectable_delta"] is None else f"{row['min_detectable_delta']:.3f}",
                row["verdict"],
            ]
        )
    return table


def _differences(rows: Sequence[Mapping[str, Any]], by_label: bool, level: str) -> Table:
    """Differences of the other metrics: one row per pair, once even where it has several claims."""
    names = list(dict.fromkeys(n for row in rows for n in row["metrics"]))
    header = ["Difference", *(["Label"] if by_label else []), *(f"{_title(n)} ({level}), p" for n in names)]
    table = Table("Differences of other metrics, not adjusted", header, [])
    seen = set()
    for row in rows:
        pair = row["a"], row["b"], row["label_name"]
        if not row["metrics"] or pair in seen:
            continue
        seen.add(pair)
        cells = []
        for name in names:
            c = row["metrics"].get(name) or {"delta": None, "ci_low": None, "ci_high": None, "p": None, "reason": None}
            p = "" if c["p"] is None else f", {_p(c['p'])}"
            cells.append(_estimate(c["delta"], c["ci_low"], c["ci_high"]) + p + _mark(table, c["reason"]))
        table.rows.append([f"{pair[0]} - {pair[1]}", *([str(pair[2])] if by_label else []), *cells])
    return table


def _subgroups(rows: Sequence[Mapping[str, Any]], level: str) -> Table:
    table = Table(
        "Within subgroups, not adjusted", ["Column", "Pair", "Subgroup", f"ΔAUC ({level})", "Interaction p"], []
    )
    for row in rows:
        for i, g in enumerate(row["subgroups"]):
            interaction = _p(row["interaction"]["p"]) + _mark(table, row["interaction"]["reason"]) if i == 0 else ""
            delta = _estimate(g["delta"], g["ci_low"], g["ci_high"]) + _mark(table, g["reason"])
            table.rows.append([row["column"], f"{row['a']} - {row['b']}", g["subgroup"], delta, interaction])
    return table


def _title(name: str) -> str:
    return next((title for key, title in METRICS.items() if name == key or name.startswith(f"{key}_")), name)


def _named(metrics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a metric by name, or by the name its target or bins follow (``ece_10_bins``)."""
    if key in metrics:
        found: Mapping[str, Any] = metrics[key]
        return found
    full = next((n for n in metrics if n.startswith(f"{key}_")), None)
    absent: dict[str, Any] = {"value": None, "ci_low": None, "ci_high": None, "reason": "not computed"}
    return absent if full is None else metrics[full]


def _metrics(rows: Sequence[Mapping[str, Any]], by_label: bool) -> Table:
    header = ["Method", *(["Label"] if by_label else []), *METRICS.values()]
    table = Table("Other metrics", header, [])
    for row in sorted(rows, key=lambda r: r["oracle"]):
        cells = [_named(row["metrics"], name) for name in METRICS]
        table.rows.append(
            [
                row["method"],
                *([str(row["label_name"])] if by_label else []),
                *(_estimate(c["value"], c["ci_low"], c["ci_high"]) + _mark(table, c["reason"]) for c in cells),
            ]
        )
    return table


def _estimate(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _p(p: float | None) -> str:
    if p is None:
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _mark(table: Table, reason: str | None) -> str:
    if reason is None:
        return ""
    if reason not in table.notes:
        table.notes.append(reason)
    return f" [{table.notes.index(reason) + 1}]"


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_HTML = re.compile(r"<(?=[A-Za-z/!?])")


def _markdown(text: str) -> str:
    """Return text so that Markdown shows it as it is: no markup of HTML, no cell that ends early."""
    return _HTML.sub("&lt;", " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|"))


def latex_text(text: str) -> str:
    """Return text so that LaTeX shows it as it is."""
    for plain, escaped in (
        ("\\", r"\textbackslash "), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"), ("$", r"\$"),
        ("{", r"\{"), ("}", r"\}"), ("~", r"\textasciitilde "), ("^", r"\textasciicircum "),
        ("<", r"$<$"), (">", r"$>$"), ("Δ", r"$\Delta$"), ("–", "--"), ("−", "$-$"), ("±", r"$\pm$"),
        ("≥", r"$\geq$"), ("\u202f", r"\,"), ("\u00a0", "~"), ("→", r"$\to$"), ("×", r"$\times$"),
    ):  # fmt: skip
        text = text.replace(plain, escaped)
    return text
