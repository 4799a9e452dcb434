"""Progress bars."""

from __future__ import annotations

import pytest

from embedprior.runs import QUIET, progress


def test_bar_is_shown_unless_this_process_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(QUIET, raising=False)
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err
    monkeypatch.setenv(QUIET, "1")
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
