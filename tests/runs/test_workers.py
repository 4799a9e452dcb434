"""Worker processes end with their parent, however it dies, and at once when the work is interrupted."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from embedprior.errors import BadInput
from embedprior.runs import Run, locks, read_json
from embedprior.runs.run import stop_unfinished_runs
from embedprior.runs.workers import worker_pool

from .test_locks import write_owner

PARENT = """
import os, sys, time
from embedprior.runs.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*sorted({job.result() for job in [pool.submit(os.getpid) for _ in range(20)]}), flush=True)
        for job in [pool.submit(time.sleep, 600) for _ in range(4)]:
            job.result()
"""


def gone(pids: list[int], patience: float = 60.0) -> bool:
    """Wait until none of these processes lives any more."""
    end = time.monotonic() + patience
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        if time.monotonic() > end:
            for pid in pids:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)  # they would sleep on
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent_however_it_dies(tmp_path: Path, number: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert pids
    parent.send_signal(number)
    parent.wait()
    assert gone(pids)


SLOW = """
import os, sys, time
from pathlib import Path
from embedprior.runs.workers import worker_pool

def imported(folder):
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(600)

class Slow:
    def __reduce__(self):
        return imported, (sys.argv[1],)

if __name__ == "__main__":
    with worker_pool(1, print, (Slow(),)) as pool:
        pool.submit(os.getpid).result()
"""


def test_a_worker_that_is_still_importing_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SLOW)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    while not (found := list(tmp_path.glob("*.pid"))):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert gone([int(found[0].stem)], patience=20)


FAULTS = """
import resource
import numpy as np
from embedprior.runs.workers import worker_pool

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(750_000) for _ in range(5)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(faults).result())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept by a setting of glibc")
def test_a_worker_makes_new_arrays_of_the_memory_of_freed_ones(tmp_path: Path) -> None:
    """Of twenty times 30 MB filled and freed, at most the first 30 MB (7,300 pages of 4 kB) are new to the process."""
    script = tmp_path / "faults.py"
    script.write_text(FAULTS)
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 2 * 7_300


def test_an_interrupt_inside_waits_for_no_task(tmp_path: Path) -> None:
    pids, begun = [], tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:  # noqa: PT012
        pids.append(pool.submit(os.getpid).result())
        pool.submit(exec, f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)")
        while not begun.is_file():
            time.sleep(0.02)
        raise KeyboardInterrupt
    assert gone(pids)


def test_a_run_that_is_stopped_says_so(tmp_path: Path) -> None:
    finished, stopped = Run(tmp_path / "a", "demo", {}, 0, {}), Run(tmp_path / "b", "demo", {}, 0, {})
    finished.finish("# done", [])
    stop_unfinished_runs()
    assert read_json(tmp_path / "a" / "run.json")["status"] == "done"
    assert read_json(tmp_path / "b" / "run.json")["status"] == "stopped"
    assert stopped.out == tmp_path / "b"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_that_is_stopped_says_so_keeps_its_fits_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    import yaml

    from ..study.conftest import BASE, write_cohort

    cohort, config, out = write_cohort(tmp_path / "cohort"), tmp_path / "study.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(BASE | {"seeds": list(range(1, 200)), "as_published": ""}))
    words = [sys.executable, "-m", "embedprior", "study", "run", "--config", str(config), "--data", str(cohort)]
    study = subprocess.Popen(
        [*words, "--out", str(out), "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    fits = out / "artifacts" / "fit"
    while len(list(fits.glob("[!.]*/artifact.json"))) < 3:
        assert study.poll() is None
        time.sleep(0.05)
    pids = [child.pid for child in psutil.Process(study.pid).children(recursive=True)]
    study.send_signal(number)
    _, error = study.communicate(timeout=120)
    assert study.returncode == 128 + number
    assert "stopped. What was finished is kept." in error
    assert "Traceback" not in error
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    assert len(list(fits.glob("[!.]*/artifact.json"))) >= 3
    assert gone(pids)


def test_a_run_is_refused_a_folder_that_another_process_writes(tmp_path: Path) -> None:
    write_owner(tmp_path / locks.FOLDER_LOCK, pid=os.getppid(), started=None)
    with pytest.raises(BadInput, match="is being written by"):
        Run(tmp_path, "demo", {}, 0, {})
    assert not (tmp_path / "run.json").exists()
    Run(tmp_path, "embed", {}, 0, {}, shared=True).finish("# done", [])  # a cache may be filled by several
    assert read_json(tmp_path / "run.json")["status"] == "done"


def test_a_run_that_failed_says_so_and_gives_its_folder_back(tmp_path: Path) -> None:
    Run(tmp_path, "demo", {}, 0, {})
    stop_unfinished_runs("failed")
    assert read_json(tmp_path / "run.json")["status"] == "failed"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    Run(tmp_path, "demo", {}, 0, {})
    again = Run(tmp_path, "demo", {}, 0, {})  # by a caller that went on after an error
    again.finish("# done", [])
    assert not (tmp_path / locks.FOLDER_LOCK).exists()
