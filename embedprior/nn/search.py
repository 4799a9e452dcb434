"""Settings that choose themselves: a few candidates, compared cheaply on validation cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedprior.errors import EmbedpriorError


@dataclass(frozen=True)
class Search:
    """Which candidate was chosen, and what the choice cost.

    Attributes:
        chosen: its name.
        rounds: of every round, candidate → validation loss.
        cost: full trainings the search took, as a sum of shares.
    """

    chosen: str
    rounds: tuple[Mapping[str, float], ...]
    cost: float


def successive_halving(candidates: Sequence[str], loss_at: Callable[[str, float], float], factor: int = 2) -> Search:
    """Return the candidate left when the worse part of them is dropped round after round.

    Round k trains the candidates that are left for ``factor``^(k − rounds) of the budget, so that every round costs
    about as much as the others (Jamieson and Talwalkar 2016, arXiv 1502.07943).

    Args:
        candidates: by name, the default first: it wins ties.
        loss_at: (candidate, share of the full budget) → validation loss. One that is not a number never wins.
        factor: part of the candidates that is left after a round: 1 / factor.

    Raises:
        EmbedpriorError: in some round no loss is a number.

    Example:
        >>> found = successive_halving(["a", "b", "c"], lambda name, share: {"a": 3, "b": 1, "c": 2}[name])
        >>> found.chosen, found.cost
        ('b', 1.75)
    """
    left = list(candidates)
    count = int(np.ceil(np.log(max(len(left), 1)) / np.log(factor) - 1e-9))
    rounds: list[dict[str, float]] = []
    cost = 0.0
    for number in range(count):
        share = float(factor) ** (number - count)
        losses = {name: float(loss_at(name, share)) for name in left}
        cost += share * len(left)
        finite = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
        if not finite:
            raise EmbedpriorError("no candidate's validation loss is a number. Next: look for NaN among the inputs")
        rounds.append(losses)
        left = sorted(finite, key=lambda name: finite[name])[: -(-len(left) // factor)]
    return Search(left[0], tuple(rounds), cost)
