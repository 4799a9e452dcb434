"""One predictions file, whatever the processes, the launcher, and however often it was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from .conftest import BASE, write_cohort

DESIGN = {
    "name": "kfold", "split": "kfold", "folds": 3, "validation": True,
    "methods": ["ct-only", "cxr-only", "hinton-kd", "ridge-head", "prior"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_cohort(folder / "cohort")
    claim = {"name": "H1", "claim": "c", "design": "kfold", "a": "prior", "b": "cxr-only"}
    settings = BASE | {"seeds": [1, 2], "designs": [DESIGN], "hypotheses": [claim]}
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    return folder


def command(place: Path, out: str, *more: str, launcher: tuple[str, ...] = ("-m",)) -> list[str]:
    words = ["embedprior", "study", "run", "--config", "study.yaml", "--data", "cohort", "--out", out]
    return [sys.executable, *launcher, *words, *more]


def finish(place: Path, words: list[str]) -> None:
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "EMBEDPRIOR_HOME"} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(place: Path) -> bytes:
    finish(place, command(place, "alone"))
    return (place / "alone" / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_leave_the_predictions_of_one(place: Path, alone: bytes) -> None:
    finish(place, command(place, "two", "--workers", "2"))
    assert (place / "two" / "predictions.csv").read_bytes() == alone


@pytest.mark.slow
def test_a_launcher_with_two_processes_leaves_the_predictions_of_one(place: Path, alone: bytes) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m")
    finish(place, command(place, "launched", launcher=launcher))
    assert (place / "launched" / "predictions.csv").read_bytes() == alone


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_random_and_resumed_leaves_the_predictions_of_an_undisturbed_run(
    place: Path, alone: bytes, workers: str
) -> None:
    """Each attempt is killed (SIGKILL, with its children) some time after fits began to appear."""
    words = command(place, f"killed-{workers}", "--workers", workers)
    fits = place / f"killed-{workers}" / "artifacts" / "fit"
    rng, kills = random.Random(workers), 0
    for attempt in range(4):
        before = len(list(fits.glob("*/artifact.json")))
        process = subprocess.Popen(
            words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
            start_new_session=True,
        )  # fmt: skip
        wanted = before + rng.randint(1, 5)
        while process.poll() is None and len(list(fits.glob("*/artifact.json"))) < wanted:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert attempt < 3 or kills, "it was never killed"
    kept = {p: p.stat().st_mtime_ns for p in fits.glob("[!.]*/predictions.csv")}
    finish(place, words)
    assert (place / f"killed-{workers}" / "predictions.csv").read_bytes() == alone
    assert kept
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
