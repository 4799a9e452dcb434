"""Open a cache: ids, and one matrix or the tokens of each exam; pairs of embeddings for a training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Num
from numpy.lib.stride_tricks import as_strided

from embedprior.cache.format import (
    MANIFEST,
    STORED,
    VIEWS,
    Array,
    ShardHeader,
    copy_rows,
    from_stored,
    key_of,
    map_rows,
    read_header,
    read_manifest,
    read_pointer,
    read_view,
    refuse_other_key,
    shard_files,
    view_file,
    working_dtype,
)
from embedprior.encoders.base import key8
from embedprior.errors import BadInput
from embedprior.imaging.files import source_hash
from embedprior.runs import hash_array, hash_of, record_dependency

COPY_AFTER = 1 / 16
_NOWHERE = np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class EmbeddingCache:
    """A cache on disk, or one cohort's view of it: ids, and one embedding (or the tokens) of each exam.

    Attributes:
        path: its folder.
        key: everything the embeddings depend on (see ``encoders.encoder_key``).
        ids: exam ids, in the order of the matrix.
        sources: sha256 of each exam's source file.
        shards: the files and their headers.
        where: shard and place in it of each exam.

    Example: see ``open_cache``.
    """

    path: Path
    key: dict[str, Any]
    ids: list[str]
    sources: list[str]
    shards: list[tuple[Path, ShardHeader]]
    where: Int[np.ndarray, "exams 2"] = field(default_factory=lambda: _NOWHERE, repr=False)
    _mapped_rows: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)  # asked for so far

    @property
    def has_tokens(self) -> bool:
        """Whether it holds tokens (several rows an exam) instead of embeddings."""
        return bool(self.key.get("output") == "tokens")

    @cached_property
    def patients_seen(self) -> frozenset[str] | None:
        """Patients whose exams trained the encoder or chose it; None = trained elsewhere."""
        seen = read_manifest(self.path).get("spec", {}).get("patients_seen")
        return None if seen is None else frozenset(seen)

    @cached_property
    def matrix(self) -> Num[np.ndarray, "exams dim"]:
        """All embeddings in memory, one row an exam: float32, or uint8 where the cache holds bytes.

        Raises:
            BadInput: it holds tokens.
        """
        whole = sum(len(header.exam_ids) for _, header in self.shards) == len(self.ids)
        if self.ids and whole and not self.has_tokens and (np.diff(self.where @ [1 << 32, 1]) > 0).all():
            return from_stored(self._copied(), self._dtype)
        return self._gather(np.arange(len(self.ids)))

    def take(self, exam_ids: Sequence[str]) -> Num[np.ndarray, "exams dim"]:
        """Return the embeddings of some exams, (exams, dim), in the order asked for; see ``read``.

        Args:
            exam_ids: of ``ids``.

        Raises:
            BadInput: an exam has no embedding, or the cache holds tokens.
        """
        return self.read(self.rows(exam_ids))

    def read(self, rows: Sequence[int] | Int[np.ndarray, " some"]) -> Num[np.ndarray, "some dim"]:
        """Return embeddings by row number, (some, dim), in the order asked for.

        The first few are read by memory map; once a sixteenth of the rows was asked for, the matrix is copied to
        memory, if a quarter of what is free holds it: a training reads many epochs, each then three times faster.

        Args:
            rows: numbers from 0, as the method ``rows`` gives them for exam ids.

        Raises:
            BadInput: the cache holds tokens.
        """
        if "matrix" not in self.__dict__:
            self._mapped_rows[0] += len(rows)
            if self.has_tokens or self._mapped_rows[0] <= COPY_AFTER * len(self.ids) or not self._fits_in_memory():
                return self._gather(rows)
        return self.matrix.take(rows, axis=0)

    def rows(self, exam_ids: Sequence[str]) -> Int[np.ndarray, " exams"]:
        """Return the row numbers of some exams, to be given to ``read``.

        A look-up costs about as much as the reading: a loop over batches does it once, for all its exams.

        Args:
            exam_ids: of ``ids``.

        Raises:
            BadInput: an exam is not here.
        """
        table = self._rows
        try:
            return np.fromiter(map(table.__getitem__, exam_ids), np.int64, len(exam_ids))
        except KeyError:
            missing = [str(i) for i in exam_ids if i not in table]
            # no nearest match: it would be another patient's exam
            raise BadInput(
                f"{self.path.name}: {len(missing)} of {len(exam_ids)} exams have no embedding: "
                f"{', '.join(missing[:5])}. Next: embed them (what can't be read is named there), or leave them out."
            ) from None

    def tokens(self, exam: int | str) -> Num[np.ndarray, "tokens dim"]:
        """Return the tokens of one exam, (tokens, dim) float32 (a view of the file when stored as float32).

        Args:
            exam: its id, or its row number.

        Raises:
            BadInput: there is no such exam.
        """
        shard, place = self.where[int(self.rows([exam])[0]) if isinstance(exam, str) else exam].tolist()
        offsets = self.shards[shard][1].offsets
        return from_stored(self._maps[shard][offsets[place] : offsets[place + 1]], self._dtype)

    def digest(self, exam_ids: Sequence[str]) -> str:
        """Return a sha256 of the embeddings of these exams, without reading them: from the checksums of their shards.

        It changes with any number, source file or place of these exams, and not when others are added.

        Args:
            exam_ids: of these exams; in another order it is another digest.

        Raises:
            BadInput: an exam is not here.
        """
        places = self.where[self.rows(exam_ids)]
        used, numbers = np.unique(places[:, 0], return_inverse=True)
        shards = [(self.shards[n][0].name, self.shards[n][1].checksum) for n in used.tolist()]
        return hash_of([shards, hash_array(np.stack([numbers, places[:, 1]], axis=1).astype("<i8"))])

    def counts(self) -> Int[np.ndarray, " exams"]:
        """Return the number of rows of each exam (ones, unless it holds tokens)."""
        lengths = [np.diff(header.offsets) for _, header in self.shards]
        return np.array([lengths[shard][place] for shard, place in self.where.tolist()], dtype=np.int64)

    @property
    def _dtype(self) -> str:
        return str(self.key["dtype"])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {exam_id: row for row, exam_id in enumerate(self.ids)}

    @cached_property
    def _maps(self) -> list[Array]:
        return [map_rows(path, header) for path, header in self.shards]

    @cached_property
    def _in_the_maps(self) -> tuple[Array, Array]:
        """All maps as one array of overlapping rows of bytes, and where in it each exam's row lies.

        Every shard has a place of its own in this process's memory, so one gather can reach them all. The array also
        spans what lies between the maps; only the places of rows are ever used.
        """
        first = [np.int64(m.ctypes.data if len(m) else np.iinfo(np.int64).max) for m in self._maps]
        lowest = int(np.argmin(first))
        wide = self._maps[lowest].itemsize * int(self.key["dim"])
        at = np.array(first)[self.where[:, 0]] - first[lowest] + wide * self.where[:, 1]
        flat = self._maps[lowest].reshape(-1).view(np.uint8)
        return as_strided(flat, (int(at.max()) + 1, wide), (1, 1), writeable=False), at

    def __getstate__(self) -> dict[str, Any]:
        """Leave maps and copies behind: another process makes its own."""
        return {one.name: self.__dict__[one.name] for one in fields(self)}

    def _copied(self) -> Array:
        first = self.shards[0][1]
        whole = np.empty((sum(h.shape[0] for _, h in self.shards), first.shape[1]), STORED[self._dtype][1])
        end = 0
        for path, header in self.shards:
            copy_rows(path, header, whole[end : end + header.shape[0]])
            end += header.shape[0]
        return whole

    def _gather(self, rows: Sequence[int] | Array) -> Array:
        if self.has_tokens:
            raise BadInput(f"{self.path.name} holds tokens, not one embedding an exam. Next: use tokens(exam), or "
                           "embed without --tokens.")  # fmt: skip
        shape = (len(rows), int(self.key["dim"]))
        if not len(rows):
            return np.empty(shape, working_dtype(self._dtype))
        everything, at = self._in_the_maps
        found: Array = everything[at[np.asarray(rows)]].view(STORED[self._dtype][1])
        return from_stored(found, self._dtype)

    def _fits_in_memory(self) -> bool:
        import psutil

        size = len(self.ids) * int(self.key["dim"]) * working_dtype(self._dtype).itemsize
        return bool(size < psutil.virtual_memory().available / 4)


def open_cache(
    path: Path | str,
    expect: dict[str, Any] | None = None,
    exams: pd.DataFrame | None = None,
    root: Path | str | None = None,
) -> EmbeddingCache:
    """Open a cache folder, or a folder whose ``current`` file names one and the cohort it was filled for.

    Args:
        path: ``<encoder>@<key8>/`` for all its exams, or the folder it lies in for those of the last cohort.
        expect: the key it must have.
        exams: exam table: these exams only, in this order, chosen by the present contents of their files.
        root: folder the table's paths are relative to.

    Raises:
        BadInput: no cache there, a damaged shard, a key that differs (the field is named), an exam without embedding
            of its present file, or (for a cache folder, without ``exams``) two cohorts whose exam of one name has
            different contents.

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> from PIL import Image
        >>> for name in ("a.png", "b.png"):
        ...     Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)).save(name)
        >>> made = embedprior.embed(["a.png", "b.png"], "pixels-128", out="caches")
        >>> cache = embedprior.open_cache("caches")
        >>> cache.ids, cache.matrix.shape                        # rows in the order of the ids
        (['a', 'b'], (2, 16384))
        >>> cache.take(["b", "a"]).shape, cache.key["encoder"]   # rows by exam id
        ((2, 16384), 'pixels-128')
    """
    folder, view = read_pointer(Path(path)) or (Path(path), "")
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"no embedding cache at {path}. Next: embedprior embed --cohort FILE --encoder NAME --out {path}"
        )
    key = key_of(folder)
    if expect is not None:
        refuse_other_key(folder.name, key, expect)
    record_dependency("cache", folder.name, folder, view)
    shards = read_shards(folder, key)
    if exams is not None:
        wanted = [str(i) for i in exams["exam_id"]]
        base = Path(root or ".")
        return _chosen(folder, key, shards, wanted, [source_hash(base, str(p)) for p in exams["path"]])
    if view:
        return _of_view(folder, key, shards, view)
    return _of_all_cohorts(folder, key, shards)


def open_view(folder: Path, view: str) -> EmbeddingCache:
    """Open one cohort's view of a cache folder, whatever ``current`` names by now.

    Raises:
        BadInput: as ``open_cache``.
    """
    key = key_of(folder)
    record_dependency("cache", folder.name, folder, view)
    return _of_view(folder, key, read_shards(folder, key), view)


def read_shards(folder: Path, key: dict[str, Any]) -> list[tuple[Path, ShardHeader]]:
    """Return every shard of a cache with its header.

    Raises:
        BadInput: a damaged shard, or one of another cache.
    """
    shards = []
    for path in shard_files(folder):
        header = read_header(path)
        if header.key != key8(key):
            raise BadInput(
                f"{path.name} belongs to another cache (key {header.key}, not {key8(key)}). "
                f"Next: embedprior cache verify {folder}"
            )
        shards.append((path, header))
    return shards


def _of_view(folder: Path, key: dict[str, Any], shards: list[tuple[Path, ShardHeader]], view: str) -> EmbeddingCache:
    pairs = list(read_view(view_file(folder, view)))
    return _chosen(folder, key, shards, [i for i, _ in pairs], [s for _, s in pairs])


def _of_all_cohorts(folder: Path, key: dict[str, Any], shards: list[tuple[Path, ShardHeader]]) -> EmbeddingCache:
    views = sorted((folder / VIEWS).glob("*.csv"))
    whole = (pair for _, header in shards for pair in zip(header.exam_ids, header.sources, strict=True))
    pairs = (pair for view in views for pair in read_view(view)) if views else whole
    chosen: dict[str, str] = {}
    for exam_id, source in pairs:
        if chosen.setdefault(exam_id, source) != source:
            raise BadInput(
                f"{folder.name} holds exam '{exam_id}' of two cohorts with different contents. Next: open the folder "
                "above it (its 'current' names one cohort), or give the table: open_cache(path, exams=..., root=...)."
            )
    ids, have = list(chosen), [exam_id for _, header in shards for exam_id in header.exam_ids]
    if ids != have:
        order = {exam_id: n for n, exam_id in enumerate(have)}
        ids.sort(key=lambda exam_id: order.get(exam_id, -1))
    return _chosen(folder, key, shards, ids, [chosen[exam_id] for exam_id in ids])


def _chosen(
    folder: Path, key: dict[str, Any], shards: list[tuple[Path, ShardHeader]], ids: list[str], sources: list[str]
) -> EmbeddingCache:
    """Return these exams of the shards; a cohort that is all of them, in order, needs no look-up."""
    counts = [len(header.exam_ids) for _, header in shards]
    numbers = np.repeat(np.arange(len(shards)), counts)
    everywhere = np.stack([numbers, np.concatenate([np.arange(n) for n in [*counts, 0]])], axis=1)
    have_ids = [exam_id for _, header in shards for exam_id in header.exam_ids]
    have_sources = [source for _, header in shards for source in header.sources]
    if ids == have_ids and sources == have_sources:
        return EmbeddingCache(folder, key, ids, sources, shards, everywhere)
    places: dict[tuple[str, str], int] = {}
    for place, pair in enumerate(zip(have_ids, have_sources, strict=True)):
        places.setdefault(pair, place)
    rows = [places.get(pair, -1) for pair in zip(ids, sources, strict=True)]
    gone = [exam_id for exam_id, row in zip(ids, rows, strict=True) if row < 0]
    if gone:
        raise BadInput(
            f"{folder.name}: {len(gone)} of {len(ids)} exams have no embedding of their present file: "
            f"{', '.join(gone[:5])}. Next: run the command that filled the cache again."
        )
    return EmbeddingCache(folder, key, ids, sources, shards, everywhere[np.array(rows, dtype=np.int64)])


def drop_unembedded(
    rows: pd.DataFrame, caches: Sequence[tuple[str, EmbeddingCache]], where: str
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Return the rows all of whose exams have an embedding, and a record (``exam_id, stage, reason``) of the others.

    Args:
        rows: pairs or exams; an empty or missing id needs no embedding.
        caches: column of exam ids, and the cache these are read from.
        where: the table, for messages.

    Raises:
        BadInput: no row is left.
    """
    lost = pd.Series(False, index=rows.index)
    failures: dict[str, dict[str, str]] = {}
    for column, cache in caches:
        named = rows[column].notna() & (rows[column] != "")
        gone = named & ~rows[column].isin(cache.ids)
        for exam_id in rows.loc[gone, column].astype(str):
            reason = f"no embedding in {cache.path.name}"
            failures.setdefault(exam_id, {"exam_id": exam_id, "stage": "embedding", "reason": reason})
        lost |= gone
    if len(rows) and lost.all():
        example = next(iter(failures.values()))
        raise BadInput(
            f"{where}: not one of its {len(rows)} rows has embeddings of all its exams, e.g. {example['exam_id']}: "
            f"{example['reason']}. Next: check that table and caches use the same exam ids."
        )
    return rows[~lost], list(failures.values())
