"""Checksums of what lies on disk: a folder's files, and records that carry a checksum of themselves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from embedprior.errors import BadInput
from embedprior.runs.files import canonical, fsync, hash_file, hash_of, read_json, read_record, write_json
from embedprior.runs.locks import Lock

CHECKSUM = "checksum"
REMEMBERED = ".verified.json"
NOTED = ".checksums.json"
"""Checksums of results in a folder that is no run of its own."""
RECORD_LOCK = ".checksums.lock"
"""Held while a folder's record of checksums is read, changed and written: two commands may end at the same instant."""
ALWAYS_READ = 64_000_000
"""Bytes. A folder of up to this size is read whole at every reuse; a larger one only when a file's stamp changed."""

Stamp = list[int]
"""Size, modification time, change time and inode: what the system changes whenever a file's contents do."""


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the sha256 of its canonical JSON under ``checksum``.

    Example:
        >>> sealed = with_checksum({"patients_seen": ["p1", "p2"]})
        >>> has_own_checksum(sealed), has_own_checksum({**sealed, "patients_seen": ["p1"]})
        (True, False)
    """
    plain: dict[str, Any] = canonical({k: v for k, v in record.items() if k != CHECKSUM})
    return plain | {CHECKSUM: hash_of(plain)}


def has_own_checksum(record: Mapping[str, Any]) -> bool:
    """Return whether a record is what its ``checksum`` was made of."""
    return record == with_checksum(record)


def file_records(folder: Path, files: Iterable[Path] | None = None) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of the files under a folder (or of some of them), by their path in it."""
    chosen = [path for _, path in _files(folder)] if files is None else sorted(files)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in chosen
    }


