from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"


def test_quickstart_runs_and_ends_well() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    told = {c["id"]: str([o.get("data", o.get("text", "")) for o in c.get("outputs", [])]) for c in notebook.cells}
    assert "(0," in told["cell-04"], "the demo's exit code"
    assert "min_detectable_delta" in told["cell-07"]
    assert "slice-cnn@" in told["cell-09"]
