"""Which exams there are already, in eight bytes each: of a cache folder while others write, of a table in pieces."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.cache.layout import shard_files
from embedprior.cache.shards import read_header
from embedprior.errors import BadInput

T = TypeVar("T")

Array64 = NDArray[np.uint64]

_MOST_RUNS = 24
_GRAIN_NS = 50_000_000


class HashSet:
    """A set of hashes that grows by sorted runs, which are merged when there are many."""

    def __init__(self) -> None:
        self._runs: list[Array64] = []

    def add(self, hashes: Array64) -> None:
        """Put hashes in."""
        if len(hashes):
            self._runs.append(np.sort(hashes))
        if len(self._runs) > _MOST_RUNS:
            merged = np.concatenate(self._runs)
            merged.sort()  # in place: a sorted copy would be the peak of a long table's memory
            self._runs = [merged]

    def has(self, hashes: Array64) -> NDArray[np.bool_]:
        """Return of each hash whether it is in."""
        found = np.zeros(len(hashes), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found |= run[at] == hashes
        return found


class Present:
    """The (exam, source) pairs of a cache's shards.

    Eight bytes of a hash stand for a pair, so that a million exams take 8 MB. Two different pairs of a million that
    share them have odds of 1 in 10⁷; the exam left out would be missed, with an error, when its view is opened.
    """

    def __init__(self, folder: Path, key: str, skip: Collection[str] = ()) -> None:
        self._folder, self._key = folder, key
        self._seen: set[str] = set(skip)
        self._changed = -1
        self._pairs = HashSet()

    def refresh(self) -> None:
        """Read the headers of shards that appeared since."""
        changed = self._folder.stat().st_mtime_ns
        if changed == self._changed:
            return
        # A change within the clock's grain of this look would leave the same time: look again then.
        self._changed = changed if time.time_ns() - changed > _GRAIN_NS else -1
        for path in shard_files(self._folder):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                header = read_header(path)
            except BadInput:
                continue
            if header.key == self._key:
                self._pairs.add(_hashes(zip(header.exam_ids, header.sources, strict=True)))

    def has(self, pairs: Iterable[tuple[str, str]]) -> NDArray[np.bool_]:
        """Return of each exam, with this content, whether it is there."""
        return self._pairs.has(_hashes(pairs))


def in_pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    running = iter(items)
    while piece := list(islice(running, size)):
        yield piece


def hash_ids(exam_ids: Iterable[object]) -> Array64:
    """Return eight bytes that stand for each exam id."""
    return pd.util.hash_array(np.array([str(i) for i in exam_ids], dtype=object), categorize=False)


def _hashes(pairs: Iterable[tuple[str, str]]) -> Array64:
    digests = [hashlib.blake2b(f"{i}\0{s}".encode(), digest_size=8).digest() for i, s in pairs]
    return np.frombuffer(b"".join(digests), np.uint64)


