"""The page of ``embedprior evaluate --report``: the one a study writes, from a predictions table alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.report.content import EvidenceSection, Report
from embedprior.report.formatting import comparison_sentence
from embedprior.report.page import write_report
from embedprior.runs import read_json


def write_evaluation_report(out: Path, name: str, evidence: Mapping[str, Any], frame: pd.DataFrame) -> Path:
    """Write ``report.html`` of an evaluation.

    Args:
        out: folder of the evaluation; its ``run.json`` is shown.
        name: of the predictions table.
        evidence: what ``evaluate_predictions`` returned. frame: the table, for the curves.
    """
    declared = [c for c in evidence["comparisons"] if c["in_family"]]
    lead = [comparison_sentence(c, evidence["alpha"]) for c in declared[:MAX_LEAD]]
    if len(declared) > MAX_LEAD:
        lead.append(f"{len(declared) - MAX_LEAD} further comparisons stand below.")
    test = frame[frame["split"].astype(str) == "test"] if "split" in frame.columns else frame
    report = Report(
        title=f"Evaluation of {name}",
        question=f"Does another method score higher than {evidence['reference']}?",
        lead=lead,
        evidence=[EvidenceSection(f"All methods against {evidence['reference']}", evidence, test)],
        run={k: v for k, v in read_json(out / "run.json").items() if k != "uses"},
    )
    return write_report(out, report)


#: Sentences at the top of the page.
MAX_LEAD = 12
