from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from embedprior.errors import BadInput
from embedprior.runs import Lock, artifact, locks

FORK = multiprocessing.get_context("fork")


def write_owner(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(locks.identity() | {"token": "theirs"} | changes))


def dead_pid() -> int:
    process = FORK.Process(target=int)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date that is too old counts at once, without the time that a process watches the lock."""
    monkeypatch.setattr(locks, "WATCHED_S", 0.0)


@pytest.mark.parametrize("skew", [3600, -3600], ids=["dated ahead", "dated back"])
def test_a_lock_with_an_implausible_date_is_stale_only_when_it_stays_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    seconds = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    path = tmp_path / "l"
    write_owner(path, machine="elsewhere")

    def date(shift: float) -> None:
        os.utime(path, (time.time() + skew + shift,) * 2)

    date(0)
    assert not locks.is_stale(path)
    for beat in range(1, 8):  # the clock is wrong, the owner is alive: it touches its lock
        seconds[0] += locks.HEARTBEAT_S
        date(beat)
        assert not locks.is_stale(path)
    seconds[0] += locks.WATCHED_S - 0.1
    assert not locks.is_stale(path)
    seconds[0] += 0.2
    assert locks.is_stale(path)
    date(9)  # it was only slow
    assert not locks.is_stale(path)


def test_a_folder_that_is_written_in_place_has_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locks.claimed(out):
        assert not refused(out)  # the run inside a run, in one process
        process = FORK.Process(target=exit_refused, args=(out,))
        process.start()
        process.join()
        assert process.exitcode == 7
    assert not out.exists()  # it was made for this, and nothing was written
    process = FORK.Process(target=exit_refused, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 0


def refused(out: Path) -> str:
    try:
        with locks.claimed(out):
            return ""
    except BadInput as error:
        return str(error)


def exit_refused(out: Path) -> None:
    message = refused(out)
    if message and f"is being written by host {os.uname().nodename}, process {os.getppid()}" not in message:
        os._exit(1)
    os._exit(7 if message else 0)


def test_a_folder_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    write_owner(tmp_path / locks.FOLDER_LOCK, pid=dead_pid())
    for place in ("cohort", "figures", "another run"):  # what it was writing goes; what others write elsewhere stays
        (tmp_path / place).mkdir()
        (tmp_path / place / ".flow.csv.77.tmp").touch()
    assert not refused(tmp_path)
    assert [path.parent.name for path in tmp_path.rglob("*.tmp")] == ["another run"]
    assert not (tmp_path / locks.FOLDER_LOCK).exists()


def test_a_folder_of_another_machine_is_taken_over_when_it_shows_no_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "WATCHED_S", 0.3)
    path = tmp_path / locks.FOLDER_LOCK
    write_owner(path, machine="elsewhere", host="node7")
    os.utime(path, (time.time() - 90,) * 2)
    assert not refused(tmp_path)
    assert capsys.readouterr().err.count("node7") == 1
    write_owner(path, machine="elsewhere", host="node7")
    beating = threading.Timer(0.3, os.utime, args=(path, (1e9, 1e9)))
    beating.start()
    assert "is being written by host node7" in refused(tmp_path)
    beating.join()


def test_one_of_two_gets_the_lock_and_it_comes_free(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "l"), Lock(tmp_path / "l")
    assert first.acquire()
    assert not second.acquire()
    assert not second.wait(patience=0.05)
    assert first.owner() == second.owner() == f"host {os.uname().nodename}, process {os.getpid()}"
    first.release()
    assert second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    write_owner(tmp_path / "l", pid=dead_pid())
    lock = Lock(tmp_path / "l")
    assert lock.acquire()
    assert lock.is_ours()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_process_number_that_was_given_again_is_not_the_owner(tmp_path: Path) -> None:
    write_owner(tmp_path / "l", started=1.0)  # our own number, but another birth
    assert Lock(tmp_path / "l").acquire()


@pytest.mark.usefixtures("unwatched")
def test_lock_of_another_machine_is_stale_only_when_its_heart_stops(tmp_path: Path) -> None:
    write_owner(tmp_path / "l", machine="elsewhere", pid=dead_pid())
    assert not Lock(tmp_path / "l", stale_after=60).acquire()
    old = time.time() - 61
    os.utime(tmp_path / "l", (old, old))
    assert Lock(tmp_path / "l", stale_after=60).acquire()


@pytest.mark.usefixtures("unwatched")
def test_lock_whose_maker_died_before_signing_it_comes_free_soon(tmp_path: Path) -> None:
    (tmp_path / "l").touch()
    assert not Lock(tmp_path / "l").acquire()
    old = time.time() - locks.UNSIGNED_AFTER_S - 1
    os.utime(tmp_path / "l", (old, old))
    assert Lock(tmp_path / "l").acquire()


def test_maker_that_was_stopped_before_signing_does_not_believe_it_has_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def others_come_first(handle: int, text: bytes) -> int:
        (tmp_path / "l").unlink()
        write_owner(tmp_path / "l")
        return write(handle, text)

    monkeypatch.setattr(os, "write", others_come_first)
    assert not Lock(tmp_path / "l").acquire()
    assert json.loads((tmp_path / "l").read_text())["token"] == "theirs"


def test_held_lock_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(locks, "_HEARTBEAT", locks._Heartbeat())
    with Lock(tmp_path / "l"):
        os.utime(tmp_path / "l", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "l").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "l").stat().st_mtime > 0


def test_lost_lock_is_noticed_and_not_taken_from_its_new_owner(tmp_path: Path) -> None:
    slow = Lock(tmp_path / "l")
    assert slow.acquire()
    (tmp_path / "l").unlink()
    write_owner(tmp_path / "l")
    assert not slow.is_ours()
    slow.release()
    assert json.loads((tmp_path / "l").read_text())["token"] == "theirs"


def grab(path: Path, log: Path) -> None:
    for _ in range(20):
        lock = Lock(path)
        lock.wait()
        with log.open("a") as handle:
            handle.write(f"in {os.getpid()}\n")
        time.sleep(0.001)
        with log.open("a") as handle:
            handle.write(f"out {os.getpid()}\n")
        lock.release()


def test_processes_that_contend_are_never_inside_together(tmp_path: Path) -> None:
    write_owner(tmp_path / "l", pid=dead_pid())  # they begin with a stale lock to take over
    crowd = [FORK.Process(target=grab, args=(tmp_path / "l", tmp_path / "log")) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 160
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.replace("in", "out") == left


def make(root: Path, log: Path) -> None:
    def build(work: Path) -> None:
        with log.open("a") as handle:
            handle.write("built\n")
        time.sleep(0.2)
        (work / "x.txt").write_text("made")

    made = artifact("thing", {}, {}, "thing-1", build, root)
    assert (made.path / "x.txt").read_text() == "made"


def test_two_processes_that_want_one_artifact_build_it_once(tmp_path: Path) -> None:
    both = [FORK.Process(target=make, args=(tmp_path, tmp_path / "log")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"
    assert len(list((tmp_path / "thing").iterdir())) == 1


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    made = artifact("thing", {}, {}, "thing-1", lambda work: None, tmp_path)
    made.path.rename(tmp_path / "thing" / f".tmp-{made.key}-1")
    (tmp_path / "thing" / f".tmp-{made.key}-1" / "half").write_text("half")
    write_owner(tmp_path / "thing" / f".{made.key}.lock", pid=dead_pid())
    again = artifact("thing", {}, {}, "thing-1", lambda work: None, tmp_path)
    assert not again.reused
    assert [p.name for p in (tmp_path / "thing").iterdir()] == [made.key]


def test_a_process_forked_while_a_heartbeat_runs_can_lock(tmp_path: Path) -> None:
    def child() -> None:
        if not Lock(tmp_path / "a.lock").acquire():
            os._exit(1)

    process = FORK.Process(target=child)
    with locks._HEARTBEAT._guard:
        process.start()
    process.join(20)
    alive = process.is_alive()
    process.kill()
    assert (alive, process.exitcode) == (False, 0)


def test_what_a_killed_writer_left_in_its_folder_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".run.json.123.tmp").write_text("{")
    (tmp_path / ".saving-123.tmp").mkdir()
    (tmp_path / ".saving-123.tmp" / "w.safetensors").write_text("half")
    (tmp_path / "kept.csv").write_text("a\n")
    write_owner(tmp_path / locks.FOLDER_LOCK, pid=dead_pid())
    with locks.claimed(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [locks.FOLDER_LOCK, "kept.csv"]


def test_the_lock_of_a_builder_that_was_killed_after_its_last_rename_goes(tmp_path: Path) -> None:
    made = artifact("thing", {}, {}, "thing-1", lambda work: None, tmp_path)
    write_owner(tmp_path / "thing" / f".{made.key}.lock", pid=dead_pid())
    assert artifact("thing", {}, {}, "thing-1", lambda work: None, tmp_path).reused
    assert [p.name for p in (tmp_path / "thing").iterdir()] == [made.key]
