"""Docstring examples as tests: each runs in an empty folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "embedprior"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules without an example: to look for one, pytest would import them all."""
    module = collection_path.suffix == ".py" and collection_path.is_relative_to(PACKAGE)
    return True if module and ">>> " not in collection_path.read_text(encoding="utf-8") else None


@pytest.fixture(autouse=True)
def _examples_write_into_an_empty_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
