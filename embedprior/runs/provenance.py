"""What a run or an artifact was made from: noted while it is made, followed back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedprior.errors import BadInput
from embedprior.runs.files import hash_of, read_json, write_json

RECORD, RUNS = "run.json", ".runs"


@dataclass(frozen=True)
class Dependency:
    """One thing that was read or made.

    Attributes:
        kind: ``"cache"``, or the artifact's kind.
        key: the artifact's key, or the cache's folder name.
        path: where it lay.
        view: which of a cache's rows (see the cache format); empty otherwise.
    """

    kind: str
    key: str
    path: str
    view: str = ""

    def record(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


class ProvenanceLog:
    """Collects uses, each once, in the order they came."""

    def __init__(self) -> None:
        self._dependencies: dict[Dependency, None] = {}

    def add(self, dependency: Dependency) -> None:
        """Note a dependency."""
        self._dependencies[dependency] = None

    def records(self) -> list[dict[str, Any]]:
        """Return the uses as JSON types."""
        return [dependency.record() for dependency in self._dependencies]


_open: list[ProvenanceLog] = []


def record_dependency(kind: str, key: str, path: Path, view: str = "") -> None:
    """Note, in every open ledger, that something was read or made."""
    dependency = Dependency(kind, key, str(path.resolve()), view)
    for ledger in _open:
        ledger.add(dependency)


def open_log() -> ProvenanceLog:
    """Start a ledger that collects until ``close_log``."""
    ledger = ProvenanceLog()
    _open.append(ledger)
    return ledger


def close_log(ledger: ProvenanceLog) -> None:
    """Stop recording; closing twice does nothing."""
    _open[:] = [other for other in _open if other is not ledger]


@contextmanager
def recording() -> Iterator[ProvenanceLog]:
    """Collect the uses of what happens inside."""
    ledger = open_log()
    try:
        yield ledger
    finally:
        close_log(ledger)


def relative_uses(uses: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Give the paths of uses relative to a folder, so that it can be moved with what it used, and names no machine."""
    return [use | {"path": portable_path(use["path"], folder)} for use in uses]


def portable_path(target: Path | str, folder: Path) -> str:
    """Return a path given from a folder; from ``~`` where it would lead into the user's home, and so name the user.

    Example:
        >>> portable_path("/data/caches/cxr", Path("/data/runs/prior"))
        '../../caches/cxr'
    """
    place, here = Path(os.path.abspath(target)), folder.resolve()
    named = from_home(str(place))
    if named != str(place) and not here.is_relative_to(os.path.expanduser("~")):
        return named
    return Path(os.path.relpath(place, here)).as_posix()


def from_home(path: str) -> str:
    """Return an absolute path in the user's home given from ``~``; any other text as it is."""
    home = Path(os.path.expanduser("~"))
    if os.path.isabs(path) and home != Path(home.anchor) and Path(path).is_relative_to(home):
        return (Path("~") / Path(path).relative_to(home)).as_posix()
    return path


def resolve_portable(path: str, folder: Path) -> Path:
    """Return the path that ``portable_path`` gave."""
    return folder / Path(path).expanduser()


@dataclass(frozen=True)
class RegisteredRun:
    """The note that a run left in an artifacts folder elsewhere.

    Attributes:
        note: the file.
        id: of the run, as its ``run.json`` has it.
        run: where its folder was.
        uses: what it used (``kind``, ``key``, ``view``), so that this is known even where the folder is no longer
            there: it may have been moved.
    """

    note: Path
    id: str
    run: Path
    uses: list[dict[str, Any]]

    @property
    def there(self) -> bool:
        """Whether the run is where it was."""
        return (self.run / RECORD).is_file()


def register_run(out: Path, run_id: str, uses: list[dict[str, Any]]) -> None:
    """Leave a note of the run in every artifacts folder outside ``out`` that it used, so that nothing it needs is
    taken for unused."""
    for root in {r for dependency in uses if (r := _artifacts_folder(Path(dependency["path"]))) is not None}:
        if not root.is_relative_to(out.resolve()):
            note = root / RUNS / f"{hash_of(str(out.resolve()))[:16]}.json"
            note.parent.mkdir(exist_ok=True)
            named = [{k: use[k] for k in ("kind", "key", "view")} for use in uses]
            write_json(note, {"id": run_id, "run": os.path.relpath(out.resolve(), root), "uses": named})


def registered_runs(root: Path) -> list[RegisteredRun]:
    """Return the runs that left a note under a folder.

    Raises:
        BadInput: a note can't be read.
    """
    found = []
    for folder in sorted(root.rglob(RUNS)):
        for note in sorted(folder.glob("*.json")):
            record = read_json(note)
            run = (folder.parent / record["run"]).resolve()
            found.append(RegisteredRun(note, record.get("id", ""), run, record.get("uses", [])))
    return found


def kept_caches(out: Path) -> list[str]:
    """Return the names of the caches in a folder that runs there filled (``keeps`` of its ``run.json``)."""
    try:
        names: list[str] = read_json(out / RECORD).get("keeps", [])
    except BadInput:
        return []
    return names


def runs_under(root: Path) -> list[Path]:
    """Return the run folders under a folder."""
    return [record.parent.resolve() for record in sorted(root.rglob(RECORD))]


def _artifacts_folder(path: Path) -> Path | None:
    return next((parent for parent in path.resolve().parents if parent.name == "artifacts"), None)
