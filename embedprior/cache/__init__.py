"""The embedding cache: an encoder's outputs for a cohort, keyed by what produced them."""

from embedprior.cache.build import build_cache
from embedprior.cache.reader import EmbeddingCache, open_cache

__all__ = ["EmbeddingCache", "build_cache", "open_cache"]
