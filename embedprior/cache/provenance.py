"""Follow a run back to the sha256 of every source file, and list what no run uses any more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cache.format import MANIFEST as CACHE_MANIFEST
from embedprior.cache.format import VIEWS, key_of, read_view, shard_files, view_file
from embedprior.cache.reader import open_cache
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.runs import artifacts_root, read_json
from embedprior.runs.artifacts import MANIFEST
from embedprior.runs.artifacts import MANIFEST as ARTIFACT_MANIFEST
from embedprior.runs.integrity import read_run_record
from embedprior.runs.provenance import RECORD, registered_runs, resolve_portable, runs_under

LEFTOVER = "leftover"


def trace(run: Path | str) -> list[str]:
    """Return what a run was made from, one line a thing, indented by depth.

    Raises:
        BadInput: no ``run.json`` there, or it was written before uses were recorded.
    """
    run = Path(run)
    record = read_run_record(run)
    if "uses" not in record:
        raise BadInput(f"{run / RECORD} does not say what was used. Next: finish that run, or run it again.")
    version = record.get("versions", {}).get("embedprior", "?")
    lines = [f"{run.name}: embedprior {record.get('command')} {version}, code {record.get('git') or 'not recorded'}"]
    lines += [f"  input {name}: {digest[:16]}" for name, digest in sorted(record.get("inputs", {}).items())]
    shown: set[tuple[str, str]] = set()
    for use in record["uses"]:
        lines += _follow(use, run, run, 1, shown)
    return lines


def _place_of(use: dict[str, Any], where: Path, run: Path) -> Path:
    """Return where something that was used lies: where it was, else, by its key, among the artifacts of the run."""
    path: Path = resolve_portable(use["path"], where).resolve()
    if path.is_dir():
        return path
    kind = "caches" if use["kind"] == "cache" else use["kind"]
    roots = [run / "artifacts", artifacts_root(run), *run.resolve().parents[:1]]
    return next((found for root in roots if (found := root / kind / use["key"]).is_dir()), path)


def caches_of(run: Path) -> Iterator[tuple[Path, str]]:
    """Yield the caches a run used, directly or through its artifacts, with the view of each."""
    waiting = [(use, run) for use in read_run_record(run).get("uses", [])]
    seen: set[tuple[Path, str]] = set()
    while waiting:
        use, where = waiting.pop(0)
        path = _place_of(use, where, run)
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


def _follow(use: dict[str, Any], where: Path, run: Path, depth: int, shown: set[tuple[str, str]]) -> Iterator[str]:
    path, indent = _place_of(use, where, run), "  " * depth
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
            yield from _follow(inner, path, run, depth + 1, shown)


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


def listing(root: Path | str) -> list[Item]:
    """Return everything under a folder, with the runs that need it.

    Runs are found under the folder itself, and by the notes that runs elsewhere left in an artifacts folder. What a
    run used is found where it was, or by its key. Whatever can't be resolved counts as needed: a run that is no longer
    where its note says (it may have been moved), a record that can't be read, a run that was not finished.

    Raises:
        BadInput: no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(f"no folder {root}. Next: embedprior cache ls DIR")
    items = {item.path.resolve(): item for item in _found(root)}
    runs = runs_under(root)
    ids = {identity for run in runs if (identity := _id_of(run))}
    needs = {run: _needed(run, items) for run in runs}
    for registered in registered_runs(root):
        if registered.there:
            needs.setdefault(registered.run, _needed(registered.run, items))
        elif registered.id not in ids or not registered.id:
            uses = [{"path": "", **use} for use in registered.uses]
            needs[registered.run] = _reached(uses, registered.run, items) if uses else set(items)
    for run in sorted(needs):
        for path in needs[run]:
            if run not in items[path].users:
                items[path].users.append(run)
    return sorted(items.values(), key=lambda item: (item.kind, str(item.path)))


def missing_runs(root: Path) -> list[str]:
    """Return one line for every run that left a note under a folder and is no longer where it was."""
    ids = {_id_of(run) for run in runs_under(root)}
    return [
        f"run {os.path.relpath(one.run, root)} is no longer there. What it used counts as used, for it may have been "
        f"moved. If it was deleted, delete {one.note.relative_to(root)} too"
        for one in registered_runs(root)
        if not one.there and not (one.id and one.id in ids)
    ]


def _found(root: Path) -> Iterator[Item]:
    for folder, names, files in os.walk(root):
        here = Path(folder)
        for name in [n for n in names if n.startswith(".damaged-")]:
            names.remove(name)
            yield Item(LEFTOVER, here / name, _size(here / name), [], "put aside because it was damaged")
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
    return Item(LEFTOVER, path, _size(path), [], "of a run that was stopped, or is still at work")


def _id_of(run: Path) -> str:
    try:
        return str(read_json(run / RECORD).get("id", ""))
    except (BadInput, AttributeError):
        return ""


def _needed(run: Path, items: Mapping[Path, Item]) -> set[Path]:
    """Return the items a run needs."""
    try:
        record = read_run_record(run)
        uses: list[dict[str, Any]] = list(record.get("uses", []))
        kept = [{"kind": "cache", "key": name, "path": name} for name in record.get("keeps", [])]
        finished = "uses" in record
    except (BadInput, AttributeError, TypeError):
        return set(items)
    found = _reached([*uses, *kept], run, items)
    if not finished:
        found |= {path for path, item in items.items() if path.is_relative_to(run) and item.kind != LEFTOVER}
    return found


def _reached(uses: list[dict[str, Any]], where: Path, items: Mapping[Path, Item]) -> set[Path]:
    """Return the items that uses name, by place or by key, and those these were made from."""
    by_key: dict[str, list[Path]] = {}
    for path in items:
        by_key.setdefault(path.name, []).append(path)
    waiting = [(use, where) for use in uses]
    seen: set[Path] = set()
    while waiting:
        use, base = waiting.pop()
        place = resolve_portable(use["path"], base).resolve() if use["path"] else None
        at = [place] if place is not None and place.is_dir() else by_key.get(str(use.get("key", "")), [])
        for path in at:
            if path in seen:
                continue
            seen.add(path)
            if (path / ARTIFACT_MANIFEST).is_file():
                try:
                    waiting += [(inner, path) for inner in read_json(path / ARTIFACT_MANIFEST).get("uses", [])]
                except (BadInput, AttributeError):
                    return set(items)  # what it was made from is not known
    return {path for path in seen if path in items}


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
