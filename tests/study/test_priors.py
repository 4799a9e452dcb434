"""What a study says of the priors it fits: their figures beside those of their rivals, and where they lost."""

from __future__ import annotations

import html
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from embedprior.report.fit_tables import choice_tables, learned_table, unequal_search

from .conftest import BASE

DESIGN = {"name": "kfold", "split": "kfold", "folds": 3, "validation": True}


def test_a_prior_that_has_not_learned_is_named_in_summary_report_and_run_json(run) -> None:
    methods = ["cxr-only", "direct-head", "prior", "prior-shuffled"]
    longer = BASE["fit"] | {"steps": 120, "lr": 0.01}
    code, out = run(designs=[{**DESIGN, "methods": methods}], hypotheses=[], fit=longer)
    assert code == 0
    found = {one["method"]: one for one in json.loads((out / "run.json").read_text())["priors"]}
    assert set(found) == {"prior", "prior-shuffled"}
    prior = found["prior"]
    # Five steps teach it nothing: its prediction stays next to the training mean, which a linear map beats.
    assert prior["error"]["prior"] == pytest.approx(prior["error"]["mean"], rel=0.1)
    assert prior["error"]["ridge"] < 0.9 * prior["error"]["mean"]
    assert prior["fits"] == 3
    table = pd.read_csv(out / "predictions.csv")
    val = table[(table["split"] == "val") & (table["method"] == "direct-head")]
    aucs = [roc_auc_score(part["label"], part["score"]) for _, part in val.groupby("fold")]
    assert prior["auc"]["direct-head"] == pytest.approx(np.mean(aucs))
    assert prior["brier"]["direct-head"] == pytest.approx(((val["score"] - val["label"]) ** 2).mean())
    assert any("has not learned" in text or "less than a linear map" in text for text in prior["warnings"])
    assert any(text.startswith("direct-head has the higher AUC") for text in prior["warnings"])
    summary = (out / "summary.md").read_text()
    page = html.unescape((out / "report.html").read_text()).replace("\u00a0", " ")  # figures do not break on the page
    for text in prior["warnings"]:
        assert f"kfold: prior: {text}." in summary
        assert text in page
    assert "Have the priors learned?" in page
    records = [json.loads(file.read_text()) for file in out.glob("**/fit.json")]
    fits = [one["fit"]["learned"] for one in records if one["method"] == "prior"]
    assert len(fits) == 3
    assert prior["coverage"] == pytest.approx(np.mean([one["coverage"] for one in fits]))
    assert f"{prior['coverage']:.1%}" in page
    assert prior["constant"] == ""
    said = list(dict.fromkeys(text for one in fits for text in one["warnings"]))
    assert sorted(prior["fit_warnings"]) == sorted(said)
    assert f"Warnings of single fits: {prior['fit_warnings'][0]}" in page
    assert "kfold: prior-shuffled:" not in summary  # a null control is not to learn
    kept = list((out / "artifacts" / "prior").glob("*/metrics.jsonl"))
    assert len(kept) == 2 * (1 + 3)  # pairs as they are and shuffled: one DRR stage, and the radiographs of three folds
    events = {json.loads(line)["event"] for line in kept[0].read_text().splitlines()}
    assert {"start", "validation"} <= events


def test_below_the_table_of_priors_stand_constant_dimensions_and_what_single_fits_warn_of() -> None:
    fit = {
        "design": "d", "method": "prior", "fits": 3, "error": {"prior": 0.6, "ridge": 0.65, "mean": 1.0},
        "spread_ratio": 1.0, "coverage": 0.8, "constant": "4 of 90 of the condition", "auc": None, "brier": {},
        "fits_with_a_warning": 3, "fit_warnings": list("uvwxyz"), "warnings": [],
    }  # fmt: skip
    ((_, table, note),) = learned_table([fit, fit | {"design": "e", "constant": ""}])
    assert table["error, prior / ridge / mean"].tolist() == ["0.600 / 0.650 / 1.000"] * 2
    assert "Dimensions that do not vary over the training pairs: 4 of 90 of the condition." in note
    assert note.endswith("Warnings of single fits: u; v; w; and 3 more, in fit.json.")
    four = learned_table([fit | {"fit_warnings": list("uvwx")}])[0][2]
    assert four.endswith("Warnings of single fits: u; v; w; x.")


def outcomes(folder: Path, **fits: dict) -> SimpleNamespace:
    made = []
    for method, fit in fits.items():
        (folder / method).mkdir()
        record = {"steps": 10, "stage_weight": None, "search": None, "notes": [], **fit}
        (folder / method / "fit.json").write_text(json.dumps({"fit": record}))
        made.append(SimpleNamespace(path=folder / method, job=SimpleNamespace(key="d", method=method)))
    return SimpleNamespace(outcomes=made)


def test_a_study_says_who_searched_its_settings_and_what_that_cost(tmp_path: Path) -> None:
    search = {"chosen": "b", "cost": 1.5, "rounds": [{"a": 1.0, "b": 0.5, "c": 2.0}, {"a": 1.0, "b": 0.5}]}
    result = outcomes(tmp_path, prior={"search": search}, student={}, ridge={"steps": 0})
    (text,) = unequal_search(result)  # type: ignore[arg-type]
    assert "prior compared candidates" in text
    assert "student trained with the settings of the configuration" in text
    assert "ridge" not in text  # it trains nothing
    (_, table, _), *_ = choice_tables(result)  # type: ignore[arg-type]
    assert table.to_dict("records") == [
        {"method": "prior", "settings": "b", "chosen in": "1 of 1 fits", "candidates": 3,
         "further trainings a fit": 1.5}
    ]  # fmt: skip


@pytest.mark.parametrize("search", [None, {"chosen": "a", "cost": 1.0, "rounds": [{"a": 1.0}]}])
def test_equal_treatment_needs_no_caveat(tmp_path: Path, search: dict | None) -> None:
    assert unequal_search(outcomes(tmp_path, prior={"search": search}, student={"search": search})) == []  # type: ignore[arg-type]
