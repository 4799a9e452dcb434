from __future__ import annotations

import numpy as np
import pytest

from embedprior.errors import EmbedpriorError
from embedprior.nn.search import successive_halving


def test_the_worse_half_is_dropped_round_after_round_and_the_cost_counted() -> None:
    final = {"default": 5.0, "a": 4.0, "b": 1.0, "c": 2.0, "d": 3.0, "e": 6.0, "f": 7.0, "g": 8.0}
    asked: list[tuple[str, float]] = []

    def loss_at(name: str, share: float) -> float:
        asked.append((name, share))
        return final[name]

    found = successive_halving(list(final), loss_at)
    assert found.chosen == "b"
    assert [set(losses) for losses in found.rounds] == [set(final), {"default", "b", "c", "d"}, {"default", "b"}]
    assert found.cost == pytest.approx(sum(share for _, share in asked)) == pytest.approx(3.0)
    assert sorted({share for _, share in asked}) == [0.125, 0.25, 0.5]


def test_the_default_is_judged_by_the_last_round() -> None:
    """The others are ahead by .01 at first, and behind by 1 at half of the budget."""

    def loss_at(name: str, share: float) -> float:
        late = share > 0.25
        return 2.0 if name == "default" else 2.0 + (1.0 if late else -0.01)

    found = successive_halving(["default", "a", "b", "c"], loss_at)
    assert [len(losses) for losses in found.rounds] == [4, 2]
    assert found.chosen == "default"


def test_the_default_wins_ties_and_a_failed_candidate_never() -> None:
    assert successive_halving(["default", "other"], lambda name, share: 1.0).chosen == "default"
    bad = successive_halving(["a", "b", "c"], lambda name, share: float("nan") if name != "c" else 9.0)
    assert bad.chosen == "c"
    assert successive_halving(["only"], lambda name, share: 0 / 0).chosen == "only"
    with pytest.raises(EmbedpriorError, match="no candidate's validation loss is a number"):
        successive_halving(["a", "b"], lambda name, share: float("inf"))


def test_another_candidate_must_beat_the_default_by_a_standard_error_of_the_difference() -> None:
    """Four cases: ahead by (2, 0, 0, 0) is .5 with standard error .5; by (2, 2, 0, 0) 1 with .577."""
    default = np.array([3.0, 1.0, 2.0, 4.0])

    def chosen(gain: list[float]) -> str:
        losses = {"default": default, "other": default - np.array(gain)}
        return successive_halving(list(losses), lambda name, share: losses[name]).chosen

    assert chosen([2.0, 0.0, 0.0, 0.0]) == "default"
    assert chosen([2.0, 2.0, 0.0, 0.0]) == "other"
    assert chosen([0.5, 0.5, 0.5, 0.5]) == "other"
