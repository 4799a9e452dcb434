"""Distinct values of small non-negative integer codes in linear time, where sorting a million ids would tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def n_distinct(codes: Ints) -> int:
    """Return how many different codes occur."""
    return int(np.count_nonzero(np.bincount(codes)))


def renumber(codes: Ints) -> tuple[Ints, Ints]:
    """Return the codes that occur, ascending, and every code's position among them."""
    occurs = np.bincount(codes) > 0
    position = np.cumsum(occurs) - 1
    return np.flatnonzero(occurs), position[codes]


def first_rows(positions: Ints, n: int) -> Ints:
    """Return, for each of ``n`` positions, the first row that has it."""
    first = np.empty(n, dtype=np.int64)
    first[positions[::-1]] = np.arange(positions.size)[::-1]
    return first
