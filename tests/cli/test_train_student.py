from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.students.config import TrainStudentConfig
from embedprior.students.storage import load_fitted
from embedprior.students.tables import Loaded, load
from embedprior.teachers.teacher import train_head

SMALL = ["--budget.fit.steps", "20", "--budget.fit.hidden", "8", "--teacher-fit.steps", "20"]


def spec(name: str, dim: int, modality: str) -> EncoderSpec:
    return EncoderSpec(
        name=name, modality=modality, dim=dim, source="test", weights_sha256="none", licence="none", profile={},
        dtype="uint8" if name == "pixels" else "float32", pooling="none",
    )  # fmt: skip


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """40 patients with CT and radiograph, 20 with CT and DRR; embeddings, pictures, tables."""
    rng = np.random.default_rng(0)
    exams, pairs, splits = [], [], []
    for p in range(60):
        kind, part = ("CXR" if p < 40 else "DRR"), "test" if p < 12 else "val" if p % 4 == 0 else "train"
        label = p % 2
        known = label if p < 30 or p >= 40 else np.nan
        exams.append((f"ct-{p}", str(p), "CT", "x", label))
        exams.append((f"x-{p}", str(p), kind, "x", known))
        pairs.append((f"pair-{p}", str(p), f"x-{p}", f"ct-{p}", 0, True))
        splits.append((str(p), str(p), "fixed", 0, 0, part))
    pd.DataFrame(exams, columns=["exam_id", "patient_id", "modality", "path", "label:nodule"]).to_csv(
        tmp_path / "exams.csv", index=False
    )
    columns = ["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"]
    pd.DataFrame(pairs, columns=columns).to_csv(tmp_path / "pairs.csv", index=False)
    columns = ["patient_id", "group_id", "design", "resample", "fold", "part"]
    pd.DataFrame(splits, columns=columns).to_csv(tmp_path / "splits.csv", index=False)
    sign = np.array([p % 2 for p in range(60)])[:, None]
    for name, prefix, dim, modality in (("cxr", "x", 6, "CXR"), ("ct", "ct", 5, "CT")):
        rows = (rng.normal(size=(60, dim)) + sign).astype(np.float32)
        write_cache(tmp_path / name, spec(name, dim, modality), [f"{prefix}-{p}" for p in range(60)], ["0"] * 60, rows)
    pictures = rng.integers(0, 255, size=(60, 256)).astype(np.uint8)
    write_cache(tmp_path / "pixels", spec("pixels", 256, "CXR"), [f"x-{p}" for p in range(60)], ["0"] * 60, pictures)
    return tmp_path


def words(cohort: Path, method: str, *more: str, ct: bool = True) -> list[str]:
    given = ["--method", method, "--cxr-cache", str(cohort / "cxr"), "--exams", str(cohort / "exams.csv")]
    given += ["--splits", str(cohort / "splits.csv"), "--label", "nodule", "--out", str(cohort / "out"), *SMALL, *more]
    if ct:
        return ["train", "student", *given, "--ct-cache", str(cohort / "ct"), "--pairs", str(cohort / "pairs.csv")]
    return ["train", "student", *given, "--ct-cache", "None", "--pairs", "None"]


def load_recorded(out: Path, needs_teacher: bool) -> Loaded:
    """Read what a run was given, from its record: paths in it are given from its folder."""
    config = TrainStudentConfig.model_validate(json.loads((out / "run.json").read_text())["config"])
    with contextlib.chdir(out):
        return load(config, needs_teacher=needs_teacher)


def test_a_student_is_trained_saved_scored_and_read_back(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(cohort, "hinton-kd")) == 0
    out = cohort / "out"
    table = pd.read_csv(out / "predictions.csv", dtype={"exam_id": str})
    assert sorted(table.loc[table["split"] == "test", "exam_id"]) == sorted(f"x-{p}" for p in range(12))
    assert "x-16" in set(table["exam_id"])
    assert "x-36" not in set(table["exam_id"])  # its label is unknown
    cases = load_recorded(out, needs_teacher=False).scored["test"]
    again = load_fitted(out).scores(cases.without_ct())
    written = table[table["split"] == "test"].set_index("exam_id").loc[list(cases.exam_ids), "score"]
    np.testing.assert_allclose(again, written, rtol=1e-9)
    shown = capsys.readouterr().out
    assert "losses: label, kd" in shown
    assert "| held out |" in shown
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert {"step", "loss", "kd", "label", "val_loss"} <= set(first)


