"""From an exam table to a filled cache, as ``embedprior embed`` does it: which exams, what it costs, what was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedprior.cache.build import Filled, sample
from embedprior.cache.loading import ExamTable
from embedprior.cache.shards import from_stored, to_stored
from embedprior.cache.verify import quantization_error
from embedprior.encoders.base import Dtype, Encoder
from embedprior.errors import BadInput

READABLE = {"CXR": ("CXR", "DRR"), "CT": ("CT",), "image": ("CXR", "DRR", "CT")}
"""Modality of an encoder → modalities of the exams that it reads."""
MEASURED_EXAMS = 32


def exams_for(encoder: Encoder, table: Path, modality: str | None = None, limit: int | None = None) -> ExamTable:
    """Return the exams of a table that an encoder reads.

    Args:
        encoder: the encoder.
        table: exam table (CSV).
        modality: only exams of this modality; None = all that the encoder reads.
        limit: the first ones only.

    Raises:
        BadInput: the encoder does not read the modality, or the table can't be used.
    """
    readable = READABLE.get(encoder.spec.modality, (encoder.spec.modality,))
    if modality is not None and modality not in readable:
        raise BadInput(f"--modality {modality}: encoder '{encoder.spec.name}' reads {', '.join(readable)}.")
    return ExamTable(table, readable if modality is None else (modality,), limit)


def refuse_dtype(encoder: Encoder, dtype: Dtype | None) -> None:
    """Refuse to store numbers as bytes, or bytes as numbers.

    Raises:
        BadInput: ``dtype`` is not one that the encoder's output can be stored as.
    """
    if dtype is not None and (dtype == "uint8") != (encoder.spec.dtype == "uint8"):
        allowed = "uint8" if encoder.spec.dtype == "uint8" else "float32, float16, bfloat16"
        raise BadInput(f"--dtype {dtype} with encoder '{encoder.spec.name}'. Allowed: {allowed}.")


def measure_precision(
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
    read = sample((str(path) for piece in exams for path in piece["path"]), root, encoder, MEASURED_EXAMS)
    if not read:
        return None
    batch = np.stack(read)
    rounded = from_stored(to_stored(encoder.embed(batch), stored), stored)
    reference = encoder if precision == "fp32" else exact()
    what = [f"{precision} arithmetic"] if precision != "fp32" else []
    what += [f"{stored} storage"] if stored != "float32" else []
    return {"what": " and ".join(what)} | quantization_error(reference.embed(batch), rounded)


def summary_text(filled: Filled, precision: dict[str, Any] | None, asked: int) -> str:
    """Return ``summary.md``: exams in the cache, what was repaired, the error of reduced precision, what failed."""
    lines = [f"# {filled.place.folder.name}", ""]
    lines.append(f"{filled.exams} of {asked} exams are in the cache; {filled.embedded} were embedded now.")
    for one in filled.mended:
        lines.append(f"- found at the start: {one.file}: {one.reason}")
    if precision is not None:
        centred = precision["centred_one_minus_cos_max"]
        lines.append(
            f"{precision['what']} against float32 over {precision['exams']} exams: largest 1 − cos "
            f"{precision['one_minus_cos_max']:.1e}"
            + ("" if centred is None else f", {centred:.1e} about the mean embedding")
            + "."
        )
    if filled.failures:
        lines.append(f"Left out, each with its reason in failures.csv: {len(filled.failures)}.")
        lines += [f"- {one['exam_id']}: {one['reason']}" for one in filled.failures[:5]]
    return "\n".join(lines) + "\n"
