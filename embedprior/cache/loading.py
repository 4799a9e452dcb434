"""Exams on their way to the encoder: the table read in pieces, what the cache already holds, decoding in workers."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.cache.format import CacheLocation, read_header, shard_files
from embedprior.encoders.base import Encoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.files import UnreadableExam, exam_file, source_hash, source_stamp, without_names
from embedprior.imaging.findings import Finding, collect_findings
from embedprior.imaging.radiographs import stated_view
from embedprior.tables import EXAM_REQUIRED, Hashes, HashSet, SeenIds, check_exams, read_pieces

if TYPE_CHECKING:  # what checks a cache imports this module, and needs no torch
    import torch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_GRAIN_NS = 50_000_000


class PresentExams:
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


def _hashes(pairs: Iterable[tuple[str, str]]) -> Hashes:
    digests = [hashlib.blake2b(f"{i}\0{s}".encode(), digest_size=8).digest() for i, s in pairs]
    return np.frombuffer(b"".join(digests), np.uint64)


PIECE = 8192


class ExamTable:
    """The exams of a CSV that are of some modalities: checked once as a whole, then yielded piece after piece.

    Attributes:
        count: exams that are yielded.
        left_out: exams of other modalities.
        other_views: how many exams of each view were left out, when views were asked for.
        unknown_views: exams that stay though nothing names their view.
    """

    def __init__(
        self, path: Path, modalities: Collection[str], limit: int | None = None, views: Collection[str] = ()
    ) -> None:
        """Read the table through, and check it.

        Args:
            path: the CSV; see ``docs/formats.md``.
            modalities: exams of others are left out.
            limit: the first ones only; None = all.
            views: radiographs of other views are left out (``PA``, ``AP``, ``LATERAL``), by the table's column ``view``
                and, where that is empty, by the DICOM header; none: all stay.

        Raises:
            BadInput: it can't be read, something in it is wrong (see ``tables.check_exams``), or no exam is left.
        """
        self._path, self._modalities = path, modalities
        seen = SeenIds()
        there: set[str] = set()
        self._excluded: set[str] = set()
        self.other_views: Counter[str] = Counter()
        self.unknown_views = 0
        first_line, chosen = 2, 0
        for piece in read_pieces(path, EXAM_REQUIRED, PIECE):
            exams = check_exams(piece, str(path), first_line, seen)
            first_line += len(exams)
            there |= {str(name) for name in exams["modality"].unique()}
            chosen += int(exams["modality"].isin(modalities).sum())
            if views:
                self._exclude_views(exams[exams["modality"].isin(modalities)], frozenset(views))
        if not chosen:
            have = ", ".join(sorted(there)) or "no line"
            raise BadInput(f"{path}: no exam of modality {' or '.join(modalities)}; the table has {have}.")
        self.left_out = first_line - 2 - chosen
        chosen -= len(self._excluded)
        if not chosen:
            raise BadInput(f"{path}: no exam of view {' or '.join(sorted(views))}; it has {self.view_text()}.")
        self.count = chosen if limit is None else min(limit, chosen)

    def _exclude_views(self, exams: pd.DataFrame, views: frozenset[str]) -> None:
        stated = exams["view"] if "view" in exams.columns else [""] * len(exams)
        for exam_id, kind, path, view in zip(exams["exam_id"], exams["modality"], exams["path"], stated, strict=True):
            found = "" if kind == "CT" or pd.isna(path) else stated_view(self._path.parent / str(path), view)
            if found and found not in views:
                self._excluded.add(str(exam_id))
                self.other_views[found] += 1
            elif not found and kind != "CT":
                self.unknown_views += 1

    def view_text(self) -> str:
        """Return the counts of ``other_views`` and ``unknown_views`` in words; empty where there are none."""
        parts = [f"{count} {view}" for view, count in sorted(self.other_views.items())]
        return ", ".join([*parts, *([f"{self.unknown_views} of unknown view"] if self.unknown_views else [])])

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Yield ``exam_id``, ``path`` and, where the table has it, ``sha256``, a piece at a time.

        Raises:
            BadInput: the file has become shorter since it was checked.
        """
        left = self.count
        for piece in read_pieces(self._path, EXAM_REQUIRED, PIECE):
            if not left:
                return
            chosen = piece["modality"].isin(self._modalities) & ~piece["exam_id"].isin(self._excluded)
            columns = ["exam_id", "path", *(["sha256"] if "sha256" in piece.columns else [])]
            kept = piece.loc[chosen, columns].head(left)
            left -= len(kept)
            yield kept
        if left:
            raise BadInput(f"{self._path} was changed while it was read. Next: run the same command again.")


