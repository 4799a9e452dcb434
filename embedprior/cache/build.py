"""Fill a cache: plan it, then compute what is missing, nothing twice; one bad exam never stops the rest."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cache.format import (
    Place,
    ViewNotes,
    place_for,
    prepare,
    table_hash,
    write_index,
    write_pointer,
    write_view,
)
from embedprior.cache.loading import ExamTable, HashSet, Loaded, Present, Task, hash_ids, load
from embedprior.cache.reader import EmbeddingCache, open_view
from embedprior.cache.shards import STORED, Array, finite, shard_name, to_stored, write_shard
from embedprior.cache.verify import BUILDER, LOCK, Damage, clear_leftovers, inspect, mend
from embedprior.encoders.base import Dtype, Encoder, TokenEncoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.files import UnreadableExam, source_hash, source_size
from embedprior.runs import Lock, progress
from embedprior.runs.distributed import Processes
from embedprior.runs.files import saying_what_is_full

TRIED = 8


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        exams: of the table.
        missing: of these, not in the cache with their present content.
        absent: of these, without a file.
        read_bytes: of the missing exams' files.
        write_bytes: that the missing rows will take; None when no exam could be tried.
        seconds: of embedding the missing exams one after the other; None likewise.
    """

    exams: int
    missing: int
    absent: int
    read_bytes: int
    write_bytes: int | None
    seconds: float | None

    def words(self) -> str:
        """Return the plan in a few lines."""
        lines = [f"{self.exams} exams, {self.missing} of them to embed ({self.read_bytes / 1e6:.1f} MB to read)"]
        if self.absent:
            lines.append(f"without a file, to be left out (failures.csv): {self.absent}")
        if self.missing and self.seconds is not None and self.write_bytes is not None:
            lines.append(f"{self.write_bytes / 1e6:.1f} MB to write")
            short = "less than a second" if self.seconds < 1 else f"about {self.seconds:.0f} seconds"
            time_words = short if self.seconds < 90 else f"about {self.seconds / 60:.0f} minutes"
            lines.append(f"{time_words} in one process (measured on the first {min(TRIED, self.missing)})")
        elif self.missing:
            lines.append("none of the first exams can be read: no estimate")
        return "\n".join(lines)


def plan(exams: Iterable[pd.DataFrame], root: Path, encoder: Encoder, place: Place) -> Plan:
    """Return what ``fill_cache`` would do with a table in pieces; nothing is written."""
    present = Present(place.folder, place.short) if place.folder.is_dir() else None
    if present is not None:
        present.refresh()
    count, missing, absent, size = 0, 0, 0, 0
    tried: list[str] = []
    for piece in exams:
        sources: dict[str, str] = {}
        paths = {str(i): str(p) for i, p in zip(piece["exam_id"], piece["path"], strict=True)}
        for exam_id, path in paths.items():
            try:
                sources[exam_id] = source_hash(root, path)
            except (UnreadableExam, OSError, IndexError, ValueError):
                absent += 1
        known = np.zeros(len(sources), dtype=bool) if present is None else present.has(sources.items())
        lacking = [paths[i] for i, is_there in zip(sources, known, strict=True) if not is_there]
        count, missing = count + len(paths), missing + len(lacking)
        size += sum(source_size(root, path) for path in lacking)
        tried += lacking[: 4 * TRIED - len(tried)]
    rows, seconds = _try(tried, root, encoder, place.tokens)
    bytes_each = STORED[place.dtype][1].itemsize * int(place.key["dim"])
    return Plan(
        exams=count,
        missing=missing,
        absent=absent,
        read_bytes=size,
        write_bytes=None if rows is None else round(rows * bytes_each * missing),
        seconds=None if seconds is None else seconds * missing,
    )


def sample(paths: Iterable[str], root: Path, encoder: Encoder, most: int) -> list[Array]:
    """Return the first readable exams, as ``encoder.read`` gives them, all of one shape."""
    read: list[Array] = []
    for path in paths:
        if len(read) == most:
            break
        try:
            array = encoder.read(root, path)
        except EmbedpriorError:
            raise
        except Exception:  # as in a build, where this exam is left out with its reason
            continue
        if not read or array.shape == read[0].shape:
            read.append(array)
    return read


