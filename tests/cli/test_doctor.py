from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from embedprior.cli import doctor, main


def test_healthy_installation_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    assert "0 FAIL" in capsys.readouterr().out


def test_missing_package_fails_with_a_fix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def version(name: str) -> str:
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAIL  missing packages: scipy" in text
    assert "fix: pip install embedprior" in text


def test_missing_extra_is_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    assert "fix: pip install 'embedprior[drr]'" in capsys.readouterr().out


def test_folder_that_can_not_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    assert main(["doctor", "--out", str(tmp_path)]) == 1
