"""One adapter per public layout, and the user's own tables."""

from embedprior.cohort.sources.registry import SOURCES, read_cohort

__all__ = ["SOURCES", "read_cohort"]
