from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cache import open_cache, write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec
from embedprior.evidence import delong
from embedprior.teachers.teacher import Teacher

WIDTH = 4


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """60 CTs of as many patients, as tokens and as embeddings; a positive has one token that is high in column 2."""
    rng, count = np.random.default_rng(0), 60
    label = np.arange(count) % 2
    tokens = [rng.standard_normal((int(rng.integers(2, 6)), WIDTH)).astype(np.float32) for _ in range(count)]
    for exam, value in zip(tokens, label, strict=True):
        exam[0, 2] += 6.0 * value
    ids, people = [f"ct{i}" for i in range(count)], [f"p{i:02}" for i in range(count)]

    def spec(name: str) -> EncoderSpec:
        return EncoderSpec(
            name=name, modality="CT", dim=WIDTH, token_dim=WIDTH, source="test", weights_sha256="none",
            licence="none", profile={}, pooling="none",
        )  # fmt: skip

    write_cache(tmp_path / "tokens", spec("tokens"), ids, ids, tokens, tokens=True)
    write_cache(tmp_path / "flat", spec("flat"), ids, ids, np.stack([t.max(0) for t in tokens]))
    exams = pd.DataFrame(
        {"exam_id": ids, "patient_id": people, "modality": "CT", "path": "x", "label:lesion": label.astype(float)}
    )
    exams.loc[0, "label:lesion"] = np.nan
    exams.to_csv(tmp_path / "exams.csv", index=False)
    part = ["train"] * 36 + ["val"] * 12 + ["test"] * 12
    pd.DataFrame(
        {"patient_id": people, "group_id": people, "design": "fixed", "resample": 0, "fold": 0, "part": part}
    ).to_csv(tmp_path / "splits.csv", index=False)
    return tmp_path


def run(cohort: Path, cache: str, *more: str) -> int:
    fit = ["--teacher.fit.steps", "60", "--teacher.fit.lr", "0.01", "--teacher.fit.hidden", "8"]
    return main(
        ["train", "teacher", "--cache", str(cohort / cache), "--exams", str(cohort / "exams.csv"),
         "--splits", str(cohort / "splits.csv"), "--out", str(cohort / "teacher"), *fit, *more]
    )  # fmt: skip


def test_a_head_is_trained_saved_and_its_auc_told(cohort: Path) -> None:
    assert run(cohort, "flat") == 0
    out = cohort / "teacher"
    predictions = pd.read_csv(out / "predictions.csv")
    held_out = predictions[predictions["split"] == "test"]
    told = json.loads((out / "teacher_auc.json").read_text())["test"]
    assert told["auc"] == pytest.approx(float(delong(held_out["label"], held_out["score"]).auc[0]))
    assert told["auc"] > 0.9
    assert f"{told['auc']:.3f}" in (out / "summary.md").read_text()
    seen = Teacher.load(out).patients
    # p00 has no known label: nothing was learned from it.
    assert seen["train"] == [f"p{i:02}" for i in range(1, 36)]
    assert seen["val"] == [f"p{i:02}" for i in range(36, 48)]
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_a_sequence_teacher_also_writes_its_embeddings(cohort: Path) -> None:
    code = run(
        cohort, "tokens", "--teacher.kind", "sequence", "--teacher.sequence.hidden", "8",
        "--teacher.sequence.dim", "6", "--embeddings", str(cohort / "ct"),
    )  # fmt: skip
    assert code == 0
    assert open_cache(cohort / "ct").matrix.shape == (60, 6)
    assert json.loads((cohort / "teacher" / "teacher_auc.json").read_text())["test"]["auc"] > 0.9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label", "lesoin"], "Did you mean 'lesion'"),
        (["--fold", "3"], "fold 3. Allowed: 0"),
        (["--resample", "3"], "resample 3. Allowed: 0"),
        (["--teacher.kind", "sequence"], "no tokens"),
        (["--design", "fixd"], "Did you mean 'fixed'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    cohort: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort, "flat", *more) == 2
    assert message in capsys.readouterr().err
    assert not (cohort / "teacher").exists()


def test_a_missing_cache_names_the_next_command(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cohort, "nowhere", "--made-by", "make the cache") == 2
    assert "nowhere does not exist. Next: make the cache" in capsys.readouterr().err
