"""Where results live: artifacts (complete or absent), run folders, seeds, progress.

An artifact is any stage's output folder. Its name is the hash of what it was made from, so "done", "resume"
and "reuse" are one question: is the folder there?
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from embedprior import __version__
from embedprior.errors import BadInput

T = TypeVar("T")

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A complete artifact folder.

    Attributes:
        path: the folder.
        key: the hash it is named by.
        reused: whether it was there already.
    """

    path: Path
    key: str
    reused: bool


def canonical(value: Any) -> Any:
    """Return ``value`` as plain JSON types (models dumped, paths as text, tuples as lists)."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value


def hash_of(value: Any) -> str:
    """Return the sha256 (hex) of the canonical JSON of ``value``."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_array(array: np.ndarray[Any, Any]) -> str:
    """Return the sha256 (hex) of an array's numbers, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def artifacts_root(out: Path) -> Path:
    """Return ``$EMBEDPRIOR_HOME/artifacts``, or ``out/artifacts`` when the variable is not set."""
    home = os.environ.get("EMBEDPRIOR_HOME")
    return (Path(home) if home else out) / "artifacts"


def artifact(
    kind: str,
    inputs: Mapping[str, str],
    config: Any,
    code_tag: str,
    build: Callable[[Path], None],
    root: Path,
) -> Artifact:
    """Return the artifact folder for these inputs and settings, building it when it is absent.

    ``build`` writes into a temporary folder beside the final one; the folder gets its name only when
    ``build`` has returned and its files are on disk. A reader therefore never meets a half-written artifact.

    Args:
        kind: what it is, for example ``"teacher"``; also the folder it lies in.
        inputs: name → key or hash of everything it is made from.
        config: the settings that change its contents.
        code_tag: version of the code that makes it, such as ``"teacher-1"``.
        build: writes the contents into the folder it is given.
        root: the folder that holds all artifacts.
    """
    described = canonical({"kind": kind, "inputs": inputs, "config": config, "code_tag": code_tag})
    key = hash_of(described)[:16]
    final = root / kind / key
    if (final / MANIFEST).is_file():
        return Artifact(final, key, reused=True)
    work = root / kind / f".tmp-{key}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        build(work)
        write_json(work / MANIFEST, described)
        for file in work.rglob("*"):
            if file.is_file():
                _fsync(file)
        try:
            work.rename(final)
        except OSError:
            if not (final / MANIFEST).is_file():
                raise
            return Artifact(final, key, reused=True)
        _fsync(final.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Artifact(final, key, reused=False)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old contents or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _fsync(temporary)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is refused (JSON has none)."""
    write_text(path, json.dumps(canonical(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return a JSON file's contents.

    Raises:
        BadInput: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist.") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from error


def seed_for(seed: int, *names: str | int) -> int:
    """Return the seed of one named random stream: the same names give the same stream, others are independent."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def progress(items: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` with a progress bar on standard error (a line every so often when it is not a terminal)."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 15.0
    yield from tqdm(items, desc=desc, total=total, mininterval=interval, maxinterval=2 * interval, leave=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Fit on one thread: these networks are so small that threads cost more than they save, and far more on a
    busy machine; and sums in one order give the same scores on every number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MetricsLog:
    """Append-only ``metrics.jsonl``: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **fields: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(canonical(fields), sort_keys=True) + "\n")


class Run:
    """The folder of one command: ``run.json``, ``metrics.jsonl``, ``summary.md``, ``failures.csv``.

    Create it only when the input has been found good: on bad input nothing is written.
    """

    def __init__(self, out: Path, command: str, config: Any, seed: int, inputs: Mapping[str, str]) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        for stale in ("metrics.jsonl", "summary.md", "failures.csv"):
            (out / stale).unlink(missing_ok=True)
        self.metrics = MetricsLog(out / "metrics.jsonl")
        self._started = time.monotonic()
        self._record = {
            "command": command,
            "config": canonical(config),
            "seed": seed,
            "inputs": dict(inputs),
            "versions": versions(),
            "git": git_revision(),
            "status": "running",
        }
        write_json(out / "run.json", self._record)

    def stage(self, name: str, **fields: Any) -> None:
        """Record that a stage ended, with the seconds since the start."""
        self.metrics.write(event="stage", stage=name, seconds=round(self.seconds, 2), **fields)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def finish(self, summary: str, failures: list[dict[str, str]], **extra: Any) -> None:
        """Write ``summary.md``, ``failures.csv`` (only when something failed) and the final ``run.json``."""
        import pandas as pd

        write_text(self.out / "summary.md", summary)
        if failures:
            pd.DataFrame(failures).to_csv(self.out / "failures.csv", index=False)
        self._record |= {"status": "done", "seconds": round(self.seconds, 1), "failures": len(failures), **extra}
        write_json(self.out / "run.json", self._record)


def versions() -> dict[str, str]:
    """Return the versions of Python, embedprior and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "embedprior": __version__}
    for name in ("torch", "numpy", "scipy", "pandas", "scikit-learn", "accelerate", "safetensors", "timm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Return the revision of the checkout the package runs from (``+changed`` when it has edits), or None."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+changed", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
