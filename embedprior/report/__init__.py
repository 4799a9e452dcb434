"""What was found, on one page: tables, figures, and what may not be concluded."""

from __future__ import annotations

from embedprior.report.content import EmbeddingView, EvidenceSection, Report
from embedprior.report.page import report_html, results_table, summary_markdown, write_report

__all__ = [
    "EmbeddingView",
    "EvidenceSection",
    "Report",
    "report_html",
    "results_table",
    "summary_markdown",
    "write_report",
]
