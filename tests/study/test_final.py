"""``train final``: a study's method on everybody, and the bundle of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import embedprior
from embedprior.cli import main
from embedprior.deploy.bundle import build_bundle
from embedprior.errors import BadInput
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.registry import Budget, build_method
from embedprior.students.storage import load_fitted
from embedprior.study.final import train_final

ALONE = {
    "designs": [
        {"name": "all", "cases": "cxr", "folds": 3, "methods": ["constant", "logistic"], "reference": "constant"}
    ],
    "hypotheses": [],
}  # fmt: skip
PAIRED = {
    "designs": [
        {"name": "kfold", "split": "kfold", "folds": 3, "validation": True,
         "methods": ["cxr-only", "ridge-head", "prior", "ct-only"]}
    ],
    "seeds": [1, 2],
}  # fmt: skip
Runner = Callable[..., tuple[int, Path]]


def everyone(cohort: Path) -> Cases:
    """The labelled X-rays of the cohort, read by hand."""
    exams = pd.read_csv(cohort / "exams.csv").query("modality == 'CXR'")
    names = exams["exam_id"].tolist()
    rows = embedprior.open_cache(cohort / "caches" / "cxr").take(names)
    label = exams["label:nodule"].to_numpy(float)
    return Cases(names, exams["patient_id"].tolist(), label, rows, None, np.full(len(names), np.nan))


def test_without_validation_everybody_trains(run: Runner, cohort: Path) -> None:
    code, out = run(**ALONE)
    assert code == 0
    before = (out / "predictions.csv").read_bytes()
    found = train_final(out, "logistic")
    assert found.patients == {"train": 36, "val": 0}
    (row,) = found.models.to_dict("records")
    kept = load_fitted(out / "artifacts" / row["model"])
    cases = everyone(cohort)
    assert kept.about["patients_seen"]["train"] == sorted(set(cases.patient_ids))
    by_hand = build_method("logistic", Budget()).fit(FitData((Stage(cases, cases.take([])),), None), 1)
    np.testing.assert_array_equal(kept.scores(cases.cxr), by_hand.scores(cases))
    assert (out / "predictions.csv").read_bytes() == before
    assert main(["train", "final", "--study", str(out), "--method", "logistic"]) == 0  # reused, and the same
    assert train_final(out, "logistic").models.equals(found.models)


def test_a_study_names_no_home_and_its_final_fit_finds_what_lies_there(
    run: Runner, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    caches = {name: str(cohort / "caches" / name) for name in ("cxr", "ct")}
    code, out = run(**ALONE, caches=caches)
    assert code == 0
    for name in ("run.json", "plan.json"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text
        assert '"~/' in text
    assert run(**ALONE, caches=caches)[0] == 0
    assert train_final(out, "logistic").patients == {"train": 36, "val": 0}


def test_a_share_of_everybody_chooses_as_in_the_study(run: Runner, cohort: Path, capsys) -> None:
    code, out = run(**PAIRED)
    assert code == 0
    assert main(["train", "final", "--study", str(out), "--method", "ridge-head"]) == 0
    printed = capsys.readouterr().out
    evidence = json.loads((out / "evidence.json").read_text())["designs"]["kfold"]["methods"]
    (row,) = [r for r in evidence if r["method"] == "ridge-head"]
    assert f"Expected AUC: {row['auc']:.3f} (95 % CI {row['ci_low']:.3f} to {row['ci_high']:.3f})" in printed
    folder = out / "final" / "kfold" / "ridge-head"
    models = pd.read_csv(folder / "models.csv")
    assert models["seed"].tolist() == [1, 2]
    for model in models["model"]:
        seen = load_fitted(out / "artifacts" / model).about["patients_seen"]
        labels = {f"p{p:02d}": p % 2 for p in range(46)}
        # 36 patients with a target, a third of each class chooses; the 6 with a DRR and the 4 with CT alone train
        assert [sum(labels[p] == value for p in seen["val"]) for value in (0, 1)] == [6, 6]
        assert set(seen["train"]) | set(seen["val"]) >= {f"p{p:02d}" for p in range(36)}
        assert not set(seen["train"]) & set(seen["val"])
    scores = pd.read_csv(folder / "predictions.csv")
    assert set(scores["split"]) == {"val"}
    assert set(scores["patient_id"]) == set(seen["val"])


def test_a_bundle_takes_the_final_models_and_the_studys_performance(run: Runner, tmp_path: Path) -> None:
    _, out = run(**PAIRED)
    with pytest.raises(BadInput, match=r"no final model of 'prior'.*Next: embedprior train final"):
        build_bundle(out, "prior", tmp_path / "bundle", final=True)
    train_final(out, "prior")
    made = embedprior.load_bundle(build_bundle(out, "prior", tmp_path / "bundle", final=True))
    evidence = json.loads((out / "evidence.json").read_text())["designs"]["kfold"]["methods"]
    (row,) = [r for r in evidence if r["method"] == "prior"]
    assert made.config["evidence"]["auc"] == row["auc"]
    assert made.config["patients"]["val"] == 12
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "fitted on everybody" in card
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    found = made.predict(rows)
    each = np.stack([m.scores(rows) for m in made.models])
    np.testing.assert_allclose(found["score"], each.mean(axis=0), atol=1e-6)


def test_one_prior_gives_the_interval_of_its_samples(run: Runner, tmp_path: Path) -> None:
    _, out = run(**PAIRED, keep="all")
    made = embedprior.load_bundle(build_bundle(out, "prior", tmp_path / "bundle", fold=0, seed=1))
    (model,) = made.models
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    drawn = model.fitted.prior.sample(  # type: ignore[attr-defined]
        rows, model.fitted.samples, model.fitted.sampler, model.fitted.steps, model.fitted.seed, "cxr", cases=[0] * 5
    )
    logits = np.stack([model.fitted.head.logits(one) for one in np.asarray(drawn)])
    chances = 1 / (1 + np.exp(-logits.astype(float)))
    found = made.predict(rows)
    np.testing.assert_allclose(found["score"], chances.mean(axis=1), atol=1e-6)
    assert made.config["calibration_reason"].startswith("6 positive and 6 negative validation patients")
    limits = np.quantile(chances, [0.025, 0.975], axis=1)
    np.testing.assert_allclose(found[["low", "high"]].to_numpy().T, limits, atol=1e-6)
    assert (found["low"] < found["high"]).all()


def test_what_can_not_be_fitted_on_everybody_is_refused(run: Runner, cohort: Path, tmp_path: Path) -> None:
    _, out = run(**PAIRED)
    for method, message in (
        ("ct-only", "'ct-only' needs CT at inference"),
        ("prior-l2", r"no method 'prior-l2'.*Did you mean 'prior'\?"),
    ):
        with pytest.raises(BadInput, match=message):
            train_final(out, method)
    with pytest.raises(BadInput, match="no finished study"):
        train_final(cohort, "prior")
    with pytest.raises(BadInput, match="Next: --data DIR"):
        train_final(out, "prior", data=tmp_path / "gone")
    exams = pd.read_csv(cohort / "exams.csv")
    exams["label:nodule"] = 1 - exams["label:nodule"]
    exams.to_csv(cohort / "exams.csv", index=False)
    with pytest.raises(BadInput, match=r"is not the study's: exams was"):
        train_final(out, "cxr-only")
    assert not (out / "final").exists()
