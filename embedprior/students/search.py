"""Settings that a row chooses for itself where none are given, by the same search as every other row."""

from __future__ import annotations

from collections.abc import Callable

from embedprior.nn.config import FitConfig
from embedprior.nn.search import Search, successive_halving

CANDIDATES: dict[str, dict[str, float]] = {
    "default": {},
    "hidden 32": {"hidden": 32},
    "hidden 512": {"hidden": 512},
    "no dropout": {"dropout": 0.0},
    "dropout 0.5": {"dropout": 0.5},
    "weight decay 1": {"weight_decay": 1.0},
    "lr 0.0003": {"lr": 3e-4},
    "lr 0.003": {"lr": 3e-3},
}
"""Changes of the budget's ``fit``. Eight, so that three rounds of halving cost three trainings beside the last one."""


def search_settings(fit: FitConfig, val_loss: Callable[[FitConfig], float]) -> tuple[FitConfig, Search]:
    """Return the settings with the lowest validation loss among ``CANDIDATES``, and how they were found.

    Args:
        fit: what the candidates change.
        val_loss: settings → validation loss of a training with them; its steps are the share of a round.

    Raises:
        EmbedpriorError: no candidate's loss is a number.
    """
    candidates = {name: fit.model_copy(update=change) for name, change in CANDIDATES.items()}

    def loss_at(name: str, share: float) -> float:
        steps = max(1, round(share * fit.steps))
        return val_loss(candidates[name].model_copy(update={"steps": steps}))

    found = successive_halving(list(candidates), loss_at)
    return candidates[found.chosen], found
