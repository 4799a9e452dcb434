from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.errors import BadInput
from embedprior.evidence import evaluate_predictions
from embedprior.report import (
    EmbeddingView,
    EvidenceSection,
    Figure,
    Report,
    report_html,
    summary_markdown,
    write_report,
)
from embedprior.report.content import results
from embedprior.report.formatting import p_value


def test_the_page_is_written_with_what_it_is_made_from_and_nothing_else(report: Report, tmp_path: Path) -> None:
    path = write_report(tmp_path / "run", report)
    assert path == tmp_path / "run" / "report.html"
    found = {file.name for file in path.parent.iterdir()}
    assert found == {"report.html", "report.md", "report.json", "figures", "tables"}


def test_the_answer_stands_before_the_tables_figures_and_provenance(report: Report, read_page) -> None:
    full = replace(report, flow=pd.DataFrame({"step": ["paired"]}), caveats=["One site."], run={"version": "9.8.7"})
    text = read_page(report_html(full)).text
    places = [
        text.index(part)
        for part in ("The prior gains", "One site.", "paired", "0.781 (0.731–0.831)", "ROC curves on", "9.8.7")
    ]
    assert places == sorted(places)


def test_oracle_rows_stand_in_their_own_group(report: Report, read_page) -> None:
    assert read_page(report_html(report)).groups == {
        "needs the X-ray only": ["cxr_only", "prior", "direct_head", "broken"],
        "needs CT at inference (oracle)": ["ct_only"],
    }


def test_comparisons_with_an_oracle_come_after_the_others_under_their_own_heading(report: Report, read_page) -> None:
    text = read_page(report_html(report)).text
    heading = text.index("Comparisons with a row that needs CT at inference (oracle)")
    assert text.index("ct_only against cxr_only") > heading
    assert text.index("prior better than cxr_only: supported") < heading


def test_an_undefined_auc_is_a_dash_whose_reason_is_a_footnote(report: Report, read_page) -> None:
    page = read_page(report_html(report))
    note = next(a["id"] for tag, a in page.elements if tag == "li" and (a.get("id") or "").endswith("-note-1"))
    assert [a["href"] for _, a in page.elements if a.get("href") == f"#{note}"]
    assert page.text.count("AUC undefined: only positives (7)") == 2
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_every_row_has_its_patients_positives_and_negatives(report: Report, read_page) -> None:
    text = read_page(report_html(report)).text
    assert text.count("253 101 / 152") == 5
    assert text.count("253 patients, 101 pos / 152 neg.") == 4


def test_a_note_stands_beside_its_row(report: Report, read_page) -> None:
    assert "prior mean of 50 samples 0.822" in read_page(report_html(report)).text


def test_no_text_becomes_markup(hostile: Report, read_page) -> None:
    page = read_page(report_html(hostile))
    assert [attributes for tag, attributes in page.elements if tag == "script"] == [{}]
    assert page.text.count("<script>alert('1')</script>|&amp;`x`") >= 12


def test_nothing_is_loaded_from_anywhere(report: Report, read_page) -> None:
    page = read_page(report_html(report))
    addresses = [a[key] or "" for _, a in page.elements for key in ("src", "href", "srcset", "action") if key in a]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base"}
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors
    source = report_html(report)
    assert "url(" not in source.replace("url(#arrow)", "")
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in source
    assert "@import" not in source
    assert "http:" not in source
    assert "https:" not in source


def test_every_image_decodes_shows_something_and_is_described(report: Report, read_page) -> None:
    rng = np.random.default_rng(0)
    view = EmbeddingView(*(rng.normal(size=(30, 6)) for _ in range(3)), labels=np.repeat([0.0, 1.0], 15))
    images = [a for tag, a in read_page(report_html(replace(report, embeddings=view))).elements if tag == "img"]
    assert len(images) == 4  # ROC curves, AUCs, their differences, the map
    for image in images:
        picture = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",", 1)[1])))
        assert picture.size == (int(image["width"] or 0), int(image["height"] or 0))
        assert np.asarray(picture.convert("L")).std() > 5
        assert image["alt"]


def test_a_figure_of_several_panels_is_not_squeezed_into_a_column(report: Report, read_page) -> None:
    def drawn(name: str, width: int) -> Figure:
        out = io.BytesIO()
        Image.new("L", (width, 300)).save(out, "PNG")
        return Figure(name, name, out.getvalue())

    page = read_page(report_html(replace(report, evidence=[], lead_figures=[drawn("one", 884), drawn("three", 1326)])))
    assert [a.get("class") for tag, a in page.elements if tag == "figure"] == [None, "broad"]


