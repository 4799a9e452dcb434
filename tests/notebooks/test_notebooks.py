"""Every notebook runs from top to bottom, and its outputs are what its text says."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"


def quickstart(told: dict[str, str]) -> None:
    assert "(0," in told["cell-04"], "the demo's exit code"
    assert "min_detectable_delta" in told["cell-07"]
    assert "slice-cnn@" in told["cell-09"]


def own_embeddings(told: dict[str, str]) -> None:
    assert "([0, 0], (160, 12))" in told["cell-05"]
    for method in ("cxr-only", "ridge-head", "direct-head", "ct-only"):
        assert method in told["cell-07"]
    assert "H1" in told["cell-08"]


def multi_modal(told: dict[str, str]) -> None:
    aucs = ast.literal_eval(re.search(r"\{'regression.*?\}", told["cell-05"].replace(r"\n", ""))[0])  # type: ignore[index]
    assert aucs["regression, then head"] < aucs["best possible"] - 0.2, "the mean of two sides tells nothing"
    assert aucs["prior, mean over samples"] > aucs["regression, then head"] + 0.2
    assert abs(aucs["prior, mean over samples"] - aucs["direct-head"]) < 0.05, "the same optimum"
    right, left = ast.literal_eval(re.search(r"side: (\[.*?\])", told["cell-08"])[1])  # type: ignore[index]
    assert min(right, left) > 0.2, "draws on both sides"


def report(told: dict[str, str]) -> None:
    assert told["cell-03"].count("could detect a difference of 0.") == 2
    assert "supported" in told["cell-09"]
    assert "True" in told["cell-12"]


def bundle(told: dict[str, str]) -> None:
    assert "Expected AUC" in told["cell-03"]
    assert "Calibration(" in told["cell-05"]
    assert told["cell-07"].count("far from the training images") >= 1
    assert "Allowed: embeddings (N, 6)" in told["cell-09"]
    assert "README.md" in told["cell-09"]


ENDS_WELL: dict[str, Callable[[dict[str, str]], None]] = {
    "01_quickstart": quickstart,
    "02_your_own_embeddings": own_embeddings,
    "03_regression_direct_head_prior": multi_modal,
    "04_reading_a_report": report,
    "05_bundle_to_prediction": bundle,
}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(ENDS_WELL)


@pytest.mark.parametrize("name", ENDS_WELL)
def test_notebooks_run_and_end_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    ENDS_WELL[name]({c["id"]: str([o.get("data", o.get("text", "")) for o in c.get("outputs", [])])
                     for c in notebook.cells})  # fmt: skip
