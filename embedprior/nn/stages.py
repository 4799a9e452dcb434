"""How much of a first stage a second one takes over: a weight chosen where neither was fitted, zero among them.

The smallest weight is taken that is not worse than the best by more than a standard error (Breiman et al. 1984, section
3.4.3): what a few validation cases show by chance is no reason to carry a first stage along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from embedprior.errors import EmbedpriorError
from embedprior.runs import seed_for

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates where the second stage is fitted in closed form."""
ALL_OR_NOTHING = (0.0, 1.0)
"""Candidates where the second stage goes on training what the first has trained."""
FOLDS = 3
"""Of the training patients, where there is no validation part."""


@dataclass(frozen=True)
class StageWeight:
    """What was taken over of the first stage, and what it was worth.

    Attributes:
        weight: of what the first stage predicts; 0 drops it.
        losses: candidate → loss.
        measured_on: ``validation`` pairs, or training pairs ``out of fold``.
    """

    weight: float
    losses: Mapping[float, float]
    measured_on: Literal["validation", "out of fold"]

    @property
    def worth(self) -> float:
        """Share of the loss without the first stage that taking it over saves: 0 where it is dropped."""
        without = self.losses[0.0]
        return 0.0 if without == 0 else 1 - self.losses[self.weight] / without

    def sentence(self, name: str = "the DRR stage") -> str:
        """Return it in words, for summaries and reports."""
        where = "on the validation pairs" if self.measured_on == "validation" else "out of fold on the training pairs"
        full = self.losses[max(self.losses)]
        best = min(self.losses, key=lambda weight: self.losses[weight])
        if self.weight == 0 and self.losses[best] < self.losses[0.0]:
            saved = 1 - self.losses[best] / self.losses[0.0]
            return f"{name} was dropped: it saves {saved:.1%} of the loss {where}, within a standard error of nothing"
        if self.weight == 0:
            change = "no change" if self.losses[0.0] == 0 else f"{full / self.losses[0.0] - 1:+.1%}"
            return f"{name} was dropped: taken over whole, it would have changed the loss by {change} {where}"
        return f"{name} was taken over with weight {self.weight:g}: it lowers the loss by {self.worth:.1%} {where}"


Losses = Float[np.ndarray, " cases"] | float
"""One loss a case, or their mean alone."""


def choose_weight(
    losses_at: Callable[[float], Losses],
    weights: Sequence[float] = WEIGHTS,
    measured_on: Literal["validation", "out of fold"] = "validation",
) -> StageWeight:
    """Return the smallest weight whose mean loss is within one standard error of the least.

    The standard error is that of the mean difference between the two weights' losses, case by case; it is 0 where the
    mean alone is given.

    Args:
        losses_at: weight → losses of a second stage fitted around what the first one predicts times the weight, on
            cases that neither was fitted on, always in the same order. A loss that is not a number never wins.
        weights: candidates; 0 must be among them.
        measured_on: what ``losses_at`` measures on; kept for the report.

    Raises:
        ValueError: 0 is no candidate: a first stage that harms could not be dropped.
        EmbedpriorError: no loss is a number.

    Example:
        >>> choose_weight(lambda w: (w - 0.6) ** 2 + 1).weight
        0.5
        >>> choose_weight(lambda w: np.array([1.0 - w, 2.0 + 0.9 * w])).weight  # better in one of two cases
        0.0
        >>> choose_weight(lambda w: 1 + w).sentence()
        'the DRR stage was dropped: taken over whole, it would have changed the loss by +100.0% on the validation pairs'
    """
    if 0.0 not in weights:
        raise ValueError(f"weights {tuple(weights)}: 0 must be a candidate, or a first stage that harms is kept")
    losses = {float(weight): np.atleast_1d(losses_at(weight)) for weight in sorted(weights)}
    means = {weight: float(each.mean()) for weight, each in losses.items()}
    finite = [weight for weight in means if np.isfinite(means[weight])]
    if not finite:
        raise EmbedpriorError("no loss of the second stage is a number. Next: look for NaN among the embeddings")
    best = min(finite, key=lambda weight: means[weight])
    chosen = next(w for w in finite if means[w] - means[best] <= standard_error(losses[w] - losses[best]))
    return StageWeight(chosen, means, measured_on)


def standard_error(values: Float[np.ndarray, " cases"]) -> float:
    """Return the standard error of the mean; 0 for a single value, which says nothing of its own.

    Example:
        >>> standard_error(np.array([1.0, 3.0]))
        1.0
    """
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def patient_folds(
    patients: Sequence[str], seed: int, folds: int = FOLDS
) -> list[tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " left_out"]]]:
    """Return (rows kept, rows left out) of each fold; no patient is on both sides, every row is left out once.

    Raises:
        EmbedpriorError: fewer than two patients.

    Example:
        >>> [left_out.tolist() for _, left_out in patient_folds(["a", "b", "b"], seed=0, folds=2)]
        [[0], [1, 2]]
    """
    names = sorted(set(patients))
    if len(names) < 2:
        raise EmbedpriorError("folds over patients need at least two patients")
    order = np.random.default_rng(seed_for(seed, "patient folds")).permutation(len(names))
    fold_of = {names[i]: place % min(folds, len(names)) for place, i in enumerate(order)}
    fold = np.array([fold_of[patient] for patient in patients])
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(fold.max() + 1)]
