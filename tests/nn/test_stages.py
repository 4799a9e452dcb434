from __future__ import annotations

import numpy as np
import pytest

from embedprior.errors import EmbedpriorError
from embedprior.nn.stages import WEIGHTS, choose_weight, patient_folds


def test_the_weight_with_the_least_loss_is_taken_and_a_harmful_stage_dropped() -> None:
    found = choose_weight(lambda weight: 2 + (weight - 0.7) ** 2)
    assert found.weight == 0.75
    assert dict(found.losses) == {weight: 2 + (weight - 0.7) ** 2 for weight in WEIGHTS}
    assert found.worth == pytest.approx(1 - (2 + 0.05**2) / (2 + 0.7**2))
    harmful = choose_weight(lambda weight: 4 + 382 * weight)
    assert (harmful.weight, harmful.worth) == (0, 0)
    assert "dropped" in harmful.sentence()
    assert "+9550.0%" in harmful.sentence()


def test_of_equal_losses_the_smaller_weight_is_taken_and_a_loss_that_is_not_a_number_never() -> None:
    assert choose_weight(lambda weight: 1.0).weight == 0
    assert choose_weight(lambda weight: float("nan") if weight == 0 else weight).weight == 0.25
    with pytest.raises(EmbedpriorError, match="no loss of the second stage is a number"):
        choose_weight(lambda weight: float("nan"))
    with pytest.raises(ValueError, match="0 must be a candidate"):
        choose_weight(lambda weight: weight, (0.5, 1.0))


def test_what_a_few_cases_show_by_chance_is_no_reason_to_take_a_stage_over() -> None:
    """Four cases; the gain of weight 1 is (2, 0, 0, 0): mean .5, standard error .5. Of (2, 2, 0, 0): 1 and .577."""
    without = np.array([3.0, 1.0, 2.0, 4.0])

    def gained(gain: list[float]) -> float:
        return choose_weight(lambda weight: without - weight * np.array(gain), (0.0, 1.0)).weight

    assert gained([2.0, 0.0, 0.0, 0.0]) == 0
    assert gained([2.0, 2.0, 0.0, 0.0]) == 1
    found = choose_weight(lambda weight: without - weight * np.array([2.0, 0.0, 0.0, 0.0]), (0.0, 1.0))
    assert dict(found.losses) == {0.0: 2.5, 1.0: 2.0}
    assert found.sentence() == (
        "the DRR stage was dropped: it saves 20.0% of the loss on the validation pairs, "
        "within a standard error of nothing"
    )
    # The least of several: weights .5 and 1 differ by less than a standard error of their own difference.
    close = {0.0: without, 0.5: without - 1.0, 1.0: without - np.array([1.5, 0.9, 0.9, 0.9])}
    assert choose_weight(lambda weight: close[weight], (0.0, 0.5, 1.0)).weight == 0.5


def test_folds_leave_every_row_out_once_and_split_no_patient() -> None:
    patients = [f"p{i // 2}" for i in range(21)]
    folds = patient_folds(patients, seed=3, folds=4)
    assert sorted(np.concatenate([left_out for _, left_out in folds])) == list(range(21))
    for kept, left_out in folds:
        assert not {patients[i] for i in kept} & {patients[i] for i in left_out}
        assert len(kept) + len(left_out) == 21
    assert len(patient_folds(["a", "b"], seed=0, folds=5)) == 2
    with pytest.raises(EmbedpriorError, match="at least two patients"):
        patient_folds(["a", "a"], seed=0)
