"""Write rows that were computed elsewhere: a teacher's embeddings, generated ones, a user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from embedprior.cache.format import ViewNotes, place_for, prepare, shard_files, write_index, write_pointer, write_view
from embedprior.cache.reader import EmbeddingCache, open_view
from embedprior.cache.shards import Array, finite, read_header, shard_name, to_stored, write_shard
from embedprior.cache.verify import LOCK, WRITER, clear_leftovers, inspect, mend
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.runs import Lock

VIEW = "written"


class CacheWriter:
    """Appends rows to a cache, one durable shard a call; exams that are there already are left out.

    Use it as a context manager, or call ``close``. One writer at a time: a second one waits.
    """

    def __init__(self, out: Path, spec: EncoderSpec, tokens: bool = False) -> None:
        """Open or make ``out/<spec.name>@<key8>``; what is damaged in it is taken away.

        Raises:
            BadInput: another cache lies there (the field that differs is named).
        """
        self._out, self._place = out, place_for(out, spec, tokens)
        prepare(self._place, spec)
        self._lock = Lock(self._place.folder / f"{WRITER}{LOCK}")
        self._lock.wait()
        clear_leftovers(self._place.folder, self._lock.path)
        mend(self._place, inspect(self._place.folder, self._place.key))
        self._sources: dict[str, str] = {}
        for path in shard_files(self._place.folder):
            header = read_header(path)
            self._sources |= dict(zip(header.exam_ids, header.sources, strict=True))
        self._next = 1 + max((int(p.name.split("-")[1]) for p in shard_files(self._place.folder)), default=-1)

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
        place, ids, origins, stored = self._place, list[str](), list[str](), list[Array]()
        for n, (exam_id, source) in enumerate(zip(exam_ids, sources, strict=True)):
            if self.has(exam_id, source):
                continue
            row = to_stored(np.atleast_2d(rows[n]), place.dtype)
            if row.shape[1] != place.key["dim"] or not (place.tokens or len(row) == 1):
                raise BadInput(f"exam '{exam_id}' has {row.shape}, the cache takes {place.key['dim']} numbers a row.")
            if not finite(row, place.dtype).all():
                raise BadInput(f"exam '{exam_id}' has a number that is not finite as {place.dtype}.")
            ids.append(exam_id)
            origins.append(source)
            stored.append(row)
        if ids:
            write_shard(
                place.folder / shard_name(self._next, ids, origins), place.short, place.dtype, ids, origins,
                np.concatenate(stored), [len(row) for row in stored] if place.tokens else None,
            )  # fmt: skip
            self._next += 1
            self._sources |= dict(zip(ids, origins, strict=True))
        return len(ids)

    def close(self) -> EmbeddingCache:
        """Write view and index, let ``out/current`` name the cache, and open it: every exam, its last source."""
        place, notes = self._place, ViewNotes(self._place.folder)
        notes.add(0, list(self._sources.items()))
        write_view(place.folder, VIEW, [notes.close()])
        notes.remove()
        write_index(place.folder)
        write_pointer(self._out, place, VIEW)
        self._lock.release()
        return open_view(place.folder, VIEW)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._lock.held():
            self.close()
        self._lock.release()


def write_cache(
    out: Path, spec: EncoderSpec, exam_ids: Sequence[str], sources: Sequence[str], rows: Array | Sequence[Array],
    tokens: bool = False,
) -> EmbeddingCache:  # fmt: skip
    """Write a whole cache at once and open it; see ``CacheWriter.append`` for the arguments.

    Raises:
        BadInput, DiskFull: see ``CacheWriter``.
    """
    writer = CacheWriter(out, spec, tokens)
    try:
        writer.append(exam_ids, sources, rows)
        return writer.close()
    finally:
        writer._lock.release()
