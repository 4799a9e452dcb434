"""How far rounding moves an embedding: bfloat16 arithmetic, or a stored dtype, against float32."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from embedprior.cache.numbers import Array


def drift(exact: Float[np.ndarray, "exams dim"], rounded: Float[np.ndarray, "exams dim"]) -> dict[str, float | None]:
    """Return the largest 1 − cosine between the rows of two matrices, plain and after taking off the mean row.

    The centred figure is the honest one: embeddings share a large mean vector, which hides differences. It is None
    for fewer than two exams.
    """
    mean = exact.mean(0, dtype=np.float64)
    centred = None if len(exact) < 2 else _largest(exact - mean, rounded - mean)
    return {"exams": len(exact), "one_minus_cos_max": _largest(exact, rounded), "centred_one_minus_cos_max": centred}


def _largest(a: Array, b: Array) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(1), lengths, out=np.ones(len(a)), where=lengths > 0)
    return float(np.clip(1.0 - cosine, 0.0, None).max())
