from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def imported(file: Path) -> set[str]:
    """Return the top-level names of every absolute import in a module, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_everything_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {re.split(r"[\[<>=;]", line)[0].strip().lower().replace("_", "-") for line in asked}
    owners = packages_distributions()
    missing = {}
    for file in (ROOT / "embedprior").rglob("*.py"):
        for name in imported(file) - set(sys.stdlib_module_names) - {"embedprior"}:
            own = {owner.lower().replace("_", "-") for owner in owners.get(name, [])}
            if not own & declared:
                missing[name] = f"{file.relative_to(ROOT)}: {sorted(own) or 'of no installed package'}"
    assert missing == {}


@pytest.mark.slow
def test_the_built_wheel_goes_from_the_demo_to_a_prediction_away_from_the_checkout(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(ROOT)], check=True)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    # the dependencies of this environment, but not its editable embedprior: a folder named here runs no .pth of its own
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    python = str(environment / "bin" / "python")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [python, "-c", "import embedprior; print(embedprior.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found).is_relative_to(site)

    def run(*words: str) -> str:
        done = subprocess.run(
            [python, "-m", "embedprior", *words], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    own = ("--cxr-encoder-name", "radiograph-cnn")  # weights of its own travel with the bundle
    run("demo", "--config", "quick", *own, "--workers", "1", "--out", "run")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    (tmp_path / "study.yaml").write_text(STUDY)
    run("study", "run", "--config", "study.yaml", "--data", "run/cohort", "--out", "study")
    (weights,) = [
        file.parent for file in tmp_path.glob("run/artifacts/encoder/*/encoder.json")
        if "size" in json.loads(file.read_text())["profile"]
    ]  # fmt: skip
    run("bundle", "--study", "study", "--method", "logistic", "--encoder-weights", str(weights), "--out", "bundle")
    held = pd.read_csv(tmp_path / "study" / "predictions.csv").query("method == 'logistic' and split == 'test'")
    held = held[held["fold"] == held["fold"].max()].head(3)
    exams = pd.read_csv(tmp_path / "run" / "cohort" / "exams.csv").set_index("exam_id")
    (tmp_path / "new").mkdir()
    for exam in held["exam_id"]:
        name, _, row = str(exams.loc[exam, "path"]).partition("#")
        (pictures,) = tmp_path.glob(f"run/artifacts/phantoms/*/{Path(name).name}")
        Image.fromarray(np.load(pictures, mmap_mode="r")[int(row)]).save(tmp_path / "new" / f"{exam}.png")
    found = pd.DataFrame(json.loads(run("predict", "--bundle", "bundle", "new", "--format", "json")))
    found = found.set_index(found["image"].map(lambda path: Path(path).stem)).loc[held["exam_id"]]
    np.testing.assert_allclose(found["score"], held["score"], atol=1e-6)


STUDY = """
title: the demo's radiographs
label: lesion
caches: {cxr: ../caches/cxr, ct: ../caches/ct}
encoder_training_patients: train
seeds: [1]
as_published: a test
keep: last
inference: {unit: patient}
designs:
  - {name: kfold, cases: paired, folds: 3, validation: true, methods: [constant, logistic], reference: constant}
"""
