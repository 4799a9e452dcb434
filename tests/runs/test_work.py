"""Progress bars, and what work costs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

import numpy as np
import pytest
from torch import distributed

from embedprior import cli
from embedprior.runs import QUIET, inner_bar, measured, progress, run
from embedprior.runs.run import progress_bar

FORK = multiprocessing.get_context("fork")


def test_bar_is_shown_unless_this_process_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(QUIET, raising=False)
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err
    monkeypatch.setenv(QUIET, "1")
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_part_is_drawn_on_a_terminal_alone_and_only_when_the_part_is_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(QUIET, raising=False)

    def shown(terminal: bool, short_wait: float) -> str:
        monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(run, "SHORT_WAIT_S", short_wait)
        with inner_bar("samples", 2) as bar:
            bar.update(1)
            bar.update(1)
        return capsys.readouterr().err

    assert "samples" in shown(terminal=True, short_wait=0.0)
    assert shown(terminal=True, short_wait=60.0) == ""
    assert shown(terminal=False, short_wait=0.0) == ""
    monkeypatch.setenv(QUIET, "1")
    assert shown(terminal=True, short_wait=0.0) == ""
    assert inner_bar("samples", 2).get_lock() is progress_bar([], "first").get_lock()


def test_a_child_forked_while_its_parent_draws_has_bars_of_its_own() -> None:
    lock, drawing, done = progress_bar([], "first").get_lock(), threading.Event(), threading.Event()

    def draw() -> None:
        with lock:
            drawing.set()
            done.wait(60)

    thread = threading.Thread(target=draw)
    thread.start()
    drawing.wait(30)
    child = FORK.Process(target=_draw)
    child.start()
    child.join(30)
    waiting = child.is_alive()
    child.kill()
    done.set()
    thread.join()
    assert not waiting, "a bar waits for a lock that a thread of the parent held at the fork"


def test_a_child_killed_while_it_draws_does_not_stop_the_bars_of_its_parent() -> None:
    parent = FORK.Process(target=_outlive_a_killed_child)
    parent.start()
    parent.join(30)
    waiting = parent.is_alive()
    parent.kill()
    parent.join()
    assert not waiting, "a bar waits for a lock that a killed process held"
    assert parent.exitcode == 0


def _outlive_a_killed_child() -> None:
    _draw()  # the parent has drawn before: what its bars share with children exists by now
    here, there = FORK.Pipe()
    child = FORK.Process(target=_draw_without_end, args=(there,))
    child.start()
    here.recv()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    _draw()


def _draw() -> None:
    assert list(progress(range(3), "counting")) == [0, 1, 2]


def _draw_without_end(ready: Connection) -> None:
    bar = progress_bar(range(3), "counting")
    bar.get_lock().acquire()
    ready.send("drawing")
    signal.pause()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is known on Linux alone")
def test_a_cost_is_that_of_its_block_alone() -> None:
    with measured() as large:
        block = np.ones(200 * 2**20 // 8)
        del block
        time.sleep(0.05)
    with measured() as small:
        started = time.process_time()
        while time.process_time() - started < 0.05:
            pass
    assert large.peak_mb is not None
    assert small.peak_mb is not None
    assert large.peak_mb - small.peak_mb > 150  # the peak of the first block is not the second's
    assert large.seconds >= 0.05
    assert small.cpu_seconds >= 0.05
    assert set(small.record()) == {"seconds", "cpu_seconds", "peak_mb"}


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_process_leaves_its_group_when_its_work_is_done(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(cli, "main", lambda words: code)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.entry()
        assert ended.value.code == code
        assert distributed.is_initialized() == (code == 2)  # others may still wait for it
    finally:
        signal.signal(signal.SIGTERM, before)
        if distributed.is_initialized():
            distributed.destroy_process_group()
