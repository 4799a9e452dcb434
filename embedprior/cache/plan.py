"""What a build would do, measured on a few exams: items, bytes, minutes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cache.layout import Place
from embedprior.cache.numbers import STORED, Array
from embedprior.cache.present import Present
from embedprior.encoders.base import Encoder, TokenEncoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.files import UnreadableExam, source_hash, source_size

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
