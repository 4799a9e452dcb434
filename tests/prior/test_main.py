from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from embedprior import cli
from embedprior.cache import write_cache
from embedprior.cache.reader import EmbeddingCache
from embedprior.config import load_config, settings_of
from embedprior.encoders.base import EncoderSpec, key8
from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.prior import data as pairs_module
from embedprior.prior import trainer
from embedprior.prior.config import NetworkConfig, TrainPriorConfig
from embedprior.prior.data import conditions, read_pairs
from embedprior.prior.model import Prior
from embedprior.teachers.teacher import Teacher, train_head

from .conftest import make_pairs, small_config

ROOT = Path(__file__).parents[2]


def main(words: list[str]) -> int:
    return cli.main(["train", "prior", *words])


class MatrixCache(EmbeddingCache):
    """A cache whose matrix is given instead of read."""

    patients_seen = None

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
    monkeypatch.setattr(pairs_module, "open_verified", lambda path: caches[Path(path).name])
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


def test_teacher_and_labels_reach_the_objective_and_the_validation(study: Path) -> None:
    data = make_pairs(60, 0)
    positive = (data.target[:, 0] > 3.0).astype(float)
    config = FitConfig(hidden=4, steps=20)
    train_head(data.target[:40], positive[:40], data.target[40:], positive[40:], config, 0).save(study)
    exams = pd.concat([
        pd.DataFrame({"exam_id": [f"{kind}{i}" for i in range(60)], "modality": name, "label:ill": positive})
        for kind, name in (("c", "CT"), ("x", "CXR"))
    ])  # fmt: skip
    exams.assign(patient_id="p", path="x").to_csv(study / "exams.csv", index=False)
    arguments = ["--config", str(study / "prior.yaml"), "--exams", str(study / "exams.csv"), "--label", "ill"]
    arguments += ["--teacher", str(study), "--prior.objective.bce", "0.2", "--prior.objective.proto", "0.1"]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (study / "out" / "metrics.jsonl").read_text().splitlines()]
    trained, validated = ([line for line in lines if line["event"] == event] for event in ("train", "validation"))
    assert trained[0]["loss/bce"] > 0
    assert trained[0]["loss/proto"] > 0
    assert 0.0 <= validated[-1]["val/teacher_auc"] <= 1.0
    assert json.loads((study / "out" / "run.json").read_text())["inputs"].keys() >= {"teacher", "exams"}
    assert main([*arguments[:4], "--label", "il", "--out", str(study / "o")]) == 2
    assert main([*arguments[:4], "--source", "drr", "--out", str(study / "o")]) == 2


def test_pairs_of_another_kind_of_radiograph_are_left_out(study: Path) -> None:
    rows = [(f"x{i}", "p", "DRR" if i % 3 == 0 else "CXR", "x") for i in range(60)]
    pd.DataFrame(rows, columns=["exam_id", "patient_id", "modality", "path"]).to_csv(study / "exams.csv", index=False)
    given = yaml.safe_load((study / "prior.yaml").read_text()) | {"exams": str(study / "exams.csv")}
    for source, kept in (("cxr", [i for i in range(40) if i % 3]), ("drr", list(range(0, 40, 3)))):
        train, _, _ = read_pairs(TrainPriorConfig.model_validate(given | {"source": source}))
        assert train.ids == [f"q{i}" for i in kept]
    nothing = pd.read_csv(study / "exams.csv").replace("DRR", "CXR")
    nothing.to_csv(study / "exams.csv", index=False)
    with pytest.raises(BadInput, match=r"no pair whose 'cxr_exam_id' is a DRR.*it has 60 CXR"):
        read_pairs(TrainPriorConfig.model_validate(given | {"source": "drr"}))


def test_labels_are_those_of_the_ct_unless_the_radiographs_are_asked_for(study: Path) -> None:
    rows = [(f"{kind}{i}", "p", "CT" if kind == "c" else "CXR", "x", i % 2 if kind == "c" else 1 - i % 2)
            for kind in "cx" for i in range(59)]  # fmt: skip
    names = ["exam_id", "patient_id", "modality", "path", "label:ill"]
    pd.DataFrame(rows, columns=names).to_csv(study / "exams.csv", index=False)
    given = yaml.safe_load((study / "prior.yaml").read_text()) | {"exams": str(study / "exams.csv"), "label": "ill"}
    train, val, _ = read_pairs(TrainPriorConfig.model_validate(given))
    assert train.labels is not None
    np.testing.assert_array_equal(train.labels, np.arange(40) % 2)
    assert train.patients == [f"p{i}" for i in range(40)]
    flipped, _, _ = read_pairs(TrainPriorConfig.model_validate(given | {"label_of": "cxr"}))
    np.testing.assert_array_equal(flipped.labels, 1 - np.arange(40) % 2)
    assert val.labels is not None
    assert train.encoders == tuple(f"{name}@{key8({'encoder': name})}" for name in ("cxr-cache", "ct-cache"))


