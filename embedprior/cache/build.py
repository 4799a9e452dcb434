"""Fill a cache: compute what is missing, nothing twice, in one process or many; one bad exam never stops the rest."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from embedprior.cache.format import (
    Array,
    CacheLocation,
    cache_location,
    finite,
    prepare,
    shard_name,
    table_hash,
    to_stored,
    write_shard,
)
from embedprior.cache.loading import ExamTable, Loaded, Task, load
from embedprior.cache.reader import EmbeddingCache, open_view
from embedprior.cache.verify import BUILDER, LOCK, Corruption, find_corruption, remove_leftovers, repair
from embedprior.cache.writer import ViewLog, write_index, write_pointer, write_view
from embedprior.encoders.base import Dtype, Encoder, TokenEncoder
from embedprior.errors import BadInput
from embedprior.runs import Lock, progress, read_json, write_json
from embedprior.runs.distributed import ProcessGroup
from embedprior.runs.files import explain_full_disk
from embedprior.tables import SeenIds, read_table, refuse_repeated_exams, write_table

SHARD_EXAMS, SHARD_TOKEN_EXAMS = 512, 64
BATCH, VOLUME_BATCH = 64, 4
"""Exams read together: a volume takes a hundred times the memory of a picture."""
_QUIET_S = 5.0


@dataclass(frozen=True)
class FillResult:
    """What a build did.

    Attributes:
        location: the cache.
        view: name of the cohort's view of it.
        exams: exams of the cohort that the cache now holds.
        embedded: exams that were computed, by all processes.
        failures: one record (``exam_id``, ``stage``, ``reason``) for every exam left out.
        repaired: what was found damaged at the start, and put right.
        findings: one record (``exam_id``, ``severity``, ``code``, ``message``) for every warning about an exam that was
            embedded now.
    """

    location: CacheLocation
    view: str
    exams: int
    embedded: int
    failures: list[dict[str, str]]
    repaired: list[Corruption]
    findings: list[dict[str, str]] = field(default_factory=list)


def build_cache(
    exams: pd.DataFrame, root: Path | str, encoder: Encoder, out: Path | str, batch_size: int | None = None,
    desc: str | None = None, *, tokens: bool = False, dtype: Dtype | None = None, workers: int = 0,
) -> tuple[EmbeddingCache, list[dict[str, str]]]:  # fmt: skip
    """Embed every exam that the cache lacks, or whose source file changed, and open the cache for these exams.

    Returns:
        The cache (these exams, in this order), and one record (``exam_id``, ``stage``, ``reason``) for every exam
        that could not be embedded.

    Raises:
        BadInput, DiskFull: see ``fill_cache``, whose arguments these are.
    """
    filled = fill_cache(exams, root, encoder, out, batch_size, desc, tokens=tokens, dtype=dtype, workers=workers)
    return open_view(filled.location.folder, filled.view), filled.failures


def fill_cache(
    exams: pd.DataFrame | Iterable[pd.DataFrame], root: Path | str, encoder: Encoder, out: Path | str,
    batch_size: int | None = None, desc: str | None = None, *, tokens: bool = False, dtype: Dtype | None = None,
    workers: int = 0, shard_exams: int | None = None, processes: ProcessGroup | None = None,
    keep_findings: bool = False,
) -> FillResult:  # fmt: skip
    """Embed every exam that the cache lacks, or whose source file changed.

    Args:
        exams: exam table, or its pieces one after the other, as of an ``ExamTable`` (then memory does not grow with
            it).
        root: folder the exams' paths are relative to.
        encoder: a frozen encoder.
        out: folder of caches; the cache is ``out/<encoder>@<key8>`` and ``out/current`` names it.
        batch_size: exams read together; those of one shape, or of unlike numbers of slices, go through the encoder
            together. None = 64, or 4 CT volumes.
        desc: text of the progress bar.
        tokens: store the encoder's tokens instead of its embedding.
        dtype: of the stored numbers; None = the encoder's own.
        workers: processes that read ahead of the encoder.
        shard_exams: exams of a shard, rounded up to whole batches; None = 512, or 64 with tokens.
        processes: this process among several that share the work.
        keep_findings: write what the audits warn of into the cache's folder, before each shard, so that a kill does not
            lose it; the caller removes it (``clear_findings``) once it is written elsewhere.

    Raises:
        BadInput: another cache lies in the folder (the field that differs is named), tokens or dtype are asked of an
            encoder that can't give them, or an exam is in the table twice (found on the way when it comes in pieces).
        DiskFull: no room for a shard; those before it are intact.
    """
    root, out = Path(root), Path(out)
    processes = processes or ProcessGroup()
    batch_size = batch_size or default_batch(encoder)
    if isinstance(exams, pd.DataFrame):
        refuse_repeated_exams(exams, "the exam table", SeenIds())
    spec = encoder.spec if dtype is None else encoder.spec.model_copy(update={"dtype": dtype})
    location = cache_location(out, spec, tokens)
    repaired: list[Corruption] = []
    with ExitStack() as stack, explain_full_disk(location.folder):
        if processes.is_main:
            prepare(location, spec)
        processes.barrier()
        presence = Lock(location.folder / f"{BUILDER}{secrets.token_hex(4)}{LOCK}")
        stack.callback(presence.release)
        presence.create_unique()
        processes.barrier()  # the lock that another process is just writing would be taken for a leftover
        if processes.is_main:
            with Lock(location.folder / f".repair{LOCK}"):
                remove_leftovers(location.folder, presence.path)
                repaired = find_corruption(location.folder, location.key)
                repair(location, repaired)
        processes.barrier()
        size = shard_exams or (SHARD_TOKEN_EXAMS if tokens else SHARD_EXAMS)
        blocks = _Blocks(exams, root, -(-size // batch_size) * batch_size, processes)
        builder = _Builder(location, root, encoder, batch_size, workers, keep_findings)
        stack.callback(builder.close)
        total = blocks.batches(batch_size)
        for loaded in progress(builder.run(blocks), desc or spec.name, total=total):
            builder.take(loaded)
        failures = processes.gather(builder.failures)
        findings = processes.gather(builder.findings)
        embedded = sum(processes.gather([builder.embedded]))
        parts = processes.gather([builder.view_log.close()])
        count = 0
        if processes.is_main:
            with Lock(location.folder / f".index{LOCK}"):
                count = write_view(location.folder, blocks.view, parts)
                write_index(location.folder)
                write_pointer(out, location, blocks.view)
        processes.barrier()
        if keep_findings and processes.is_main:  # also those of earlier runs, which were killed before they told them
            findings = [one for path in journals(location.folder) for one in read_json(path)]
    return FillResult(location, blocks.view, count, embedded, failures, repaired, findings)


def journals(folder: Path) -> list[Path]:
    """Return the files that hold, block by block, what the audits warn of and no ``findings.csv`` has yet.

    They are written before the block's shard: a kill after it would lose the warnings of exams not embedded again.
    """
    return sorted(folder.glob(f"{JOURNAL}*.json"))


def default_batch(encoder: Encoder) -> int:
    """Return how many exams are read together where nothing is asked for."""
    return VOLUME_BATCH if encoder.spec.modality == "CT" else BATCH


@dataclass
class _Block:
    number: int
    exams: list[tuple[str, str]]
    expected: dict[str, str] = field(default_factory=dict)


class _Blocks:
    """Cuts the exam table into blocks; yields those of this process, and names the table as it goes by."""

    def __init__(
        self, exams: pd.DataFrame | Iterable[pd.DataFrame], root: Path, size: int, processes: ProcessGroup
    ) -> None:
        self._exams, self._root, self._size, self._processes = exams, root, size, processes
        self.view = ""

    def batches(self, batch_size: int) -> int | None:
        """Number of batches of this process where the table's length is known (about, when it is shared)."""
        if isinstance(self._exams, ExamTable):
            count = self._exams.count
        elif isinstance(self._exams, pd.DataFrame):
            count = len(self._exams)
        else:
            return None
        return -(-count // (batch_size * self._processes.world_size))

    def __iter__(self) -> Iterator[_Block]:
        pieces = [self._exams] if isinstance(self._exams, pd.DataFrame) else self._exams
        # A cohort is its table and where its files lie: elsewhere, the same names may be other exams.
        digest = hashlib.sha256(json.dumps(str(self._root.resolve())).encode())
        pending: list[tuple[str, str, str]] = []
        number, line, seen = 0, 2, SeenIds()
        for piece in pieces:
            refuse_repeated_exams(piece, "the exam table", seen, line)
            line += len(piece)
            for start in range(0, len(piece), self._size):
                part = piece.iloc[start : start + self._size]
                paths = part["path"].where(part["path"].notna(), "")
                stated = part["sha256"].where(part["sha256"].notna(), "") if "sha256" in part else [""] * len(part)
                pending += [(str(i), str(p), str(s)) for i, p, s in zip(part["exam_id"], paths, stated, strict=True)]
                while len(pending) >= self._size:
                    yield from self._own(number, pending[: self._size], digest)
                    pending, number = pending[self._size :], number + 1
        if pending:
            yield from self._own(number, pending, digest)
        self.view = digest.hexdigest()[:12]

    def _own(self, number: int, named: list[tuple[str, str, str]], digest: hashlib._Hash) -> Iterator[_Block]:
        exams = [(exam_id, path) for exam_id, path, _ in named]
        digest.update("".join(f"{len(i)}:{i}{len(p)}:{p}" for i, p in exams).encode())
        if number % self._processes.world_size == self._processes.rank:
            yield _Block(number, exams, {exam_id: stated for exam_id, _, stated in named if stated})


@dataclass
class _Open:
    """A block that is being embedded."""

    block: _Block
    lock: Lock
    sources: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)


