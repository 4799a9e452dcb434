from __future__ import annotations

import re

import pandas as pd
from markdown_it import MarkdownIt

from embedprior.report import Report, results_table, summary_markdown
from embedprior.report.formatting import MAX_ROWS, cell, text_table


def test_oracle_rows_are_a_table_of_their_own(evidence: dict) -> None:
    first, second, *_ = results_table(evidence, {}).split("\n\n")
    assert "ct_only" not in first
    assert second.startswith("| needs CT at inference (oracle) |")
    assert "| ct_only | 0.951 (0.901–1.001) | 253 | 101 / 152 |" in second


def test_a_note_stands_in_its_row(evidence: dict) -> None:
    row = next(line for line in results_table(evidence, {"prior": "50 samples"}).splitlines() if "| prior" in line)
    assert row.endswith("| 50 samples |")


def test_an_undefined_value_points_to_its_reason(evidence: dict) -> None:
    text = results_table(evidence, {})
    assert r"| broken | – \[1\] |" in text
    assert r"\[1\] AUC undefined: only positives (7)" in text


def test_a_footnote_that_only_a_comparison_needs_is_left_to_its_sentence(evidence: dict) -> None:
    evidence["methods"] = [m for m in evidence["methods"] if m["method"] != "broken"]
    evidence["comparisons"] = [c | {"reason": "too few", "p": None} for c in evidence["comparisons"]]
    assert "too few" not in results_table(evidence, {})


def test_the_summary_holds_the_answer_the_readings_and_the_research_use_line(report: Report) -> None:
    text = summary_markdown(report)
    assert text.index("The prior gains 0.041.") < text.index("| cxr_only |")
    assert "- prior better than direct_head: inconclusive: ΔAUC −0.004" in text
    assert "Research use only" in text


def test_texts_come_out_of_a_markdown_renderer_as_they_went_in(hostile: Report) -> None:
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(summary_markdown(hostile))
    assert "<script" not in page
    shown = "&lt;script&gt;alert('1')&lt;/script&gt;|&amp;amp;`x`"
    assert page.count(shown) >= 12
    assert len(re.findall(r"<tr>\s*<td>" + re.escape(shown), page)) == 4


def test_long_tables_are_cut_and_say_so() -> None:
    shown = text_table(pd.DataFrame({"n": range(MAX_ROWS + 5)}))
    assert len(shown.rows) == MAX_ROWS
    assert shown.cut == f"The first {MAX_ROWS} of {MAX_ROWS + 5} rows."


def test_cells_show_counts_as_counts_and_missing_values_as_dashes() -> None:
    frame = pd.DataFrame({"n": [12.0, None], "auc": [0.81239, float("nan")], "ok": [True, False]})
    assert text_table(frame).rows == [["12", "0.812", "yes"], ["–", "–", "no"]]
    ones = pd.DataFrame({"auc 1": [0.5, 0.75], "auc 2": [1.0, 1.0], "n": [3.0, None]})
    assert text_table(ones).rows == [["0.500", "1.000", "3"], ["0.750", "1.000", "–"]]
    assert [cell(v) for v in (-0.5, 1e-5, None, "a")] == ["−0.500", "1.0e−05", "–", "a"]
