"""Before a cache is built: which exams, how long and how large; and what reduced precision changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cache.format import (
    MANIFEST,
    STORED,
    Array,
    CacheLocation,
    from_stored,
    key_of,
    refuse_other_key,
    to_stored,
)
from embedprior.cache.loading import PIECE, ExamTable, PresentExams
from embedprior.cache.verify import quantization_error
from embedprior.encoders.base import Dtype, Encoder, TokenEncoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.files import UnreadableExam, source_hash, source_size
from embedprior.imaging.readers import is_volume
from embedprior.tables import EXAM_REQUIRED, read_pieces

READABLE = {"CXR": ("CXR", "DRR"), "CT": ("CT",), "image": ("CXR", "DRR", "CT")}
"""Modality of an encoder → modalities of the exams that it reads."""
MEASURED_EXAMS, MEASURED_VOLUMES = 32, 4


def exams_for(
    encoder: Encoder, table: Path, modalities: Sequence[str] = (), limit: int | None = None, views: Collection[str] = ()
) -> ExamTable:
    """Return the exams of a table that an encoder reads.

    Args:
        encoder: the encoder.
        table: exam table (CSV).
        modalities: only exams of these; none = all that the encoder reads.
        limit: the first ones only.
        views: only radiographs of these views, and those whose view nothing names; none = all.

    Raises:
        BadInput: the encoder does not read a modality, or pictures only where the table has CT volumes; or the table
            can't be used.
    """
    readable = READABLE.get(encoder.spec.modality, (encoder.spec.modality,))
    for modality in modalities:
        if modality not in readable:
            raise BadInput(f"--modality {modality}: encoder '{encoder.spec.name}' reads {', '.join(readable)}.")
    chosen = tuple(modalities) or readable
    if encoder.spec.modality == "image" and "CT" in chosen and _has_volumes(table):
        if modalities:
            raise BadInput(
                f"--modality CT: the CTs of {table} are volumes, and encoder '{encoder.spec.name}' reads pictures. "
                "Next: --option reader=slices, where it has one; others: embedprior encoders"
            )
        chosen = tuple(modality for modality in chosen if modality != "CT")
    return ExamTable(table, chosen, limit, views)


def _has_volumes(table: Path) -> bool:
    for piece in read_pieces(table, EXAM_REQUIRED, PIECE):
        for path in piece.loc[piece["modality"] == "CT", "path"]:
            if not pd.isna(path) and is_volume(table.parent, str(path)):
                return True
    return False


def refuse_dtype(encoder: Encoder, dtype: Dtype | None) -> None:
    """Refuse to store numbers as bytes, or bytes as numbers.

    Raises:
        BadInput: ``dtype`` is not one that the encoder's output can be stored as.
    """
    if dtype is not None and (dtype == "uint8") != (encoder.spec.dtype == "uint8"):
        allowed = "uint8" if encoder.spec.dtype == "uint8" else "float32, float16, bfloat16"
        raise BadInput(f"--dtype {dtype} with encoder '{encoder.spec.name}'. Allowed: {allowed}.")


def measure_quantization(
    encoder: Encoder, exact: Callable[[], Encoder], exams: ExamTable, root: Path, dtype: Dtype | None
) -> dict[str, Any] | None:
    """Return how far reduced precision moves the embedding, measured on the first exams; None in float32.

    Args:
        encoder: the encoder as it is used.
        exact: makes the same encoder in float32, where ``encoder`` computes in less.
        exams: to be embedded.
        root: folder their paths are relative to.
        dtype: of the stored numbers; None = the encoder's own.
    """
    stored, precision = dtype or encoder.spec.dtype, encoder.spec.precision
    if stored == "uint8" or (stored == "float32" and precision == "fp32"):
        return None
    most = MEASURED_VOLUMES if encoder.spec.modality == "CT" else MEASURED_EXAMS
    read = read_first((str(path) for piece in exams for path in piece["path"]), root, encoder, most)
    if not read:
        return None
    batch = np.stack(read)
    rounded = from_stored(to_stored(encoder.embed(batch), stored), stored)
    reference = encoder if precision == "fp32" else exact()
    what = [f"{precision} arithmetic"] if precision != "fp32" else []
    what += [f"{stored} storage"] if stored != "float32" else []
    return {"what": " and ".join(what)} | quantization_error(reference.embed(batch), rounded)


TRIED, TRIED_VOLUMES = 8, 2


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
        tried: exams that the estimate is made from, where so many are missing.
    """

    exams: int
    missing: int
    absent: int
    read_bytes: int
    write_bytes: int | None
    seconds: float | None
    tried: int = TRIED

    def words(self) -> str:
        """Return the plan in a few lines."""
        lines = [f"{self.exams} exams, {self.missing} of them to embed ({self.read_bytes / 1e6:.1f} MB to read)"]
        if self.absent:
            lines.append(f"without a file, to be left out (failures.csv): {self.absent}")
        if self.missing and self.seconds is not None and self.write_bytes is not None:
            lines.append(f"{self.write_bytes / 1e6:.1f} MB to write")
            short = "less than a second" if self.seconds < 1 else f"about {self.seconds:.0f} seconds"
            time_words = short if self.seconds < 90 else f"about {self.seconds / 60:.0f} minutes"
            lines.append(f"{time_words} in one process (measured on the first {min(self.tried, self.missing)})")
        elif self.missing:
            lines.append("none of the first exams can be read: no estimate")
        return "\n".join(lines)


def plan(exams: Iterable[pd.DataFrame], root: Path, encoder: Encoder, location: CacheLocation) -> Plan:
    """Return what ``fill_cache`` would do with a table in pieces; nothing is written."""
    present = PresentExams(location.folder, location.short) if location.folder.is_dir() else None
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
    most = TRIED_VOLUMES if encoder.spec.modality == "CT" else TRIED
    rows, seconds = _try(tried, root, encoder, location.tokens, most)
    bytes_each = STORED[location.dtype][1].itemsize * int(location.key["dim"])
    return Plan(
        exams=count,
        missing=missing,
        absent=absent,
        read_bytes=size,
        write_bytes=None if rows is None else round(rows * bytes_each * missing),
        seconds=None if seconds is None else seconds * missing,
        tried=most,
    )


def read_first(paths: Iterable[str], root: Path, encoder: Encoder, most: int) -> list[Array]:
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


def _try(paths: list[str], root: Path, encoder: Encoder, tokens: bool, most: int) -> tuple[float | None, float | None]:
    """Return rows and seconds an exam, measured on the first exams (the second of two passes counts)."""
    seconds, rows = None, None
    for _ in range(2):
        started = time.perf_counter()
        read = read_first(paths, root, encoder, most)
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


def refuse_second_cache(out: Path, location: CacheLocation) -> None:
    """Refuse to start a second cache of an encoder beside one in ``out``.

    Raises:
        BadInput: their keys differ in a field other than the output (embeddings beside tokens are fine).
    """
    if (location.folder / MANIFEST).is_file():
        return
    for folder in sorted(out.glob(f"{location.key['encoder']}@*")):
        if not (folder / MANIFEST).is_file():
            continue
        try:
            have = key_of(folder)
        except BadInput:
            continue  # damaged; the command that filled it writes it again
        if have.get("encoder") == location.key["encoder"] and have.get("output") == location.key["output"]:
            refuse_other_key(f"{out.name}/{folder.name}", have, location.key)