def test_a_second_view_is_a_second_token_and_a_missing_one_is_masked(study: Path) -> None:
    pairs = pd.read_csv(study / "pairs.csv", dtype=str)
    pairs["lateral_exam_id"] = [f"x{59 - i}" if i % 2 else "" for i in range(60)]
    pairs.to_csv(study / "pairs.csv", index=False)
    given = yaml.safe_load((study / "prior.yaml").read_text()) | {"views": ["cxr_exam_id", "lateral_exam_id"]}
    train, val, _ = read_pairs(TrainPriorConfig.model_validate(given))
    data = make_pairs(60, 0)
    assert train.condition.shape == (40, 2, 5)
    assert train.condition_mask is not None
    np.testing.assert_array_equal(train.condition_mask, [[True, bool(i % 2)] for i in range(40)])
    np.testing.assert_array_equal(train.condition[3], data.condition[[3, 56]])
    np.testing.assert_array_equal(train.condition[4], [data.condition[4], np.zeros(5)])
    assert val.condition.shape == (10, 2, 5)
    pairs.loc[0, "cxr_exam_id"] = ""
    pairs.to_csv(study / "pairs.csv", index=False)
    with pytest.raises(BadInput, match="1 pairs have no 'cxr_exam_id'"):
        read_pairs(TrainPriorConfig.model_validate(given))


def test_a_token_cache_gives_every_exam_as_many_tokens_as_it_has(tmp_path: Path) -> None:
    spec = EncoderSpec(
        name="patches", modality="CXR", dim=5, source="", weights_sha256="none", licence="", profile={}, pooling="none",
        token_dim=5,
    )  # fmt: skip
    rows = [np.arange(5 * count, dtype=np.float32).reshape(count, 5) + 100 * count for count in (3, 1, 2)]
    cache = write_cache(tmp_path, spec, ["a", "b", "c"], ["1", "2", "3"], rows, tokens=True)
    condition, mask = conditions(cache, pd.DataFrame({"cxr_exam_id": ["c", "a", "b"]}))
    assert mask is not None
    assert mask.sum(axis=1).tolist() == [2, 3, 1]
    for row, number in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(condition[row][mask[row]], rows[number])
        assert not condition[row][~mask[row]].any()