def changed_files(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what differs from ``file_records``, one line a file, reading every byte."""
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != record["bytes"]:
            yield f"{name} has {path.stat().st_size} bytes, not {record['bytes']}"
        elif hash_file(path) != record["sha256"]:
            yield f"{name} no longer has the contents it was written with"


def stamp_of(path: Path) -> Stamp:
    """Return a file's stamp."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def remembered(folder: Path) -> dict[str, Stamp]:
    """Return the stamps of the files in a folder that were verified before; empty where nothing is known."""
    try:
        record = read_json(folder / REMEMBERED)
    except (BadInput, OSError):
        return {}
    if not isinstance(record, dict) or not has_own_checksum(record):
        return {}
    stamps: dict[str, Stamp] = record["stamps"]
    return stamps


def remember(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Note the stamps of verified files; a folder that can't be written to is verified again the next time."""
    try:
        write_json(folder / REMEMBERED, with_checksum({"stamps": dict(stamps)}))
    except OSError:
        return


def set_aside(path: Path) -> Path:
    """Rename what is damaged to ``.damaged-NAME-N`` beside it, and return its new path."""
    number = 1
    while (aside := path.with_name(f".damaged-{path.name}-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def damage_of(folder: Path, manifest: str, expected: Mapping[str, Any]) -> str:
    """Return what is wrong with a folder whose manifest lists its files (see ``sealed_manifest``), or nothing.

    Args:
        folder: of the files.
        manifest: name of its JSON record.
        expected: entries the record must have.
    """
    try:
        record = json.loads((folder / manifest).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{manifest} is damaged"
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        return f"{manifest} lists no checksums (it is damaged, or of an earlier version)"
    if not has_own_checksum(record):
        return f"{manifest} no longer has the contents it was written with"
    if {k: record.get(k) for k in expected} != dict(expected):
        return f"{manifest} describes another artifact"
    files: dict[str, dict[str, Any]] = record["files"]
    if sum(one["bytes"] for one in files.values()) <= ALWAYS_READ:
        return next(changed_files(folder, files), "")
    known, stamps = remembered(folder), dict[str, Stamp]()
    for name, one in files.items():
        path = folder / name
        if not path.is_file() or known.get(name) != stamp_of(path):
            reason = next(changed_files(folder, {name: one}), "")
            if reason:
                return reason
        stamps[name] = stamp_of(path)
    if stamps != known:
        remember(folder, stamps)
    return ""


def sealed_manifest(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a folder's record with the checksums of all its files, and of the record itself."""
    return with_checksum({**record, "files": file_records(folder)})


def write_sealed(folder: Path, manifest: str, record: Mapping[str, Any], fill: Callable[[Path], object]) -> None:
    """Write the files of a folder, and last the record that lists them with their checksums (see ``read_sealed``).

    Other files in the folder are none of the record's business.

    Args:
        folder: made when it is not there.
        manifest: name of the record's file.
        record: what it says beside the checksums.
        fill: writes the files into the empty folder that it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / f".saving-{os.getpid()}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        fill(work)
        files = file_records(work)
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fsync(work / name)
            (work / name).replace(target)
        write_json(folder / manifest, with_checksum({**record, "files": files}))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_other_format(what: str, found: Any, known: int, again: str) -> None:
    """Check the number of the format that something was written in.

    Args:
        what: it is, and where.
        found: the number in its record; None where formats had none yet.
        known: the number that this version reads and writes.
        again: what to do.

    Raises:
        BadInput: another number.

    Example:
        >>> refuse_other_format("the prior in p", 3, 4, "train it again")
        Traceback (most recent call last):
        ...
        embedprior.errors.BadInput: the prior in p is of format 3, of an earlier version of embedprior. Allowed: 4. \
Next: train it again, or read it with the version that wrote it
    """
    if found != known:
        age = "a later" if isinstance(found, int) and found > known else "an earlier"
        raise BadInput(
            f"{what} is of format {found}, of {age} version of embedprior. Allowed: {known}. Next: {again}, or read it "
            "with the version that wrote it"
        )


def read_sealed(folder: Path, manifest: str, what: str, version: int, again: str) -> dict[str, Any]:
    """Return the record of a folder that ``write_sealed`` wrote, every byte of its files checked.

    Args:
        folder: to read.
        manifest: name of the record's file.
        what: the folder holds, for messages.
        version: entry ``format`` that the record must have.
        again: what to do when it is refused.

    Raises:
        BadInput: no record there, one of another format, or a file that is not what was written; it is named.
    """
    record = read_record(folder / manifest)
    refuse_other_format(f"the {what} in {folder}", record.get("format"), version, again)
    if not has_own_checksum(record) or not isinstance(record.get("files"), dict):
        raise BadInput(f"{folder / manifest} no longer has the contents it was written with. Next: {again}")
    problem = next(changed_files(folder, record["files"]), "")
    if problem:
        raise BadInput(f"the {what} in {folder} is damaged: {problem}. Next: {again}")
    return record


def refuse_damaged_artifact(folder: Path, manifest: str = "artifact.json") -> None:
    """Check a folder that is read by its path, where it is an artifact.

    Raises:
        BadInput: one of its files is not what was written.
    """
    problem = damage_of(folder, manifest, {}) if (folder / manifest).exists() else ""
    if problem:
        raise BadInput(f"{folder} is damaged: {problem}. Next: run the command that made it again")


def refuse_changed_result(path: Path, record: str = "run.json") -> None:
    """Check a file that a command left against its checksum: in the record of the run beside it or above, or among the
    noted results beside it (see ``note_results``), where there is one.

    Raises:
        BadInput: it is not what was written.
    """
    problem = ""
    for folder, name in product((path.parent, path.parent.parent), (record, NOTED)):
        if path.is_file() and (folder / name).is_file():
            with suppress(BadInput, AttributeError, KeyError, TypeError):
                own = path.relative_to(folder).as_posix()
                problem = next(changed_files(folder, {own: read_json(folder / name)["files"][own]}), "")
                break
    if problem:
        raise BadInput(
            f"{path}: {problem} by the run in this folder. Next: run that command again; or, if the table was changed "
            "on purpose, copy it to another folder."
        )


def read_run_record(folder: Path, record: str = "run.json") -> dict[str, Any]:
    """Return the record of a run.

    Raises:
        BadInput: it can't be read, or a finished run wrote another one.
    """
    found = read_record(folder / record)
    if CHECKSUM in found and not has_own_checksum(found):
        raise BadInput(
            f"{folder / record} no longer has the contents it was written with. Next: run that command again, or copy "
            "the folder again"
        )
    return found


def reseal(folder: Path, names: Iterable[str], record: str = "run.json") -> None:
    """Bring the checksums of some results of a run up to date, after these were written anew; the others stay.

    Args:
        folder: of the run.
        names: files, and folders that hold nothing else.
        record: of the run.

    Raises:
        BadInput: the record is not what the run wrote.
    """
    with Lock(folder / RECORD_LOCK):
        _reseal(folder, names, record)


def _reseal(folder: Path, names: Iterable[str], record: str = "run.json") -> None:
    kept = read_json(folder / record)
    if not has_own_checksum(kept):
        raise BadInput(f"{folder / record} no longer has the contents it was written with. Next: run the command again")
    files = kept["files"]
    for name in names:
        path = folder / name
        for known in [one for one in files if one == name or one.startswith(f"{name}/")]:
            del files[known]
        found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        files |= file_records(folder, found)
    write_json(folder / record, with_checksum(kept))


def note_results(folder: Path, names: Iterable[str]) -> None:
    """Put results under a checksum that a command wrote into a folder which is no run of its own.

    They go into the ``run.json`` of the run that made the folder, else into ``.checksums.json`` beside them. What was
    noted there before and is gone is left out.

    Args:
        folder: that holds them.
        names: files, and folders that hold nothing else.

    Raises:
        BadInput: the record is not what was written.
    """
    with Lock(folder / RECORD_LOCK):
        _note_results(folder, list(names))


def _note_results(folder: Path, names: Sequence[str]) -> None:
    of_run = folder / "run.json"
    noted = read_json(folder / NOTED) if (folder / NOTED).is_file() else with_checksum({"files": {}})
    if not has_own_checksum(noted):
        raise BadInput(
            f"{folder / NOTED} no longer has the contents it was written with. Next: embedprior verify {folder} names "
            "its files; delete it, and make them again"
        )
    others = {
        name: known for name, known in noted["files"].items()
        if (folder / name).is_file() and not any(name == one or name.startswith(f"{one}/") for one in names)
    }  # fmt: skip
    finished = read_record(of_run) if of_run.is_file() else {}
    if "files" in finished and has_own_checksum(finished):
        _reseal(folder, names)
        own = {}
    else:
        paths = [folder / name for name in names]
        own = file_records(folder, [p for path in paths for p in (path.rglob("*") if path.is_dir() else [path])
                                    if p.is_file()])  # fmt: skip
    if own or others != noted["files"]:
        write_json(folder / NOTED, with_checksum({"files": others | own}))


def forget_results(folder: Path, names: Iterable[str], records: Sequence[str] = ("run.json", NOTED)) -> None:
    """Take results out of the records that ``note_results`` put them in: before they are written again piece by piece,
    or because another record has them now. A record of noted results that is empty then is deleted.

    Args:
        folder: that holds them.
        names: files.
        records: to take them out of.
    """
    gone = set(names)
    files = [folder / name for name in records if (folder / name).is_file()]
    if any(_forgotten(file, gone) is not None for file in files):
        with Lock(folder / RECORD_LOCK):
            for file in files:
                left = _forgotten(file, gone)
                if left is not None and (left["files"] or file.name != NOTED):
                    write_json(file, with_checksum(left))
                elif left is not None:
                    file.unlink()


def _forgotten(file: Path, gone: set[str]) -> dict[str, Any] | None:
    """Return a record without these results; None where it lists none of them, is gone, or is damaged (see verify)."""
    try:
        kept = read_record(file)
    except BadInput:
        return None
    listed = kept.get("files", {})
    if not has_own_checksum(kept) or not gone & listed.keys():
        return None
    return kept | {"files": {name: known for name, known in listed.items() if name not in gone}}


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for where, names, files in os.walk(folder):
        names.sort()
        for name in sorted(files):
            path = Path(where) / name
            yield path.relative_to(folder).as_posix(), path
