"""Names and import strings of encoders, methods, renderers and cohort sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedprior.errors import BadInput
from embedprior.registry import Registry

GROUP = "embedprior.tools"


def install(folder: Path, package: str, entry_points: str) -> Path:
    (folder / f"{package}-1.dist-info").mkdir(parents=True)
    (folder / f"{package}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (folder / f"{package}-1.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\n{entry_points}")
    return folder


def test_own_names_come_first_and_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "alpha", "z = no_such_module:z\nb = math:cos\n"))
    tools = Registry("tool", GROUP, {"own": "also_no_module:x", "a": "math:sin"})
    assert tools.names() == ["own", "a", "b", "z"]
    assert tools.entry("b").package == "alpha"
    assert tools.load("b")(0.0) == 1.0


def test_a_name_taken_twice_names_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "alpha", "sine = math:cos\n"))
    with pytest.raises(BadInput, match=r"tool 'sine' is registered twice: by embedprior \(math:sin\) and by alpha"):
        Registry("tool", GROUP, {"sine": "math:sin"}).names()
    install(tmp_path / "more", "beta", "sine = math:tan\n")
    monkeypatch.syspath_prepend(tmp_path / "more")
    with pytest.raises(BadInput, match=r"by (alpha|beta) \(math:\w+\) and by (beta|alpha).*pip uninstall"):
        Registry("tool", GROUP, {}).load("sine")


def test_unknown_names_and_broken_packages_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "alpha", "broken = no_such_module:x\nless = math:no_such_function\n"))
    tools = Registry("tool", GROUP, {"sine": "math:sin"})
    with pytest.raises(BadInput, match=r"unknown tool 'sien'\. Allowed: broken, less, sine\. Did you mean 'sine'"):
        tools.load("sien")
    with pytest.raises(BadInput, match=r"'broken' of package alpha.*ModuleNotFoundError.*pip uninstall alpha"):
        tools.load("broken")
    with pytest.raises(BadInput, match="AttributeError"):
        tools.load("less")


def test_every_registry_is_listed_without_torch_or_an_implementation() -> None:
    code = """
import sys
from embedprior.registry import Registry
from embedprior.encoders.registry import list_encoders
from embedprior.students.registry import method_names
from embedprior.imaging.drr.config import REGISTRY as renderers
from embedprior.cohort.sources import REGISTRY as sources
assert "pixels-128" in list_encoders() and "prior" in method_names()
assert "planesweep" in renderers.names() and "tables" in sources.names()
for name in ("torch", "embedprior.encoders.pixels", "embedprior.students.controls", "embedprior.imaging.drr.renderers",
             "embedprior.cohort.sources.tables"):
    assert name not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
