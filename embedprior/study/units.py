"""The fits of a study: one unit a method, round and seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from embedprior.study.prepare import Prepared
from embedprior.study.sweep import Variant


@dataclass(frozen=True, order=True)
class RoundId:
    """One round of one variant: what its fits share.

    Attributes:
        variant: number of the sweep's combination.
        design: its name in the configuration.
        resample, fold: of the split table.
    """

    variant: int
    design: str
    resample: int
    fold: int


@dataclass(frozen=True)
class Unit:
    """One fit.

    Attributes:
        round: where it is fitted and scored.
        key: name of its design in tables (with the sweep's settings).
        seed: of the fit.
        method: row name.
    """

    round: RoundId
    key: str
    seed: int
    method: str

    def __str__(self) -> str:
        """Return its name in failure records and progress."""
        where = f"resample {self.round.resample}, fold {self.round.fold}, seed {self.seed}"
        return f"{self.key}: {self.method}, {where}"


@dataclass(frozen=True)
class Study:
    """Variants and what each starts from.

    Attributes:
        variants: combinations of the sweep; one without a sweep.
        prepared: by variant.
    """

    variants: tuple[Variant, ...]
    prepared: tuple[Prepared, ...]

    def pairs(self) -> Iterable[tuple[Variant, Prepared]]:
        """Yield each variant with what it starts from."""
        return zip(self.variants, self.prepared, strict=True)


def units_of(study: Study) -> list[Unit]:
    """Return every fit, in the order of the predictions: variant, design, round, seed, method."""
    found = []
    for number, (variant, prepared) in enumerate(study.pairs()):
        for design in variant.config.designs:
            for one in prepared.rounds(design.name):
                where = RoundId(number, design.name, one.resample, one.fold)
                found += [
                    Unit(where, variant.key(design), seed, method)
                    for seed in variant.config.fit_seeds
                    for method in design.methods
                ]
    return found
