"""The files of a report, and a report made anew from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from embedprior.cli import main
from embedprior.errors import BadInput
from embedprior.evidence import evaluate_predictions
from embedprior.report import EvidenceSection, Figure, Report, write_report
from embedprior.report.figures import png
from embedprior.report.output import finish_report, report_html
from embedprior.report.store import load_report
from embedprior.runs import Run, write_json
from embedprior.runs.integrity import changed_files
from embedprior.tables import write_table


@pytest.fixture
def finished(tmp_path: Path, predictions: pd.DataFrame) -> Path:
    """The folder of a run with a table that has numbers, gaps and text, and a picture."""
    from matplotlib.figure import Figure as Canvas

    found = evaluate_predictions(predictions, "cxr_only", oracles=["ct_only"])
    canvas = Canvas()
    canvas.subplots().plot([0, 1])
    odd = pd.DataFrame({"n": [1, 2], "share": [0.25, None], "name": ["é|&", None], "empty": [None, None]})
    report = Report(
        "A study", "Does CT help?", ["Lead."], [EvidenceSection("All", found, predictions, tables=[("Odd", odd, "n")])],
        flow=pd.DataFrame([["read", 60, 60, 0, ""]], columns=["step", "exams", "patients", "dropped", "reason"]),
        tables=[("Odd", odd, "note")], pictures=[Figure("one picture", "caption", png(canvas))], verdict=["One."],
    )  # fmt: skip
    run = Run(tmp_path / "run", "study run", {"lr": 0.1}, 3, {})
    write_table(predictions, run.out / "predictions.csv")
    write_json(run.out / "evidence.json", found)
    finish_report(run, report, [])
    return run.out


def test_a_report_made_anew_is_the_same_page_and_its_run_stays_whole(finished: Path, tmp_path: Path) -> None:
    page, text = ((finished / name).read_text() for name in ("report.html", "report.md"))
    (finished / "report.html").write_text("lost")
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == page
    assert (finished / "report.md").read_text() == text
    record = json.loads((finished / "run.json").read_text())
    assert "figures/roc.png" in record["files"]
    assert list(changed_files(finished, record["files"])) == []
    assert main(["report", str(finished), "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "report.html").read_text() == page


@pytest.mark.parametrize("name", ["predictions.csv", "evidence.json", "report.json"])
def test_what_a_run_left_is_refused_once_it_was_changed(finished: Path, name: str, capsys: Any) -> None:
    page = (finished / "report.html").read_text()
    (finished / name).write_text((finished / name).read_text() + "\n")
    assert main(["report", str(finished)]) == 2
    assert name in capsys.readouterr().err
    assert (finished / "report.html").read_text() == page


def test_a_figure_and_a_record_that_were_changed_are_refused(finished: Path, capsys: Any) -> None:
    for name in ("figures/one_picture.png", "run.json"):
        whole = (finished / name).read_bytes()
        changed = whole.replace(b'"lr": 0.1', b'"lr": 0.2') if name == "run.json" else whole[:-1] + b"\0"
        assert changed != whole
        (finished / name).write_bytes(changed)
        assert main(["report", str(finished), "--out", str(finished.parent / "other")]) == 2
        assert f"{Path(name).name} no longer has the contents" in capsys.readouterr().err
        assert not (finished.parent / "other").exists()
        (finished / name).write_bytes(whole)


def test_a_report_in_another_folder_is_under_a_checksum_too(finished: Path, capsys: Any) -> None:
    other = finished.parent / "other"
    assert main(["report", str(finished), "--out", str(other)]) == 0
    assert main(["verify", str(other)]) == 0
    for name in ("report.html", "report.md", "report.json", "figures/roc.png", "figures/roc.csv", "tables/odd.tex"):
        whole = (other / name).read_bytes()
        (other / name).write_bytes(whole[:-1])
        capsys.readouterr()
        assert main(["verify", str(other)]) == 3
        assert name in capsys.readouterr().out
        (other / name).write_bytes(whole)


def test_folders_without_a_report_and_two_requests_at_once_are_refused(
    finished: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "report.json" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert main(["report", str(finished), "--compare", "a", "b"]) == 2


def test_every_figure_has_its_numbers_and_they_are_the_curve(finished: Path, predictions: pd.DataFrame) -> None:
    drawn = {path.stem for path in (finished / "figures").glob("*.png")}
    numbers = {path.stem for path in (finished / "figures").glob("*.csv")}
    assert drawn - numbers == {"one_picture"}
    assert {"roc", "auc", "differences"} <= numbers
    roc = pd.read_csv(finished / "figures" / "roc.csv")
    own = predictions[predictions["method"] == "prior"]
    fpr, tpr, _ = roc_curve(own["label"], own["score"], drop_intermediate=False)
    curve = roc[(roc["method"] == "prior") & roc["sensitivity"].notna()]
    np.testing.assert_allclose(curve[["false_positive_rate", "sensitivity"]], np.stack([fpr, tpr], axis=1))


def test_every_table_is_csv_and_latex(finished: Path) -> None:
    names = {path.stem for path in (finished / "tables").glob("*.csv")}
    assert {path.stem for path in (finished / "tables").glob("*.tex")} == names
    assert {"auc", "differences", "flow", "odd", "odd_2"} <= names
    text = (finished / "tables" / "odd.tex").read_text()
    assert r"é|\& \\" not in text
    assert r"1 & 0.250 & é|\& & -- \\" in text


def test_a_page_stays_below_five_megabytes_and_says_what_it_left_out(report: Report) -> None:
    rng = np.random.default_rng(0)
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    canvas.subplots().imshow(rng.random((900, 900)))
    noise = png(canvas)
    many = [Figure(f"n{i}", f"picture {i}", noise) for i in range(40)]
    page = report_html(replace(report, pictures=many))
    assert len(noise) * 40 > 5_000_000
    assert 1_000_000 < len(page) < 5_000_000
    assert "Some figures were left out" in page
    assert "Some figures were left out" not in report_html(report)


def test_markdown_names_every_figure_that_is_there(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    linked = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert linked == {f"figures/{path.name}" for path in (finished / "figures").glob("*.png")}


def test_a_lost_picture_is_an_error_with_the_next_command(finished: Path) -> None:
    (finished / "figures" / "one_picture.png").unlink()
    with pytest.raises(BadInput, match=r"one_picture\.png is missing\. Next"):
        load_report(finished)


def test_two_tables_of_one_heading_keep_both_their_files(report: Report, tmp_path: Path) -> None:
    tables = [("Same", pd.DataFrame({"a": [i]}), "") for i in range(3)]
    write_report(tmp_path, replace(report, tables=tables))
    values = sorted(pd.read_csv(path)["a"][0] for path in (tmp_path / "tables").glob("same*.csv"))
    assert values == [0, 1, 2]
