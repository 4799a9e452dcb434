"""Follow a run back to the sha256 of every source file, and list what no run uses any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cache.format import MANIFEST as CACHE_MANIFEST
from embedprior.cache.format import VIEWS, key_of, read_view, shard_files, view_file
from embedprior.cache.reader import open_cache
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.runs import read_json
from embedprior.runs.artifacts import MANIFEST
from embedprior.runs.artifacts import MANIFEST as ARTIFACT_MANIFEST
from embedprior.runs.provenance import RECORD, registered_runs, runs_under


def trace(run: Path) -> list[str]:
    """Return what a run was made from, one line a thing, indented by depth.

    Raises:
        BadInput: no ``run.json`` there, or it was written before uses were recorded.
    """
    record = read_json(run / RECORD)
    if "uses" not in record:
        raise BadInput(f"{run / RECORD} does not say what was used. Next: finish that run, or run it again.")
    version = record.get("versions", {}).get("embedprior", "?")
    lines = [f"{run.name}: embedprior {record.get('command')} {version}, code {record.get('git') or 'not recorded'}"]
    lines += [f"  input {name}: {digest[:16]}" for name, digest in sorted(record.get("inputs", {}).items())]
    shown: set[tuple[str, str]] = set()
    for use in record["uses"]:
        lines += _follow(use, run, 1, shown)
    return lines


def caches_of(run: Path) -> Iterator[tuple[Path, str]]:
    """Yield the caches a run used, directly or through its artifacts, with the view of each."""
    waiting = [(use, run) for use in read_json(run / RECORD).get("uses", [])]
    seen: set[tuple[Path, str]] = set()
    while waiting:
        use, where = waiting.pop(0)
        path = (where / use["path"]).resolve()
        if (path, use["view"]) in seen:
            continue
        seen.add((path, use["view"]))
        if use["kind"] == "cache":
            yield path, use["view"]
        elif (path / MANIFEST).is_file():
            waiting += [(inner, path) for inner in read_json(path / MANIFEST).get("uses", [])]


def changed_sources(run: Path, exams: pd.DataFrame, root: Path) -> tuple[int, list[str]]:
    """Compare the files of an exam table with those a run's caches were made from.

    Returns:
        How many exams of the caches are in the table with the same contents, and what is not so, one line each.
    """
    paths = {str(i): str(p) for i, p in zip(exams["exam_id"], exams["path"], strict=True)}
    now: dict[str, str] = {}
    same, other = 0, []
    for folder, view in caches_of(run):
        for exam_id, source in _rows(folder, view):
            if exam_id not in paths:
                other.append(f"{folder.name}: exam '{exam_id}' is not in the table")
                continue
            if exam_id not in now:
                try:
                    now[exam_id] = source_hash(root, paths[exam_id])
                except (UnreadableExam, OSError, IndexError, ValueError):
                    now[exam_id] = "absent"
            if now[exam_id] == source:
                same += 1
            else:
                state = "has no file" if now[exam_id] == "absent" else "has another file than then"
                other.append(f"{folder.name}: exam '{exam_id}' {state}")
    return same, other


def _follow(use: dict[str, Any], where: Path, depth: int, shown: set[tuple[str, str]]) -> Iterator[str]:
    path, indent = (where / use["path"]).resolve(), "  " * depth
    name = use["key"] if use["kind"] == "cache" else f"{use['kind']} {use['key']}"
    again = (use["key"], use["view"]) in shown
    shown.add((use["key"], use["view"]))
    if again:
        yield f"{indent}{name} (above)"
    elif not path.is_dir():
        yield f"{indent}{name}: no longer there"
    elif use["kind"] == "cache":
        key = key_of(path)
        version = key["profile"].get("transform_version", "?")
        yield f"{indent}cache {name}: weights {str(key['weights_sha256'])[:16]}, transform_version {version}"
        count = sum(1 for _ in _rows(path, use["view"]))
        yield f"{indent}  {count} exams, each with the sha256 of its source file (view {use['view'] or 'of all'})"
    else:
        made = read_json(path / MANIFEST)
        yield f"{indent}{name}: code {made['code_tag']}"
        yield from (f"{indent}  input {n}: {str(d)[:16]}" for n, d in sorted(made.get("inputs", {}).items()))
        for inner in made.get("uses", []):
            yield from _follow(inner, path, depth + 1, shown)


def _rows(folder: Path, view: str) -> Iterator[tuple[str, str]]:
    if view:
        yield from read_view(view_file(folder, view))
    else:
        cache = open_cache(folder)
        yield from zip(cache.ids, cache.sources, strict=True)


@dataclass
class Item:
    """One cache, artifact or leftover.

    Attributes:
        kind: ``"cache"``, the artifact's kind, or ``"leftover"`` (of a run that was killed).
        path: its folder or file.
        size: bytes on disk.
        users: runs that need it, directly or through another artifact.
        detail: in words.
    """

    kind: str
    path: Path
    size: int
    users: list[Path]
    detail: str


def listing(root: Path) -> list[Item]:
    """Return everything under a folder, with the runs that need it.

    Runs are found under the folder itself, and by the notes that runs elsewhere left in an artifacts folder. A run
    counts as long as its ``run.json`` is there.

    Raises:
        BadInput: no such folder.
    """
    if not root.is_dir():
        raise BadInput(f"no folder {root}. Next: embedprior cache ls DIR")
    items = {item.path.resolve(): item for item in _found(root)}
    for run in sorted({*runs_under(root), *registered_runs(root)}):
        for path in _needed(run):
            if path in items and run not in items[path].users:
                items[path].users.append(run)
    return sorted(items.values(), key=lambda item: (item.kind, str(item.path)))


def _found(root: Path) -> Iterator[Item]:
    for folder, names, files in os.walk(root):
        here = Path(folder)
        if ARTIFACT_MANIFEST in files:
            yield Item(here.parent.name, here, _size(here), [], here.name)
            names[:] = []
        elif CACHE_MANIFEST in files and "@" in here.name:
            views = len(list((here / VIEWS).glob("*.csv")))
            detail = f"shards: {len(shard_files(here))}, cohorts: {views}"
            yield Item("cache", here, _size(here), [], detail)
            yield from (_leftover(here / name) for name in files if name.startswith(".") and name.endswith(".tmp"))
            names[:] = []
        else:
            for name in [n for n in names if n.startswith(".tmp-")]:
                names.remove(name)
                yield _leftover(here / name)


def _leftover(path: Path) -> Item:
    return Item("leftover", path, _size(path), [], "of a run that was stopped, or is still at work")


def _needed(run: Path) -> Iterator[Path]:
    """Yield the folders a run used, and what those were made from, as far as they are there."""
    waiting = [Path(use["path"]) for use in _uses(run / "run.json", run)]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        yield path
        waiting += [path / use["path"] for use in _uses(path / ARTIFACT_MANIFEST, path)]


def _uses(record: Path, where: Path) -> list[dict[str, Any]]:
    try:
        found = read_json(record)
    except BadInput:
        return []
    uses: list[dict[str, Any]] = found.get("uses", []) + [{"path": name} for name in found.get("keeps", [])]
    return [use | {"path": str(where / use["path"])} for use in uses]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
