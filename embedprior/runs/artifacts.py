"""Artifacts: folders named by what they were made from, complete or absent."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedprior.runs.files import canonical, explain_full_disk, fsync, hash_of, write_json
from embedprior.runs.integrity import damage_of, sealed_manifest, set_aside
from embedprior.runs.locks import Lock
from embedprior.runs.provenance import record_dependency, recording, relative_uses

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
    ``build`` has returned and its files are on disk. A reader therefore never meets a half-written artifact. Of
    several processes that want the same one, the first builds and the others wait for it.

    ``artifact.json`` holds the sha256 of every file, and of itself. They are checked before an artifact is reused: one
    that is damaged is named, put aside and built anew.

    Args:
        kind: what it is, for example ``"teacher"``; also the folder it lies in.
        inputs: name → key or hash of everything it is made from.
        config: the settings that change its contents.
        code_tag: version of the code that makes it, such as ``"teacher-1"``.
        build: writes the contents into the folder it is given.
        root: the folder that holds all artifacts.

    Raises:
        DiskFull: there was no room; nothing was left behind.
    """
    described = canonical({"kind": kind, "inputs": inputs, "config": config, "code_tag": code_tag})
    key = hash_of(described)[:16]
    final = root / kind / key
    if not final.exists() or damage_of(final, MANIFEST, described):
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(final.parent / f".{key}.lock")
        if not lock.acquire():
            print(f"waiting for {kind}/{key}, which {lock.owner()} is making", file=sys.stderr)
            lock.wait()
        try:
            damage = damage_of(final, MANIFEST, described) if final.exists() else ""
            if damage:
                aside = set_aside(final)
                print(f"{kind}/{key}: {damage}. It is put aside as {aside.name} and made again.", file=sys.stderr)
            if not final.exists():
                _build(described, build, final)
                record_dependency(kind, key, final)
                return Artifact(final, key, reused=False)
        finally:
            lock.release()
    elif (left := final.parent / f".{key}.lock").exists():  # of a process that was killed just after its last rename
        Lock(left).remove_if_stale()
    record_dependency(kind, key, final)
    return Artifact(final, key, reused=True)


def _build(described: dict[str, Any], build: Callable[[Path], None], final: Path) -> None:
    for left in final.parent.glob(f".tmp-{final.name}-*"):  # we hold the lock: their makers are gone
        shutil.rmtree(left, ignore_errors=True)
    work = final.parent / f".tmp-{final.name}-{os.getpid()}"
    work.mkdir()
    try:
        with recording() as ledger, explain_full_disk(final):
            build(work)
            record = described | {"uses": relative_uses(ledger.records(), final)}
            write_json(work / MANIFEST, sealed_manifest(work, record))
            for file in sorted(work.rglob("*")):
                fsync(file)
            fsync(work)
        try:
            work.rename(final)
        except OSError:
            if damage_of(final, MANIFEST, described):
                raise
        fsync(final.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