def _try(paths: list[str], root: Path, encoder: Encoder, tokens: bool) -> tuple[float | None, float | None]:
    """Return rows and seconds an exam, measured on the first exams (the second of two passes counts)."""
    seconds, rows = None, None
    for _ in range(2):
        started = time.perf_counter()
        read = sample(paths, root, encoder, TRIED)
        if not read:
            return None, None
        if not tokens:
            encoder.embed(np.stack(read))
            rows = 1.0
        elif isinstance(encoder, TokenEncoder):
            rows = float(np.mean([len(one) for one in encoder.tokens(np.stack(read))]))
        else:
            raise BadInput(f"encoder '{encoder.spec.name}' gives no tokens. Next: leave out --tokens.")
        seconds = (time.perf_counter() - started) / len(read)
    return rows, seconds


SHARD_EXAMS, SHARD_TOKEN_EXAMS = 512, 64
_QUIET_S = 5.0


@dataclass(frozen=True)
class Filled:
    """What a build did.

    Attributes:
        place: the cache.
        view: name of the cohort's view of it.
        exams: exams of the cohort that the cache now holds.
        embedded: exams that were computed, by all processes.
        failures: one record (``exam_id``, ``stage``, ``reason``) for every exam left out.
        mended: what was found damaged at the start, and put right.
    """

    place: Place
    view: str
    exams: int
    embedded: int
    failures: list[dict[str, str]]
    mended: list[Damage]


def build_cache(
    exams: pd.DataFrame, root: Path, encoder: Encoder, out: Path, batch_size: int = 64, desc: str | None = None,
    *, tokens: bool = False, dtype: Dtype | None = None, workers: int = 0,
) -> tuple[EmbeddingCache, list[dict[str, str]]]:  # fmt: skip
    """Embed every exam that the cache lacks, or whose source file changed, and open the cache for these exams.

    Returns:
        The cache (these exams, in this order), and one record (``exam_id``, ``stage``, ``reason``) for every exam
        that could not be embedded.

    Raises:
        BadInput, DiskFull: see ``fill_cache``, whose arguments these are.
    """
    filled = fill_cache(exams, root, encoder, out, batch_size, desc, tokens=tokens, dtype=dtype, workers=workers)
    return open_view(filled.place.folder, filled.view), filled.failures


