"""Exams to embeddings in one call: a few files to an array, a cohort to a cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from jaxtyping import Num
from numpy.typing import NDArray

from embedprior.cache.build import build_cache, default_batch
from embedprior.cache.plan import READABLE, refuse_dtype
from embedprior.cache.reader import EmbeddingCache
from embedprior.encoders.base import Dtype, Encoder, TokenEncoder
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.runs import progress
from embedprior.tables import EXAM_REQUIRED, check_exams, read_table, write_table

FAILURES = "failures.csv"
Rows = NDArray[Any]
Exams = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | pd.DataFrame


@overload
def embed(
    exams: Exams, encoder: str | Encoder, out: Path | str, *, root: Path | str | None = ..., tokens: bool = ...,
    batch_size: int = ..., workers: int = ..., dtype: Dtype | None = ..., **options: Any,
) -> EmbeddingCache: ...  # fmt: skip


@overload
def embed(
    exams: Exams, encoder: str | Encoder, out: None = None, *, root: Path | str | None = ...,
    tokens: Literal[False] = ..., batch_size: int = ..., workers: int = ..., dtype: Dtype | None = ..., **options: Any,
) -> Rows: ...  # fmt: skip


@overload
def embed(
    exams: Exams, encoder: str | Encoder, out: None = None, *, root: Path | str | None = ..., tokens: Literal[True],
    batch_size: int = ..., workers: int = ..., dtype: Dtype | None = ..., **options: Any,
) -> list[Rows]: ...  # fmt: skip


def embed(
    exams: Exams, encoder: str | Encoder, out: Path | str | None = None, *, root: Path | str | None = None,
    tokens: bool = False, batch_size: int | None = None, workers: int = 0, dtype: Dtype | None = None, **options: Any,
) -> EmbeddingCache | Rows | list[Rows]:  # fmt: skip
    """Embed exams with a frozen encoder: into an array, or into a cache that resumes.

    Args:
        exams: one path, a list of paths (radiographs, CT volumes, DICOM folders: what the encoder reads), or an exam
            table: a DataFrame or a CSV with ``exam_id, patient_id, modality, path`` (``docs/formats.md``), of which the
            exams that the encoder reads are taken.
        encoder: a name of ``list_encoders()``, or an encoder.
        out: folder of caches. Exams that are there with their present file are not computed again. None returns an
            array and writes nothing.
        root: folder that the paths are relative to; None = that of the CSV, else the current folder.
        tokens: slice or patch tokens instead of one embedding an exam.
        batch_size: exams a batch; None = 64, or 4 CT volumes.
        workers: processes that read ahead of the encoder; only with ``out``.
        dtype: of the stored numbers; None = the encoder's own. Only with ``out``.
        options: of the encoder, when it is given by name: ``weights``, ``geometry``, ``device`` ...

    Returns:
        Without ``out`` an array (N, D), one row a path in the order given (with ``tokens`` a list of N arrays
        (tokens, D)); float32, or uint8 where the encoder gives bytes. With ``out`` the open cache of these exams; in it
        an exam given by path bears its file's name without the ending, and exams that can't be read are left out with
        a warning, their reasons in ``out/failures.csv``.

    Raises:
        BadInput: an unknown encoder or option, no exam, an exam that can't be read (without ``out``), two files of one
            name (with ``out``), or what ``fill_cache`` refuses.

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> from PIL import Image
        >>> for name in ("a.png", "b.png"):
        ...     Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)).save(name)
        >>> embedprior.embed(["a.png", "b.png"], "pixels-128").shape
        (2, 16384)
        >>> cache = embedprior.embed(["a.png", "b.png"], "pixels-128", out="caches")
        >>> cache.ids, cache.take(["b"]).shape
        (['a', 'b'], (1, 16384))
    """
    if isinstance(encoder, str):
        encoder = create_encoder(encoder, **options)
    elif options:
        given = ", ".join(options)
        raise BadInput(f"embed was given {given} with a ready encoder. Next: give its name, or set it when it is made.")
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"batch_size is {batch_size}. Allowed: 1 or more.")
    if out is None and (workers or dtype is not None):
        raise BadInput("workers and dtype belong to a cache. Next: give its folder: embed(..., out=FOLDER)")
    refuse_dtype(encoder, dtype)
    table, folder = _table(exams, encoder, root, unique=out is not None)
    if out is None:
        return _in_memory(
            [str(p) for p in table["path"]], folder, encoder, tokens, batch_size or default_batch(encoder)
        )
    cache, failures = build_cache(
        table, folder, encoder, Path(out), batch_size, tokens=tokens, dtype=dtype, workers=workers
    )
    record = Path(out) / FAILURES
    record.unlink(missing_ok=True)
    if failures:
        write_table(pd.DataFrame(failures), record)
        first = failures[0]
        warnings.warn(
            f"{len(failures)} of {len(table)} exams were not embedded; the first, {first['exam_id']}: "
            f"{first['reason']}. All reasons: {record}",
            stacklevel=2,
        )
    return cache


def _table(exams: Exams, encoder: Encoder, root: Path | str | None, unique: bool) -> tuple[pd.DataFrame, Path]:
    """Return exam ids and paths, and the folder the paths are relative to."""
    if isinstance(exams, (str, os.PathLike)):
        path = Path(exams)
        if path.suffix.lower() != ".csv":
            return _of_paths([path], root, unique)
        table = check_exams(read_table(path, EXAM_REQUIRED), str(path))
        return _readable(table, encoder, str(path)), path.parent if root is None else Path(root)
    if isinstance(exams, pd.DataFrame):
        table = check_exams(exams.reset_index(drop=True), "the exam table")
        return _readable(table, encoder, "the exam table"), Path(root or ".")
    if not isinstance(exams, Iterable) or not all(isinstance(p, (str, os.PathLike)) for p in exams):
        raise BadInput(
            f"embed was given a {type(exams).__name__}. Allowed: a path, a list of paths, a DataFrame or CSV of exams."
        )
    return _of_paths([Path(p) for p in exams], root, unique)


def _of_paths(paths: Sequence[Path], root: Path | str | None, unique: bool) -> tuple[pd.DataFrame, Path]:
    if not paths:
        raise BadInput("no path given. Allowed: at least one.")
    names = [_stem(path) for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1}) if unique else []
    if twice:
        raise BadInput(
            f"{len(twice)} names belong to several files: {', '.join(twice[:5])}. In a cache each exam has its own. "
            "Next: give an exam table with exam_id and path"
        )
    return pd.DataFrame({"exam_id": names, "path": [p.as_posix() for p in paths]}), Path(root or ".")


def _stem(path: Path) -> str:
    name = path.name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else path.stem


def _readable(table: pd.DataFrame, encoder: Encoder, where: str) -> pd.DataFrame:
    kinds = READABLE.get(encoder.spec.modality, (encoder.spec.modality,))
    chosen = table[table["modality"].isin(kinds)]
    if chosen.empty:
        have = ", ".join(sorted(set(table["modality"]))) or "no row"
        raise BadInput(f"{where}: encoder '{encoder.spec.name}' reads {' or '.join(kinds)}; the table has {have}.")
    return chosen[["exam_id", "path"]].reset_index(drop=True)


def _in_memory(
    paths: Sequence[str], root: Path, encoder: Encoder, tokens: bool, batch_size: int
) -> Num[np.ndarray, "exams dim"] | list[Rows]:
    if tokens and not isinstance(encoder, TokenEncoder):
        raise BadInput(f"encoder '{encoder.spec.name}' gives no tokens. Next: leave tokens out.")
    found: list[Rows] = []
    starts = range(0, len(paths), batch_size)
    for start in progress(starts, encoder.spec.name, total=len(starts)) if len(starts) > 1 else starts:
        found += _batch(paths[start : start + batch_size], root, encoder, tokens)
    return found if tokens else np.stack(found)


def _batch(paths: Sequence[str], root: Path, encoder: Encoder, tokens: bool) -> list[Rows]:
    """Embed some exams; those of one shape go through the encoder together."""
    read = [_read(encoder, root, path) for path in paths]
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, array in enumerate(read):
        places.setdefault((array.shape, array.dtype.str), []).append(place)
    rows: dict[int, Rows] = {}
    for some in places.values():
        batch = np.stack([read[place] for place in some])
        made = encoder.tokens(batch) if tokens and isinstance(encoder, TokenEncoder) else encoder.embed(batch)
        rows |= dict(zip(some, made, strict=True))
    for place, row in rows.items():
        if not np.isfinite(row).all():
            raise BadInput(f"encoder '{encoder.spec.name}' gave a number that is not finite for {paths[place]}.")
    return [rows[place] for place in range(len(paths))]


def _read(encoder: Encoder, root: Path, path: str) -> Rows:
    try:
        return encoder.read(root, path)
    except EmbedpriorError:
        raise
    except Exception as error:  # decoders raise all kinds; the caller must learn which file it was
        raise BadInput(
            f"{path} can't be embedded with '{encoder.spec.name}': {error}. Next: leave it out, or give out=FOLDER, "
            "where an exam that can't be read is left out and recorded"
        ) from error
