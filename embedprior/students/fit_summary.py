"""What a fit of a method cost and how it went, as a record and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedprior.nn.search import Search
from embedprior.nn.stages import StageWeight


@dataclass(frozen=True)
class FitSummary:
    """What a fit cost, and how it went.

    Attributes:
        trainable: parameters that were trained, those thrown away afterwards included.
        total: the same and the frozen ones that it reads (the teacher head).
        steps: optimiser steps over all stages.
        seconds: wall clock.
        losses: names of the terms.
        history: one record a validation: the mean of every term since the one before, and ``val_loss``, which the
            step is chosen by. Of a prior: the lines of the ``metrics.jsonl`` of every stage.
        stage_weight: what was taken over of the DRR stage, and what it was worth; None where there was none.
        search: how the settings were chosen; None where they were given.
        notes: what a reader of the result must know: a choice that could not be made, say.
        learned: of a prior: its figures on the validation pairs (see ``prior.assessment.assess``).
        shared_seconds: wall clock of networks that it learned from and that another fit had trained already.
    """

    trainable: int
    total: int
    steps: int
    seconds: float
    losses: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    stage_weight: StageWeight | None = None
    search: Search | None = None
    notes: tuple[str, ...] = ()
    learned: Mapping[str, Any] | None = field(default=None, repr=False)
    shared_seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return it for a JSON file, without the history and the time."""
        weight, search = self.stage_weight, self.search
        return {
            "trainable": self.trainable, "total": self.total, "steps": self.steps, "losses": list(self.losses),
            "stage_weight": None if weight is None else {
                "weight": weight.weight, "worth": weight.worth, "measured_on": weight.measured_on,
                "losses": {f"{w:g}": loss for w, loss in weight.losses.items()},
            },
            "search": None if search is None else {
                "chosen": search.chosen, "cost": search.cost, "rounds": [dict(one) for one in search.rounds],
            },
            "notes": list(self.notes),
            "learned": self.learned,
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """Return in words how the settings were chosen, what the DRR stage was worth, and the notes."""
        found = []
        if self.search is not None:
            tried = len(self.search.rounds[0]) if self.search.rounds else 1
            found.append(
                f"settings: '{self.search.chosen}', chosen among {tried} on the validation cases "
                f"({self.search.cost:g} further trainings)"
            )
        if self.stage_weight is not None:
            found.append(self.stage_weight.sentence())
        if self.learned is not None:
            found += learned_sentences(self.learned)
        return [*found, *self.notes]


def learned_sentences(figures: Mapping[str, Any]) -> list[str]:
    """Return in words the figures of ``prior.assessment.assess``, each beside its rivals', and its warnings.

    Example:
        >>> error = {"prior": 0.6, "ridge": 0.5, "mean": 1.0}
        >>> learned_sentences({"error": error, "spread_ratio": 0.98, "warnings": []})[0]
        'on the validation pairs: squared error .600 (ridge .500, mean 1.000), samples .98 times as wide as it asks for'
    """

    def short(value: float, digits: int) -> str:
        return f"{value:.{digits}f}".removeprefix("0")

    error = figures["error"]
    text = (
        f"on the validation pairs: squared error {short(error['prior'], 3)} (ridge {short(error['ridge'], 3)}, mean "
        f"{short(error['mean'], 3)}), samples {short(figures['spread_ratio'], 2)} times as wide as it asks for"
    )
    for name, title in (("auc", "AUC"), ("brier", "Brier score")):
        scores = figures.get(name)
        if scores is not None:
            text += f", {title} {short(scores['prior'], 3)} (direct regression {short(scores['direct'], 3)})"
    if figures.get("coverage") is not None:
        text += f", {figures['coverage']:.0%} of the real values inside 80 % intervals"
    return [text, *(f"warning: {warning}" for warning in figures["warnings"]), *figures.get("notes", ())]