@pytest.mark.parametrize("name", ["cxr", "ct"])
def test_held_out_patients_whom_an_encoder_saw_are_refused(
    name: str, cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Patient 3 is held out, patient 13 is in training."""
    shutil.rmtree(cohort / name)
    dim, prefix, modality = (6, "x", "CXR") if name == "cxr" else (5, "ct", "CT")
    ids, rows = [f"{prefix}-{p}" for p in range(60)], np.ones((60, dim), np.float32)
    for seen, code in ((("13",), 0), (("13", "3"), 2)):
        trained = spec(name, dim, modality).model_copy(update={"patients_seen": seen, "source": f"of {seen}"})
        write_cache(cohort / name, trained, ids, ["0"] * 60, rows)
        assert main(words(cohort, "hinton-kd", "--out", str(cohort / f"seen-{code}"))) == code
        shutil.rmtree(cohort / name)
    assert "was trained on 1 patients of part 'test' (such as '3')" in capsys.readouterr().err
    assert not (cohort / "seen-2").exists()


def test_a_prior_leaves_its_metrics_and_says_how_it_did(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {
        "network": {"preset": "tiny", "dim": 16, "depth": 1, "inner": 16}, "process": {"timesteps": 20},
        "training": {"steps": 12, "batch": 8, "validate_every": 6, "validation_bins": 2, "variance_nodes": 4},
    }  # fmt: skip
    settings = ["--budget.stages", json.dumps([stage]), "--budget.samples", "2", "--budget.steps", "4"]
    assert main(words(cohort, "prior", *settings)) == 0
    lines = [json.loads(line) for line in (cohort / "out" / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["stage"], line["step"]) for line in lines if line["event"] == "validation"]
    assert seen == [(stage, step) for stage in (0, 1) for step in (0, 6, 12)]
    assert sum("loss/l2" in line for line in lines) == 4
    shown = capsys.readouterr().out
    assert "On the validation pairs: squared error" in shown
    assert "(direct regression" in shown
    assert "cases scored in" in shown


def test_unlabelled_pairs_and_drr_pairs_take_part_in_training(cohort: Path) -> None:
    assert main(words(cohort, "direct-head")) == 0
    loaded = load_recorded(cohort / "out", needs_teacher=True)
    drr, cxr = loaded.data.stages
    assert (drr.train.source, len(drr.train), len(drr.val)) == ("drr", 15, 5)
    assert (len(cxr.train), int(cxr.train.known.sum())) == (21, 13)
    assert np.isfinite(cxr.train.ct_label).all()
    held_out = set(loaded.scored["test"].patient_ids)
    assert not held_out & {p for s in loaded.data.stages for c in (s.train, s.val) for p in c.patient_ids}


def test_pixels_and_no_ct_at_all(cohort: Path) -> None:
    pixels = ["--pixels", str(cohort / "pixels"), "--inputs", "pixels"]
    assert main(words(cohort, "cxr-only", *pixels, ct=False)) == 0
    assert json.loads((cohort / "out" / "network.json").read_text())["kind"] == "pixels"


def test_a_given_teacher_is_used_and_its_size_counted(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, fit = np.random.default_rng(1), FitConfig(hidden=4, steps=10)
    ct, label = rng.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 2.0
    (cohort / "teacher").mkdir()
    train_head(ct, label, ct[:0], label[:0], fit, 0).save(cohort / "teacher")
    assert main(words(cohort, "direct-head", "--teacher", str(cohort / "teacher"))) == 0
    student, head = 6 * 8 + 8 + 8 + 1, 5 * 4 + 4 + 4 + 1
    assert f"{student} parameters trained ({student + head} with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "more", "ct", "message"),
    [
        ("hintn", [], True, "Did you mean 'hinton-kd'"),
        ("dist", [], True, "no gradient"),
        ("ridge-head", ["--inputs", "pixels"], True, "can't read pixels"),
        ("cxr-only", ["--label", "nodul"], True, "Did you mean 'nodule'"),
        ("hinton-kd", [], False, "'hinton-kd' learns from CT, and no CT cache and no pair table is given"),
        ("hinton-kd", ["--options", '{"temperature": 0}'], True, "'temperature': input should be greater than 0"),
        ("cxr-only", ["--inputs", "pixels"], True, "Next: give a pixels-128 cache"),
        ("cxr-only", ["--tokens", "nowhere"], True, "nowhere does not exist. Next: make demo"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(cohort, method, more, ct, message, capsys) -> None:
    assert main(words(cohort, method, *more, ct=ct)) == 2
    assert message in capsys.readouterr().err
    assert not (cohort / "out").exists()


def test_labels_of_one_class_are_refused_and_nothing_is_written(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exams = pd.read_csv(cohort / "exams.csv")
    exams.assign(**{"label:nodule": 1}).to_csv(cohort / "exams.csv", index=False)
    for method, message in (("cxr-only", "fewer than two classes"), ("direct-head", "both classes")):
        assert main(words(cohort, method)) == 2
        assert message in capsys.readouterr().err
    assert not (cohort / "out").exists()


def test_pairs_without_radiographs_are_named(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = pd.read_csv(cohort / "pairs.csv")
    pairs[pairs["patient_id"] >= 40].to_csv(cohort / "pairs.csv", index=False)
    assert main(words(cohort, "hinton-kd")) == 2
    assert "pairs.csv: no radiograph (CXR) of a patient whose part is 'train'" in capsys.readouterr().err


def test_an_undefined_auc_is_told_with_its_reason(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exams = pd.read_csv(cohort / "exams.csv", dtype={"patient_id": str})
    exams.loc[exams["patient_id"].astype(int) < 12, "label:nodule"] = 0
    exams.to_csv(cohort / "exams.csv", index=False)
    assert main(words(cohort, "cxr-only")) == 0
    assert "| held out | – (AUC undefined: only negatives (12)) |" in capsys.readouterr().out


def test_every_setting_is_read(cohort: Path) -> None:
    read: set[str] = set()

    class Spy(TrainStudentConfig):
        def __getattribute__(self, name: str) -> object:
            read.add(name)
            return super().__getattribute__(name)

    given = {n: str(cohort / n.removesuffix("_cache")) for n in ("cxr_cache", "ct_cache", "pixels")}
    tables = {n: str(cohort / f"{n}.csv") for n in ("exams", "pairs", "splits")}
    config = Spy(method="hinton-kd", label="nodule", out="out", **given, **tables)
    load(config, needs_teacher=True)
    used_by_command = {"method", "options", "inputs", "budget", "seed", "out"}
    with pytest.raises(BadInput, match="Next: embedprior embed"):
        load(config.model_copy(update={"tokens": "nowhere"}), needs_teacher=True)
    assert set(TrainStudentConfig.model_fields) - read <= used_by_command


def test_an_exam_without_embedding_or_row_is_dropped_counted_and_not_called_another_patients(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held out x-5 and training x-17 were unreadable, x-21 is not in the exam table, ct-22 was never embedded."""
    rng = np.random.default_rng(1)
    for name, prefix, dim, modality, gone in (("cxr", "x", 6, "CXR", (5, 17)), ("ct", "ct", 5, "CT", (22,))):
        shutil.rmtree(cohort / name)
        ids = [f"{prefix}-{p}" for p in range(60) if p not in gone]
        sign = np.array([int(i.split("-")[1]) % 2 for i in ids])[:, None]
        rows = (rng.normal(size=(len(ids), dim)) + sign).astype(np.float32)
        write_cache(cohort / name, spec(name, dim, modality), ids, ["0"] * len(ids), rows)
    exams = pd.read_csv(cohort / "exams.csv", dtype=str)
    exams[exams["exam_id"] != "x-21"].to_csv(cohort / "exams.csv", index=False)
    assert main(words(cohort, "hinton-kd")) == 3
    dropped = pd.read_csv(cohort / "out" / "failures.csv").set_index("exam_id")["reason"]
    assert sorted(dropped.index) == ["ct-22", "x-17", "x-21", "x-5"]
    assert dropped["x-21"] == "not in exams.csv"
    assert dropped["x-5"].startswith("no embedding in cxr@")
    table = pd.read_csv(cohort / "out" / "predictions.csv", dtype={"exam_id": str})
    held = sorted(table.loc[table["split"] == "test", "exam_id"])
    assert held == sorted(f"x-{p}" for p in range(12) if p != 5)
    shown = capsys.readouterr()
    assert "4 exams were left out (failures.csv)" in shown.err
    assert "id you mean" not in shown.err + shown.out
    trained = load_recorded(cohort / "out", needs_teacher=False).data.target.train
    assert not {"x-17", "x-21", "x-22"} & set(trained.exam_ids)
    assert len(trained) == 40 - 12 - 7 - 3  # patients, held out, choosing, dropped


def test_a_table_of_other_ids_than_the_caches_is_refused(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("exams", "pairs"):
        text = (cohort / f"{name}.csv").read_text()
        (cohort / f"{name}.csv").write_text(text.replace("x-", "y-"))
    assert main(words(cohort, "hinton-kd")) == 2
    assert "not one of its 60 rows has embeddings of all its exams, e.g. y-0" in capsys.readouterr().err
    assert not (cohort / "out").exists()
