"""Tables of a study's report: sweeps, other metrics, what the fits cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embedprior.study.config import StudyConfig
from embedprior.study.run import StudyResult

Table = tuple[str, pd.DataFrame, str]


def sweep_tables(config: StudyConfig, result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return, for each design of a sweep, every method's AUC in every combination of settings."""
    if not config.sweep:
        return []
    tables = []
    for design in config.designs:
        rows = []
        for cell in (c for c in result.cells if c.design.name == design.name):
            aucs = {m["method"]: estimate(m) for m in evidence[cell.key]["methods"]}
            rows.append({**cell.variant.settings, **aucs})
        note = "AUC (95 % CI) by setting. No setting was chosen; Holm adjusts over all of them together."
        tables.append((f"Sweep: {design.name}", pd.DataFrame(rows), note))
    return tables


def metric_table(metrics: Sequence[str], key: str, evidence: Mapping[str, Any]) -> list[Table]:
    """Return the other metrics of one design, each with its interval or a dash where it is undefined."""
    if not metrics:
        return []
    rows, reasons = [], []
    for method in evidence["methods"]:
        panel = method.get("metrics") or {}
        row = {"method": method["method"]}
        for name in metrics:
            found = panel.get(name) or {}
            row[name] = estimate({"auc": found.get("value"), **{k: found.get(k) for k in ("ci_low", "ci_high")}})
            if found.get("value") is None:
                reasons.append(found.get("reason") or f"{name} is not computed for this design")
        rows.append(row)
    note = "Undefined: " + "; ".join(dict.fromkeys(reasons)) + "." if reasons else ""
    return [(f"Other metrics: {key}", pd.DataFrame(rows), note)]


def fit_table(result: StudyResult) -> Table:
    """Return what the fits were: how many, how many were there already, how many failed, and their time."""
    frame = pd.DataFrame(
        [
            {
                "method": o.unit.method, "fits": 1, "reused": int(o.reused), "failed": int(o.path is None),
                "seconds": o.seconds,
            }
            for o in result.outcomes
        ]
    )  # fmt: skip
    table = frame.groupby("method", sort=False).sum().reset_index()
    table["seconds"] = table["seconds"].round(1)
    return ("Fits", table, "Seconds in this run; a reused fit costs the time to find it.")


def estimate(row: Mapping[str, Any]) -> str:
    """Return ``0.812 (0.760–0.855)``, without the interval where there is none, or a dash."""
    if row["auc"] is None:
        return "–"
    if row["ci_low"] is None or row["ci_high"] is None:
        return f"{row['auc']:.3f}"
    return f"{row['auc']:.3f} ({row['ci_low']:.3f}–{row['ci_high']:.3f})"
