"""Write rows that were computed elsewhere (a teacher's, generated ones, a user's own files), views and the index."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from embedprior.cache.format import (
    CURRENT,
    INDEX,
    INDEX_COLUMNS,
    Array,
    CacheLocation,
    cache_location,
    checksum_file,
    checksum_line,
    finite,
    index_rows,
    prepare,
    read_header,
    shard_files,
    shard_name,
    to_stored,
    view_file,
    write_shard,
)
from embedprior.cache.reader import EmbeddingCache, open_view
from embedprior.cache.verify import LOCK, WRITER, find_corruption, remove_leftovers, repair
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.runs import Lock, write_file, write_text

VIEW = "written"


class CacheWriter:
    """Appends rows to a cache, one durable shard a call; exams that are there already are left out.

    Use it as a context manager, or call ``close``. One writer at a time: a second one waits.
    """

    def __init__(self, out: Path | str, spec: EncoderSpec, tokens: bool = False) -> None:
        """Open or make ``out/<spec.name>@<key8>``; what is damaged in it is taken away.

        Raises:
            BadInput: another cache lies there (the field that differs is named).
        """
        out = Path(out)
        self._out, self._location = out, cache_location(out, spec, tokens)
        prepare(self._location, spec)
        self._lock = Lock(self._location.folder / f"{WRITER}{LOCK}")
        self._lock.wait()
        remove_leftovers(self._location.folder, self._lock.path)
        repair(self._location, find_corruption(self._location.folder, self._location.key))
        self._sources: dict[str, str] = {}
        for path in shard_files(self._location.folder):
            header = read_header(path)
            self._sources |= dict(zip(header.exam_ids, header.sources, strict=True))
        self._next = 1 + max((int(p.name.split("-")[1]) for p in shard_files(self._location.folder)), default=-1)

    @property
    def ids(self) -> list[str]:
        """Exams that are there."""
        return list(self._sources)

    def has(self, exam_id: str, source: str) -> bool:
        """Return whether the exam is there, made from this source."""
        return self._sources.get(exam_id) == source

    def append(self, exam_ids: Sequence[str], sources: Sequence[str], rows: Array | Sequence[Array]) -> int:
        """Write one shard of the exams that are not there with this source yet; return how many they were.

        Args:
            exam_ids: one an exam.
            sources: what each row was made from: the sha256 of a file, or any text that changes with the origin.
            rows: exams × dim; with tokens one array (tokens × dim) an exam.

        Raises:
            BadInput: lengths or widths that do not fit, an exam twice, or a number that is not finite.
            DiskFull: no room; the shards before are intact.
        """
        if not len(exam_ids) == len(sources) == len(rows) or len(set(exam_ids)) != len(exam_ids):
            raise BadInput(f"{len(exam_ids)} exam ids ({len(set(exam_ids))} different), {len(sources)} sources and "
                           f"{len(rows)} rows: they must be as many, and each exam once.")  # fmt: skip
        location, ids, origins, stored = self._location, list[str](), list[str](), list[Array]()
        for n, (exam_id, source) in enumerate(zip(exam_ids, sources, strict=True)):
            if self.has(exam_id, source):
                continue
            row = to_stored(np.atleast_2d(rows[n]), location.dtype)
            if row.shape[1] != location.key["dim"] or not (location.tokens or len(row) == 1):
                raise BadInput(
                    f"exam '{exam_id}' has {row.shape}, the cache takes {location.key['dim']} numbers a row."
                )
            if not finite(row, location.dtype).all():
                raise BadInput(f"exam '{exam_id}' has a number that is not finite as {location.dtype}.")
            ids.append(exam_id)
            origins.append(source)
            stored.append(row)
        if ids:
            write_shard(
                location.folder / shard_name(self._next, ids, origins), location.short, location.dtype, ids, origins,
                np.concatenate(stored), [len(row) for row in stored] if location.tokens else None,
            )  # fmt: skip
            self._next += 1
            self._sources |= dict(zip(ids, origins, strict=True))
        return len(ids)

    def close(self) -> EmbeddingCache:
        """Write view and index, let ``out/current`` name the cache, and open it: every exam, its last source."""
        location, log = self._location, ViewLog(self._location.folder)
        log.add(0, list(self._sources.items()))
        write_view(location.folder, VIEW, [log.close()])
        log.remove()
        write_index(location.folder)
        write_pointer(self._out, location, VIEW)
        self._lock.release()
        return open_view(location.folder, VIEW)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._lock.is_ours():
            self.close()
        self._lock.release()


def write_cache(
    out: Path | str, spec: EncoderSpec, exam_ids: Sequence[str], sources: Sequence[str], rows: Array | Sequence[Array],
    tokens: bool = False,
) -> EmbeddingCache:  # fmt: skip
    """Write a whole cache at once and open it; see ``CacheWriter.append`` for the arguments.

    Raises:
        BadInput, DiskFull: see ``CacheWriter``.
    """
    out = Path(out)
    writer = CacheWriter(out, spec, tokens)
    try:
        writer.append(exam_ids, sources, rows)
        return writer.close()
    finally:
        writer._lock.release()


class ViewLog:
    """Notes which exams of which block the cache holds, on disk: a cohort may be longer than memory is wide."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".view.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self.offsets: dict[int, int] = {}
        self._handle = self.path.open("wb")

    def add(self, block: int, pairs: Sequence[tuple[str, str]]) -> None:
        """Note a block's exams and the sha256 of their sources."""
        self.offsets[block] = self._handle.tell()
        self._handle.write(json.dumps(list(pairs)).encode() + b"\n")

    def close(self) -> tuple[str, dict[int, int]]:
        """End the notes; return the file and where each block starts in it."""
        self._handle.close()
        return str(self.path), self.offsets

    def remove(self) -> None:
        """Delete the log."""
        with suppress(OSError):  # a full disk refuses what was not written yet
            self._handle.close()
        self.path.unlink(missing_ok=True)


def write_view(folder: Path, name: str, parts: Sequence[tuple[str, dict[int, int]]]) -> int:
    """Write ``views/<name>.csv`` from the log of every process, in the order of the table; return its length."""
    target = view_file(folder, name)
    target.parent.mkdir(exist_ok=True)
    count = 0

    def fill(handle: BinaryIO) -> None:
        nonlocal count
        with ExitStack() as stack:
            files = [stack.enter_context(Path(path).open("rb")) for path, _ in parts]
            text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=True)
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(["exam_id", "sha256"])
            blocks = {block: (file, offset) for file, (_, at) in zip(files, parts, strict=True)
                      for block, offset in at.items()}  # fmt: skip
            for block in sorted(blocks):
                file, offset = blocks[block]
                file.seek(offset)
                pairs = json.loads(file.readline())
                rows.writerows(pairs)
                count += len(pairs)
            text.detach()

    write_file(target, fill)
    write_text(checksum_file(target), checksum_line(target))
    return count


def write_index(folder: Path) -> None:
    """Write ``index.csv`` from the headers of the shards: where every exam lies."""

    def fill(handle: BinaryIO) -> None:
        text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=True)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(INDEX_COLUMNS)
        for path in shard_files(folder):
            rows.writerows(index_rows(path.name, read_header(path)))
        text.detach()

    write_file(folder / INDEX, fill)


def write_pointer(out: Path, location: CacheLocation, view: str) -> None:
    """Let ``out`` name the cache and view that were filled last."""
    write_text(out / CURRENT, f"{location.folder.name}\n{view}\n")
