"""Fewer labels, fewer pairs: who keeps theirs. A smaller fraction is always part of a larger one."""

from __future__ import annotations

from collections.abc import Mapping

from embedprior.runs import seed_for


def with_labels(patient_label: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """Return the patients whose labels stay known: the fraction of each class, and at least one patient of it.

    The order in which patients lose their labels depends on the seed and their ids only, so every method, fit and
    fraction of a study draws from the same order.
    """
    kept: set[str] = set()
    for value in (0, 1):
        members = _ordered([p for p, label in patient_label.items() if label == value], seed, "labels")
        kept |= set(members[: max(1, round(fraction * len(members)))])
    return kept


def with_pairs(patients: set[str], fraction: float, seed: int) -> set[str]:
    """Return the patients whose X-ray–CT pairs stay known: the fraction of them, and at least two."""
    return set(_ordered(list(patients), seed, "pairs")[: max(2, round(fraction * len(patients)))])


def _ordered(patients: list[str], seed: int, what: str) -> list[str]:
    return sorted(patients, key=lambda p: (seed_for(seed, what, p), p))
