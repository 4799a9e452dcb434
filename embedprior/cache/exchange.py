"""Caches out to other tools, and other tools' embeddings in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from embedprior.cache.format import Array
from embedprior.cache.loading import in_pieces
from embedprior.cache.reader import EmbeddingCache
from embedprior.cache.writer import CacheWriter
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput, require_extra
from embedprior.runs import hash_file, write_file
from embedprior.runs.files import fsync, temporary_beside

_PIECE = 1024


def export_npy(cache: EmbeddingCache, path: Path | str) -> Path:
    """Write the rows as one ``.npy`` and, beside it, a CSV that says whose they are.

    Returns:
        The CSV: ``exam_id, row, rows, sha256``, ``row`` being the first row of the exam and ``rows`` their number
        (1, unless the cache holds tokens).
    """
    path = Path(path)
    counts = cache.counts()
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = cache.tokens(0)[:0] if cache.ids else np.empty((0, int(cache.key["dim"])), np.float32)

    def fill(handle: BinaryIO) -> None:
        shape = (int(starts[-1]), int(cache.key["dim"]))
        head = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, head)
        for n in range(len(cache.ids)):
            handle.write(np.ascontiguousarray(cache.tokens(n)).data)

    write_file(path, fill)
    table = path.with_suffix(".csv")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["exam_id", "row", "rows", "sha256"])
    writer.writerows(zip(cache.ids, starts[:-1].tolist(), counts.tolist(), cache.sources, strict=True))
    write_file(table, lambda handle: handle.write(text.getvalue().encode()))
    return table


def export_parquet(cache: EmbeddingCache, path: Path | str) -> None:
    """Write one row an exam: ``exam_id, sha256, embedding`` (a list; a list of lists for tokens).

    Raises:
        BadInput: pyarrow is not installed.
    """
    path = Path(path)
    arrow = require_extra("pyarrow", "parquet")
    parquet = require_extra("pyarrow.parquet", "parquet")
    number = arrow.uint8() if cache.key["dtype"] == "uint8" else arrow.float32()
    vector = arrow.list_(number, int(cache.key["dim"]))
    schema = arrow.schema(
        [("exam_id", arrow.string()), ("sha256", arrow.string()),
         ("embedding", arrow.list_(vector) if cache.has_tokens else vector)]
    )  # fmt: skip
    temporary = temporary_beside(path)
    try:
        with parquet.ParquetWriter(temporary, schema) as writer:
            for piece in in_pieces(range(len(cache.ids)), _PIECE):
                flat = [cache.tokens(n) for n in piece]
                column = arrow.FixedSizeListArray.from_arrays(
                    arrow.array(np.concatenate(flat).reshape(-1), type=number), type=vector
                )
                if cache.has_tokens:
                    offsets = np.concatenate([[0], np.cumsum([len(one) for one in flat])])
                    column = arrow.ListArray.from_arrays(arrow.array(offsets, type=arrow.int32()), column)
                ids, sources = ([values[n] for n in piece] for values in (cache.ids, cache.sources))
                writer.write_table(arrow.table([ids, sources, column], schema=schema))
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def import_npy(
    folder: Path | str, table: pd.DataFrame, spec: EncoderSpec, out: Path | str, tokens: bool = False
) -> tuple[EmbeddingCache, list[dict[str, str]]]:
    """Fill a cache from one ``.npy`` a study.

    Args:
        folder: holds the files.
        table: ``exam_id`` and, where the files are not called ``<exam_id>.npy``, ``file``.
        spec: what made the embeddings; its ``dim`` (or ``token_dim``) is what each file must hold.
        out: folder of caches.
        tokens: each file holds tokens × dim instead of one embedding.

    Returns:
        The cache, and one record (``exam_id``, ``stage``, ``reason``) for every file that could not be taken.
    """
    folder, out = Path(folder), Path(out)
    failures: list[dict[str, str]] = []
    with CacheWriter(out, spec, tokens) as writer:
        for piece in in_pieces(_files(folder, table), _PIECE):
            taken: list[tuple[str, str, Array]] = []
            for exam_id, file in piece:
                try:
                    source = hash_file(file)
                    if not writer.has(exam_id, source):
                        taken.append((exam_id, source, _rows(file, spec, tokens)))
                except (OSError, ValueError) as error:
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    failures.append({"exam_id": exam_id, "stage": "import", "reason": reason or type(error).__name__})
            if taken:
                writer.append([t[0] for t in taken], [t[1] for t in taken], [t[2] for t in taken])
        return writer.close(), failures


def first_shape(folder: Path, table: pd.DataFrame) -> tuple[int, ...]:
    """Return the shape of the first file that is an array.

    Raises:
        BadInput: none is.
    """
    for _, file in _files(folder, table):
        try:
            shape: tuple[int, ...] = np.load(file, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError, AttributeError):
            continue
        if shape:
            return shape
    raise BadInput(f"{folder}: none of the table's {len(table)} files is there and a plain .npy array.")


def _files(folder: Path, table: pd.DataFrame) -> Iterator[tuple[str, Path]]:
    names = table["file"] if "file" in table.columns else table["exam_id"].astype(str) + ".npy"
    for exam_id, name in zip(table["exam_id"], names, strict=True):
        yield str(exam_id), folder / str(name)


def _rows(file: Path, spec: EncoderSpec, tokens: bool) -> Array:
    """Return one file's rows; a pickle in it is refused, never loaded."""
    try:
        array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:  # numpy's text says how to load a pickle all the same
        raise ValueError("it is damaged, or a pickle, or no .npy array") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {getattr(array, 'dtype', 'several arrays')}, not numbers")
    dim = spec.token_dim if tokens else spec.dim
    rows = array.reshape(1, -1) if not tokens and array.size == dim else array
    if rows.ndim != 2 or rows.shape[1] != dim or not len(rows):
        raise ValueError(f"its shape is {array.shape}, the others' rows have {dim} numbers")
    rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("it holds numbers that are not finite")
    return rows
