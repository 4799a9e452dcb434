"""The page of ``embedprior evaluate --report``: the one a study writes, from a predictions table alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.report.content import EvidenceSection, Report
from embedprior.report.output import write_report
from embedprior.report.store import shown_record
from embedprior.report.verdicts import verdict_sentences
from embedprior.runs import read_json


def write_evaluation_report(out: Path, name: str, evidence: Mapping[str, Any], frame: pd.DataFrame) -> Path:
    """Write ``report.html`` of an evaluation.

    Args:
        out: folder of the evaluation; its ``run.json`` is shown.
        name: of the predictions table.
        evidence: what ``evaluate_predictions`` returned. frame: the table, for the curves.
    """
    test = frame[frame["split"].astype(str) == "test"] if "split" in frame.columns else frame
    report = Report(
        title=f"Evaluation of {name}",
        question=f"Does another method score higher than {evidence['reference']}?",
        verdict=verdict_sentences(evidence),
        lead=[],
        evidence=[EvidenceSection(f"All methods against {evidence['reference']}", evidence, test)],
        run=shown_record(read_json(out / "run.json")),
    )
    return write_report(out, report)
