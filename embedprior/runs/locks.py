"""Locks between processes and hosts that share a folder.

A lock is a file made with ``O_EXCL``: of several who try, one succeeds. It holds who made it (host, process, a token),
and its modification time is a heartbeat. It is stale, and may be taken over, when its process is known to be dead, when
the heartbeat has stopped, or when its maker died before it had signed it. A clock alone is never believed, as clocks
jump and machines sleep: a silent lock, and one dated ahead, must also stay untouched while this process watches it.
Work under a lock must be safe to do twice (publish by rename): a process that was stopped for longer than the heartbeat
allows finds with ``is_ours`` that it has lost its lock.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from embedprior.errors import BadInput
from embedprior.runs.files import make_folder, write_text

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0
UNSIGNED_AFTER_S = 10.0
WATCHED_S = 2.5 * HEARTBEAT_S
"""How long a lock whose date is too old, or ahead of the clock, is watched before it counts as stale."""
_POLL_S = 0.1
FOLDER_LOCK = ".in-use.lock"
FOLDERS = ("cohort", "images", "figures", "tables", "reports")
"""Folders of a run whose files are results, under a checksum each."""


class Lock:
    """A lock file, as a context manager or by ``acquire`` and ``release``."""

    def __init__(self, path: Path, stale_after: float = STALE_AFTER_S) -> None:
        self.path, self.stale_after = path, stale_after
        self._token = secrets.token_hex(8)

    def acquire(self) -> bool:
        """Try once; return whether the lock is ours now."""
        if self._create():
            return True
        return self.remove_if_stale() and self._create()

    def wait(self, patience: float | None = None) -> bool:
        """Try until the lock is ours; return False when ``patience`` seconds passed without."""
        started = time.monotonic()
        while not self.acquire():
            if patience is not None and time.monotonic() - started > patience:
                return False
            time.sleep(_POLL_S)
        return True

    def remove_if_stale(self) -> bool:
        """Remove the lock when its owner is gone, and only then; return whether it is away."""
        judged = _read(self.path)
        if judged is None or not is_stale(self.path, judged, self.stale_after):
            return False
        aside = self.path.with_name(f"{self.path.name}.{self._token}.tmp")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return True
        moved = _read(aside)
        if moved is not None and moved.get("token") != judged.get("token"):
            # Somebody took the stale lock over between our look and our move: put theirs back.
            with suppress(FileExistsError):
                os.link(aside, self.path)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        return True

    def create_unique(self) -> None:
        """Make the lock under a name that nobody else can have; unlike an acquired one it is never seen unsigned."""
        write_text(self.path, self._signature())
        _HEARTBEAT.keep(self.path)

    def is_ours(self) -> bool:
        """Return whether the lock file is still the one we made."""
        owner = _read(self.path)
        return owner is not None and owner.get("token") == self._token

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        _HEARTBEAT.forget(self.path)
        if self.is_ours():
            self.path.unlink(missing_ok=True)

    def owner(self) -> str:
        """Return who holds it, for a message: ``"host node1, process 123"``."""
        owner = _read(self.path) or {}
        return f"host {owner.get('host', 'unknown')}, process {owner.get('pid', 'unknown')}"

    def __enter__(self) -> Lock:
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _signature(self) -> str:
        return json.dumps(identity() | {"token": self._token})

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(handle, self._signature().encode())
        except BaseException:  # an interrupt, too, leaves no lock that nobody signed
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        try:
            if not self.is_ours():  # we were stopped before we had signed it, for so long that it was taken over
                return False
            _HEARTBEAT.keep(self.path)
        except BaseException:
            self.release()
            raise
        return True


def is_stale(path: Path, owner: dict[str, Any] | None = None, stale_after: float = STALE_AFTER_S) -> bool:
    """Return whether a lock's owner is gone: its process is dead (seen from the same machine), or it is silent.

    Args:
        path: the lock file.
        owner: what it holds, where that was read already.
        stale_after: seconds without a heartbeat; an empty lock gets ``UNSIGNED_AFTER_S`` at most.
    """
    owner = _read(path) if owner is None else owner
    if owner is None:
        return False
    if owner.get("machine") == identity()["machine"] and not _alive(owner.get("pid"), owner.get("started")):
        return True
    try:
        touched = path.stat()
        age = _now(path.parent) - touched.st_mtime
    except FileNotFoundError:
        return False
    limit = stale_after if owner else min(stale_after, UNSIGNED_AFTER_S)
    if -HEARTBEAT_S < age <= limit:
        _WATCHED.pop(path, None)
        return False
    sign = (owner.get("token"), touched.st_mtime_ns)
    before, since = _WATCHED.get(path, (None, 0.0))
    if before != sign:
        since = time.monotonic()
        _WATCHED[path] = sign, since
    return time.monotonic() - since >= min(WATCHED_S, limit)


_WATCHED: dict[Path, tuple[tuple[Any, int], float]] = {}
"""Locks with an implausible date → what they were when first seen so, and when that was by this process's own clock."""


