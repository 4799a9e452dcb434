"""A prior that draws the CT embedding of the common space goes through the same verbs as the alignment itself."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from embedprior.cli import main

from .test_alignment import SIDES, train_command, write_cohort


@pytest.mark.slow
def test_the_prior_and_the_alignment_are_compared_on_the_same_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cohort(tmp_path, 600)
    assert main([*train_command(tmp_path), "--alignment.steps", "300", "--alignment.lr", "0.01"]) == 0
    for side in SIDES[:2]:
        words = ["align", "--alignment", str(tmp_path / "alignment"), "--side", side, "--cache", str(tmp_path / side)]
        assert main([*words, "--out", str(tmp_path / f"aligned-{side}")]) == 0
    tables = [word for name in ("exams", "pairs", "splits") for word in (f"--{name}", str(tmp_path / f"{name}.csv"))]
    prior = ["train", "prior", "--config", "aligned", *tables, "--out", str(tmp_path / "prior")]
    prior += ["--condition-cache", str(tmp_path / "aligned-cxr"), "--target-cache", str(tmp_path / "aligned-ct")]
    prior += ["--prior.settings", "given", "--prior.network.preset", "tiny", "--prior.training.steps", "400"]
    assert main(prior) == 0
    drawn = ["generate", "--prior", str(tmp_path / "prior"), "--cache", str(tmp_path / "aligned-cxr")]
    assert main([*drawn, "--out", str(tmp_path / "generated")]) == 0
    systems = [f"aligned={tmp_path / 'aligned-cxr'}", f"generated={tmp_path / 'generated' / 'mean'}"]
    cxr = [word for system in systems for word in ("--cxr", system)]
    retrieval = ["evaluate-embeddings", "retrieval", *cxr, "--ct", str(tmp_path / "aligned-ct"), *tables, "--k", "10"]
    assert main([*retrieval, "--out", str(tmp_path / "retrieval")]) == 0
    probe = [
        "evaluate-embeddings",
        "linear-probe",
        *cxr,
        *tables,
        "--bootstrap",
        "200",
        "--out",
        str(tmp_path / "probe"),
    ]
    assert main(probe) == 0
    print(capsys.readouterr().out)
    found = json.loads((tmp_path / "retrieval" / "retrieval.json").read_text())
    rows = {(r["system"], r["direction"]): r for r in found["rows"] if r["metric"] == "recall"}
    for system in ("aligned", "generated"):
        row = rows[system, "cxr to ct"]
        assert row["ci_low"] > row["chance"], system
    assert {row["system"] for row in found["differences"]} == {"generated"}
    evidence = json.loads((tmp_path / "probe" / "evidence.json").read_text())
    compared = {(row["a"], row["b"], row["label_name"]) for row in evidence["comparisons"]}
    assert ("generated", "aligned", "macro") in compared
    table = pd.read_csv(tmp_path / "probe" / "predictions.csv")
    cases = table[table["split"] == "test"].groupby(["method", "label_name"])["exam_id"].agg(set)
    assert all(cases["aligned", label] == cases["generated", label] for label in table["label_name"].unique())
