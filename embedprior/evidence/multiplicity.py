"""Adjustment of p values for a family of comparisons."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from embedprior.evidence.delong import Floats
from embedprior.evidence.errors import EvidenceError


def holm(p: ArrayLike, family_size: int | None = None) -> Floats:
    """Return Holm's step-down adjusted p values (Scand. J. Statist. 1979), valid under any dependence.

    Args:
        p: raw p values; NaN (test undefined) stays NaN but still counts towards the family that was declared.
        family_size: comparisons declared beforehand, at least ``len(p)``; default ``len(p)``.

    Raises:
        EvidenceError: a p outside [0, 1], or a family smaller than the list.
    """
    raw = np.asarray(p, dtype=np.float64)
    size = raw.size if family_size is None else family_size
    defined = np.flatnonzero(~np.isnan(raw))
    if size < raw.size:
        raise EvidenceError(f"a family of {size} cannot hold {raw.size} p values.")
    if ((raw[defined] < 0) | (raw[defined] > 1)).any():
        raise EvidenceError("p values must lie in [0, 1].")
    order = defined[np.argsort(raw[defined], kind="stable")]
    steps = size - np.arange(order.size)
    adjusted = np.full(raw.size, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps * raw[order]))
    return adjusted
