"""Read what an exam's ``path`` points to, and hash it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from embedprior.runs import hash_array, hash_file, hash_of


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings, which may hold header text and folders, off standard error."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


ROW_SEPARATOR = "#"
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


class UnreadableExam(Exception):
    """One exam can't be read; the run goes on without it and records the reason."""


def split_path(path: str) -> tuple[str, int | None]:
    """Split ``"volumes.npy#12"`` into the file and the row; other paths have no row."""
    file, separator, row = path.rpartition(ROW_SEPARATOR)
    return (file, int(row)) if separator and row.isdigit() else (path, None)


def exam_file(root: Path, path: str) -> Path:
    """Return the file of an exam (without the row), resolved against the cohort's folder."""
    return root / split_path(path)[0]


def source_hash(root: Path | str, path: str) -> str:
    """Return the sha256 of an exam's source: the file's bytes, one row's bytes of an array file, or a folder's files.

    A folder's hash is that of the sorted hashes of its files, so that renaming or moving them changes nothing.
    """
    root = Path(root)
    file, row = split_path(path)
    if row is None and (root / file).is_dir():
        return hash_of(sorted(hash_file(member) for member in (root / file).rglob("*") if member.is_file()))
    if row is None:
        return hash_file(root / file)
    return hash_array(_array(root / file)[row])


