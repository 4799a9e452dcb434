"""The embedding cache: an encoder's outputs for a cohort, keyed by what produced them.

Importing this loads no torch: ``cache ls`` and ``verify`` work where torch is missing or broken.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedprior.cache.build import FillResult, build_cache, fill_cache
    from embedprior.cache.pairs import PairDataset
    from embedprior.cache.reader import EmbeddingCache, open_cache
    from embedprior.cache.writer import CacheWriter, write_cache

__all__ = [
    "CacheWriter", "EmbeddingCache", "FillResult", "PairDataset", "build_cache", "fill_cache", "open_cache",
    "write_cache",
]  # fmt: skip

_HOMES = {
    "CacheWriter": "writer", "EmbeddingCache": "reader", "FillResult": "build", "PairDataset": "pairs",
    "build_cache": "build", "fill_cache": "build", "open_cache": "reader", "write_cache": "writer",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedprior.cache' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"embedprior.cache.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
