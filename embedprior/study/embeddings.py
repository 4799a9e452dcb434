"""The caches a study reads, and which patients their encoders were trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from embedprior.cache import EmbeddingCache, open_cache
from embedprior.errors import BadInput
from embedprior.study.config import CacheChoice


@dataclass(frozen=True)
class Caches:
    """Open caches of one study.

    Attributes:
        cxr: radiographs and DRRs.
        ct: CTs; None in a study without CT.
        pixels: the radiographs themselves.
        tokens: patch tokens of the radiographs.
    """

    cxr: EmbeddingCache
    ct: EmbeddingCache | None = None
    pixels: EmbeddingCache | None = None
    tokens: EmbeddingCache | None = None

    def named(self) -> dict[str, EmbeddingCache]:
        """Return the caches there are."""
        every = {"cxr": self.cxr, "ct": self.ct, "pixels": self.pixels, "tokens": self.tokens}
        return {name: cache for name, cache in every.items() if cache is not None}

    def unread(self) -> Caches:
        """Return the same caches with nothing of them in memory: small enough to send to another process."""
        return Caches(**{name: replace(cache) for name, cache in self.named().items()})

    def need_ct(self) -> EmbeddingCache:
        """Return the CT cache.

        Raises:
            BadInput: there is none.
        """
        if self.ct is None:
            raise BadInput("this study names no CT cache. Next: caches: {ct: FOLDER} in its configuration.")
        return self.ct

    def pixels_of(self, exam_ids: list[str]) -> UInt8[np.ndarray, "cases height width"] | None:
        """Return the square pictures of some exams, or None without a pixel cache."""
        if self.pixels is None:
            return None
        rows = self.pixels.take(exam_ids)
        side = round(rows.shape[1] ** 0.5)
        return np.asarray(rows, dtype=np.uint8).reshape(len(rows), side, side)

    def tokens_of(self, exam_ids: list[str]) -> Float[np.ndarray, "cases tokens dim"] | None:
        """Return the patch tokens of some exams, shorter sequences padded with NaN, or None without a token cache."""
        if self.tokens is None:
            return None
        each = [np.asarray(self.tokens.tokens(i), dtype=np.float32) for i in exam_ids]
        longest = max((len(t) for t in each), default=0)
        dim = each[0].shape[1] if each else 0
        found = np.full((len(each), longest, dim), np.nan, dtype=np.float32)
        for row, tokens in zip(found, each, strict=True):
            row[: len(tokens)] = tokens
        return found


def open_caches(choice: CacheChoice, data: Path) -> Caches:
    """Open the caches a study names.

    Raises:
        BadInput: one does not exist or is damaged.
    """

    def at(path: str | None) -> EmbeddingCache | None:
        return None if path is None else open_cache(data / path)

    return Caches(open_cache(data / choice.cxr), at(choice.ct), at(choice.pixels), at(choice.tokens))


def patients_seen(caches: Caches) -> dict[str, frozenset[str]]:
    """Return, for each cache whose encoder was trained by this package, the patients its training saw."""
    return {
        f"{name} encoder": seen for name, cache in caches.named().items() if (seen := cache.patients_seen) is not None
    }
