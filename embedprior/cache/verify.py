"""Find what is wrong with a cache folder and repair it; compare two caches; measure how far rounding moves numbers."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from embedprior.cache.format import (
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    PREFIX,
    QUARANTINE,
    SUFFIX,
    VIEWS,
    Array,
    CacheLocation,
    index_rows,
    read_header,
    read_manifest,
    read_view,
    shard_corruption,
    shard_files,
)
from embedprior.cache.loading import PresentExams, in_pieces
from embedprior.cache.reader import EmbeddingCache, open_cache
from embedprior.encoders.base import differing_field, key8
from embedprior.errors import BadInput
from embedprior.runs import Lock
from embedprior.runs.integrity import CHECKSUM, remember, remembered, stamp_of
from embedprior.runs.locks import is_old

Kind = Literal["damaged", "missing", "foreign", "manifest"]
MAX_THREADS = 8
BUILDER, WRITER, LOCK = ".builder-", ".writer", ".lock"


@dataclass(frozen=True)
class Corruption:
    """One thing that is wrong.

    Attributes:
        file: its name in the cache folder.
        kind: a damaged file of the cache, a missing one, a file that does not belong there, or the manifest.
        reason: in words.
    """

    file: str
    kind: Kind
    reason: str


def find_corruption(folder: Path, key: dict[str, Any] | None = None) -> list[Corruption]:
    """Return everything that is wrong with a cache folder, reading every byte of it.

    Args:
        folder: ``<encoder>@<key8>/``.
        key: what its key must be; None = as its manifest says.

    Raises:
        BadInput: there is no such folder.
    """
    if not folder.is_dir():
        raise BadInput(f"no cache folder {folder}. Next: embedprior cache ls {folder.parent}")
    found: list[Corruption] = []
    try:
        manifest = read_manifest(folder)
        have = manifest["key"]
        if CHECKSUM not in manifest:
            found.append(Corruption(MANIFEST, "manifest", "it holds no checksum (of an earlier version)"))
        if not folder.name.endswith(f"@{key8(have)}"):
            found.append(Corruption(MANIFEST, "manifest", f"its key has the hash {key8(have)}, the folder another"))
    except BadInput as error:
        found.append(Corruption(MANIFEST, "manifest", str(error).partition(" Next:")[0]))
    short = key8(key) if key is not None else folder.name.rpartition("@")[2]
    for path, reason in _read_whole(shard_files(folder), short):
        if reason:
            found.append(Corruption(path.name, "foreign" if "another cache" in reason else "damaged", reason))
    found += _missing(folder, short, {d.file for d in found})
    found += [
        Corruption(path.relative_to(folder).as_posix(), "foreign", "no file of a cache") for path in _strange(folder)
    ]
    return found


def refuse_corruption(cache: EmbeddingCache) -> None:
    """Check the manifest and every shard that a cache reads.

    Shards that were found whole before, and have the stamp they had then, are not read again.

    Raises:
        BadInput: one is damaged; it is named.
    """
    read_manifest(cache.path)
    known = remembered(cache.path)
    stamps = {path.name: stamp_of(path) for path, _ in cache.shards}
    unknown = [path for path, _ in cache.shards if known.get(path.name) != stamps[path.name]]
    for path, reason in _read_whole(unknown, key8(cache.key)):
        if reason:
            raise BadInput(
                f"cache {cache.path.name}: {path.name}: {reason}. Next: embedprior cache verify {cache.path} names all "
                "that is wrong; the command that filled the cache, run again, computes what is damaged."
            )
    if unknown:
        remember(cache.path, known | stamps)


def _read_whole(shards: Sequence[Path], key: str) -> Iterator[tuple[Path, str]]:
    """Yield each shard with what is wrong with it, several read at a time: reading and hashing leave Python free."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        yield from zip(shards, pool.map(partial(shard_corruption, key=key), shards), strict=True)


def open_verified(path: Path | str, expect: dict[str, Any] | None = None) -> EmbeddingCache:
    """Open a cache to work with its numbers: see ``open_cache`` and ``refuse_corruption``.

    Raises:
        BadInput: as both of them.
    """
    cache = open_cache(path, expect)
    refuse_corruption(cache)
    return cache


def repair(location: CacheLocation, found: list[Corruption]) -> None:
    """Take damaged shards and tables away (a rebuild computes just them), and put foreign files into quarantine."""
    for one in found:
        path = location.folder / one.file
        if one.kind == "foreign":
            aside = location.folder / QUARANTINE / one.file.replace("/", "_")
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
        elif one.kind == "damaged":
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, own: Path) -> None:
    """Remove what killed runs left here and in the folder above (temporary files, their locks), unless another builder
    is at work here.

    A lock that a builder is just writing, and what builders of other caches write in the folder above, look the same as
    leftovers: they go once they are old.
    """
    for lock in folder.glob(f".*{LOCK}"):
        if lock != own and not Lock(lock).remove_if_stale() and lock.name.startswith((BUILDER, WRITER)):
            return
    for left in [*folder.rglob(".*.tmp"), *folder.parent.glob(".*.tmp")]:
        of_others = left.parent == folder.parent or left.name.startswith((f".{BUILDER}", f".{WRITER}"))
        if not of_others or is_old(left):
            left.unlink(missing_ok=True)


