"""The declared claims: judged design by design, and over every combination of a sweep at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence import holm
from embedprior.evidence.schema import NOT_TESTABLE, Rules, value, verdict
from embedprior.study.config import Decision, Hypothesis, StudyConfig
from embedprior.study.evidence import ROUND, design_evidence
from embedprior.study.run import Cell, StudyResult


def all_evidence(config: StudyConfig, result: StudyResult) -> dict[str, dict[str, Any]]:
    """Return the evidence of every design (and combination) by its name in the tables.

    With a sweep, Holm adjusts over the claims of a design in all its combinations together: looking at ten settings
    is looking ten times.
    """
    found = {}
    oracles = [name for name, needs in result.needs_ct.items() if needs]
    for cell in result.cells:
        own = result.support[result.support["design"] == cell.key]
        decision = cell.variant.config.decision
        exams = decision.unit == "exam"
        columns = [f"train_{'images' if exams else 'patients'}_{sign}" for sign in ("pos", "neg")]
        found[cell.key] = design_evidence(
            result.predictions[result.predictions["design"] == cell.key], cell.design, config.hypotheses,
            [m for m in oracles if m in cell.design.methods],
            [u for u in result.unfitted if u["design"] == cell.key],
            float(own[columns].sum(axis=1).mean()), decision, expected_cases(cell),
            [u for u in result.unscored if u["design"] == cell.key],
        )  # fmt: skip
    if config.sweep:
        for design in {c.design.name for c in result.cells}:
            own_cells = [c for c in result.cells if c.design.name == design]
            _adjust_together([(found[c.key], c.variant.config.decision) for c in own_cells])
    return found


def expected_cases(cell: Cell) -> pd.DataFrame:
    """Return the cases a design holds out: ``resample, fold, exam_id`` and, by site, ``site``."""
    columns = ["exam_id", *(["site"] if cell.design.split in ("site", "external") else [])]
    parts = [
        cell.targets.loc[cell.targets["patient_id"].isin(r.patients("test")), columns].assign(
            resample=r.resample, fold=r.fold
        )
        for r in cell.rounds
    ]
    return pd.concat(parts, ignore_index=True)[[*ROUND, *columns]]


def hypothesis_table(hypotheses: Sequence[Hypothesis], evidence: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return each hypothesis with its status and the reason: ``hypothesis, claim, status, why``.

    With a sweep there is one row a combination, named in a column ``settings``.
    """
    rows = []
    for h in hypotheses:
        for key in [k for k in evidence if k.split("@")[0] == h.design]:
            status, why = NOT_TESTABLE, f"{h.missing}{_size_reason(evidence[key])}"
            if h.a is not None and h.b is not None:
                found = [c for c in evidence[key]["comparisons"] if (c["a"], c["b"]) == (h.a, h.b)]
                status = found[0]["verdict"] if found else NOT_TESTABLE
                why = _why(found[0]) if found else _absent(h, evidence[key])
            settings = key.partition("@")[2]
            rows.append({"hypothesis": h.name, "claim": h.claim, "settings": settings, "status": status, "why": why})
    table = pd.DataFrame(rows, columns=["hypothesis", "claim", "settings", "status", "why"])
    return table if table["settings"].any() else table.drop(columns="settings")


def _absent(h: Hypothesis, evidence: Mapping[str, Any]) -> str:
    reasons = [
        f"{m['method']}: {m['reason']}" for m in evidence["methods"] if m["method"] in (h.a, h.b) and m["auc"] is None
    ]
    return f"{h.a} or {h.b} could not be fitted in every round ({'; '.join(reasons)})"


def _adjust_together(parts: Sequence[tuple[dict[str, Any], Decision]]) -> None:
    members = [(c, decision) for part, decision in parts for c in part["comparisons"] if c["in_family"]]
    adjusted = holm([np.nan if c["p"] is None else c["p"] for c, _ in members])
    for (row, decision), p in zip(members, adjusted, strict=True):
        row["p_holm"] = value(p)
        row["verdict"] = verdict(row, Rules(decision.alpha, "logit", decision.relevant_delta, None))


def _why(comparison: Mapping[str, Any]) -> str:
    if comparison["p"] is None:
        return str(comparison["reason"])
    limits = ("delta", "ci_low", "ci_high")
    shown = {key: "–" if comparison[key] is None else f"{comparison[key]:+.3f}" for key in limits}
    parts = [f"ΔAUC {shown['delta']} ({shown['ci_low']} to {shown['ci_high']}), Holm p {comparison['p_holm']:.3f}"]
    if comparison["min_detectable_delta"] is not None:
        parts.append(f"detectable {comparison['min_detectable_delta']:.3f}")
    return ", ".join([*parts, *([comparison["reason"]] if comparison["reason"] else [])])


def _size_reason(evidence: Mapping[str, Any]) -> str:
    reasons = {m["reason"] for m in evidence["methods"]}
    shared = reasons.pop() if len(reasons) == 1 else None
    return f"; and {shared}" if shared else ""
