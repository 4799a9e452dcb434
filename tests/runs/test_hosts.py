"""Two hosts with one store: different names, boots, mount points and clocks; nothing is lost, nothing made twice."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from embedprior.cli import main
from embedprior.runs import Lock, artifact, locks

from ..study.conftest import BASE, write_cohort

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")
KINDS = [f"k{n}" for n in range(6)]


def become(host: str, skew: float) -> None:
    """Make this process one of another host, whose clock is ahead by ``skew`` seconds."""
    locks._machine.cache_clear()
    locks._machine = lambda: {"host": host, "machine": f"{host}/boot-{host}/pid:[1]"}  # type: ignore[assignment]
    clock = time.time
    time.time = lambda: clock() + skew  # type: ignore[assignment]


def work(host: str, skew: float, store: Path, log: Path) -> None:
    """Want every artifact of the store, in the order of this host."""
    become(host, skew)

    def build(kind: str, folder: Path) -> None:
        with log.open("a") as handle:
            handle.write(f"{kind} {host}\n")
        time.sleep(0.15)
        (folder / "x.txt").write_text(kind)

    for kind in KINDS if host == "a" else KINDS[::-1]:
        made = artifact(kind, {}, {}, "t-1", lambda folder, kind=kind: build(kind, folder), store)
        assert (made.path / "x.txt").read_text() == kind


def test_two_hosts_make_each_artifact_of_a_shared_store_once(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    store.mkdir()
    (tmp_path / "mount").symlink_to(store)  # the other host sees it elsewhere
    hosts = [FORK.Process(target=work, args=("a", 0.0, store, log))]
    hosts += [FORK.Process(target=work, args=("b", 3600.0, tmp_path / "mount", log))]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
        assert host.exitcode == 0
    built = [line.split()[0] for line in log.read_text().splitlines()]
    assert sorted(built) == KINDS
    assert {line.split()[1] for line in log.read_text().splitlines()} == {"a", "b"}
    assert not [path for path in store.rglob(".*") if path.name.endswith((".lock", ".tmp"))]


def hold(path: Path, host: str, skew: float, until: Path) -> None:
    become(host, skew)
    locks.HEARTBEAT_S = 0.05
    assert Lock(path).acquire()
    while not until.exists():
        time.sleep(0.02)
    os._exit(0)  # killed: it gives nothing back


@pytest.mark.parametrize("skew", [3600.0, -3600.0], ids=["its clock is ahead", "its clock is behind"])
def test_a_lock_of_another_host_holds_while_it_beats_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(locks, "WATCHED_S", 0.5)
    utime = os.utime

    def stamped(path: Path, times: tuple[float, float] | None = None) -> None:
        utime(path, times or (time.time(), time.time()))  # by the host's own clock, as some shared disks do

    monkeypatch.setattr(os, "utime", stamped)
    path, until = tmp_path / "l", tmp_path / "end"
    other = FORK.Process(target=hold, args=(path, "far", skew, until))
    other.start()
    while not path.exists() or not json.loads(path.read_text() or "{}"):
        time.sleep(0.02)
    assert not Lock(path, stale_after=1.0).wait(patience=3.0)  # longer than it takes to call a silent one stale
    until.touch()
    other.join()
    assert Lock(path, stale_after=1.0).wait(patience=20.0)


USERS, GROUP = (20_001, 20_002), 20_009


def as_user(user: int, host: str, skew: float, home: Path, out: Path, done: Path, words: list[str]) -> None:
    """Run a command as another user of the group that shares a store, on a host of its own."""
    become(host, skew)
    fcntl.flock = fcntl.lockf = None  # type: ignore[assignment]  # the disk that they share knows none
    os.setgroups([])
    os.setgid(GROUP)
    os.setuid(user)
    os.umask(0o002)
    os.environ["EMBEDPRIOR_HOME"] = str(home)
    done.write_text(str(main([*words, "--out", str(out)])))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")
def test_two_users_of_two_hosts_run_one_study_from_one_store() -> None:
    with tempfile.TemporaryDirectory(prefix="hosts-") as name:  # pytest's own folders are closed to other users
        root = Path(name)
        root.chmod(0o755)
        cohort = write_cohort(root / "cohort")
        (root / "study.yaml").write_text(yaml.safe_dump(BASE))
        words = ["study", "run", "--config", str(root / "study.yaml"), "--data", str(cohort)]
        assert main([*words, "--out", str(root / "alone")]) == 0  # also loads every module: other users read none
        store = root / "store"
        for folder in (store, root / "out"):
            folder.mkdir()
            os.chown(folder, 0, GROUP)
            folder.chmod(0o2775)
        (root / "mount").symlink_to(store)
        hosts = []
        for user, host, skew, home in zip(USERS, "ab", (0.0, 3600.0), (store, root / "mount"), strict=True):
            given = (user, host, skew, home, root / "out" / host, root / "out" / f"{host}.code", words)
            hosts.append(FORK.Process(target=as_user, args=given))
        for host in hosts:
            host.start()
        for host in hosts:
            host.join()
        assert [(root / "out" / f"{host}.code").read_text() for host in "ab"] == ["0", "0"]
        alone = (root / "alone" / "predictions.csv").read_bytes()
        assert all((root / "out" / host / "predictions.csv").read_bytes() == alone for host in "ab")
        fits = list((store / "artifacts" / "fit").glob("[!.]*/artifact.json"))
        assert len(fits) == len(list((root / "alone" / "artifacts" / "fit").glob("[!.]*/artifact.json")))
        makers = {path.parent: path.stat().st_uid for path in fits}
        assert set(makers.values()) <= set(USERS)
        for folder, user in makers.items():  # each was made once, as a whole, by one of them
            assert {path.stat().st_uid for path in folder.iterdir()} == {user}
            assert {path.stat().st_gid for path in folder.iterdir()} == {GROUP}
        assert not [path for path in root.rglob(".*") if path.name.endswith((".lock", ".tmp")) or "tmp-" in path.name]
        assert not list(store.rglob(".damaged-*"))
        assert main(["verify", str(store)]) == 0


@pytest.mark.slow
def test_the_slurm_script_of_the_documentation_gives_what_one_process_gives(tmp_path: Path) -> None:
    """Its own lines, with ``srun`` and ``scontrol`` that start both "machines" here."""
    from ..cli.test_stopped import prior_words

    words = prior_words(tmp_path)
    config = yaml.safe_load((tmp_path / "prior.yaml").read_text())
    config["prior"]["training"]["steps"] = 20
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump(config))
    page = (ROOT / "docs" / "scaling.md").read_text()
    (script,) = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "#SBATCH" in block]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for typed, here in (
        ("/shared/embedprior", str(tmp_path / "home")), ("--nproc_per_node 4", "--nproc_per_node 1"),
        (":29500", f":{port}"), ("--config pe_paper", f"--config {words[1]}"),
        ("/shared/runs/prior", str(tmp_path / "two")),
    ):  # fmt: skip
        assert script.count(typed) == 1
        script = script.replace(typed, here)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/bash\nprintf '127.0.0.1\\nnode2\\n'\n")
    (tools / "srun").write_text(
        '#!/bin/bash\nfor id in 0 1; do SLURM_NODEID=$id "$@" & pids+=" $!"; done\n'
        "for pid in $pids; do wait $pid || exit 1; done\n"
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(["train", "prior", *words, "--out", str(tmp_path / "one")]) == 0
    two, one = (load_file(tmp_path / name / "prior.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, atol=1e-5, err_msg=name)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["status"] == "done"
