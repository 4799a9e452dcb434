from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from embedprior.config import load_config
from embedprior.prior.config import TrainPriorConfig

RECIPE = Path(__file__).parents[2] / "pretrain" / "phantom"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("phantom_pairs", RECIPE / "pairs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """Ten patients with a CT: the first four have a DRR, the others a radiograph."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    patients = [f"p{i}" for i in range(10)]
    kinds = ["DRR"] * 4 + ["CXR"] * 6
    pictures = pd.DataFrame({"exam_id": [f"x{i}" for i in range(10)], "patient_id": patients, "modality": kinds})
    scans = pd.DataFrame({"exam_id": [f"c{i}" for i in range(10)], "patient_id": patients, "modality": "CT"})
    pd.concat([pictures, scans]).assign(path="x").to_csv(folder / "exams.csv", index=False)
    pd.DataFrame(
        {"pair_id": patients, "patient_id": patients, "cxr_exam_id": pictures["exam_id"],
         "ct_exam_id": scans["exam_id"], "offset_days": 0, "label_agree": True}
    ).to_csv(folder / "pairs.csv", index=False)  # fmt: skip
    part = ["train", "train", "train", "val", "train", "train", "train", "train", "val", "test"]
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "fixed", "resample": 0, "fold": 0, "part": part}
    ).to_csv(folder / "splits.csv", index=False)
    return tmp_path


def run(recipe: ModuleType, demo: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, list[str]]:
    monkeypatch.setattr("sys.argv", ["pairs.py", "--demo", str(demo), "--out", str(demo / "out"), *more])
    assert recipe.main() == 0
    return {k: pd.read_csv(demo / "out" / f"pairs-{k}.csv")["patient_id"].tolist() for k in ("drr", "cxr")}


def test_the_pairs_are_told_apart_by_the_radiograph(
    recipe: ModuleType, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(recipe, demo, monkeypatch)
    assert found == {"drr": ["p0", "p1", "p2", "p3"], "cxr": ["p4", "p5", "p6", "p7", "p8", "p9"]}


def test_fewer_pairs_leave_validation_and_held_out_pairs_alone(
    recipe: ModuleType, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [run(recipe, demo, monkeypatch, "--pairs", "2", "--seed", str(seed))["cxr"] for seed in range(8)]
    for patients in kept:
        assert len(patients) == 4
        assert patients[-2:] == ["p8", "p9"]
    assert {patient for patients in kept for patient in patients[:2]} == {"p4", "p5", "p6", "p7"}


def test_a_missing_demo_names_the_next_command(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pairs.py", "--demo", str(tmp_path)])
    assert recipe.main() == 2
    assert "Next: embedprior demo" in capsys.readouterr().err


def test_the_second_stage_starts_where_the_first_one_ends() -> None:
    first, second = (
        load_config(TrainPriorConfig, str(RECIPE / f"{name}.yaml"), "prior") for name in ("pretrain", "finetune")
    )
    assert (first.source, second.source) == ("drr", "cxr")
    assert second.init_from == first.out
    assert first.prior.network == second.prior.network
    assert first.prior.process == second.prior.process
    assert first.pairs != second.pairs
