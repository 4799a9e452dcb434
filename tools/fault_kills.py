"""Kills, full disks, read-only disks and moved folders, for ``faults.py``.

A kill is a SIGKILL just before or just after one of the calls that make work durable (fsync, rename, link, unlink),
spread over all those that a command makes. The same command, run again, must leave what an undisturbed one leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fault_worlds import call, child, words_of

KILLED = ("embed", "drr", "prior", "run", "bundle")
DURABLE = ("fsync", "replace", "rename", "link", "unlink")
"""Functions of ``os`` after which something is on the disk that was not there before."""
TELLS_TIME = ("run.json", "metrics.jsonl", "summary.md", "report.html", "fit.json", "artifact.json", "README.md",
              "manifest.json", "plan.json")  # fmt: skip
"""Files that hold seconds, or the checksum of one that does: they must be there, and whole."""
COST = "Parameters and compute"
"""The table of a report that holds seconds; the rest of the report must be the same."""
READ_ONLY, NO_ROOM = 2, 1


@dataclass(frozen=True)
class Trial:
    """One disturbance and what came of it.

    Attributes:
        command: that was disturbed.
        what: the disturbance.
        wrong: what is wrong afterwards; empty: nothing.
    """

    command: str
    what: str
    wrong: str


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file, and the number of lines of logs; of what tells the time, only that it is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(folder).as_posix()
            if path.name == "metrics.jsonl":
                found[name] = f"{len(path.read_text().splitlines())} lines"
            elif path.name == ".verified.json":
                continue
            elif path.name in TELLS_TIME or path.stem == COST.lower().replace(" ", "_"):
                found[name] = "there"
            elif path.name in ("report.json", "report.md"):
                found[name] = hashlib.sha256(without_cost(path).encode()).hexdigest()
            else:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_cost(path: Path) -> str:
    """Return the text of a report without its seconds and the number of its run."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        record = json.loads(text)
        kept = [table for table in record["tables"] if table["heading"] != COST]
        return json.dumps(record | {"tables": kept})
    head, _, rest = text.partition(f"\n## {COST}\n")
    lines = (head + rest.partition("\n## ")[2]).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("- seconds: ", "- id: ")))


def difference(reference: dict[str, str], folder: Path) -> str:
    """Return how a folder differs from what an undisturbed command leaves; empty: not at all."""
    found = contents(folder)
    names = sorted(name for name in {*reference, *found} if reference.get(name) != found.get(name))
    if names:
        return f"{len(names)} files differ: {', '.join(names[:3])}"
    code, said = call("verify", folder) if "bundle" not in folder.name else (0, "")
    return "" if code == 0 else said.strip().splitlines()[0]


class Counter:
    """Counts the durable calls of a process, and kills it at one of them."""

    def __init__(self, at: int | None = None, after: bool = False, record: Path | None = None) -> None:
        self.at, self.after, self.record, self.count = at, after, record, 0

    def install(self) -> None:
        """Put itself between the program and the operating system."""
        for name in DURABLE:
            setattr(os, name, partial(self._call, getattr(os, name)))

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == self.at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        made = function(*args, **kwargs)
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.record is not None:
            self.record.write_text(str(self.count))
        return made


def run(command: str, out: str, counter: Counter | None = None) -> tuple[int, str]:
    """Run a command of the world in a process of its own."""
    before = counter.install if counter is not None else lambda: None
    return child(lambda: run_words(words_of(command, out)), before)


def run_words(words: list[str]) -> int:
    """Run a command, as the console script does, and print to this process's own output."""
    from embedprior.cli import main

    return main(words)


def kills(command: str, wanted: int, share: tuple[int, int] = (0, 1)) -> Iterator[Trial]:
    """Kill a command at durable points spread over its course, then run it again; in the folder of a built world.

    Args:
        command: to kill.
        wanted: kills in all.
        share: which of how many equal shares of them.
    """
    counted = Path("durable.txt")
    forget_checks()
    code, said = run(command, "whole", Counter(record=counted))
    assert code == 0, said
    reference, points = contents(Path("whole")), int(counted.read_text())
    counted.unlink()
    shutil.rmtree("whole")
    places = [(n, after) for n in range(1, points + 1) for after in (False, True)]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(wanted + 2, len(places))).round().astype(int))
    for number in chosen[share[0] :: share[1]]:
        at, after = places[number]
        what = f"killed {'after' if after else 'before'} durable call {at} of {points}"
        forget_checks()
        code, said = run(command, "killed", Counter(at, after))
        if code != -signal.SIGKILL:  # a few calls depend on the time: this run had fewer
            what = f"finished before durable call {at}"
        code, said = run(command, "killed")
        if command == "embed" and age_leftovers(Path("killed")):  # several may fill it: they go once they are old
            code, said = run(command, "killed")
        if command == "bundle" and code == 2 and "exists" in said:  # it was complete: a bundle is never overwritten
            code = 0
        wrong = f"exit {code} when run again: {last(said)}" if code else difference(reference, Path("killed"))
        yield Trial(command, what, wrong)
        left = [path.name for path in Path().glob(".*") if path.name.endswith((".tmp", ".lock"))]
        if left:
            yield Trial(command, what, f"left beside its folder: {left}")
        shutil.rmtree("killed", ignore_errors=True)


def age_leftovers(folder: Path) -> bool:
    """Let what a killed process was writing be two minutes old; return whether there is any."""
    left = list(folder.glob(".*.tmp"))
    for path in left:
        os.utime(path, (time.time() - 120,) * 2)
    return bool(left)