def identity() -> dict[str, Any]:
    """Return who this process is: host name, machine (boot and process namespace), process id and its start."""
    return _machine() | {"pid": os.getpid(), "started": _started(os.getpid())}


@cache
def _machine() -> dict[str, str]:
    # Two containers may share a host name but not their process ids.
    host, boot, processes = socket.gethostname(), "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = os.readlink("/proc/self/ns/pid")
    return {"host": host, "machine": f"{host}/{boot}/{processes}"}


def _started(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _alive(pid: Any, started: Any) -> bool:
    if not isinstance(pid, int):
        return True
    now = _started(pid)
    return now is not None and (started is None or abs(now - float(started)) < 1.0)


def is_old(path: Path) -> bool:
    """Return whether a file was last written longer ago than ``STALE_AFTER_S``, by the clock of its folder."""
    try:
        return _now(path.parent) - path.stat().st_mtime > STALE_AFTER_S
    except FileNotFoundError:
        return False


def _now(folder: Path) -> float:
    """Return the time by the clock that stamps files there (a file server's own, on a network disk)."""
    probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a lock's contents; {} when it is being written, None when it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


class _Heartbeat:
    """One thread that touches every lock this process holds."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()
        self._guard = threading.Lock()
        self._pid: int | None = None

    def keep(self, path: Path) -> None:
        with self._guard:
            if self._pid != os.getpid():  # threads do not survive a fork
                self._pid, self._paths = os.getpid(), set()
                threading.Thread(target=self._beat, daemon=True, name="lock heartbeat").start()
            self._paths.add(path)

    def renew(self) -> None:
        """Begin anew in a forked child: the parent's thread is not there, and may have held the guard just then."""
        self._guard = threading.Lock()

    def forget(self, path: Path) -> None:
        with self._guard:
            self._paths.discard(path)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            with self._guard:
                paths = list(self._paths)
            for path in paths:
                try:
                    os.utime(path)
                except OSError:
                    continue


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold an output folder that is written in place; another process that wants it is refused meanwhile.

    Within one process it can be claimed again: the run inside a run. A folder that a killed process held is free at
    once on its own machine, and otherwise when its heartbeat stays away.

    Raises:
        BadInput: it can't be made or written to, or another process is writing there.
    """
    made = not folder.exists()
    make_folder(folder)
    place = folder.resolve()
    count, lock = _CLAIMED.get(place, (0, Lock(place / FOLDER_LOCK)))
    if not count:
        _claim(folder, lock)
        _clear(place)
    _CLAIMED[place] = count + 1, lock
    try:
        yield
    finally:
        count, lock = _CLAIMED.pop(place)
        if count > 1:
            _CLAIMED[place] = count - 1, lock
        else:
            lock.release()
            if made and not any(place.iterdir()):  # what was refused leaves nothing
                place.rmdir()


def _claim(folder: Path, lock: Lock) -> None:
    first = None
    while not lock.acquire():
        owner = _read(lock.path)
        if owner is None:
            continue
        with suppress(FileNotFoundError):
            sign = owner.get("token"), lock.path.stat().st_mtime_ns
            first = first or sign
            if owner.get("machine") == identity()["machine"] or sign != first:
                raise BadInput(
                    f"{folder} is being written by {lock.owner()}. Next: wait until it is done, or give another folder"
                )
            if first is sign:
                print(f"{folder} was being written by {lock.owner()}; waiting for a sign of life", file=sys.stderr)
        time.sleep(_POLL_S)


def _clear(folder: Path) -> None:
    """Remove what a killed process was writing in a folder that is ours now, and in those of its results."""
    own = [folder, *(folder / name for name in FOLDERS if not (folder / name / FOLDER_LOCK).exists())]
    for left in [path for place in own for path in place.glob(".*.tmp")]:
        if left.name.startswith((FOLDER_LOCK, ".clock.")):  # of a process that tries to get the folder just now
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


_CLAIMED: dict[Path, tuple[int, Lock]] = {}


@atexit.register
def _release_claims() -> None:
    """Give back what an error left claimed."""
    for _, lock in _CLAIMED.values():
        with suppress(OSError):
            lock.release()


_HEARTBEAT = _Heartbeat()
os.register_at_fork(after_in_child=_HEARTBEAT.renew)
os.register_at_fork(after_in_child=_CLAIMED.clear)  # a forked child holds nothing of its parent's
