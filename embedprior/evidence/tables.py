"""``table.md`` and ``table.tex`` of an evaluation: methods, comparisons, and a note for every undefined number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DASH = "–"
METRICS = {
    "pr_auc": "PR-AUC",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "macro_f1": "Macro-F1",
    "mcc": "MCC",
    "brier": "Brier",
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
    labels = {r["label_name"] for r in evidence["methods"]}
    return [
        _methods(evidence["methods"], len(labels) > 1),
        _comparisons(evidence["comparisons"], len(labels) > 1),
        _metrics([r for r in evidence["methods"] if r["metrics"]], len(labels) > 1),
    ]


def markdown(evidence: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for table in tables_of(evidence):
        if not table.rows:
            continue
        lines = [f"### {table.title}", "", _pipe(table.header), _pipe(["---"] * len(table.header))]
        lines += [_pipe([c.replace("|", "\\|") for c in row]) for row in table.rows]
        lines += ["", *(f"[{i}] {note}  " for i, note in enumerate(table.notes, 1))]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join([*parts, *(f"- {w}" for w in evidence["warnings"])]).rstrip() + "\n"


def latex(evidence: Mapping[str, Any]) -> str:
    """Return the tables as LaTeX (booktabs)."""
    parts = []
    for table in tables_of(evidence):
        if not table.rows:
            continue
        lines = [
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
        ]
        lines += [r"\toprule", " & ".join(map(_tex, table.header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_tex, row)) + r" \\" for row in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize [{i}] {_tex(note)}" for i, note in enumerate(table.notes, 1)]
        parts.append("\n".join([*lines, r"\end{table}"]) + "\n")
    return "\n".join(parts)


def _methods(rows: Sequence[Mapping[str, Any]], by_label: bool) -> Table:
    header = ["Method", *(["Label"] if by_label else []), "AUC (95 % CI)", "Patients", "Positive", "Negative", "Seeds"]
    table = Table("AUC", header, [])
    for row in sorted(rows, key=lambda r: r["oracle"]):
        name = row["method"] + (" (oracle: needs CT)" if row["oracle"] else "")
        table.rows.append(
            [
                name,
                *([str(row["label_name"])] if by_label else []),
                _estimate(row["auc"], row["ci_low"], row["ci_high"]) + _mark(table, row["reason"]),
                f"{row['n_patients']:g}",
                f"{row['n_pos']:g}",
                f"{row['n_neg']:g}",
                str(row["n_seeds"]),
            ]
        )
    return table


def _comparisons(rows: Sequence[Mapping[str, Any]], by_label: bool) -> Table:
    header = ["Claim", *(["Label"] if by_label else []), "ΔAUC (95 % CI)", "p", "Holm p", "Detectable Δ", "Verdict"]
    table = Table("Comparisons", header, [])
    for row in rows:
        table.rows.append(
            [
                f"{row['a']} > {row['b']}",
                *([str(row["label_name"])] if by_label else []),
                _estimate(row["delta"], row["ci_low"], row["ci_high"]) + _mark(table, row["reason"]),
                _p(row["p"]),
                _p(row["p_holm"]),
                DASH if row["min_detectable_delta"] is None else f"{row['min_detectable_delta']:.3f}",
                row["verdict"],
            ]
        )
    return table


def _metrics(rows: Sequence[Mapping[str, Any]], by_label: bool) -> Table:
    header = ["Method", *(["Label"] if by_label else []), *METRICS.values()]
    table = Table("Other metrics", header, [])
    for row in sorted(rows, key=lambda r: r["oracle"]):
        cells = [row["metrics"][name] for name in METRICS]
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


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash "), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"), ("$", r"\$"),
        ("{", r"\{"), ("}", r"\}"), ("~", r"\textasciitilde "), ("^", r"\textasciicircum "),
        ("<", r"$<$"), (">", r"$>$"), ("Δ", r"$\Delta$"), ("–", "--"),
    ):  # fmt: skip
        text = text.replace(plain, escaped)
    return text
