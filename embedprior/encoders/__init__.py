"""Frozen encoders: exam → 1D embedding, with the preprocessing and provenance that made it."""