class _Builder:
    """Claims blocks, embeds what the readers bring, and writes a shard when a block is complete."""

    def __init__(
        self, location: CacheLocation, root: Path, encoder: Encoder, batch_size: int, workers: int, keep_findings: bool
    ) -> None:
        self._location, self._root, self._encoder = location, root, encoder
        self._batch_size, self._workers, self._keep_findings = batch_size, workers, keep_findings
        self.findings: list[dict[str, str]] = []
        self._open: dict[int, _Open] = {}
        self.failures: list[dict[str, str]] = []
        self.embedded = 0
        self.view_log = ViewLog(location.folder)

    def run(self, blocks: Iterable[_Block]) -> Iterator[Loaded]:
        """Yield what was read, block after block; blocks that another builder holds come last."""
        while True:
            postponed: list[_Block] = []
            yield from load(self._tasks(blocks, postponed), self._root, self._encoder, self._location, self._workers)
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
        pending = self._open[loaded.task.block]
        pending.sources |= loaded.sources
        pending.failed |= dict(loaded.failures)
        pending.findings += [
            {"exam_id": exam_id, "severity": one.severity, "code": one.code, "message": one.message}
            for exam_id, one in loaded.findings
        ]
        for ids, batch in loaded.batches:
            arrays = [one.numpy() for one in batch] if isinstance(batch, list) else batch.numpy()
            for exam_id, row, is_finite in zip(ids, *self._embed(arrays), strict=True):
                if is_finite:
                    pending.rows[exam_id] = row
                else:
                    pending.failed[exam_id] = f"its embedding is not finite as {self._location.dtype}"
        if loaded.task.last:
            self._finish(pending)
            del self._open[loaded.task.block]

    def close(self) -> None:
        """Give back what is still claimed, and remove the view log."""
        for pending in self._open.values():
            pending.lock.release()
        self.view_log.remove()

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
                exams = block.exams[start : start + self._batch_size]
                expected = {exam_id: block.expected[exam_id] for exam_id, _ in exams if exam_id in block.expected}
                yield Task(block.number, last, exams, expected)

    def _lock(self, block: _Block) -> Lock:
        return Lock(self._location.folder / f".block-{table_hash(block.exams)}{LOCK}")

    def _embed(self, batch: Array | list[Array]) -> tuple[Sequence[Array], Sequence[bool]]:
        """Return each exam's stored rows, and whether they are finite."""
        if not self._location.tokens:
            rows = to_stored(self._rows_of(batch), self._location.dtype)
            return list(rows[:, None]), finite(rows, self._location.dtype).tolist()
        if not isinstance(self._encoder, TokenEncoder):
            raise BadInput(f"encoder '{self._encoder.spec.name}' says it gives tokens, but has no method for them.")
        each = [to_stored(tokens, self._location.dtype) for tokens in self._tokens_of(self._encoder, batch)]
        return each, [bool(finite(tokens, self._location.dtype).all()) for tokens in each]

    def _rows_of(self, batch: Array | list[Array]) -> Array:
        rows = self._encoder.embed(cast(Array, batch))
        if rows.shape != (len(batch), self._location.key["dim"]):
            raise BadInput(f"encoder '{self._encoder.spec.name}' gave {rows.shape} for {len(batch)} exams; its spec "
                           f"says {self._location.key['dim']} numbers each.")  # fmt: skip
        return rows

    def _tokens_of(self, encoder: TokenEncoder, batch: Array | list[Array]) -> list[Array]:
        each = encoder.tokens(cast(Array, batch))
        wrong = [
            one.shape for one in each if one.ndim != 2 or not len(one) or one.shape[1] != self._location.key["dim"]
        ]
        if len(each) != len(batch) or wrong:
            expected = f"n x {self._location.key['dim']}"
            raise BadInput(f"encoder '{self._encoder.spec.name}' gave tokens of {len(each)} exams for {len(batch)}, "
                           f"shapes {wrong[:3] or expected}; its spec says {expected} each.")  # fmt: skip
        return each

    def _finish(self, pending: _Open) -> None:
        ids = [exam_id for exam_id, _ in pending.block.exams if exam_id in pending.rows]
        sources = [pending.sources[exam_id] for exam_id in ids]
        self.findings += pending.findings
        if pending.findings and self._keep_findings:
            name = f"{JOURNAL}{pending.block.number:06d}-{table_hash(pending.block.exams)}.json"
            write_json(self._location.folder / name, pending.findings)
        if ids:  # even when the lock was lost meanwhile: the same exams give the same name and bytes
            rows = [pending.rows[exam_id] for exam_id in ids]
            write_shard(
                self._location.folder / shard_name(pending.block.number, ids, sources),
                self._location.short, self._location.dtype, ids, sources, np.concatenate(rows),
                [len(row) for row in rows] if self._location.tokens else None,
            )  # fmt: skip
        pending.lock.release()
        self.embedded += len(ids)
        self.failures += [
            {"exam_id": exam_id, "stage": "embed", "reason": reason} for exam_id, reason in pending.failed.items()
        ]
        self.view_log.add(
            pending.block.number,
            [
                (i, pending.sources[i])
                for i, _ in pending.block.exams
                if i in pending.sources and i not in pending.failed
            ],
        )


