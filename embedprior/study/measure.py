"""Measure what a fit costs: one of each row, kept as the artifact the study would make anyway."""

from __future__ import annotations

from pathlib import Path

from embedprior.errors import EmbedpriorError
from embedprior.runs import one_thread
from embedprior.study.graph import reason_of
from embedprior.study.run import study_materials
from embedprior.study.runner import Bench
from embedprior.study.units import Study, units_of


def measure_units(study: Study, out: Path) -> list[str]:
    """Run the first fit of each row and return one line for each that failed.

    Raises:
        EmbedpriorError: none could be fitted.
    """
    import torch

    materials, _ = study_materials(study, out, lambda name, **fields: None)
    # The first optimiser of a process loads modules for seconds: no part of what a fit costs.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    benches = [Bench(m) for m in materials]
    first = {unit.method: unit for unit in reversed(units_of(study))}
    failed = []
    with one_thread():
        for unit in first.values():
            try:
                benches[unit.round.variant].fit(unit)
            except Exception as error:  # a row that can't be fitted has no cost to measure; the others have
                failed.append(f"{unit}: {reason_of(error)}")
    if len(failed) == len(first):
        raise EmbedpriorError(f"no method could be fitted: {'; '.join(failed)}")
    return failed
