"""Bad input and odd surroundings end in one line and exit code 2, or in nothing but plainer signs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from embedprior.cli import main

from ..study.conftest import BASE, write_cohort


def yaml_of(folder: Path, settings: dict[str, object]) -> Path:
    """Write a configuration; return its path."""
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    return folder / "study.yaml"


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must be refused; return its one line."""
    assert main([str(word) for word in words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("content", "said"),
    [("title: é".encode("utf-16"), "not UTF-8"), (b"a: " + b"[" * 5000 + b"]" * 5000, "nested more than")],
    ids=["UTF-16", "deep"],
)
def test_a_configuration_that_is_no_text_or_too_deep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, content: bytes, said: str
) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    assert said in refused(capsys, "study", command, "--config", tmp_path / "s.yaml", "--data", tmp_path)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_a_launcher_s_number_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "abc")
    monkeypatch.setenv("LOCAL_RANK", "0")
    words = ["embed", "--cohort", tmp_path / "e.csv", "--encoder", "pixels-128", "--out", tmp_path / "out"]
    assert f"{name} is 'abc'. Allowed: a whole number" in refused(capsys, *words)


@pytest.mark.parametrize(("device", "said"), [("cuda", "torch sees no GPU"), ("gpu", "Allowed: cpu, cuda")])
def test_a_device_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, device: str, said: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["generate", "--prior", tmp_path, "--cache", tmp_path, "--device", device]
    assert said in refused(capsys, *words)


def test_a_pointer_to_a_cache_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_cohort(tmp_path / "cohort") / "caches" / "cxr"
    (folder / "current").write_bytes(b"\xff\xfe\x00")
    assert "no embedding cache" in refused(capsys, "cache", "export", folder, "--out", tmp_path / "x.npy")


def test_an_output_folder_that_is_a_dangling_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_cohort(tmp_path / "cohort")
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    words = ["study", "plan", "--config", yaml_of(tmp_path, BASE), "--data", data, "--out", tmp_path / "out"]
    assert "is a link to what does not exist" in refused(capsys, *words)


@pytest.mark.parametrize("command", [["study", "plan"], ["study", "run"]], ids=" ".join)
def test_a_read_only_output_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    data = write_cohort(tmp_path / "cohort")
    words = [*command, "--config", yaml_of(tmp_path, BASE), "--data", data, "--out", tmp_path / "out"]

    def read_only(*_: object, **__: object) -> None:  # root, as which tests may run, writes everywhere
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("embedprior.runs.files.tempfile.TemporaryFile", read_only)
    assert "can't be written to (Read-only file system)" in refused(capsys, *words)


def test_an_error_of_the_system_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "cohort/exams.csv")

    monkeypatch.setattr("embedprior.study.run.read_study", fails)
    data = write_cohort(tmp_path / "cohort")
    words = ["study", "run", "--config", yaml_of(tmp_path, BASE), "--data", data, "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr().err
    assert "error: Stale file handle (cohort/exams.csv). What was finished is kept. Next: " in said
    assert "Traceback" not in said


def test_a_terminal_that_lacks_signs_ends_no_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    table = pd.DataFrame({"patient_id": range(40), "label": label})
    for name in ("a", "b"):
        table[name] = np.clip(0.5 + 0.2 * (label - 0.5) + 0.1 * rng.normal(size=40), 0, 1)
    table.to_csv(tmp_path / "wide.csv", index=False)
    words = ["evaluate", "wide.csv", "--method-columns", "--reference", "a", "--no-figures", "--no-bootstrap"]
    settings = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "embedprior", *words, "--out", "e"], cwd=tmp_path, env=os.environ | settings,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"delta AUC" in done.stdout
    assert "ΔAUC" in (tmp_path / "e" / "table.md").read_text(encoding="utf-8")
