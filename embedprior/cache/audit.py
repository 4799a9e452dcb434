"""Check whatever lies under a folder against the checksums it was written with: caches, artifacts, runs, priors,
teachers, fitted methods, encoders and bundles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedprior.cache.format import CURRENT, read_pointer, view_file
from embedprior.cache.format import MANIFEST as CACHE_MANIFEST
from embedprior.cache.verify import find_corruption
from embedprior.errors import BadInput
from embedprior.runs import hash_of, read_json, read_record
from embedprior.runs.artifacts import MANIFEST as ARTIFACT_MANIFEST
from embedprior.runs.integrity import CHECKSUM, NOTED, changed_files, damage_of, has_own_checksum
from embedprior.runs.provenance import RECORD

SEALED = {
    "prior.json": "prior", "resume.json": "stopped training", "fitted.json": "fitted method", "teacher.json": "teacher",
    "encoder.json": "encoder", "alignment.json": "alignment", CACHE_MANIFEST: "bundle",
    NOTED: "results",
}  # fmt: skip
"""Records that list the checksums of their files, and their own → what they describe. A cache's manifest is another."""
DESCRIBED = ("kind", "inputs", "config", "code_tag")
"""What an artifact's folder is named by."""


@dataclass(frozen=True)
class Verified:
    """One cache, artifact or run that was read whole.

    Attributes:
        kind: ``"cache"``, ``"run"``, or the artifact's kind.
        path: its folder.
        problems: what is wrong, one line each.
    """

    kind: str
    path: Path
    problems: tuple[str, ...]


def verify_folder(root: Path) -> Iterator[Verified]:
    """Yield every cache, artifact and run at or under a folder, every byte of it read.

    Raises:
        BadInput: no such folder, or nothing there that carries checksums.
    """
    if not root.is_dir():
        raise BadInput(f"no folder {root}. Next: embedprior cache ls DIR")
    count = 0
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = sorted(name for name in names if not name.startswith("."))
        if ARTIFACT_MANIFEST in files:
            count += 1
            names.clear()
            yield Verified(here.parent.name, here, tuple(_artifact_problems(here)))
        elif CACHE_MANIFEST in files and "@" in here.resolve().name:
            count += 1
            names.clear()
            yield Verified("cache", here, tuple(f"{one.file}: {one.reason}" for one in find_corruption(here)))
        else:
            if CURRENT in files and any("@" in name for name in names) and (problem := _pointer_problem(here)):
                yield Verified("cache", here, (problem,))
            for name in [name for name in SEALED if name in files]:
                count += 1
                yield Verified(SEALED[name], here, tuple(_sealed_problems(here, name)))
            if RECORD in files:
                count += 1
                yield Verified("run", here, tuple(_run_problems(here)))
    if not count:
        raise BadInput(
            f"{root} holds no cache, artifact, run, prior, student or bundle. Next: embedprior cache ls {root}"
        )


def _pointer_problem(folder: Path) -> str:
    """Return what is wrong with the file that names one of the caches in a folder, and a cohort of it; or nothing."""
    cache, view = read_pointer(folder) or (folder, "")
    if not (cache / CACHE_MANIFEST).is_file() or not view_file(cache, view).is_file():
        return f"{CURRENT} names no cache and cohort that are here. Next: run the command that filled the cache again"
    return ""


def _artifact_problems(folder: Path) -> Iterator[str]:
    problem = damage_of(folder, ARTIFACT_MANIFEST, {})
    if problem:
        yield problem
        return
    record = read_json(folder / ARTIFACT_MANIFEST)
    yield from changed_files(folder, record["files"])  # however large: what is remembered is read again here
    if hash_of({name: record.get(name) for name in DESCRIBED})[:16] != folder.name:
        yield f"{ARTIFACT_MANIFEST} describes another artifact"


def _sealed_problems(folder: Path, name: str) -> Iterator[str]:
    try:
        record = read_record(folder / name)
    except BadInput as error:
        yield str(error).replace(f"{folder / name}", name)
        return
    if not has_own_checksum(record) or not isinstance(record.get("files"), dict):
        yield f"{name} no longer has the contents it was written with (or is of an earlier version)"
    else:
        yield from changed_files(folder, record["files"])


def _run_problems(folder: Path) -> Iterator[str]:
    try:
        record = read_json(folder / RECORD)
    except BadInput as error:
        yield str(error).replace(f"{folder / RECORD}", RECORD)
        return
    if not isinstance(record, dict):
        yield f"{RECORD} is damaged"
    elif CHECKSUM in record and not has_own_checksum(record):
        yield f"{RECORD} no longer has the contents it was written with"
    elif CHECKSUM not in record and record.get("status") == "done":
        yield f"{RECORD} has no checksum (it is damaged, or of an earlier version)"
    elif isinstance(record.get("files"), dict):
        yield from changed_files(folder, record["files"])
