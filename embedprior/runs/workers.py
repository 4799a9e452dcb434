"""Worker processes that end with the process that started them, and at once when it is interrupted."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's ``mallopt`` (malloc.h)."""
KEPT_BYTES, LARGEST_KEPT_BYTES = 256 << 20, 32 << 20


@contextmanager
def worker_pool(
    workers: int, start: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of spawned processes.

    They end within a second of this process, however it dies: a pool of the standard library lives on when its parent
    is killed. When the work inside is interrupted they are killed, and what they were at is lost; without that, an
    interrupt waits for every task that was handed out.

    Args:
        workers: how many.
        start: called once in every process before its first task.
        arguments: of ``start``.
    """
    context = multiprocessing.get_context("spawn")
    # packed, so that a worker watches its parent before it imports what these need, which can take many seconds
    packed = bytes(ForkingPickler.dumps((start, arguments)))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(packed,))
    try:
        yield pool
    except BaseException:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _start(packed: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True, name="parent watch").start()
    keep_freed_memory()
    start, arguments = pickle.loads(packed)
    if start is not None:
        start(*arguments)


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed arrays for the next ones, where the C library is glibc.

    By default an array of some megabytes is given back to the system when it is freed, and the next one is made of new
    pages, each zeroed by the kernel: up to a quarter of the time of a loop over volumes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