def test_methods_without_any_interval_get_no_figure(report: Report, evidence: dict, read_page) -> None:
    bare = evidence | {"methods": [m | {"ci_low": None, "ci_high": None} for m in evidence["methods"]]}
    page = read_page(report_html(replace(report, evidence=[replace(report.evidence[0], evidence=bare)])))
    assert not any(tag == "img" for tag, _ in page.elements)
    assert "no AUC here has an interval" in page.text


def test_a_picture_that_is_no_png_is_refused_before_anything_is_written(report: Report, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a phantom"):
        write_report(tmp_path / "run", replace(report, pictures=[Figure("x", "a phantom", b"GIF89a")]))
    assert not (tmp_path / "run").exists()


def test_skipped_items_are_listed_with_their_reason(report: Report, read_page) -> None:
    failed = pd.DataFrame({"exam_id": ["e7"], "reason": ["truncated file"]})
    assert "e7 truncated file" in read_page(report_html(replace(report, failures=failed))).text
    assert "Nothing was skipped." in read_page(report_html(report)).text


def test_research_use_only_is_said(report: Report, read_page) -> None:
    assert "Research use only" in read_page(report_html(report)).text


def test_an_empty_report_is_still_a_page(read_page) -> None:
    assert "No finding was recorded." in read_page(report_html(Report("t", "q", [], []))).text


def test_what_the_evaluation_returns_can_be_shown(predictions: pd.DataFrame, read_page) -> None:
    found = evaluate_predictions(predictions, "cxr_only", oracles=["ct_only"])
    page = read_page(report_html(Report("t", "q", ["a"], [EvidenceSection("h", found, predictions)])))
    assert page.groups["needs CT at inference (oracle)"] == ["ct_only"]
    auc = next(m["auc"] for m in found["methods"] if m["method"] == "prior")
    assert f"prior {auc:.3f} (" in page.text
    assert "60 patients, 30 pos / 30 neg" in page.text


def test_a_declared_pair_is_not_shown_the_other_way_round_too(predictions: pd.DataFrame) -> None:
    found = evaluate_predictions(predictions, "prior", [("prior", "cxr_only")], oracles=["ct_only"])
    assert ("cxr_only", "prior") in [(c["a"], c["b"]) for c in found["comparisons"]]
    shown = [(row.a, row.b) for row in results(found).comparisons]
    assert shown == [("prior", "cxr_only"), ("direct_head", "prior")]


def test_models_of_folds_count_as_fixed_and_the_page_and_the_summary_say_so(
    predictions: pd.DataFrame, read_page
) -> None:
    number = pd.factorize(predictions["exam_id"])[0]
    folded = predictions.assign(fold=number % 5)
    found = evaluate_predictions(folded, "cxr_only", oracles=["ct_only"])
    report = Report("t", "q", ["a"], [EvidenceSection("h", found, folded)])
    (row,) = [c for c in found["comparisons"] if c["a"] == "prior"]
    for text in (read_page(report_html(report)).text, summary_markdown(report)):
        plain = text.replace("\u00a0", " ")
        assert "Models count as fixed" in plain
        assert f"paying for the choice of training cases {p_value(row['corrected']['p'])} (Nadeau-Bengio over" in plain
    whole = evaluate_predictions(predictions.drop(columns="fold", errors="ignore"), "cxr_only")
    assert "count as fixed" not in summary_markdown(Report("t", "q", [], [EvidenceSection("h", whole, predictions)]))


def test_labels_are_told_apart_when_there_are_several(predictions: pd.DataFrame, read_page) -> None:
    both = pd.concat([predictions.assign(label_name=name) for name in ("oedema", "effusion")])
    found = evaluate_predictions(both, "cxr_only", oracles=["ct_only"])
    page = read_page(report_html(Report("t", "q", ["a"], [EvidenceSection("h", found, both)])))
    assert "prior · oedema" in page.text
    assert "effusion: prior" in page.text
    assert "ROC curves on the held-out cases for effusion" in page.text


def test_what_the_evaluation_warns_of_is_said_above_its_table(report: Report, evidence: dict, read_page) -> None:
    warned = evidence | {"warnings": ["3 cases with an unknown label were left out"]}
    text = read_page(report_html(replace(report, evidence=[replace(report.evidence[0], evidence=warned)]))).text
    assert text.index("3 cases with an unknown label") < text.index("0.781 (0.731–0.831)")


def test_counts_averaged_over_resamples_are_not_shown_as_counts(report: Report, evidence: dict, read_page) -> None:
    rows = [m | {"n_patients": 6.875, "n_pos": 5.875, "n_neg": 1.0, "n_resamples": 8} for m in evidence["methods"]]
    text = read_page(
        report_html(replace(report, evidence=[replace(report.evidence[0], evidence=evidence | {"methods": rows})]))
    ).text
    assert "8 resamples (mean counts) 6.9 5.9 / 1" in text
