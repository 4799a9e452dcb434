"""How two caches differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedprior.cache.reader import EmbeddingCache
from embedprior.encoders.base import differing_field


@dataclass(frozen=True)
class Difference:
    """What differs between two caches.

    Attributes:
        field: first field of the keys that differs, with both values; None when they are equal.
        only_left: exams that only the first has.
        only_right: exams that only the second has.
        other_source: exams of one name made from different files.
        other_rows: exams of the same file whose numbers differ (or differ in shape).
        largest: largest absolute difference of their numbers.
    """

    field: tuple[str, object, object] | None
    only_left: list[str]
    only_right: list[str]
    other_source: list[str]
    other_rows: list[str]
    largest: float

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.field is None and not (
            self.only_left or self.only_right or self.other_source or self.other_rows
        )


def diff(left: EmbeddingCache, right: EmbeddingCache) -> Difference:
    """Compare two caches exam by exam; equal means equal bytes of every number."""
    ours = dict(zip(left.ids, left.sources, strict=True))
    theirs = dict(zip(right.ids, right.sources, strict=True))
    both = [i for i in ours if i in theirs]
    changed, largest = [], 0.0
    for exam_id in both:
        a, b = (np.asarray(c.tokens(exam_id), dtype=np.float64) for c in (left, right))
        if a.shape != b.shape:
            changed.append(exam_id)
        elif not np.array_equal(a, b):
            changed.append(exam_id)
            largest = max(largest, float(np.abs(a - b).max()))
    return Difference(
        field=differing_field(left.key, right.key),
        only_left=[i for i in ours if i not in theirs],
        only_right=[i for i in theirs if i not in ours],
        other_source=[i for i in both if ours[i] != theirs[i]],
        other_rows=changed,
        largest=largest,
    )
