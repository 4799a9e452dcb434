"""Follow a run back: run → artifacts → caches → sha256 of every source file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cache.layout import key_of, read_view, view_file
from embedprior.cache.reader import open_cache
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.runs import read_json
from embedprior.runs.artifacts import MANIFEST
from embedprior.runs.provenance import RECORD


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
