"""Two hosts with one store: different names, boots, mount points and clocks; nothing is lost, nothing made twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from embedprior.runs import Lock, artifact, locks

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
