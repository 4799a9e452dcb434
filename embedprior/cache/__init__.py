"""The embedding cache: an encoder's outputs for a cohort, keyed by what produced them."""

from embedprior.cache.build import FillResult, build_cache, fill_cache
from embedprior.cache.reader import EmbeddingCache, PairDataset, open_cache
from embedprior.cache.writer import CacheWriter, write_cache

__all__ = [
    "CacheWriter", "EmbeddingCache", "FillResult", "PairDataset", "build_cache", "fill_cache", "open_cache",
    "write_cache",
]  # fmt: skip
