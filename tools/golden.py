"""Writes anew the golden outputs of each released format, which ``tests/golden`` reads: ``python tools/golden.py``.

One zip a format in ``tests/golden/``, and ``expected.json`` with numbers that must be read from them. They are written
once for each release, and again only when a format changes: what is there stays readable, or is refused by its name.
Everything in them is virtual (see ``fault_worlds``).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fault_worlds
import numpy as np
import pandas as pd
from fault_worlds import call, words_of, write_inputs

import embedprior
from embedprior.cache import open_cache
from embedprior.prior.estimator import DiffusionPrior
from embedprior.runs import write_file, write_json
from embedprior.teachers.teacher import load_head

TARGET = Path(__file__).parents[1] / "tests" / "golden"
HELD = {
    "cache": ("cohort",), "artifact": ("run/artifacts/fit", "run/artifacts/teacher"), "prior": ("prior",),
    "teacher": ("teacher",), "student": ("student",), "bundle": ("bundle", "pictures/png/00.png"),
    "run": ("run/run.json", "run/plan.json", "run/evidence.json", "run/predictions.csv", "run/summary.md",
            "run/report.html", "run/support.csv", "run/metrics.jsonl", "run/cohort"),
}  # fmt: skip
"""Name of a zip → what of the world it holds."""
COMMANDS = ("prior", "teacher", "student", "run", "keep", "bundle")
KEPT = {"name": "cxr", "cases": "cxr", "split": "fixed", "methods": ["constant", "logistic"], "reference": "constant"}
"""The study of the bundle: one model is enough."""
DATE = (2026, 1, 1, 0, 0, 0)


def pack(target: Path, names: Sequence[str]) -> None:
    """Write files and folders below the working folder as a zip that depends on their contents alone."""
    files = [p for name in names for p in ([Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*")))]

    def fill(handle: Any) -> None:
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                if file.is_file() and file.name != ".verified.json" and not file.name.startswith("resume"):
                    packed.writestr(zipfile.ZipInfo(file.as_posix(), DATE), file.read_bytes(), zipfile.ZIP_DEFLATED)

    write_file(target, fill)


def expected() -> dict[str, Any]:
    """Return the numbers that the outputs in the working folder hold, or give."""
    cxr, ct = open_cache("cohort/caches/cxr"), open_cache("cohort/caches/ct")
    prior = DiffusionPrior.load("prior")
    fit = sorted(Path("run/artifacts/fit").glob("*/predictions.csv"))[0]
    code, said = call("predict", "pictures/png/00.png", "--bundle", "bundle", "--out", "scores.csv")
    assert code == 0, said
    return {
        "version": embedprior.__version__,
        "cache": {"ids": cxr.ids, "embeddings": cxr.matrix.tolist()},
        "artifact": {"fit": fit.parent.name, "scores": pd.read_csv(fit)["score"].tolist()},
        "prior": np.asarray(prior.predict(cxr.matrix[:3])).tolist(),
        "teacher": load_head("teacher").logits(ct.matrix[:3]).tolist(),
        "student": embedprior.load_fitted("student").scores(cxr.matrix[:3]).tolist(),
        "run": pd.read_csv("run/predictions.csv")["score"].tolist(),
        "bundle": pd.read_csv("scores.csv")["score"].tolist(),
    }


def main(argv: Sequence[str]) -> int:
    """Write every zip and the expected numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=TARGET, help="folder of the zips")
    target = parser.parse_args(argv).out.resolve()
    os.environ.pop("EMBEDPRIOR_HOME", None)
    os.environ |= {"EMBEDPRIOR_QUIET": "1", "OMP_NUM_THREADS": "1"}
    fault_worlds.KEEP["designs"] = [KEPT]
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_inputs(Path(scratch) / "world")
        os.chdir(Path(scratch) / "world")
        for command in COMMANDS:
            code, said = call(*words_of(command))
            assert code == 0, f"{command}: exit {code}\n{said}"
        numbers = expected()
        for name, names in HELD.items():
            pack(target / f"{name}.zip", names)
        os.chdir(target)
    write_json(target / "expected.json", numbers)
    print(f"{sum(f.stat().st_size for f in target.iterdir()) / 1000:.0f} kB in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