def _missing(folder: Path, short: str, reported: set[str]) -> Iterator[Corruption]:
    """Shards of the index that are gone, and exams of a view that no shard holds."""
    there = {path.name for path in shard_files(folder)}
    present = PresentExams(folder, short, skip=reported)
    present.refresh()
    lost: dict[str, int] = {}
    try:
        for name, rows in _indexed(folder / INDEX):
            if name not in there:
                lost[name] = len(rows)
            elif name not in reported and rows != list(index_rows(name, read_header(folder / name))):
                raise ValueError(f"its rows of {name} are not those of the shard")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, IndexError, csv.Error) as error:
        yield Corruption(INDEX, "damaged", f"not the index of these shards ({error})")
    for name, count in sorted(lost.items()):
        yield Corruption(name, "missing", f"it is gone; the index has {count} exams in it")
    for view in sorted((folder / VIEWS).glob("*.csv")):
        try:
            gone, first = 0, ""
            for pairs in in_pieces(read_view(view), 4096):
                absent = ~present.has(pairs)
                gone, first = gone + int(absent.sum()), first or (pairs[absent.argmax()][0] if absent.any() else "")
        except BadInput as error:
            yield Corruption(f"{VIEWS}/{view.name}", "damaged", str(error).partition(" Next:")[0])
            continue
        if gone and not lost and not reported:
            yield Corruption(
                f"{VIEWS}/{view.name}", "missing", f"{gone} of its exams are in no shard; the first: {first}"
            )


def _indexed(path: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the index's rows shard by shard, as they lie."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = csv.reader(handle)
        if next(rows, None) != INDEX_COLUMNS:
            raise ValueError(f"its columns are not {', '.join(INDEX_COLUMNS)}")
        for name, group in groupby(rows, key=lambda row: row[1]):
            yield name, list(group)


def _strange(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_dir() or inside.parts[0] == QUARANTINE or inside.name.startswith("."):
            continue
        known = inside.as_posix() in (MANIFEST, INDEX)
        known |= len(inside.parts) == 1 and inside.name.startswith(PREFIX) and inside.name.endswith(SUFFIX)
        known |= len(inside.parts) == 2 and inside.parts[0] == VIEWS and inside.suffix in (".csv", ".sha256")
        if not known:
            yield path


@dataclass(frozen=True)
class Difference:
    """What differs between two caches.

    Attributes:
        field: first field of the keys that differs, with both values; None when they are equal.
        only_left: exams that only the first has.
        only_right: exams that only the second has.
        other_source: exams of one name made from different files.
        other_rows: exams of the same file whose numbers differ (or differ in shape).
        largest: largest absolute difference of their numbers.
    """

    field: tuple[str, object, object] | None
    only_left: list[str]
    only_right: list[str]
    other_source: list[str]
    other_rows: list[str]
    largest: float

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.field is None and not (self.only_left or self.only_right or self.other_source or self.other_rows)


def diff(left: EmbeddingCache, right: EmbeddingCache) -> Difference:
    """Compare two caches exam by exam; equal means equal bytes of every number."""
    ours = dict(zip(left.ids, left.sources, strict=True))
    theirs = dict(zip(right.ids, right.sources, strict=True))
    both = [i for i in ours if i in theirs]
    changed, largest = [], 0.0
    for exam_id in both:
        a, b = (np.asarray(c.tokens(exam_id), dtype=np.float64) for c in (left, right))
        if a.shape != b.shape:
            changed.append(exam_id)
        elif not np.array_equal(a, b):
            changed.append(exam_id)
            largest = max(largest, float(np.abs(a - b).max()))
    return Difference(
        field=differing_field(left.key, right.key),
        only_left=[i for i in ours if i not in theirs],
        only_right=[i for i in theirs if i not in ours],
        other_source=[i for i in both if ours[i] != theirs[i]],
        other_rows=changed,
        largest=largest,
    )


def quantization_error(
    exact: Float[np.ndarray, "exams dim"], rounded: Float[np.ndarray, "exams dim"]
) -> dict[str, float | None]:
    """Return the largest 1 − cosine between the rows of two matrices, plain and after taking off the mean row.

    The centred figure is the honest one: embeddings share a large mean vector, which hides differences. It is None
    for fewer than two exams.
    """
    mean = exact.mean(0, dtype=np.float64)
    centred = None if len(exact) < 2 else _largest(exact - mean, rounded - mean)
    return {"exams": len(exact), "one_minus_cos_max": _largest(exact, rounded), "centred_one_minus_cos_max": centred}


def _largest(a: Array, b: Array) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(1), lengths, out=np.ones(len(a)), where=lengths > 0)
    return float(np.clip(1.0 - cosine, 0.0, None).max())
