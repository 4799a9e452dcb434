from __future__ import annotations

import numpy as np
import pytest

from embedprior.nn.config import FitConfig
from embedprior.students.base import FitData, Stage
from embedprior.students.config import TrainStudentConfig
from embedprior.students.registry import Budget, build_method
from embedprior.students.search import CANDIDATES, search_settings


def test_settings_are_searched_where_no_fit_is_given() -> None:
    assert Budget().settings == "auto"
    assert Budget(fit=FitConfig(hidden=9)).settings == "given"
    assert Budget(settings="given").settings == "given"
    base = {"method": "cxr-only", "cxr_cache": "c", "exams": "e", "splits": "s", "label": "y", "out": "o"}
    assert TrainStudentConfig.model_validate(base).budget.settings == "auto"
    given = TrainStudentConfig.model_validate({**base, "budget": {"fit": {"steps": 5}}})
    assert given.budget.settings == "given"


def test_the_candidate_with_the_lowest_validation_loss_is_taken_with_all_its_steps() -> None:
    asked: list[FitConfig] = []

    def val_loss(fit: FitConfig) -> float:
        asked.append(fit)
        return abs(fit.hidden - 512) + fit.dropout

    chosen, search = search_settings(FitConfig(steps=800), val_loss)
    assert (search.chosen, chosen.hidden, chosen.steps) == ("hidden 512", 512, 800)
    assert {fit.steps for fit in asked} == {100, 200, 400}
    assert sum(fit.steps for fit in asked) == pytest.approx(search.cost * 800)
    assert len(CANDIDATES) == 8


@pytest.mark.parametrize("name", ["cxr-only", "hinton-kd", "mlp-head"])
def test_a_row_searches_and_says_what_it_took_and_what_that_cost(name: str, small: FitData, budget: Budget) -> None:
    # So small a learning rate that 40 steps change nothing: only a candidate with a larger one can win.
    fit = budget.fit.model_copy(update={"lr": 1e-7})
    auto = budget.model_copy(update={"fit": fit, "settings": "auto"})
    fitted = build_method(name, auto).fit(small, 2)
    summary = fitted.fit_summary  # type: ignore[attr-defined]
    assert summary.search.chosen in ("lr 0.0003", "lr 0.003")
    assert summary.steps == (1 + 3) * fit.steps
    assert f"settings: '{summary.search.chosen}', chosen among 8" in summary.sentences()[0]
    chosen = budget.model_copy(update={"fit": fit.model_copy(update=CANDIDATES[summary.search.chosen])})
    cases = small.target.val.without_ct()
    np.testing.assert_array_equal(fitted.scores(cases), build_method(name, chosen).fit(small, 2).scores(cases))


@pytest.mark.parametrize("name", ["cxr-only", "mlp-head"])
def test_without_validation_cases_the_default_settings_are_used_and_it_is_said(
    name: str, small: FitData, budget: Budget
) -> None:
    data = FitData((Stage(small.target.train, small.target.val.take([])),), small.teacher)
    fitted = build_method(name, budget.model_copy(update={"settings": "auto"})).fit(data, 2)
    summary = fitted.fit_summary  # type: ignore[attr-defined]
    assert summary.search is None
    assert "the default ones" in summary.notes[0]
    cases = small.target.val.without_ct()
    np.testing.assert_array_equal(fitted.scores(cases), build_method(name, budget).fit(data, 2).scores(cases))
