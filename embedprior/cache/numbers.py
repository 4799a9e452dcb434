"""Numbers as a shard stores them: float32, float16, bfloat16 (which numpy lacks) or uint8."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedprior.errors import BadInput, choose

# cache dtype → (name in a safetensors header, dtype of the bytes on disk)
STORED: dict[str, tuple[str, np.dtype[Any]]] = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "uint8": ("U8", np.dtype("u1")),
}

Array = np.ndarray[Any, Any]


def to_stored(values: Array, dtype: str) -> Array:
    """Return values as the bytes of a shard; bfloat16 is rounded to nearest, ties to even.

    Raises:
        BadInput: unknown dtype, or floats to be stored as uint8.
    """
    stored = choose("dtype", dtype, STORED)[1]
    if dtype == "uint8":
        if values.dtype != np.uint8:
            raise BadInput(f"dtype uint8 is for encoders that return bytes, not {values.dtype}. Allowed: float32, "
                           "float16, bfloat16.")  # fmt: skip
        return np.ascontiguousarray(values)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
        return rounded
    with np.errstate(over="ignore"):  # what overflows float16 is refused by ``finite``
        return np.ascontiguousarray(values, dtype=stored)


def from_stored(stored: Array, dtype: str) -> Array:
    """Return a shard's numbers to compute with: float32, or uint8 as it is."""
    if dtype == "bfloat16":
        wide: Array = (stored.astype("<u4") << 16).view("<f4")
        return wide
    return stored if dtype == "uint8" else np.asarray(stored, dtype=np.float32)


def working_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype that ``from_stored`` gives."""
    return np.dtype(np.uint8 if dtype == "uint8" else np.float32)


def finite(stored: Array, dtype: str) -> Array:
    """Return of each stored row whether all its numbers are finite (an overflow of float16 is not)."""
    if dtype == "uint8":
        return np.ones(stored.shape[:-1], dtype=bool)
    return np.asarray(np.isfinite(from_stored(stored, dtype)).all(-1))
