"""The embedding cache: an encoder's outputs for a cohort, keyed by what produced them."""

from embedprior.cache.build import Filled, build_cache, fill_cache
from embedprior.cache.pairs import PairDataset
from embedprior.cache.reader import EmbeddingCache, open_cache
from embedprior.cache.writer import CacheWriter, write_cache

__all__ = [
    "CacheWriter", "EmbeddingCache", "Filled", "PairDataset", "build_cache", "fill_cache", "open_cache", "write_cache",
]  # fmt: skip