def summary_text(filled: FillResult, precision: dict[str, Any] | None, asked: int) -> str:
    """Return ``summary.md``: exams in the cache, what was repaired, the error of reduced precision, what failed."""
    lines = [f"# {filled.location.folder.name}", ""]
    lines.append(f"{filled.exams} of {asked} exams are in the cache; {filled.embedded} were embedded now.")
    for one in filled.repaired:
        lines.append(f"- found at the start: {one.file}: {one.reason}")
    if precision is not None:
        centred = precision["centred_one_minus_cos_max"]
        lines.append(
            f"{precision['what']} against float32 over {precision['exams']} exams: largest 1 − cos "
            f"{precision['one_minus_cos_max']:.1e}"
            + ("" if centred is None else f", {centred:.1e} about the mean embedding")
            + "."
        )
    if filled.findings:
        count = len({one["exam_id"] for one in filled.findings})
        lines.append(f"Embedded, but the audit of the image warns (findings.csv): {count}.")
    if filled.failures:
        lines.append(f"Left out, each with its reason in failures.csv: {len(filled.failures)}.")
        lines += [f"- {one['exam_id']}: {one['reason']}" for one in filled.failures[:5]]
    return "\n".join(lines) + "\n"


FINDINGS, JOURNAL = "findings.csv", ".findings-"


def clear_findings(folder: Path) -> None:
    """Remove the journals of a cache whose findings were written, or are not wanted."""
    for path in journals(folder):
        path.unlink(missing_ok=True)


def write_findings(out: Path, findings: Sequence[Mapping[str, str]]) -> None:
    """Write what the audits warn of, beside what earlier runs of this folder found in exams not embedded again."""
    columns = ["exam_id", "severity", "code", "message"]
    table = pd.DataFrame(findings, columns=columns)
    target = out / FINDINGS
    if target.is_file():
        before = read_table(target, columns)
        table = pd.concat([before[~before["exam_id"].isin(table["exam_id"])], table], ignore_index=True)
    if len(table):
        write_table(table, target)
