"""The table behind Analytic-DPM: the prior's own squared error at every timestep, measured on held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedprior.prior.diffusion import Schedule


@dataclass(frozen=True)
class VarianceTable:
    """v_n = E (x0 - x0hat(x_n, n, c))² per dimension, standardised units, bounded by what the data allow.

    The squared error is used instead of the published Gamma_n = E ||epshat||²/d: the two agree for an exact
    posterior mean, but Gamma loses all digits in float32 at the noisy end and errs when the mean does.

    Attributes:
        nodes: (G,) increasing timesteps where it was measured.
        error: (G, D) measured mean squared error.
        spread: (D,) variance of the standardised training targets.
        guidance: the guidance weight it was measured with; the table holds for that weight alone.
    """

    nodes: NDArray[np.int64]
    error: NDArray[np.float64]
    spread: NDArray[np.float64]
    guidance: float

    def at(self, schedule: Schedule, n: int) -> NDArray[np.float64]:
        """Return (D,) v_n within [0, bound].

        Between nodes the ratio to the bound is interpolated in the timestep: the bound carries the fall of v over
        many orders of magnitude, the ratio moves slowly.
        """
        bound_at_nodes = linear_bound(schedule, self.spread, self.nodes)
        ratio = np.clip(self.error / np.where(bound_at_nodes > 0, bound_at_nodes, 1.0), 0.0, 1.0)
        place = np.interp(n, self.nodes, np.arange(len(self.nodes)))
        low = int(place)
        high = min(low + 1, len(self.nodes) - 1)
        mixed = ratio[low] + (place - low) * (ratio[high] - ratio[low])
        return np.asarray(mixed * linear_bound(schedule, self.spread, np.array([n]))[0])

    def scalar(self, schedule: Schedule) -> NDArray[np.float64]:
        """Return (N+1,) the mean over dimensions at every timestep; index 0 is 0."""
        return np.array([0.0, *(self.at(schedule, n).mean() for n in range(1, schedule.timesteps + 1))])


def linear_bound(
    schedule: Schedule, spread: NDArray[np.float64], nodes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (G, D) bbar S / (abar S + bbar): the error of the best linear guess without the condition.

    It never exceeds the total variance S, so it is the only bound needed.
    """
    abar, bbar = schedule.alpha_bar[nodes, None], schedule.beta_bar[nodes, None]
    return np.asarray(bbar * spread / (abar * spread + bbar))
