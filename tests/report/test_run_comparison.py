"""Two runs compared from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from embedprior.cli import main
from embedprior.errors import BadInput
from embedprior.report.run_comparison import compare_runs
from embedprior.runs import write_json

SCORES = {"prior": [0.1, 0.4, 0.35, 0.8], "cxr-only": [0.3, 0.2, 0.6, 0.7]}


def _run(
    folder: Path, scores: dict[str, list[float]] = SCORES, label: tuple[int, ...] = (0, 0, 1, 1), *,
    status: str = "done", config: dict[str, Any] | None = None, verdict: str = "not supported",
    design: str | None = "main",
) -> Path:  # fmt: skip
    folder.mkdir()
    rows = [
        {
            "exam_id": f"x{i}", "patient_id": f"p{i}", "label": label[i], "method": method, "score": score, "fold": 0,
            "seed": 1, "split": "test",
        }
        for method, values in scores.items() for i, score in enumerate(values)
    ]  # fmt: skip
    # A validation row with a wild score must not count.
    rows.append(rows[0] | {"exam_id": "v", "split": "val", "score": 99.0})
    frame = pd.DataFrame(rows)
    if design is not None:
        frame = frame.assign(design=design, resample=0)
    frame.to_csv(folder / "predictions.csv", index=False)
    own = {
        "methods": [{"method": m, "auc": 0.75, "ci_low": 0.5, "ci_high": 0.9} for m in scores],
        "comparisons": [{"a": "prior", "b": "cxr-only", "verdict": verdict}],
    }
    write_json(folder / "evidence.json", own if design is None else {"designs": {design: own}})
    record = {"status": status, "command": "study run", "config": config or {"fit": {"lr": 0.1}}, "seed": 3}
    write_json(folder / "run.json", record)
    return folder


@pytest.mark.parametrize("design", ["main", None])
def test_two_equal_runs_are_the_same(tmp_path: Path, design: str | None) -> None:
    found = compare_runs(_run(tmp_path / "a", design=design), _run(tmp_path / "b", design=design))
    assert found.same
    assert not len(found.settings)
    assert not len(found.verdicts)
    assert "same score in both runs" in found.markdown()
    assert "Nothing that was recorded" in found.markdown()


def test_changed_scores_settings_and_verdicts_are_named(tmp_path: Path) -> None:
    a = _run(tmp_path / "a")
    b = _run(
        tmp_path / "b", SCORES | {"prior": [0.1, 0.35, 0.6, 0.8]}, config={"fit": {"lr": 0.2}}, verdict="supported"
    )
    found = compare_runs(a, b)
    assert not found.same
    prior = found.methods.set_index("method").loc["prior"]
    # |.4 − .35| = .05 and |.35 − .6| = .25; ranks 1 3 2 4 and 1 2 3 4: ρ = 1 − 6·2/(4·15) = .8
    assert prior["largest change"] == pytest.approx(0.25)
    assert prior["rank correlation"] == pytest.approx(0.8)
    assert found.methods.set_index("method").loc["cxr-only", "largest change"] == 0
    assert found.settings.to_numpy().tolist() == [["config: fit.lr", "0.1", "0.2"]]
    assert found.verdicts.to_numpy().tolist() == [["main", "prior − cxr-only", "not supported", "supported"]]
    text = found.markdown()
    assert "Methods with other scores: 1 of 2 (largest change 0.250); verdicts that differ: 1." in text
    assert "They differ in config (1)." in text


def test_other_cases_labels_and_methods_are_counted(tmp_path: Path) -> None:
    a = _run(tmp_path / "a", {"prior": [0.1, 0.4, 0.3, 0.8]}, (0, 0, 1, 1))
    b = _run(tmp_path / "b", {"prior": [0.1, 0.4, 0.3], "new": [0.1, 0.2, 0.3]}, (0, 1, 1))
    found = compare_runs(a, b)
    assert found.cases.to_numpy().tolist() == [["main", 3, 1, 0, 1]]
    assert not found.same
    fewer = compare_runs(a, _run(tmp_path / "c", {"prior": [0.1, 0.4, 0.3]}, (0, 0, 1)))
    assert not fewer.same  # the shared scores are equal, the cases are not
    new = found.methods.set_index("method").loc["new"]
    assert new["scores"] == 0
    assert np.isnan(new["largest change"])
    assert new["AUC of A"] == "–"
    assert "ithout a case in common: 1" in found.markdown()


def test_a_change_in_any_version_is_named(tmp_path: Path) -> None:
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    for folder, torch in ((a, "2.6"), (b, "2.7")):
        write_json(folder / "run.json", {"status": "done", "versions": {"torch": torch, "numpy": "2"}})
        write_json(folder / "plan.json", {"code": {"fit": "fit-1", "methods": {"prior": 1 if folder is a else 2}}})
    assert compare_runs(a, b).settings["what"].tolist() == ["code: methods.prior", "versions: torch"]


def test_the_command_prints_writes_and_returns_3_for_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b", SCORES | {"prior": [0.1, 0.4, 0.35, 0.9]})
    assert main(["report", "--compare", str(a), str(a)]) == 0
    capsys.readouterr()
    assert main(["report", "--compare", str(a), str(b), "--out", str(tmp_path / "new" / "c.md")]) == 3
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "new" / "c.md").read_text().strip()
    assert "| main | prior |" in printed


def test_an_unfinished_run_and_another_folder_are_refused(tmp_path: Path) -> None:
    whole = _run(tmp_path / "a")
    with pytest.raises(BadInput, match=r"not finished \(status: stopped\)"):
        compare_runs(whole, _run(tmp_path / "b", status="stopped"))
    (tmp_path / "c").mkdir()
    write_json(tmp_path / "c" / "run.json", {})
    with pytest.raises(BadInput, match=r"predictions\.csv, evidence\.json missing"):
        compare_runs(tmp_path / "c", whole)