@dataclass(frozen=True)
class Task:
    """Some exams of one block, read together.

    Attributes:
        block: number of the block in the exam table.
        last: whether it is the block's last task.
        exams: exam id and path of each.
        expected: sha256 of the source by exam id, for exams whose table states it.
    """

    block: int
    last: bool
    exams: list[tuple[str, str]]
    expected: dict[str, str] = field(default_factory=dict)


@dataclass
class Loaded:
    """What became of a task.

    Attributes:
        task: the task.
        sources: sha256 by exam id, of every exam whose file is there.
        failures: exam id and reason.
        findings: exam id and what the audit of its image warns of.
        batches: exam ids, and their pictures or volumes: stacked where they are of one shape, a list where the encoder
            reads parts, of which each exam has its own number.
    """

    task: Task
    sources: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    batches: list[tuple[list[str], torch.Tensor | list[torch.Tensor]]] = field(default_factory=list)


class Indexed(Protocol[T_co]):
    """What a ``DataLoader`` reads items of."""

    def __getitem__(self, item: Any, /) -> T_co: ...


class _Reader:
    """Reads what is missing of a task; exams that the cache holds already are hashed only."""

    def __init__(self, root: Path, encoder: Encoder, location: CacheLocation) -> None:
        self._root, self._encoder = root, encoder
        self._present = PresentExams(location.folder, location.short)
        self._ragged = bool(getattr(encoder, "ragged", False))

    def __getitem__(self, task: Task) -> Loaded:
        self._present.refresh()
        loaded = Loaded(task)
        stamps: dict[str, object] = {}
        for exam_id, path in task.exams:
            try:
                if not path:
                    raise UnreadableExam("the table gives it no path")
                stamps[exam_id] = source_stamp(self._root, path)
                digest = source_hash(self._root, path)
                if task.expected.get(exam_id, digest) != digest:
                    raise UnreadableExam("its file is not the one that the table names: its sha256 is another")
                loaded.sources[exam_id] = digest
            except (UnreadableExam, OSError, IndexError, ValueError) as error:
                loaded.failures.append((exam_id, _reason(error, self._root, path)))
        known = self._present.has(loaded.sources.items())
        there = {exam_id for exam_id, is_there in zip(loaded.sources, known, strict=True) if is_there}
        by_shape: dict[tuple[Any, ...], tuple[list[str], list[np.ndarray[Any, Any]]]] = {}
        for exam_id, path in task.exams:
            if exam_id not in loaded.sources or exam_id in there:
                continue
            try:
                with collect_findings() as found:
                    array = self._encoder.read(self._root, path)
                loaded.findings += [(exam_id, one) for one in found if one.severity != "note"]
                if source_stamp(self._root, path) != stamps[exam_id]:
                    raise UnreadableExam("its file was changed while it was read; run the same command again")
            except EmbedpriorError:
                raise
            except Exception as error:  # decoders raise all kinds; one bad exam must not stop ten thousand
                loaded.failures.append((exam_id, _reason(error, self._root, path)))
            else:
                alike = array.shape[1:] if self._ragged else array.shape
                ids, arrays = by_shape.setdefault((alike, array.dtype.str), ([], []))
                ids.append(exam_id)
                arrays.append(array)
        import torch

        for ids, arrays in by_shape.values():
            each = [torch.from_numpy(array) for array in arrays]
            loaded.batches.append((ids, each if self._ragged else torch.stack(each)))
        return loaded


def load(
    tasks: Iterable[Task], root: Path, encoder: Encoder, location: CacheLocation, workers: int
) -> Iterator[Loaded]:
    """Yield every task's exams, read, in the order of the tasks.

    Args:
        tasks: taken a few ahead of what is yielded when there are workers.
        root: folder the paths are relative to.
        encoder: its ``read`` is called.
        location: the cache, to leave out what it holds.
        workers: processes that read; 0 = this one.
    """
    yield from read_ahead(_Reader(root, encoder, location), tasks, workers)


def read_ahead(dataset: Indexed[T], items: Iterable[Any], workers: int) -> Iterator[T]:
    """Yield ``dataset[item]`` of every item in order, read by worker processes ahead of the caller.

    Args:
        dataset: is copied into the workers.
        items: taken a few ahead of what is yielded when there are workers.
        workers: how many; 0 = this process reads.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[T] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        sampler=items,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # its own: the caller's stream of random numbers is left as it was
        prefetch_factor=2 if workers else None,
        # Forked workers share the weights' memory; a spawned one would need its own copy of the encoder.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    yield from loader


def _reason(error: Exception, root: Path, path: str) -> str:
    """Return the reason without the names of files and folders, which may be a patient's."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnreadableExam):
        return without_names(str(error), exam_file(root, path)) if path else str(error)
    return f"it can't be read ({type(error).__name__})"


def _as_it_is(loaded: Any) -> Any:
    return loaded
