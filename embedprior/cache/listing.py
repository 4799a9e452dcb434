"""What lies under a folder of results, and what no run there uses any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedprior.cache.layout import MANIFEST as CACHE_MANIFEST
from embedprior.cache.layout import VIEWS, shard_files
from embedprior.errors import BadInput
from embedprior.runs import read_json
from embedprior.runs.artifacts import MANIFEST as ARTIFACT_MANIFEST
from embedprior.runs.provenance import registered_runs, runs_under


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
