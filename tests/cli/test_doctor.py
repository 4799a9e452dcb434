from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from embedprior.cli import doctor, main

ROOT = Path(__file__).parents[2]


def test_healthy_installation_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    assert "0 FAIL" in capsys.readouterr().out


def test_missing_package_fails_with_a_fix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAIL  missing packages: scipy" in text
    assert "fix: pip install scipy" in text


def test_missing_extra_is_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    assert "fix: pip install 'embedprior[drr]'" in capsys.readouterr().out


def test_folder_that_can_not_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    assert main(["doctor", "--out", str(tmp_path)]) == 1


def test_every_declared_requirement_is_checked_with_its_lowest_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*declared, 'x>=1; extra == "dev"'])
    assert doctor.requirements() == {name: lowest for name, _, lowest in (line.partition(">=") for line in declared)}
    installed = metadata.version
    old = {"torch": "2.5.1+cpu", "numpy": "1.26.4"}
    monkeypatch.setattr(doctor.metadata, "version", lambda name: old.get(name) or installed(name))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAIL  packages that are too old: numpy 1.26.4 (needed: 2.0 or newer), torch 2.5.1+cpu (needed: 2.6" in text


def test_a_broken_torch_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name == "torch" or name.startswith("torch.")]:
        monkeypatch.delitem(sys.modules, name)
    (found,) = doctor._compute()
    assert found.status == "FAIL"
    assert "torch can't be imported (OSError: libcudart.so.13: cannot open shared object file)" in found.what


def test_optional_packages_and_parquet_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = [f'{line}; extra == "{name}"' for name, lines in optional.items() for line in lines]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=2.0", *declared])
    found = doctor.requirements(optional=True)
    assert found["pyarrow"] == "18"
    assert found["timm"] == "1.0"
    assert not {"numpy", "pytest", "mkdocs"} & found.keys()
    installed = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "17.0.1" if name == "pyarrow" else installed(name))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAIL  optional packages that are too old: pyarrow 17.0.1 (needed: 18 or newer)" in text
    assert "fix: pip install --upgrade pyarrow" in text
    assert "PASS  parquet files can be written and read" in text

    def broken(self: object, target: object) -> None:
        raise ImportError("pyarrow requires numpy 3")

    monkeypatch.setattr("pandas.DataFrame.to_parquet", broken)
    (said,) = doctor._parquet()
    assert said.status == "FAIL"
    assert "pyarrow requires numpy 3" in said.what


@pytest.mark.parametrize(
    ("version", "lowest", "old"),
    [
        ("2", "2.0", False),
        ("2.0", "2", False),
        ("2.6.0+cpu", "2.6", False),
        ("1.26.4", "2.0", True),
        ("3.9", "3.10", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, lowest: str, old: bool) -> None:
    assert (doctor._numbers(version) < doctor._numbers(lowest)) == old
