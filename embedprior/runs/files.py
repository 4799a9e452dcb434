"""Files that are whole or absent (written beside their place, flushed, renamed), and hashes of contents."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
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
"""What the system says where there is no room: on the disk, in the quota, or for a file of this size."""


class DiskFull(EmbedpriorError):
    """There was no room for a file. What was complete before is untouched."""


def is_full(error: BaseException) -> bool:
    """Return whether an error says that there was no room."""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _FULL)


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


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of numpy arrays or of torch tensors, whole or not at all, readable as the umask says.

    The library itself makes files that only their owner can read, and does not bring them to the disk.

    Raises:
        DiskFull: no room; nothing was changed.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_tensors(folder / "w.safetensors", {"weight": np.ones(2, np.float32)})
        >>> [file.name for file in folder.iterdir()]
        ['w.safetensors']
    """
    from safetensors import SafetensorError

    plain = all(isinstance(value, np.ndarray) for value in tensors.values())
    save_file = importlib.import_module(f"safetensors.{'numpy' if plain else 'torch'}").save_file
    temporary = temporary_beside(path)
    try:
        with explain_full_disk(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            try:
                save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
            except SafetensorError as error:
                number = re.search(r"(?:os error |code: )(\d+)", str(error))  # of later and of earlier releases
                if number is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
            temporary.chmod(mode)
            fsync(temporary)
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
        if path.is_symlink() and not path.exists():
            what = "is a link to what does not exist"
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
        BadInput: the file is missing, can't be opened, is not JSON, or is nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist.") from error
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}.") from error
    except RecursionError as error:
        raise BadInput(f"{path} is not valid JSON: it is nested too deep") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from error


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: of the file.
        keys: entries that it must have.

    Raises:
        BadInput: see ``read_json``; or it holds no object, or lacks one of ``keys``.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise BadInput(f"{path} holds a {type(record).__name__}, not an object with named entries: it is damaged.")
    missing = [key for key in keys if key not in record]
    if missing:
        raise BadInput(f"{path} lacks '{missing[0]}': it is damaged, or of another version.")
    return record