def forget_checks() -> None:
    """Delete what is remembered of checked caches, so that every run makes the same calls."""
    for note in Path("cohort").rglob(".verified.json"):
        note.unlink()


def last(said: str) -> str:
    """Return the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


@contextlib.contextmanager
def small_disk(megabytes: int = 64) -> Iterator[Path | None]:
    """Yield a folder on a disk of its own; None where this user may mount none."""
    disk = Path("disk").resolve()
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield disk if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


def full_disks(command: str, shares: tuple[float, ...] = (0.05, 0.4, 0.8)) -> Iterator[Trial]:
    """Let a command meet a full disk after some of its output; it must say so once, and finish when there is room."""
    whole = Path("whole/out")  # as deep as the folder on the small disk: tables name files relative to themselves
    code, said = run(command, str(whole))
    assert code == 0, said
    reference = contents(whole)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    shutil.rmtree(whole.parent)
    with small_disk() as disk:
        for share in shares:
            room = int(size * share)
            what = f"disk full after {share:.0%} of its output"
            if disk is not None:
                out = disk / "out"
                filler = disk / "filler"
                with filler.open("wb") as handle:
                    handle.truncate()
                    os.posix_fallocate(handle.fileno(), 0, shutil.disk_usage(disk).free - room - 4096)
                code, said = run(command, str(out))
                filler.unlink()
            else:
                out, what = Path("small/out").resolve(), f"no file larger than {room // 8} bytes"
                code, said = limited(command, str(out), room // 8)
            yield Trial(command, what, spoken(code, said, NO_ROOM, ("no room for", "No space left", "File too large")))
            code, said = run(command, str(out))
            yield Trial(
                command, f"{what}, then room", f"exit {code}: {last(said)}" if code else difference(reference, out)
            )
            shutil.rmtree(out)


def limited(command: str, out: str, size: int) -> tuple[int, str]:
    """Run a command whose files may not be larger than ``size`` bytes."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return child(
        lambda: run_words(words_of(command, out)), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    )


def spoken(code: int, said: str, expected: int, words: tuple[str, ...]) -> str:
    """Return what is wrong with how a command ended: it must say why in one line, with the right exit code."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said:
        return f"traceback: {last(said)}"
    if code != expected:
        return f"exit {code}: {last(said)}"
    if len(errors) != 1 or not any(word in errors[0] for word in words):
        return f"{len(errors)} lines of error: {last(said)}"
    return ""


def read_only(command: str) -> Iterator[Trial]:
    """Give a command an output folder on a disk that can't be written to; it must be refused in one line."""
    with small_disk() as disk:
        if disk is None:
            Path("locked").mkdir(mode=0o500)
            place = Path("locked")
        else:
            place = disk
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        if os.access(place, os.W_OK):
            yield Trial(command, "read-only folder", "")
            return
        code, said = run(command, str(place / "out"))
        yield Trial(command, "read-only folder", spoken(code, said, READ_ONLY, ("can't be written to",)))


def moved() -> Iterator[Trial]:
    """Rename and copy the outputs of every command, and use them."""
    for way, place in (("moved", Path.rename), ("copied", lambda old, new: shutil.copytree(old, new))):
        for command in ("run", "keep", "embed", "drr", "prior", "teacher", "student", "generated", "bundle"):
            target = Path(f"{way}_{command}")
            place(Path(command), target)
            for what, wrong in _used(command, target):
                yield Trial(command, f"{way}: {what}", wrong)
            if way == "moved":
                target.rename(command)
            else:
                shutil.rmtree(target)


def _used(command: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Use a moved output folder; yield what was tried and what was wrong."""

    def tried(what: str, *words: str | Path, expect: int = 0, without: str = "\0") -> tuple[str, str]:
        code, said = child(lambda: run_words([str(word) for word in words]))
        bad = code != expect or without in said or "Traceback" in said
        return what, f"exit {code}: {last(said)}" if bad else ""

    if command != "bundle":
        yield tried("verify", "verify", folder)
    if command in ("run", "keep"):
        yield tried("cache trace", "cache", "trace", folder, without="no longer there")
        code, said = child(lambda: run_words(["cache", "ls", str(folder), "--unused"]))
        yield "cache ls --unused", "" if code == 0 and "0 items" in said else last(said)
        yield tried("study run again", *words_of(command, str(folder)), without="made again")
    if command == "keep":
        yield tried("bundle", "bundle", "--study", folder, "--method", "logistic", "--out", "new")
        shutil.rmtree("new", ignore_errors=True)
    if command == "embed":
        yield tried("cache export", "cache", "export", folder, "--out", "exported.npy")
        yield tried("embed again", *words_of("embed", str(folder)))
    if command == "drr":
        yield tried("embed its images", "embed", "--cohort", folder / "exams.csv", "--encoder", "pixels-128",
                    "--modality", "DRR", "--out", "new")  # fmt: skip
        shutil.rmtree("new", ignore_errors=True)
    if command in ("prior", "teacher"):
        use = {"prior": "prior", "teacher": "teacher"} | {command: str(folder)}
        yield tried("generate", "generate", "--prior", use["prior"], "--head", use["teacher"], "--cache",
                    "cohort/caches/cxr", "--samples", "2", "--steps", "2", "--out", "new")  # fmt: skip
        shutil.rmtree("new", ignore_errors=True)
    if command == "bundle":
        yield tried("predict", "predict", "pictures/png/00.png", "--bundle", folder)
