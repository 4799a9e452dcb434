"""Decode ahead of the encoder: hash, read and stack exams, in worker processes where asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from embedprior.cache.layout import Place
from embedprior.cache.present import Present
from embedprior.encoders.base import Encoder
from embedprior.errors import EmbedpriorError
from embedprior.imaging.files import UnreadableExam, source_hash, source_stamp


@dataclass(frozen=True)
class Task:
    """Some exams of one block, read together.

    Attributes:
        block: number of the block in the exam table.
        last: whether it is the block's last task.
        exams: exam id and path of each.
    """

    block: int
    last: bool
    exams: list[tuple[str, str]]


@dataclass
class Loaded:
    """What became of a task.

    Attributes:
        task: the task.
        sources: sha256 by exam id, of every exam whose file is there.
        failures: exam id and reason.
        batches: exam ids, and their stacked pictures or volumes, all of one shape a batch.
    """

    task: Task
    sources: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    batches: list[tuple[list[str], torch.Tensor]] = field(default_factory=list)


class _Reader(Dataset[Loaded]):
    """Reads what is missing of a task; exams that the cache holds already are hashed only."""

    def __init__(self, root: Path, encoder: Encoder, place: Place) -> None:
        self._root, self._encoder = root, encoder
        self._present = Present(place.folder, place.short)

    def __getitem__(self, task: Task) -> Loaded:
        self._present.refresh()
        loaded = Loaded(task)
        stamps: dict[str, object] = {}
        for exam_id, path in task.exams:
            try:
                if not path:
                    raise UnreadableExam("the table gives it no path")
                stamps[exam_id] = source_stamp(self._root, path)
                loaded.sources[exam_id] = source_hash(self._root, path)
            except (UnreadableExam, OSError, IndexError, ValueError) as error:
                loaded.failures.append((exam_id, _reason(error)))
        known = self._present.has(loaded.sources.items())
        there = {exam_id for exam_id, is_there in zip(loaded.sources, known, strict=True) if is_there}
        by_shape: dict[tuple[Any, ...], tuple[list[str], list[np.ndarray[Any, Any]]]] = {}
        for exam_id, path in task.exams:
            if exam_id not in loaded.sources or exam_id in there:
                continue
            try:
                array = self._encoder.read(self._root, path)
                if source_stamp(self._root, path) != stamps[exam_id]:
                    raise UnreadableExam("its file was changed while it was read; run the same command again")
            except EmbedpriorError:
                raise
            except Exception as error:  # decoders raise all kinds; one bad exam must not stop ten thousand
                loaded.failures.append((exam_id, _reason(error)))
            else:
                ids, arrays = by_shape.setdefault((array.shape, array.dtype.str), ([], []))
                ids.append(exam_id)
                arrays.append(array)
        loaded.batches = [(ids, torch.from_numpy(np.stack(arrays))) for ids, arrays in by_shape.values()]
        return loaded


def load(tasks: Iterable[Task], root: Path, encoder: Encoder, place: Place, workers: int) -> Iterator[Loaded]:
    """Yield every task's exams, read, in the order of the tasks.

    Args:
        tasks: taken a few ahead of what is yielded when there are workers.
        root: folder the paths are relative to.
        encoder: its ``read`` is called.
        place: the cache, to leave out what it holds.
        workers: processes that read; 0 = this one.
    """
    loader: DataLoader[Loaded] = DataLoader(
        _Reader(root, encoder, place),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # its own: the caller's stream of random numbers is left as it was
        prefetch_factor=2 if workers else None,
        # Forked workers share the weights' memory; a spawned one would need its own copy of the encoder.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    yield from loader


def _reason(error: Exception) -> str:
    """Return the reason without the path, which may name a patient."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, UnreadableExam) else f"it can't be read ({type(error).__name__})"


def _as_it_is(loaded: Any) -> Any:
    return loaded
