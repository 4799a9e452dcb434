"""What stops every fit stops the study at once, in one line, and says so in ``run.json``."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedprior.cli import main
from embedprior.runs import locks
from embedprior.study import runner

from ..runs.test_locks import write_owner

Run = Callable[..., tuple[int, Path]]


def test_a_full_disk_stops_a_study_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, calls = runner.write_text, []

    def full(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(runner, "write_text", full)
    code, out = run()
    said = capsys.readouterr().err
    assert code == 1
    assert len(calls) == 3  # of six fits, two are kept, the third finds no room, and none is tried after it
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no room for" in errors[0]
    assert "Next: make room and run the same command again" in errors[0]
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    assert not (out / locks.FOLDER_LOCK).exists()
    monkeypatch.undo()
    assert run()[0] == 0
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert len(list((out / "artifacts" / "fit").glob("[!.]*"))) == 6


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_study_in_the_folder_of_another_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    write_owner(tmp_path / "out" / locks.FOLDER_LOCK, pid=1, started=None)  # a process that lives
    code, out = run(command=command)
    assert code == 2
    assert f"{out} is being written by host" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [locks.FOLDER_LOCK]


def test_a_prior_is_not_trained_in_the_folder_of_another(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prior"
    out.mkdir()
    write_owner(out / locks.FOLDER_LOCK, pid=1, started=None)
    config = tmp_path / "prior.yaml"
    config.write_text(
        f"condition_cache: {cohort}/caches/cxr\ntarget_cache: {cohort}/caches/ct\npairs: {cohort}/pairs.csv\n"
        f"splits: {splits(cohort)}\nsource: cxr\nout: unused\nprior: {{network: {{preset: tiny}}, "
        "training: {steps: 4, batch: 8, variance_nodes: 4, variance_draws: 1, validation_bins: 2}}\n"
    )
    words = ["train", "prior", "--config", str(config), "--out", str(out)]
    assert main(words) == 2
    assert "is being written by host" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [locks.FOLDER_LOCK]
    (out / locks.FOLDER_LOCK).unlink()
    assert main(words) == 0
    assert not (out / locks.FOLDER_LOCK).exists()


def splits(cohort: Path) -> Path:
    """Write a split table of the cohort's patients; return its path."""
    rows: list[Any] = [
        f"p{p:02d},p{p:02d},d,0,0,{'test' if p % 5 == 0 else 'val' if p % 5 == 1 else 'train'}" for p in range(46)
    ]
    (cohort / "splits.csv").write_text("\n".join(["patient_id,group_id,design,resample,fold,part", *rows]) + "\n")
    return cohort / "splits.csv"
