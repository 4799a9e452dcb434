"""Settings that choose themselves: a few candidates, compared cheaply on validation cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedprior.errors import EmbedpriorError
from embedprior.nn.stages import Losses, standard_error


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


def successive_halving(candidates: Sequence[str], loss_at: Callable[[str, float], Losses], factor: int = 2) -> Search:
    """Return the candidate left when the worse part of them is dropped round after round.

    Another candidate must be better than the default, or the first of those that are left, by a standard error of the
    difference, case by case: among several, one is always a little better on a few validation cases by chance. The
    default stays until the last round: what is ahead early in a training is often not ahead at its end.

    Round k trains the candidates that are left for ``factor``^(k − rounds) of the budget, so that every round costs
    about as much as the others (Jamieson and Talwalkar 2016, arXiv 1502.07943).

    Args:
        candidates: by name, the default first: it wins ties.
        loss_at: (candidate, share of the full budget) → validation losses, one a case in the same order, or their mean
            (no standard error is then asked for). One that is not a number never wins.
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
        losses = {name: np.atleast_1d(loss_at(name, share)) for name in candidates if name in left}
        cost += share * len(left)
        rounds.append({name: float(each.mean()) for name, each in losses.items()})
        finite = [name for name, mean in rounds[-1].items() if np.isfinite(mean)]
        if not finite:
            raise EmbedpriorError("no candidate's validation loss is a number. Next: look for NaN among the inputs")
        behind = {name: losses[name] - losses[finite[0]] for name in finite}
        bound = {name: float(each.mean()) + standard_error(each) for name, each in behind.items()}
        kept = {candidates[0]} if number < count - 1 else set()
        left = sorted(finite, key=lambda name: (name not in kept, bound[name]))[: -(-len(left) // factor)]
    return Search(left[0], tuple(rounds), cost)
