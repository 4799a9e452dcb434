"""Builders that are killed, that run side by side, or that run out of room."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cache import build, open_cache
from embedprior.cache.build import fill_cache
from embedprior.cache.format import shard_files
from embedprior.cache.verify import BUILDER, LOCK, find_corruption, remove_leftovers
from embedprior.runs import DiskFull
from embedprior.runs.distributed import ProcessGroup

from .conftest import MeanEncoder, expected, make_exams, tree

FORK = multiprocessing.get_context("fork")
BATCH, SHARD = 2, 4


class Slow(MeanEncoder):
    """Takes a while, and notes on disk how many pictures it saw in which process."""

    def __init__(self, notes: Path, seconds: float, meet: Barrier | None = None) -> None:
        super().__init__()
        self.notes, self.seconds, self.meet = notes, seconds, meet

    def embed(self, batch: np.ndarray) -> np.ndarray:
        if self.meet is not None and self.seen == 0:
            self.meet.wait(30)  # each has a block by now: none is done before the other began
        time.sleep(self.seconds)
        with self.notes.open("a") as handle:
            handle.write(f"{os.getpid()} {len(batch)}\n")
        return super().embed(batch)


def fill(
    exams: pd.DataFrame, root: Path, out: Path, seconds: float = 0.0, workers: int = 0, meet: Barrier | None = None
) -> None:
    fill_cache(exams, root, Slow(root / "notes", seconds, meet), out, BATCH, shard_exams=SHARD, workers=workers)


def start(*given: object) -> multiprocessing.context.ForkProcess:
    process = FORK.Process(target=fill, args=given)
    process.start()
    return process


def kill(process: multiprocessing.context.ForkProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_killed_build_keeps_its_shards_and_the_rerun_does_only_the_rest(tmp_path: Path) -> None:
    exams, out = make_exams(tmp_path, 16), tmp_path / "cache"
    fill(exams, tmp_path, tmp_path / "whole")
    (tmp_path / "notes").unlink()
    process = start(exams, tmp_path, out, 0.05)
    while len(shard_files_under(out)) < 2:
        assert process.is_alive()
        time.sleep(0.005)
    kill(process)
    kept = {p.name: p.stat().st_ino for p in shard_files_under(out)}
    (tmp_path / "notes").unlink()
    fill(exams, tmp_path, out)
    seen = sum(int(line.split()[1]) for line in (tmp_path / "notes").read_text().splitlines())
    assert seen == 16 - 4 * len(kept)
    assert {p.name: p.stat().st_ino for p in shard_files_under(out) if p.name in kept} == kept
    assert tree(out) == tree(tmp_path / "whole")


def test_ten_kills_at_random_instants_change_no_byte(tmp_path: Path) -> None:
    exams, out = make_exams(tmp_path, 120, sides=(8, 12)), tmp_path / "cache"
    (tmp_path / "7.png").write_bytes(b"no picture")
    began = time.monotonic()
    fill(exams, tmp_path, tmp_path / "whole", 0.02)
    longest = (time.monotonic() - began) / 6  # a busy machine must not have them die before they have begun
    chance, kills, shards = random.Random(2026), 0, []
    while kills < 10:
        process = start(exams, tmp_path, out, 0.02, kills % 2)
        process.join(chance.uniform(0.0, longest))
        if process.is_alive():
            kill(process)
            kills += 1
        process.join()
        shards.append(len(shard_files_under(out)))
    assert shards[-1] > 0  # they were at work when they died
    fill(exams, tmp_path, out)
    assert tree(out) == tree(tmp_path / "whole")
    assert find_corruption(next(out.glob("means@*"))) == []


def test_two_builders_at_once_share_the_work(tmp_path: Path) -> None:
    exams, out = make_exams(tmp_path, 40), tmp_path / "cache"
    fill(exams, tmp_path, tmp_path / "whole")
    (tmp_path / "notes").unlink()
    meet = FORK.Barrier(2)
    both = [start(exams, tmp_path, out, 0.02, workers, meet) for workers in (0, 1)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert sum(int(count) for _, count in notes) == 40  # no exam was embedded twice, none was left out
    assert len({pid for pid, _ in notes}) == 2
    assert tree(out) == tree(tmp_path / "whole")


def test_builders_of_two_cohorts_meet_in_one_cache(tmp_path: Path) -> None:
    a, b, out = make_exams(tmp_path / "a", 12, seed=1), make_exams(tmp_path / "b", 12, seed=2), tmp_path / "cache"
    both = [start(a, tmp_path / "a", out, 0.02), start(b, tmp_path / "b", out, 0.02)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    for exams, root in ((a, tmp_path / "a"), (b, tmp_path / "b")):
        folder = next(out.glob("means@*"))
        found = open_cache(folder, exams=exams, root=root)
        np.testing.assert_allclose(found.matrix, expected(root, list(range(12))), atol=1e-6)
        assert find_corruption(folder) == []


def test_a_full_disk_is_said_and_earlier_shards_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exams, out = make_exams(tmp_path, 12), tmp_path / "cache"
    fill(exams, tmp_path, tmp_path / "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write, written = build.write_shard, []

    def second_has_no_room(path: Path, *given: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]) if written else before)
        write(path, *given)  # type: ignore[arg-type]
        written.append(path)

    monkeypatch.setattr(build, "write_shard", second_has_no_room)
    try:
        with pytest.raises(DiskFull, match=r"no room for shard-000001.*is intact.*run the same command"):
            fill(exams, tmp_path, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    folder = next(out.glob("means@*"))
    assert [p.name for p in shard_files(folder)] == [written[0].name]
    assert find_corruption(folder) == []
    assert not list(folder.glob(".*"))
    fill(exams, tmp_path, out)
    np.testing.assert_allclose(open_cache(out).matrix, expected(tmp_path, list(range(12))), atol=1e-6)


def shard_files_under(out: Path) -> list[Path]:
    return [path for folder in out.glob("means@*") for path in shard_files(folder)]


def test_what_another_builder_is_just_writing_is_swept_when_it_is_old(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "means@0"
    folder.mkdir(parents=True)
    lock, other = folder / f".{BUILDER}0a1b{LOCK}.77.tmp", folder.parent / ".current.77.tmp"
    shard = folder / ".shard.77.tmp"
    for path in (lock, other, shard):
        path.touch()
    remove_leftovers(folder, folder / "own")
    assert (lock.exists(), other.exists(), shard.exists()) == (True, True, False)
    for path in (lock, other):
        os.utime(path, (time.time() - 120,) * 2)
    remove_leftovers(folder, folder / "own")
    assert not lock.exists()
    assert not other.exists()


def test_nothing_is_swept_before_every_process_of_the_launch_has_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process that writes its lock a moment later: its temporary file is no leftover."""
    events: list[str] = []

    class Noted(ProcessGroup):
        def barrier(self) -> None:
            events.append("barrier")

    def note(event: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(*given: object) -> None:
            events.append(event)
            original(*given)

        return call

    monkeypatch.setattr(build.Lock, "create_unique", note("lock", build.Lock.create_unique))
    monkeypatch.setattr(build, "remove_leftovers", note("sweep", build.remove_leftovers))
    exams = make_exams(tmp_path, 4)
    fill_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", processes=Noted())
    assert events[: events.index("sweep") + 1] == ["barrier", "lock", "barrier", "sweep"]