def test_fewer_processes_than_asked_for_is_an_error(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedprior.runs.distributed._accelerate_num_processes", lambda: 2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert main(["--config", str(study / "prior.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "2 processes were asked for, 1 started" in error
    assert "torchrun --nproc_per_node 2 -m embedprior train prior" in error
    assert "exit code 2; accelerate launch makes 1 of it" in error


def test_a_fault_of_the_input_is_told_by_one_process(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["--config", str(study / "prior.yaml"), "--fold", "9"]) == 2
    assert capsys.readouterr().err == ""


def test_every_setting_of_the_command_is_read(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    plain = TrainPriorConfig.__getattribute__

    def spy(self: TrainPriorConfig, name: str) -> object:
        caller = sys._getframe(1).f_code.co_filename
        if "pydantic" not in caller and not caller.endswith("config.py"):
            read.add(name)
        return plain(self, name)

    monkeypatch.setattr(TrainPriorConfig, "__getattribute__", spy)
    rows = [(f"{kind}{i}", "p", name, "x", 1) for kind, name in (("c", "CT"), ("x", "CXR")) for i in range(60)]
    exams = pd.DataFrame(rows, columns=["exam_id", "patient_id", "modality", "path", "label:ill"])
    exams.to_csv(study / "exams.csv", index=False)
    config = ["--config", str(study / "prior.yaml"), "--prior.training.steps", "2"]
    assert main([*config, "--exams", str(study / "exams.csv"), "--label", "ill"]) == 0
    assert main([*config, "--condition-cache", "gone"]) == 2
    assert set(TrainPriorConfig.model_fields) <= read


def test_second_stage_starts_from_the_first(study: Path) -> None:
    config = str(study / "prior.yaml")
    assert main(["--config", config, "--source", "drr"]) == 0
    assert main(["--config", config, "--init-from", str(study / "out"), "--out", str(study / "second")]) == 0
    assert sorted(Prior.load(study / "second").condition_scalers) == ["cxr", "drr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior.training.stepz", "5"], "unknown option '--prior.training.stepz'.*'--prior.training.steps'"),
        (["--prior.training.steps", "many"], "'prior.training.steps': .*integer"),
        (["--condition-cache", "gone"], "gone does not exist. Next: embedprior embed"),
        (["--condition-cache", "gone", "--made-by", "make demo"], "gone does not exist. Next: make demo"),
        (["--design", "holdot"], "design 'holdot'. Allowed: holdout. Did you mean 'holdout'"),
        (["--fold", "3"], "fold 3. Allowed: 0"),
        (["--resample", "3"], "resample 3. Allowed: 0"),
        (["--init-from", "nowhere"], "nowhere holds no trained prior"),
        (["--teacher", "nowhere"], "nowhere holds no CT head.*Next: embedprior train teacher"),
        (["--prior.objective.bce", "0.2"], "no teacher was given.*--teacher DIR"),
        (["--prior.objective.proto", "0.2"], "--exams exams.csv --label NAME"),
        (["--label", "ill"], "label needs exams"),
        (["--views", "[lateral]"], "missing column 'lateral'"),
        (["--trackers", "[mlflow]"], "tracker 'mlflow' is not installed. Next: pip install mlflow"),
        (["extra"], r"unexpected extra argument \(extra\)"),
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


def test_the_papers_recipe_loads_with_its_published_numbers() -> None:
    prior = load_config(TrainPriorConfig, "pe_paper", "prior").prior
    assert (prior.process.null_branch, prior.process.timesteps, prior.objective.bce) == ("drops_both", 64, 0.2)
    assert prior.network.size == NetworkConfig(preset="prior-49m").size


def test_help_lists_every_setting_without_torch() -> None:
    code = (
        "import sys; from embedprior import cli; cli.main(['train', 'prior', '-h']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [setting.name for setting in settings_of(TrainPriorConfig)]
    assert "prior.training.lr" in names
    assert all(f"--{name.replace('_', '-')} " in done.stdout for name in names)


def test_pairs_without_embedding_are_dropped_counted_and_end_with_exit_3(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pd.read_csv(study / "pairs.csv")
    pairs.loc[[3, 45], "cxr_exam_id"] = ["unreadable-a", "unreadable-b"]  # one trains, one chooses
    pairs.to_csv(study / "pairs.csv", index=False)
    assert main(["--config", str(study / "prior.yaml")]) == 3
    out = study / "out"
    assert json.loads((out / "run.json").read_text())["pairs"] == {"train": 39, "val": 9}
    assert pd.read_csv(out / "failures.csv")["exam_id"].tolist() == ["unreadable-a", "unreadable-b"]
    shown = capsys.readouterr().err
    assert "2 exams were left out (failures.csv): unreadable-a, unreadable-b" in shown
    assert "id you mean" not in shown


def with_parts(study: Path, parts: list[str], name: str) -> str:
    """Write a split table of the study's patients, and return its path."""
    splits = pd.read_csv(study / "splits.csv").assign(part=parts)
    splits.to_csv(study / name, index=False)
    return str(study / name)


def test_a_prior_to_start_from_must_not_have_learned_from_held_out_patients(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(study / "prior.yaml"), "--prior.training.steps=4"]
    assert main([*words, "--out", str(study / "first")]) == 0
    seen = json.loads((study / "first" / "run.json").read_text())["patients_seen"]
    assert seen == {"train": sorted(f"p{i}" for i in range(40)), "val": sorted(f"p{i}" for i in range(40, 50))}
    second = [*words, "--init-from", str(study / "first"), "--out", str(study / "second")]
    capsys.readouterr()
    # p1 trained the first stage; p41 chose its step
    for patient in (1, 41):
        parts = ["train"] * 30 + ["val"] * 20 + ["test"] * 10
        parts[:40] = ["train"] * 40
        parts[patient] = "test"
        assert main([*second, "--splits", with_parts(study, parts, "other.csv")]) == 2
        said = capsys.readouterr().err
        assert f"learned from 1 patients of part 'test' (such as 'p{patient}'). Next: train it without them" in said
        assert not (study / "second").exists()
    # one who trained it may not choose the weight of its stage either; one who chose then may choose again
    parts = ["train"] * 39 + ["val"] * 11 + ["test"] * 10
    assert main([*second, "--splits", with_parts(study, parts, "other.csv")]) == 2
    assert "learned from 1 patients of part 'val' (such as 'p39')" in capsys.readouterr().err
    # the second stage learns from half of the first's patients; a third asks for the others, too
    pairs = pd.read_csv(study / "pairs.csv")
    pairs.iloc[[*range(20), *range(40, 50)]].to_csv(study / "half.csv", index=False)
    assert main([*second, "--pairs", str(study / "half.csv")]) == 0
    assert "doesn't say" not in capsys.readouterr().out
    parts = ["train"] * 20 + ["test"] * 20 + ["val"] * 10 + ["train"] * 10
    third = [*words, "--init-from", str(study / "second"), "--out", str(study / "third")]
    assert main([*third, "--pairs", str(study / "half.csv"), "--splits", with_parts(study, parts, "other.csv")]) == 2
    assert "learned from 20 patients of part 'test' (such as 'p20')" in capsys.readouterr().err


def test_a_prior_whose_further_training_is_stopped_still_says_whom_it_learned_from(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", str(study / "prior.yaml"), "--out", str(study / "first")]
    assert main([*words, "--prior.training.steps=4"]) == 0
    before = json.loads((study / "first" / "run.json").read_text())

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer._Training, "_flush", stop)
        with pytest.raises(KeyboardInterrupt):
            main([*words, "--prior.training.steps=8"])
    record = json.loads((study / "first" / "run.json").read_text())
    assert (before["status"], record["status"]) == ("done", "stopped")
    assert record["patients_seen"] == before["patients_seen"]
    assert cli.main(["verify", str(study / "first")]) == 0
    second = ["--config", str(study / "prior.yaml"), "--prior.training.steps=4", "--out", str(study / "second")]
    capsys.readouterr()
    assert main([*second, "--init-from", str(study / "first")]) == 0
    assert "doesn't say" not in capsys.readouterr().out
    record["patients_seen"]["train"].remove("p1")  # and not whoever was taken out of the list
    (study / "first" / "run.json").write_text(json.dumps(record))
    assert main([*second[:-1], str(study / "third"), "--init-from", str(study / "first")]) == 2
    assert "was changed since it was written" in capsys.readouterr().err


def test_a_prior_that_does_not_say_whom_it_learned_from_is_named(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(study / "prior.yaml"), "--prior.training.steps=4"]
    assert main([*words, "--out", str(study / "first")]) == 0
    record = json.loads((study / "first" / "run.json").read_text())
    record["patients_seen"]["train"].remove("p1")
    (study / "first" / "run.json").write_text(json.dumps(record))
    second = [*words, "--init-from", str(study / "first"), "--out", str(study / "second")]
    assert main(second) == 2
    assert "run.json was changed since it was written" in capsys.readouterr().err
    (study / "first" / "run.json").unlink()
    assert main(second) == 0
    assert "doesn't say which patients it learned from" in capsys.readouterr().out


def test_an_encoder_and_a_teacher_must_not_have_learned_from_held_out_patients(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", str(study / "prior.yaml"), "--prior.training.steps=4"]
    monkeypatch.setattr(MatrixCache, "patients_seen", frozenset({"p3", "p55"}))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "the encoder of cxr-cache was trained on 1 patients of part 'test' (such as 'p55')" in said
    monkeypatch.setattr(MatrixCache, "patients_seen", frozenset({"p3"}))
    data = make_pairs(60, 0)
    positive = (data.target[:, 0] > 3.0).astype(float)
    head = train_head(data.target[:40], positive[:40], data.target[40:], positive[40:], FitConfig(hidden=4, steps=5), 0)
    Teacher(head, "ill", "", {"train": ["p3", "p52"], "val": []}).save(study / "teacher")
    assert main([*words, "--teacher", str(study / "teacher")]) == 2
    assert "the teacher was trained on 1 patients of part 'test' (such as 'p52')" in capsys.readouterr().err
    assert main(words) == 0
