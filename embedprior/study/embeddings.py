"""The caches a study reads, and which patients their encoders were trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from embedprior.cache import EmbeddingCache, open_cache
from embedprior.errors import BadInput
from embedprior.students.tables import pixels_of, tokens_of
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
        return None if self.pixels is None else pixels_of(self.pixels, exam_ids)

    def tokens_of(self, exam_ids: list[str]) -> Float[np.ndarray, "cases tokens dim"] | None:
        """Return the patch tokens of some exams, shorter sequences padded with NaN, or None without a token cache."""
        return None if self.tokens is None else tokens_of(self.tokens, exam_ids)


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
