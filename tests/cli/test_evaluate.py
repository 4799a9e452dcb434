"""``embedprior evaluate`` and ``embedprior power`` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cli import main
from embedprior.evidence.power import Design
from embedprior.runs import read_json


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    label = (np.arange(60) % 2 == 0).astype(int)
    parts = [
        pd.DataFrame(
            {
                "exam_id": [f"e{i}" for i in range(60)],
                "patient_id": [f"p{i}" for i in range(60)],
                "label": label,
                "method": m,
                "score": 1 / (1 + np.exp(-(rng.normal(size=60) + shift * label))),
            }
        )
        for m, shift in (("cxr_only", 0.6), ("prior", 1.6), ("ct", 2.0))
    ]
    path = tmp_path / "predictions.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_evaluate_writes_evidence_tables_and_figures(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(predictions), "--reference", "cxr_only", "--oracle", "ct", "--bootstrap", "50"]
    assert main([*words, "--out", str(out)]) == 0
    evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["family"] == [["prior", "cxr_only"]]
    assert evidence["comparisons"][0]["p_holm"] is not None
    for name in ("table.md", "table.tex", "roc.png", "precision_recall.png", "calibration.png", "decision.png"):
        assert (out / name).stat().st_size > 0
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["status"] == "done"


@pytest.mark.parametrize(
    ("line", "old", "new"), [(5, None, "nan"), (9, None, "much"), (12, "label", "3"), (30, "exam", "e1")]
)
def test_one_bad_row_is_exit_2_names_the_row_and_writes_nothing(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: int, old: str | None, new: str
) -> None:
    rows = predictions.read_text(encoding="utf-8").splitlines()
    cells = rows[line - 1].split(",")
    cells[{"exam": 0, "label": 2, None: 4}[old]] = new
    rows[line - 1] = ",".join(cells)
    predictions.write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    assert main(["evaluate", str(predictions), "--reference", "cxr_only", "--out", str(out)]) == 2
    assert f"line {line}" in capsys.readouterr().err
    assert not out.exists()


def test_missing_cases_and_unknown_names_are_exit_2(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["evaluate", str(predictions), "--reference", "cxronly", *out]) == 2
    assert "Did you mean 'cxr_only'" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "no.csv"), *out]) == 2
    rows = predictions.read_text(encoding="utf-8").splitlines()
    predictions.write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    assert main(["evaluate", str(predictions), *out]) == 2
    assert "'e59'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wide_table_gives_the_same_evidence(predictions: Path, tmp_path: Path) -> None:
    long = pd.read_csv(predictions)
    wide = long.pivot(index=["patient_id", "label"], columns="method", values="score").reset_index()
    wide.to_csv(tmp_path / "wide.csv", index=False)
    found = []
    for path, flags in ((predictions, []), (tmp_path / "wide.csv", ["--method-columns"])):
        out = tmp_path / f"out{len(found)}"
        options = ["--reference", "cxr_only", "--no-bootstrap", "--no-figures", *flags, "--out", str(out)]
        assert main(["evaluate", str(path), *options]) == 0
        rows = json.loads((out / "evidence.json").read_text(encoding="utf-8"))["methods"]
        found.append({r["method"]: r["auc"] for r in rows})
    assert found[0] == pytest.approx(found[1])


def test_claims_report_and_other_options_reach_the_results(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(predictions), "--reference", "cxr_only", "--oracle", "ct", "--no-bootstrap", "--report"]
    words += ["--claim", "prior > cxr_only", "--claim", "prior >= cxr_only - .03", "--alpha", ".1", "--threshold", ".5"]
    assert main([*words, "--prevalence", ".05", "--proportion-ci", "clopper-pearson", "--out", str(out)]) == 0
    evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["claims"] == ["prior > cxr_only", "prior >= cxr_only - 0.03"]
    assert evidence["alpha"] == 0.1
    table, page = ((out / name).read_text(encoding="utf-8") for name in ("table.md", "report.html"))
    verdict = evidence["comparisons"][1]["verdict"]
    row = next(line for line in table.splitlines() if line.startswith("| prior >= cxr_only - 0.03 |"))
    assert row.endswith(f"| {verdict} |")
    assert "ΔAUC (90 % CI)" in table
    assert "Sens. at spec." in table
    assert "ECE" in table
    assert "prior not worse than cxr_only by 0.03" in page.replace("\u00a0", " ")
    assert {"report.html", "report.json", "figures/roc.png"} <= set(read_json(out / "run.json")["files"])
    assert main(["verify", str(out)]) == 0


def test_oracles_of_the_registry_are_known_without_being_named(tmp_path: Path, predictions: Path) -> None:
    frame = pd.read_csv(predictions).replace({"method": {"ct": "ct-only", "cxr_only": "cxr-only"}})
    path = tmp_path / "renamed.csv"
    frame.to_csv(path, index=False)
    out = tmp_path / "out"
    options = ["--reference", "cxr-only", "--no-bootstrap", "--no-figures", "--out", str(out)]
    assert main(["evaluate", str(path), *options]) == 0
    evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    assert (evidence["oracles"], evidence["family"]) == (["ct-only"], [["prior", "cxr-only"]])
    assert any("ct-only needs CT at inference" in w for w in evidence["warnings"])


def test_three_hundred_methods_print_no_thousand_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    scores = pd.DataFrame(rng.random((24, 300)), columns=[f"m{i}" for i in range(300)])
    scores.insert(0, "label", np.arange(24) % 2)
    scores.insert(0, "patient_id", [f"p{i}" for i in range(24)])
    scores.to_csv(tmp_path / "many.csv", index=False)
    options = ["--no-bootstrap", "--no-figures", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(tmp_path / "many.csv"), "--method-columns", *options]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 400
    assert "of 300 rows; evidence.json holds all" in printed
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))
    assert len(evidence["comparisons"]) == 299


def test_power_prints_the_detectable_difference(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["power", "--pos", "23", "--neg", "63", "--auc", ".8", "--correlation", ".5", "--comparisons", "9"]
    assert main(words) == 0
    text = capsys.readouterr().out
    design = Design(23, 63, 0.8, 0.5, comparisons=9)
    smallest, first = design.minimum_detectable(), design.minimum_detectable(first_holm_step=True)
    assert f"{smallest:.3f}  (80% power" in text
    assert f"Holm's first step of 9         {first:.3f}" in text
    assert main([*words, "--delta", ".1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["min_detectable_delta"] == pytest.approx(smallest)
    assert found["patients_needed"]["pos"] > 23
    assert main(["power", "--pos", "23", "--neg", "63", "--auc", "1.2"]) == 2
    assert "auc" in capsys.readouterr().err
