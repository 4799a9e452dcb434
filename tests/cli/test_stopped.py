"""SIGTERM, as schedulers send it, is answered like Ctrl-C by every long command: what is finished is kept, and said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image

from embedprior.cli import main

from ..study.conftest import BASE, TINY, write_cohort
from .test_drr import _chest, write_npz

ROOT = Path(__file__).parents[2]
LONG = "100000000"
SECONDS = 5.0
"""From the signal to the end of the process. A busy machine gets the same again for every process in the queue."""

SLOW_EMBED = """
import time
from embedprior.encoders.pixels import Pixels128 as P
embed = P.embed
P.embed = lambda self, batch: time.sleep(0.3) or embed(self, batch)
"""
MARK_FIT = """
import contextlib, pathlib, embedprior.runs as runs
before = runs.one_thread

@contextlib.contextmanager
def marked():
    with before():
        pathlib.Path("begun").touch()
        yield

runs.one_thread = marked
"""


def patient() -> float:
    return SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Stopped:
    """A command that was sent a signal when ``ready``."""

    def __init__(
        self, folder: Path, words: list[str], ready: Callable[[], bool], number: int, before: str = "",
        launcher: list[str] | None = None,
    ) -> None:  # fmt: skip
        program = f"{before}\nfrom embedprior.cli import entry; entry()"
        command = [sys.executable, "-c", program, *words] if launcher is None else [*launcher, *words]
        with (folder / "said.txt").open("w+") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, text=True, cwd=folder, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip
            try:
                end = time.monotonic() + 300
                while not ready():
                    assert process.poll() is None, (folder / "said.txt").read_text()
                    assert time.monotonic() < end
                    time.sleep(0.02)
                children = psutil.Process(process.pid).children(recursive=True)
                sent = time.monotonic()
                process.send_signal(number)
                self.code = process.wait(timeout=120)
                self.left = psutil.wait_procs(children, timeout=patient())[1]
                self.seconds = time.monotonic() - sent
            finally:
                for one in (psutil.Process(pid) for pid in psutil.pids() if _group(pid) == process.pid):
                    one.kill()
        self.said = (folder / "said.txt").read_text()
        print(f"{words[:2]}: {self.seconds:.2f} s after the signal")


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def check(stopped: Stopped, out: Path, number: int = signal.SIGTERM) -> None:
    assert stopped.code == 128 + number, stopped.said
    assert "stopped. What was finished is kept. Next: run the same command again." in stopped.said
    assert "Traceback" not in stopped.said
    assert not stopped.left
    assert stopped.seconds < patient()
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    assert not list(out.glob("*.lock"))  # a killed worker's lock on an artifact is taken over at once


def pictures(folder: Path, count: int = 12) -> Path:
    (folder / "png").mkdir()
    rng, rows = np.random.default_rng(0), []
    for n in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / "png" / f"{n}.png")
        rows.append((f"e{n}", f"p{n}", "CXR", f"png/{n}.png", "PA"))
    pd.DataFrame(rows, columns=["exam_id", "patient_id", "modality", "path", "view"]).to_csv(
        folder / "exams.csv", index=False
    )
    return folder / "exams.csv"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_embed(tmp_path: Path, number: int) -> None:
    table, out = pictures(tmp_path), tmp_path / "out"
    words = ["embed", "--cohort", str(table), "--encoder", "pixels-128", "--batch-size", "1", "--shard-exams", "1",
             "--workers", "1", "--out", str(out)]  # fmt: skip
    check(Stopped(tmp_path, words, lambda: len(list(out.glob("*/shard-*"))) > 1, number, SLOW_EMBED), out, number)
    kept = {path.name: path.stat().st_ino for path in out.glob("*/shard-*")}
    assert len(kept) > 1
    assert main(words) == 0
    assert {path.name: path.stat().st_ino for path in out.glob("*/shard-*") if path.name in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_drr(tmp_path: Path, workers: str) -> None:
    (tmp_path / "ct").mkdir()
    rows = []
    for n in range(4):
        write_npz(_chest(n), tmp_path / "ct" / f"v{n}.npz")
        rows.append((f"v{n}", f"p{n}", "CT", f"v{n}.npz"))
    columns = ["exam_id", "patient_id", "modality", "path"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "ct" / "exams.csv", index=False)
    out = tmp_path / "out"
    words = ["drr", "--cohort", str(tmp_path / "ct" / "exams.csv"), "--size", "64", "--poses", "150", "--workers",
             workers, "--out", str(out)]  # fmt: skip
    made = out / "artifacts" / "drr"
    check(Stopped(tmp_path, words, lambda: bool(list(made.glob("[!.]*/artifact.json"))), signal.SIGTERM), out)
    kept = len(list(made.glob("[!.]*/artifact.json")))
    assert kept >= 1
    assert main(["verify", str(made)]) == 0


def prior_words(folder: Path) -> list[str]:
    cohort = write_cohort(folder / "cohort")
    pairs = pd.read_csv(cohort / "pairs.csv")
    rows = [(p, p, "d", 0, 0, "val" if n % 4 == 0 else "train") for n, p in enumerate(pairs["patient_id"].unique())]
    columns = ["patient_id", "group_id", "design", "resample", "fold", "part"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "splits.csv", index=False)
    training = TINY["training"] | {"steps": 10**8, "checkpoint_every": 5, "validate_every": 10}
    config = {
        "condition_cache": str(cohort / "caches/cxr"), "target_cache": str(cohort / "caches/ct"),
        "pairs": str(cohort / "pairs.csv"), "splits": str(folder / "splits.csv"), "out": str(folder / "out"),
        "prior": {"network": TINY["network"], "training": training},
    }  # fmt: skip
    (folder / "prior.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "prior.yaml")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_train_prior(tmp_path: Path, number: int) -> None:
    words, state = ["train", "prior", *prior_words(tmp_path)], tmp_path / "out" / "resume.json"
    check(Stopped(tmp_path, words, state.is_file, number), state.parent, number)
    step = json.loads(state.read_text())["step"]
    assert main([*words, "--prior.training.steps", str(step + 5)]) == 0  # it goes on where it was
    assert json.loads((state.parent / "run.json").read_text())["status"] == "done"
    logged = [json.loads(line) for line in (state.parent / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in logged if line["event"] == "validation"]
    assert steps == sorted(set(steps))
    assert 10 in steps  # of the stopped part


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "no", "--dynamo_backend", "no"],
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    ],
    ids=["accelerate launch", "torchrun"],
)
def test_train_prior_under_a_launcher_that_alone_gets_the_signal(tmp_path: Path, launcher: list[str]) -> None:
    words, out = prior_words(tmp_path), tmp_path / "out"
    launch = [sys.executable, "-m", *launcher, str(ROOT / "train_prior.py")]
    stopped = Stopped(tmp_path, words, (out / "resume.json").is_file, signal.SIGTERM, launcher=launch)
    assert stopped.code != 0
    assert not stopped.left
    assert stopped.seconds < 2 * patient()  # torchrun waits for its processes in turn
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    assert not list(out.rglob("*.lock"))
    assert (out / "resume.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["teacher", "student"])
def test_train_teacher_and_student(tmp_path: Path, what: str) -> None:
    cohort, out = write_cohort(tmp_path / "cohort"), tmp_path / "out"
    exams = pd.read_csv(cohort / "exams.csv").assign(path="")
    exams.to_csv(cohort / "exams.csv", index=False)
    patients = exams["patient_id"].unique()
    rows = [(p, p, "d", 0, 0, ("train", "val", "test")[n % 3]) for n, p in enumerate(patients)]
    columns = ["patient_id", "group_id", "design", "resample", "fold", "part"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "splits.csv", index=False)
    tables = ["--exams", str(cohort / "exams.csv"), "--splits", str(tmp_path / "splits.csv"), "--label", "nodule"]
    ct, cxr = str(cohort / "caches" / "ct"), str(cohort / "caches" / "cxr")
    words = {
        "teacher": ["train", "teacher", "--cache", ct, "--teacher.fit.steps", LONG],
        "student": ["train", "student", "--method", "cxr-only", "--cxr-cache", cxr, "--ct-cache", ct, "--pairs",
                    str(cohort / "pairs.csv"), "--budget.fit.steps", LONG],
    }[what]  # fmt: skip
    words += [*tables, "--made-by", "", "--out", str(out)]
    check(Stopped(tmp_path, words, (tmp_path / "begun").is_file, signal.SIGTERM, MARK_FIT), out)
    assert {path.name for path in out.iterdir()} == {"run.json"}  # a fit is whole or not there


@pytest.mark.slow
def test_study_run_in_this_process(tmp_path: Path) -> None:
    cohort, out = write_cohort(tmp_path / "cohort"), tmp_path / "out"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(BASE | {"seeds": list(range(1, 400)), "as_published": ""}))
    words = ["study", "run", "--config", str(tmp_path / "study.yaml"), "--data", str(cohort), "--out", str(out)]
    fits = out / "artifacts" / "fit"
    check(Stopped(tmp_path, words, lambda: len(list(fits.glob("[!.]*/artifact.json"))) > 2, signal.SIGTERM), out)
    assert main(["verify", str(out / "artifacts")]) == 0


def test_an_earlier_finished_record_stays_where_a_fit_is_stopped(tmp_path: Path) -> None:
    from embedprior.runs import Run, noting_a_stop, read_json

    def begin() -> Run:
        return Run(tmp_path, "demo", {}, 0, {})

    for name, again, expected in (("first", False, "stopped"), ("second", False, "done"), ("third", True, "stopped")):
        if name == "second":
            begin().finish("# done", [])
        with pytest.raises(KeyboardInterrupt), noting_a_stop(tmp_path, begin, even_if_done=again):
            raise KeyboardInterrupt
        assert read_json(tmp_path / "run.json")["status"] == expected