def fill_cache(
    exams: pd.DataFrame | Iterable[pd.DataFrame], root: Path, encoder: Encoder, out: Path, batch_size: int = 64,
    desc: str | None = None, *, tokens: bool = False, dtype: Dtype | None = None, workers: int = 0,
    shard_exams: int | None = None, processes: Processes | None = None,
) -> Filled:  # fmt: skip
    """Embed every exam that the cache lacks, or whose source file changed.

    Args:
        exams: exam table, or its pieces one after the other, as of an ``ExamTable`` (then memory does not grow with
            it).
        root: folder the exams' paths are relative to.
        encoder: a frozen encoder.
        out: folder of caches; the cache is ``out/<encoder>@<key8>`` and ``out/current`` names it.
        batch_size: exams read together; those of one shape go through the encoder together.
        desc: text of the progress bar.
        tokens: store the encoder's tokens instead of its embedding.
        dtype: of the stored numbers; None = the encoder's own.
        workers: processes that read ahead of the encoder.
        shard_exams: exams of a shard, rounded up to whole batches; None = 512, or 64 with tokens.
        processes: this process's place among several that share the work.

    Raises:
        BadInput: another cache lies in the folder (the field that differs is named), tokens or dtype are asked of an
            encoder that can't give them, or an exam is in the table twice (found on the way when it comes in pieces).
        DiskFull: no room for a shard; those before it are intact.
    """
    me = processes or Processes()
    if isinstance(exams, pd.DataFrame):
        _refuse_twice(HashSet(), exams)
    spec = encoder.spec if dtype is None else encoder.spec.model_copy(update={"dtype": dtype})
    place = place_for(out, spec, tokens)
    mended: list[Damage] = []
    with ExitStack() as stack, saying_what_is_full(place.folder):
        if me.first:
            prepare(place, spec)
        me.meet()
        presence = Lock(place.folder / f"{BUILDER}{secrets.token_hex(4)}{LOCK}")
        stack.callback(presence.release)
        presence.place()
        if me.first:
            with Lock(place.folder / f".mend{LOCK}"):
                clear_leftovers(place.folder, presence.path)
                mended = inspect(place.folder, place.key)
                mend(place, mended)
        me.meet()
        size = shard_exams or (SHARD_TOKEN_EXAMS if tokens else SHARD_EXAMS)
        blocks = _Blocks(exams, root, -(-size // batch_size) * batch_size, me)
        builder = _Builder(place, root, encoder, batch_size, workers)
        stack.callback(builder.close)
        total = blocks.batches(batch_size)
        for loaded in progress(builder.run(blocks), desc or spec.name, total=total):
            builder.take(loaded)
        failures = me.gather(builder.failures)
        embedded = sum(me.gather([builder.embedded]))
        parts = me.gather([builder.notes.close()])
        count = 0
        if me.first:
            with Lock(place.folder / f".index{LOCK}"):
                count = write_view(place.folder, blocks.view, parts)
                write_index(place.folder)
                write_pointer(out, place, blocks.view)
        me.meet()
    return Filled(place, blocks.view, count, embedded, failures, mended)


@dataclass
class _Block:
    number: int
    exams: list[tuple[str, str]]


class _Blocks:
    """Cuts the exam table into blocks; yields those of this process, and names the table as it goes by."""

    def __init__(self, exams: pd.DataFrame | Iterable[pd.DataFrame], root: Path, size: int, me: Processes) -> None:
        self._exams, self._root, self._size, self._me = exams, root, size, me
        self.view = ""

    def batches(self, batch_size: int) -> int | None:
        """Number of batches of this process where the table's length is known (about, when it is shared)."""
        if isinstance(self._exams, ExamTable):
            count = self._exams.count
        elif isinstance(self._exams, pd.DataFrame):
            count = len(self._exams)
        else:
            return None
        return -(-count // (batch_size * self._me.count))

    def __iter__(self) -> Iterator[_Block]:
        pieces = [self._exams] if isinstance(self._exams, pd.DataFrame) else self._exams
        # A cohort is its table and where its files lie: elsewhere, the same names may be other exams.
        digest = hashlib.sha256(json.dumps(str(self._root.resolve())).encode())
        held: list[tuple[str, str]] = []
        number, seen = 0, HashSet()
        for piece in pieces:
            _refuse_twice(seen, piece)
            for start in range(0, len(piece), self._size):
                part = piece.iloc[start : start + self._size]
                paths = part["path"].where(part["path"].notna(), "")
                held += [(str(i), str(p)) for i, p in zip(part["exam_id"], paths, strict=True)]
                while len(held) >= self._size:
                    yield from self._own(number, held[: self._size], digest)
                    held, number = held[self._size :], number + 1
        if held:
            yield from self._own(number, held, digest)
        self.view = digest.hexdigest()[:12]

    def _own(self, number: int, exams: list[tuple[str, str]], digest: hashlib._Hash) -> Iterator[_Block]:
        digest.update("".join(f"{len(i)}:{i}{len(p)}:{p}" for i, p in exams).encode())
        if number % self._me.count == self._me.rank:
            yield _Block(number, exams)


def _refuse_twice(seen: HashSet, piece: pd.DataFrame) -> None:
    """Note a piece's exams; refuse one that was there before: its two files would be taken for each other."""
    ids = [str(exam_id) for exam_id in piece["exam_id"]]
    hashes = hash_ids(ids)
    again = seen.has(hashes) | pd.Series(ids, dtype=object).duplicated().to_numpy()
    if again.any():
        twice = ids[int(again.argmax())]
        raise BadInput(f"exam '{twice}' is in the table twice. Next: give each exam its own exam_id.")
    seen.add(hashes)


@dataclass
class _Open:
    """A block that is being embedded."""

    block: _Block
    lock: Lock
    sources: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class _Builder:
    """Claims blocks, embeds what the readers bring, and writes a shard when a block is complete."""

    def __init__(self, place: Place, root: Path, encoder: Encoder, batch_size: int, workers: int) -> None:
        self._place, self._root, self._encoder = place, root, encoder
        self._batch_size, self._workers = batch_size, workers
        self._open: dict[int, _Open] = {}
        self.failures: list[dict[str, str]] = []
        self.embedded = 0
        self.notes = ViewNotes(place.folder)

    def run(self, blocks: Iterable[_Block]) -> Iterator[Loaded]:
        """Yield what was read, block after block; blocks that another builder holds come last."""
        while True:
            postponed: list[_Block] = []
            yield from load(self._tasks(blocks, postponed), self._root, self._encoder, self._place, self._workers)
            if not postponed:
                return
            # Whoever holds the first of them may finish it, or die: either way its lock comes free.
            waiting = self._lock(postponed[0])
            if not waiting.wait(patience=_QUIET_S):
                print(f"waiting for shards that {waiting.owner()} is making", file=sys.stderr)
                waiting.wait()
            waiting.release()
            blocks = postponed

    def take(self, loaded: Loaded) -> None:
        """Embed one task's exams; write the shard when they were the block's last."""
        held = self._open[loaded.task.block]
        held.sources |= loaded.sources
        held.failed |= dict(loaded.failures)
        for ids, batch in loaded.batches:
            for exam_id, row, is_finite in zip(ids, *self._embed(batch.numpy()), strict=True):
                if is_finite:
                    held.rows[exam_id] = row
                else:
                    held.failed[exam_id] = f"its embedding is not finite as {self._place.dtype}"
        if loaded.task.last:
            self._finish(held)
            del self._open[loaded.task.block]

    def close(self) -> None:
        """Give back what is still claimed, and remove the notes."""
        for held in self._open.values():
            held.lock.release()
        self.notes.remove()

    def _tasks(self, blocks: Iterable[_Block], postponed: list[_Block]) -> Iterator[Task]:
        for block in blocks:
            lock = self._lock(block)
            # noted before it is claimed: what an interrupt cuts short here is given back as well
            self._open[block.number] = _Open(block, lock)
            if not lock.acquire():
                del self._open[block.number]
                postponed.append(block)
                continue
            for start in range(0, len(block.exams), self._batch_size):
                last = start + self._batch_size >= len(block.exams)
                yield Task(block.number, last, block.exams[start : start + self._batch_size])

    def _lock(self, block: _Block) -> Lock:
        return Lock(self._place.folder / f".block-{table_hash(block.exams)}{LOCK}")

    def _embed(self, batch: Array) -> tuple[Sequence[Array], Sequence[bool]]:
        """Return each exam's stored rows, and whether they are finite."""
        if not self._place.tokens:
            rows = to_stored(self._rows_of(batch), self._place.dtype)
            return list(rows[:, None]), finite(rows, self._place.dtype).tolist()
        if not isinstance(self._encoder, TokenEncoder):
            raise BadInput(f"encoder '{self._encoder.spec.name}' says it gives tokens, but has no method for them.")
        each = [to_stored(tokens, self._place.dtype) for tokens in self._tokens_of(self._encoder, batch)]
        return each, [bool(finite(tokens, self._place.dtype).all()) for tokens in each]

    def _rows_of(self, batch: Array) -> Array:
        rows = self._encoder.embed(batch)
        if rows.shape != (len(batch), self._place.key["dim"]):
            raise BadInput(f"encoder '{self._encoder.spec.name}' gave {rows.shape} for {len(batch)} exams; its spec "
                           f"says {self._place.key['dim']} numbers each.")  # fmt: skip
        return rows

    def _tokens_of(self, encoder: TokenEncoder, batch: Array) -> list[Array]:
        each = encoder.tokens(batch)
        wrong = [one.shape for one in each if one.ndim != 2 or not len(one) or one.shape[1] != self._place.key["dim"]]
        if len(each) != len(batch) or wrong:
            told = f"n x {self._place.key['dim']}"
            raise BadInput(f"encoder '{self._encoder.spec.name}' gave tokens of {len(each)} exams for {len(batch)}, "
                           f"shapes {wrong[:3] or told}; its spec says {told} each.")  # fmt: skip
        return each

    def _finish(self, held: _Open) -> None:
        ids = [exam_id for exam_id, _ in held.block.exams if exam_id in held.rows]
        sources = [held.sources[exam_id] for exam_id in ids]
        if ids:  # even when the lock was lost meanwhile: the same exams give the same name and bytes
            rows = [held.rows[exam_id] for exam_id in ids]
            write_shard(
                self._place.folder / shard_name(held.block.number, ids, sources),
                self._place.short, self._place.dtype, ids, sources, np.concatenate(rows),
                [len(row) for row in rows] if self._place.tokens else None,
            )  # fmt: skip
        held.lock.release()
        self.embedded += len(ids)
        self.failures += [
            {"exam_id": exam_id, "stage": "embed", "reason": reason} for exam_id, reason in held.failed.items()
        ]
        self.notes.add(
            held.block.number,
            [(i, held.sources[i]) for i, _ in held.block.exams if i in held.sources and i not in held.failed],
        )
