"""What was found, on one page: tables, figures, and what may not be concluded."""

from __future__ import annotations

from embedprior.report.content import EmbeddingView, EvidenceSection, Figure, Report
from embedprior.report.markdown import results_table, summary_markdown
from embedprior.report.output import report_html, write_report

__all__ = [
    "EmbeddingView",
    "EvidenceSection",
    "Figure",
    "Report",
    "report_html",
    "results_table",
    "summary_markdown",
    "write_report",
]