def content_id(path: Path, kind: str) -> str:
    """Return a name for an exam that comes from its contents: names of files and folders may be a patient's.

    It is made of the size and of three pieces of each file, so that it takes no time, and is the same after moving.

    Args:
        path: file or folder.
        kind: word that it begins with, such as ``"ct"``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "DOE_JANE.npz").write_bytes(b"voxels")
        ...     content_id(Path(folder) / "DOE_JANE.npz", "ct")
        'ct-a63180131df1'
    """
    whole = path.is_dir()
    digests = []
    for file in sorted(path.rglob("*")) if whole else [path]:
        if file.is_file():
            piece, size = (ID_BYTES // 16 if whole else ID_BYTES), file.stat().st_size
            digest = hashlib.sha256(str(size).encode())
            with file.open("rb") as handle:
                for start in (0, max(0, size // 2), max(0, size - piece)):
                    handle.seek(start)
                    digest.update(handle.read(piece))
            digests.append(digest.digest())
    return f"{kind}-{hashlib.sha256(b''.join(sorted(digests))).hexdigest()[:12]}"


ID_BYTES = 65_536
"""Bytes in each of the three pieces that ``content_id`` reads of a file."""


def source_size(root: Path, path: str) -> int:
    """Return the bytes of an exam's source: of the file, of one row of an array file, or of a folder's files."""
    file, row = split_path(path)
    if row is not None:
        return int(_array(root / file)[row].nbytes)
    if (root / file).is_dir():
        return sum(member.stat().st_size for member in (root / file).rglob("*") if member.is_file())
    return (root / file).stat().st_size


def source_stamp(root: Path, path: str) -> list[tuple[str, int, int]]:
    """Return what changes when an exam's files are written to: name, size and time of change of each.

    Not the inode: some network file systems give a file another one at every look.
    """
    file = os.path.join(root, split_path(path)[0])
    states = [(file, os.stat(file))]
    if stat.S_ISDIR(states[0][1].st_mode):
        states = [(str(member), member.stat()) for member in sorted(Path(file).rglob("*")) if member.is_file()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def read_array(root: Path | str, path: str) -> np.ndarray[Any, Any]:
    """Return one row of a ``.npy`` array file (``"volumes.npy#12"``).

    Raises:
        UnreadableExam: the file is not an array or has no such row.
    """
    root = Path(root)
    file, row = split_path(path)
    try:
        array = _array(root / file)
        return np.array(array if row is None else array[row])
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise UnreadableExam(f"{file}: {error}") from error


def _array(file: Path) -> np.ndarray[Any, Any]:
    state = file.stat()
    return _mapped(str(file), state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _mapped(file: str, *state: int) -> np.ndarray[Any, Any]:
    """Map an array file; written again, it has another state, and must not be taken for what it was."""
    array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM by its first bytes, whatever its name (see ``dicom_mark``)."""
    with file.open("rb") as handle:
        return dicom_mark(handle.read(132)) is not None


def dicom_mark(head: bytes) -> Literal["preamble", "bare"] | None:
    """Return what the first 132 bytes of a file say of it.

    Returns:
        ``"preamble"``: ``DICM`` after 128 bytes, as DICOM PS3.10 asks for. ``"bare"``: data elements from the first
        byte on, as old archives write them. None: no DICOM.
    """
    if head[128:132] == b"DICM":
        return "preamble"
    group, element, length = (int.from_bytes(head[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
    explicit = head[4:6] in (b"UL", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"OB")
    return "bare" if len(head) == 132 and group in (2, 8) and element < 0x100 and (explicit or length < 100) else None


DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"
MAX_INFLATED_BYTES = 2**28
MAX_INFLATION, ALWAYS_INFLATED_BYTES = 100, 2**24
"""A deflated DICOM file may grow by this factor at most, once it is larger than 16 MiB; pictures grow by 2 to 20."""


def refuse_bomb(handle: IO[bytes]) -> None:
    """Refuse a deflated DICOM file that would fill the memory: it is unpacked as a whole before any tag is read.

    What it holds is counted in small pieces and thrown away; other files are not read further than their head. The
    handle is left at its start.

    Raises:
        UnreadableExam: it unpacks to too much.
    """
    handle.seek(0)
    head = handle.read(4096)
    if DEFLATED_SYNTAX in head and head[132:138] == b"\x02\0\0\0UL":
        handle.seek(144 + int.from_bytes(head[140:144], "little"))  # past the group of file meta information
        unpack, total, packed = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
        while (chunk := handle.read(2**16)) and not unpack.eof:
            packed += len(chunk)
            while chunk:
                try:
                    total += len(unpack.decompress(chunk, 2**20))
                except zlib.error:  # damaged: what decodes the header says so
                    chunk = b""
                    continue
                chunk = unpack.unconsumed_tail
                if total > MAX_INFLATED_BYTES or total > max(ALWAYS_INFLATED_BYTES, MAX_INFLATION * packed):
                    size = f"{total / 2**20:.0f} MiB, from {packed / 1024:.0f} KiB"
                    raise UnreadableExam(f"a deflated file that unpacks to more than {size}")
    handle.seek(0)


def without_names(text: str, path: Path) -> str:
    """Return a reason without the names of an exam's file, its folders, and the files in it: they may hold a patient's.

    Example:
        >>> without_names("DOE_JANE.dcm: header can't be decoded", Path("in/DOE_JANE.dcm"))
        "header can't be decoded"
    """
    names = {path.name}
    if path.is_dir():
        names |= {file.name for file in files_below(path)}
    elif zipfile.is_zipfile(path):
        with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as packed:
            names |= {Path(name).name for name in packed.namelist()}
    for place in (path, *path.parents):
        if len(place.parts) > 1:
            text = text.replace(f"{place}/", "").replace(str(place), "")
    for name in sorted({*names, *map(printable, names)} - {""}, key=len, reverse=True):
        text = text.removeprefix(f"{name}: ")
        if not name.isalpha():  # what is a word may be one of the reason
            text = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])(?:: )?", "", text)
    return " ".join(text.split())


def files_below(folder: Path, nested: bool = True) -> list[Path]:
    """Return the files of a folder in order of their paths, hidden ones left out.

    Links to folders are followed, each folder once: one that links back, or to a folder that is listed anyway, is not
    entered again.

    Args:
        folder: where to look.
        nested: its subfolders too.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for place, names, files in os.walk(start):
                if (real := os.path.realpath(place)) in seen:
                    names.clear()
                    continue
                seen.add(real)
                links += [Path(place, name) for name in names if os.path.islink(os.path.join(place, name))]
                found += [Path(place, name) for name in files if not is_hidden(name)]
                names[:] = [name for name in names if nested and not is_hidden(name)]
        # real folders keep their own names; what only a link leads to is entered after them
        waiting = sorted(link for link in links if nested and not is_hidden(link.name))
    return sorted(file for file in found if file.is_file())


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is no exam by its name: dot files, and what Windows and macOS leave behind."""
    return name.startswith(".") or name.upper() in ("THUMBS.DB", "__MACOSX")


def printable(name: str) -> str:
    """Return a path or name as it can be printed and written: bytes that are not UTF-8 become ``\ufffd``."""
    return os.fsencode(name).decode("utf-8", "replace")
