from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from embedprior.cache.reader import EmbeddingCache
from embedprior.config import load_config
from embedprior.prior import pairs as pairs_module
from embedprior.prior.config import TrainPriorConfig
from embedprior.prior.main import main, settings_of
from embedprior.prior.model import Prior

from .conftest import make_pairs, small_config

ROOT = Path(__file__).parents[2]


class MatrixCache(EmbeddingCache):
    """A cache whose matrix is given instead of read."""

    def __init__(self, name: str, ids: list[str], matrix: np.ndarray) -> None:
        super().__init__(Path(name), {"encoder": name}, ids, [""] * len(ids), [])
        self.__dict__["matrix"] = matrix


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches, tables and a config of 60 patients; the last 10 are held out and have no CT embedding."""
    data = make_pairs(60, 0)
    cxr, ct = [f"x{i}" for i in range(60)], [f"c{i}" for i in range(60)]
    order = np.random.default_rng(0).permutation(60)
    caches = {
        "cxr-cache": MatrixCache("cxr-cache", [cxr[i] for i in order], data.condition[order]),
        "ct-cache": MatrixCache("ct-cache", ct[:50], data.target[:50]),
    }
    monkeypatch.setattr(pairs_module, "open_cache", lambda path: caches[Path(path).name])
    for name in caches:
        (tmp_path / name).mkdir()
    patients = [f"p{i}" for i in range(60)]
    pd.DataFrame(
        {"pair_id": [f"q{i}" for i in range(60)], "patient_id": patients, "cxr_exam_id": cxr, "ct_exam_id": ct,
         "offset_days": 0, "label_agree": True}
    ).to_csv(tmp_path / "pairs.csv", index=False)  # fmt: skip
    part = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "holdout", "resample": 0, "fold": 0, "part": part}
    ).to_csv(tmp_path / "splits.csv", index=False)
    config = {
        "condition_cache": str(tmp_path / "cxr-cache"), "target_cache": str(tmp_path / "ct-cache"),
        "pairs": str(tmp_path / "pairs.csv"), "splits": str(tmp_path / "splits.csv"),
        "out": str(tmp_path / "out"), "prior": small_config().model_dump(mode="json"),
    }  # fmt: skip
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_trains_from_caches_and_tables_without_the_held_out_patients(study: Path) -> None:
    assert main(["--config", str(study / "prior.yaml"), "--prior.training.steps=12", "--out", str(study / "o")]) == 0
    prior = Prior.load(study / "o")
    assert prior.config.training.steps == 12
    data = make_pairs(60, 0)
    np.testing.assert_allclose(prior.condition_scalers["cxr"].mean, data.condition[:40].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(prior.target_scaler.mean, data.target[:40].mean(axis=0), atol=1e-5)
    assert (study / "o" / "run.json").is_file()


def test_second_stage_starts_from_the_first(study: Path) -> None:
    config = str(study / "prior.yaml")
    assert main(["--config", config, "--source", "drr"]) == 0
    assert main(["--config", config, "--init_from", str(study / "out"), "--out", str(study / "second")]) == 0
    assert sorted(Prior.load(study / "second").condition_scalers) == ["cxr", "drr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior.training.stepz", "5"], "unknown key 'prior.training.stepz'.*Did you mean 'steps'"),
        (["--prior.training.steps", "many"], "'prior.training.steps': .*integer"),
        (["--condition_cache", "gone"], "gone does not exist. Next: embedprior embed"),
        (["--condition_cache", "gone", "--made_by", "make demo"], "gone does not exist. Next: make demo"),
        (["--design", "holdot"], "design 'holdot'. Allowed: holdout. Did you mean 'holdout'"),
        (["--fold", "3"], "fold 3. Allowed: 0"),
        (["--resample", "3"], "resample 3. Allowed: 0"),
        (["--init_from", "nowhere"], "nowhere holds no trained prior"),
        (["extra"], "'extra' was not expected"),
        (["--out"], "--out needs a value"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    study: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(study / "prior.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    import re

    assert re.search(message, error)
    assert not (study / "out").exists()


def test_a_config_without_its_paths_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load((study / "prior.yaml").read_text())
    del data["splits"]
    (study / "bad.yaml").write_text(yaml.safe_dump(data))
    assert main(["--config", str(study / "bad.yaml")]) == 2
    assert "'splits': field required" in capsys.readouterr().err


def test_a_held_out_patient_in_another_part_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = pd.read_csv(study / "splits.csv")
    twice = pd.concat([splits, splits.tail(1).assign(part="train")])
    twice.to_csv(study / "splits.csv", index=False)
    assert main(["--config", str(study / "prior.yaml")]) == 2
    assert "p59" in capsys.readouterr().err


def test_demo_config_names_the_command_that_makes_its_caches() -> None:
    config = load_config(TrainPriorConfig, "demo", "prior")
    assert "make demo" in config.made_by
    assert "embedprior demo --out runs/demo" in config.made_by


def test_help_lists_every_setting_without_torch() -> None:
    code = "import sys; from embedprior.prior.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name, _ in settings_of(TrainPriorConfig)]
    assert "prior.training.lr" in names
    assert all(f"--{name} " in done.stdout for name in names)
