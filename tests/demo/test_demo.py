"""The whole chain at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cli import main
from embedprior.config import load_config
from embedprior.demo.assets import describe, generate
from embedprior.demo.config import CohortConfig, DemoConfig
from embedprior.demo.pipeline import FAMILY, METHODS
from embedprior.tables import PREDICTION_REQUIRED


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    assert main(["demo", "--config", "quick", "--out", str(out), "--seed", "1"]) == 0
    return out


def test_every_method_scores_the_same_held_out_cases(demo: Path) -> None:
    table = pd.read_csv(demo / "predictions.csv")
    assert tuple(table.columns) == PREDICTION_REQUIRED
    test = table[table["split"] == "test"]
    cases = {method: tuple(rows["exam_id"]) for method, rows in test.groupby("method")}
    assert set(cases) == set(METHODS)
    assert len(set(cases.values())) == 1
    assert test["score"].between(0, 1).all()


def test_held_out_patients_are_nowhere_in_training(demo: Path) -> None:
    splits = pd.read_csv(demo / "cohort" / "splits.csv")
    assert splits["patient_id"].is_unique
    held = set(splits.loc[splits["part"] == "test", "patient_id"])
    table = pd.read_csv(demo / "predictions.csv")
    assert set(table.loc[table["split"] == "test", "patient_id"]) == held


def test_evidence_holds_the_declared_family_and_keeps_the_oracle_apart(demo: Path) -> None:
    evidence = json.loads((demo / "evidence.json").read_text())
    assert [tuple(pair) for pair in evidence["family"]] == list(FAMILY)
    assert {m["method"] for m in evidence["methods"] if m["oracle"]} == {"ct-only"}
    assert all(c["min_detectable_delta"] is not None for c in evidence["comparisons"] if c["in_family"])


def test_run_folder_is_complete(demo: Path) -> None:
    record = json.loads((demo / "run.json").read_text())
    assert (record["status"], record["seed"], record["failures"]) == ("done", 1, 0)
    assert record["config"]["cohort"]["test"] == 40
    priors = {one["method"]: one for one in record["priors"]}
    assert set(priors) == {"prior", "prior-shuffled"}
    assert set(priors["prior"]["auc"]) == {"prior", "direct-head"}
    assert "Have the priors learned?" in (demo / "report.html").read_text()
    stages = [json.loads(line)["stage"] for line in (demo / "metrics.jsonl").read_text().splitlines()]
    assert stages[:3] == ["virtual patients", "frozen encoders", "embedding caches"]
    assert "prior" in (demo / "summary.md").read_text()
    page = (demo / "report.html").read_text()
    assert "virtual patients" in page
    assert page.count("data:image/png;base64,") >= 3


def test_same_seed_gives_the_same_predictions_whatever_the_workers(demo: Path, tmp_path: Path) -> None:
    assert main(["demo", "--config", "quick", "--out", str(tmp_path / "again"), "--seed", "1", "--workers", "1"]) == 0
    first, second = ((folder / "predictions.csv").read_bytes() for folder in (demo, tmp_path / "again"))
    assert first == second


def test_another_seed_is_another_population(tmp_path: Path) -> None:
    config = load_config(DemoConfig, "quick", "demo")
    small = config.model_copy(
        update={"cohort": CohortConfig(pretrain_train=2, pretrain_val=2, train=2, val=2, test=4, radiograph_size=48)}
    )
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        generate(small, seed, 1, tmp_path / str(seed))
    volumes = [np.load(tmp_path / str(seed) / "volumes.npy") for seed in (1, 2)]
    assert not np.array_equal(*volumes)
    population = describe(small, tmp_path / "1")
    assert population.flow.loc[0, "patients"] == 12
    assert set(population.exams["modality"]) == {"CT", "DRR", "CXR"}


def test_unknown_setting_is_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("cohort: {trian: 3}\n")
    assert main(["demo", "--config", str(bad), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "unknown key 'cohort.trian'" in error
    assert "Did you mean 'train'?" in error
    assert not (tmp_path / "out").exists()
    assert main(["demo", "--cohort.trian", "3", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean '--cohort.train'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
