"""Files that are whole or absent (written beside their place, flushed, renamed), and hashes of contents."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel

from embedprior.errors import BadInput, EmbedpriorError


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


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(EmbedpriorError):
    """There was no room for a file. What was complete before is untouched."""


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_beside(path: Path) -> Path:
    """Return the name a file has while it is being written; it starts with a dot and ends in ``.tmp``."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a power cut, sees the old contents or the new, never a part.

    Args:
        path: its final name.
        fill: writes the contents to the open file.

    Raises:
        DiskFull: no room; nothing was changed.
    """
    temporary = temporary_beside(path)
    try:
        with explain_full_disk(path), temporary.open("wb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder for results, with those above it, and see that files can be made in it.

    Raises:
        BadInput: something else has that name, or files can't be made there.
        DiskFull: no room.
    """
    try:
        with explain_full_disk(path / "the results"):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        what = "is a file" if path.is_file() else f"can't be written to ({error.strerror})"
        raise BadInput(f"{path} {what}. Next: give a folder that files can be made in.") from error


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's "no space" into an error that says where, and what to do.

    Raises:
        DiskFull: no space, quota or file size left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        there = next(parent for parent in path.parents if parent.is_dir())
        free = shutil.disk_usage(there).free
        raise DiskFull(
            f"no room for {path.name} in {path.parent} ({error.strerror}; {free / 1e6:.0f} MB free on that disk). "
            "What was finished before is intact. Next: make room and run the same command again."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old contents or the new, never a part."""
    write_file(path, lambda handle: handle.write(text.encode()))


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from error
