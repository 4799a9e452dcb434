"""Whole studies on embeddings: leaks refused, failures said in words, every design."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from embedprior.students import registry
from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.registry import MethodRow
from embedprior.study.config import Hypothesis
from embedprior.study.evidence import hypothesis_table

from .conftest import BASE, change, refusal, write_cohort


def evidence(out, design="kfold"):
    return json.loads((out / "evidence.json").read_text())["designs"][design]


def rows(out, design="kfold"):
    return {m["method"]: m for m in evidence(out, design)["methods"]}


@dataclass(frozen=True)
class Odd:
    """A method that misbehaves as told."""

    does: str = "nothing"
    budget: object = None
    name: str = "odd"
    needs_ct: bool = False
    uses_ct: bool = True
    needs_teacher: ClassVar[bool] = False
    budget_part: ClassVar[str] = "nothing"

    def fit(self, data: FitData, seed: int) -> Fitted:
        if self.does == "fails" and seed == 2:
            raise RuntimeError("out of\nluck")
        return self

    def scores(self, cases: Cases) -> np.ndarray:
        if self.does == "reads CT":
            return cases.paired_ct()[:, 0]
        found = cases.cxr.mean(axis=1).astype(float)
        if self.does == "one answer":
            return 0.6 + 0.01 * np.tanh(found)
        if self.does == "lacks a case":
            found[[i == "x-4" for i in cases.exam_ids]] = np.nan
        return found


@pytest.fixture
def odd(monkeypatch):
    """Register ``odd`` as a method, as an installed package would."""
    module = types.ModuleType("an_odd_package")
    module.Odd = Odd
    monkeypatch.setitem(sys.modules, "an_odd_package", module)
    monkeypatch.setitem(registry.METHODS, "odd", MethodRow("odd", "misbehaves", "test", "an_odd_package:Odd"))

    def settings(does: str) -> dict:
        design = {"name": "kfold", "split": "kfold", "folds": 3, "validation": True}
        return {
            "seeds": [1, 2],
            "methods": {"told": {"method": "odd", "options": {"does": does}}},
            "designs": [{**design, "methods": ["cxr-only", "told"]}],
            "hypotheses": [{"name": "H1", "claim": "c", "design": "kfold", "a": "told", "b": "cxr-only"}],
        }

    return settings


def test_every_patient_is_held_out_once_a_seed_and_the_auc_is_the_one_of_the_table(run):
    code, out = run(seeds=[1, 2])
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    test = table[table["split"] == "test"]
    assert (test.groupby(["method", "seed", "exam_id"]).size() == 1).all()
    assert test["exam_id"].nunique() == 36
    splits = pd.read_csv(out / "cohort" / "splits.csv")
    for (fold, split), part in table.groupby(["fold", "split"]):
        own = splits[(splits["fold"] == fold) & (splits["part"] == split)]
        assert set(part["patient_id"]) == set(own["patient_id"])
    found = rows(out)["ridge-head"]
    aucs, weights = [], []
    for _, part in test[test["method"] == "ridge-head"].groupby(["seed", "fold"]):
        aucs.append(roc_auc_score(part["label"], part["score"]))
        weights.append(part["label"].sum() * (1 - part["label"]).sum())
    assert found["auc"] == pytest.approx(np.average(aucs, weights=weights))
    assert (found["n_folds"], found["n_seeds"]) == (3, 2)


def test_a_method_that_collapsed_to_one_answer_is_named_in_summary_report_and_evidence(run, odd):
    code, out = run(**odd("one answer"))
    assert code == 0
    text = "told collapsed to one answer: at .5 it calls 100 % of the held-out cases positive"
    assert any(warning.startswith(text) for warning in evidence(out)["warnings"])
    for file in ("summary.md", "report.html"):
        content = (out / file).read_text()
        assert text in " ".join(content.split())
        assert "cxr-only collapsed" not in content


def test_a_design_may_have_seeds_and_a_class_balance_of_its_own(run, tmp_path):
    one = {"split": "kfold", "folds": 3, "validation": True, "methods": ["cxr-only"]}
    designs = [{**one, "name": "plain"}, {**one, "name": "other", "seeds": [1, 5], "balance": "sampler"}]
    code, out = run(designs=designs, hypotheses=[])
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    assert {name: set(part["seed"]) for name, part in table.groupby("design")} == {"plain": {1}, "other": {1, 5}}
    plans = json.loads((out / "plan.json").read_text())["designs"]
    assert {p["design"]: p["seeds"] for p in plans} == {"plain": 1, "other": 2}
    assert "Every fit with 2 seeds." in (out / "summary.md").read_text()
    _, balanced = run(designs=[{**one, "name": "other"}], hypotheses=[], balance="sampler", out="balanced")
    key = ["exam_id", "split", "fold", "seed"]
    expected = pd.read_csv(balanced / "predictions.csv").set_index(key)["score"]
    found = table[(table["design"] == "other") & (table["seed"] == 1)].set_index(key)["score"]
    np.testing.assert_array_equal(found.loc[expected.index], expected)
    plain = table[table["design"] == "plain"].set_index(key)["score"]
    assert not np.allclose(plain.loc[expected.index], expected)


def test_too_few_seeds_of_a_design_are_refused(run, capsys):
    design = {**BASE["designs"][0], "seeds": [1, 2]}
    code, _ = run(designs=[design], seeds=[], as_published="")
    assert "design 'kfold': 2 seeds: give at least 3" in refusal(capsys, code)


def test_a_threshold_sweep_shows_balanced_accuracy_at_each_threshold(run):
    code, out = run(seeds=[1, 2], thresholds=[0.2, 0.5])
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    test = table[(table["split"] == "test") & (table["method"] == "cxr-only")]
    fits = [part for _, part in test.groupby(["fold", "seed"])]
    expected = [np.mean([balanced_accuracy_score(p["label"], p["score"] >= t) for p in fits]) for t in (0.2, 0.5)]
    section = (out / "summary.md").read_text().split("## Threshold sweep: kfold")[1]
    row = next(line for line in section.splitlines() if line.startswith("| cxr-only"))
    assert [cell.strip() for cell in row.strip("| ").split("|")][1:] == [f"{value:.3f}" for value in expected]


def test_every_method_has_its_time_and_memory_in_the_report(run):
    code, out = run()
    assert code == 0
    section = (out / "summary.md").read_text().split("## Parameters and compute")[1]
    heading, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in heading.strip("| ").split("|")]
    shown = {cells[0].strip(): dict(zip(names, map(str.strip, cells), strict=True))
             for line in lines[:2] if (cells := line.strip("| ").split("|"))}  # fmt: skip
    every = [json.loads(file.read_text()) for file in (out / "artifacts" / "fit").glob("*/fit.json")]
    for name, row in shown.items():
        records = [one for one in every if one["method"] == name]
        assert len(records) == 3
        assert row["seconds a fit"] == f"{np.median([r['seconds'] for r in records]):.2f}"
        assert row["CPU seconds a fit"] == f"{np.median([r['cpu_seconds'] for r in records]):.2f}"
        assert row["peak memory (MB)"] == f"{max(r['peak_mb'] for r in records):.0f}"
        assert all(r["peak_mb"] > 50 for r in records)


def test_method_that_reads_ct_at_inference_fails_and_the_rest_go_on(run, odd):
    code, out = run(**odd("reads CT"))
    assert code == 3
    failures = pd.read_csv(out / "failures.csv")
    assert len(failures) == 6
    assert failures["reason"].str.contains("carry no CT").all()
    assert rows(out)["told"]["auc"] is None
    assert "not fitted in 6 of 6 folds: these cases carry no CT" in rows(out)["told"]["reason"]
    assert rows(out)["cxr-only"]["auc"] is not None


def test_a_fit_that_fails_any_way_is_recorded_and_tried_again_by_the_next_run(run, odd, monkeypatch):
    code, out = run(**odd("fails"))
    assert code == 3
    failures = pd.read_csv(out / "failures.csv")
    assert failures["stage"].tolist() == [f"kfold: told, resample 0, fold {f}, seed 2" for f in range(3)]
    assert set(failures["reason"]) == {"RuntimeError: out of luck"}
    assert "not fitted in 3 of 6 folds: RuntimeError: out of luck" in (out / "summary.md").read_text()
    hypothesis = json.loads((out / "evidence.json").read_text())["hypotheses"][0]
    assert hypothesis["status"] == "not testable at this size"
    monkeypatch.setattr(Odd, "fit", lambda self, data, seed: self)
    code, out = run(**odd("fails"))
    assert code == 0
    assert not (out / "failures.csv").exists()
    assert rows(out)["told"]["auc"] is not None


def test_method_that_lacks_a_case_is_named_with_the_case_and_not_compared(run, odd):
    code, out = run(**odd("lacks a case"))
    assert code == 3
    reason = rows(out)["told"]["reason"]
    assert "it gave 1 of 36 held-out cases no score (x-4)" in reason
    assert "the same cases for every method" in reason
    assert set(pd.read_csv(out / "failures.csv")["exam_id"]) == {"x-4"}
    assert rows(out)["cxr-only"]["n_cases"] == 36
    assert reason in (out / "summary.md").read_text()


def test_fold_of_one_class_and_site_without_negatives_are_said_in_words(run, cohort):
    change(cohort, **{"label:nodule": lambda f: np.where(f["site"] == "B", 1, f["label:nodule"])})
    sites = {"name": "sites", "split": "site", "methods": ["cxr-only", "ridge-head"]}
    claim = {"name": "H1", "claim": "c", "design": "sites", "a": "ridge-head", "b": "cxr-only"}
    code, out = run(designs=[sites], hypotheses=[claim])
    assert code == 0
    text = "site B (fold 1) holds no negative case: its 12 positive cases form no pairs and no part of the AUC"
    assert text in evidence(out, "sites")["warnings"]
    assert text in (out / "summary.md").read_text()
    assert text in (out / "report.html").read_text()
    support = pd.read_csv(out / "support.csv")
    assert support["site"].tolist() == ["A", "B", "C"]
    assert support["held_out_patients_neg"].tolist() == [6, 0, 6]
    # CTs of the held-out site train no teacher, those of patients without an X-ray included
    exams = pd.read_csv(cohort / "exams.csv")
    ct = exams[exams["modality"] == "CT"]
    assert support["teacher_patients"].tolist() == [int((ct["site"] != s).sum()) for s in "ABC"]


def test_round_that_no_method_could_be_fitted_in_is_left_out_and_said(run, cohort, tmp_path):
    # while fold 2 is held out, everyone who trains is positive
    change(cohort, **{"label:nodule": lambda f: (f["patient_id"].str[1:].astype(int) >= 4).astype(int)})
    part = [("test" if p % 9 == 2 * f else "train") for f in range(3) for p in range(36)]
    patients = [f"p{p:02d}" for p in range(36)] * 3
    frame = pd.DataFrame({"patient_id": patients, "part": part, "fold": np.repeat(range(3), 36)})
    frame.loc[(frame["fold"] == 2) & frame["patient_id"].isin(["p00", "p01", "p02", "p03"]), "part"] = "val"
    frame = frame.assign(group_id=frame["patient_id"], design="kfold", resample=0)
    frame.to_csv(tmp_path / "splits.csv", index=False)
    only = {"name": "kfold", "split": "kfold", "folds": 3, "methods": ["cxr-only"]}
    code, out = run("--splits", str(tmp_path / "splits.csv"), designs=[only], hypotheses=[])
    assert code == 3
    warnings = evidence(out)["warnings"]
    assert "no method could be fitted in fold 2: its 4 cases are in no comparison" in warnings
    assert rows(out)["cxr-only"]["n_cases"] == 8


def test_encoder_that_saw_held_out_patients_is_refused_with_the_ids_or_lets_them_train(run, tmp_path, capsys):
    data = write_cohort(tmp_path / "seen", seen=("p03", "p05", "p40"))
    code, out = run(data=data)
    error = refusal(capsys, code)
    assert "the cxr encoder was trained on 2 held-out patients: p03, p05." in error
    assert "encoder_training_patients: train" in error
    assert not out.exists()
    code, out = run(data=data, encoder_training_patients="train")
    assert code == 0
    splits = pd.read_csv(out / "cohort" / "splits.csv")
    assert set(splits.loc[splits["patient_id"].isin(["p03", "p05"]), "part"]) == {"train"}
    test = pd.read_csv(out / "predictions.csv").query("split == 'test'")
    assert set(test["patient_id"]) == {f"p{p:02d}" for p in range(36)} - {"p03", "p05"}


def test_combinations_over_caches_hold_out_the_same_cases_whatever_their_encoders_saw(run, tmp_path):
    data = write_cohort(tmp_path / "seen", seen=("p03",))
    other = write_cohort(tmp_path / "other", seen=("p05", "p07"))
    (other / "caches" / "cxr").rename(data / "caches" / "second")
    code, out = run(data=data, encoder_training_patients="train", sweep={"caches.cxr": ["caches/cxr", "caches/second"]})
    assert code == 0
    test = pd.read_csv(out / "predictions.csv").query("split == 'test'")
    held = [set(part["patient_id"]) for _, part in test.groupby("design")]
    assert held == [{f"p{p:02d}" for p in range(36)} - {"p03", "p05", "p07"}] * 2


def test_partner_of_a_patient_the_encoder_saw_is_never_held_out(run, tmp_path, capsys):
    data = write_cohort(tmp_path / "seen", seen=("p03",))
    change(data, group_id=lambda f: f["patient_id"].where(f["patient_id"] != "p04", "p03"))
    assert "1 held-out patients: p" in refusal(capsys, run(data=data)[0])
    code, out = run(data=data, encoder_training_patients="train")
    assert code == 0
    splits = pd.read_csv(out / "cohort" / "splits.csv")
    assert set(splits.loc[splits["patient_id"].isin(["p03", "p04"]), "part"]) == {"train"}


def seen_by_fold(out):
    """Patients that the row with a CT head has seen, those of its head included, by fold."""
    found = {}
    for record in (out / "artifacts" / "fit").glob("*/fit.json"):
        fit = json.loads(record.read_text())
        if fit["method"] == "ridge-head":
            (fold,) = set(pd.read_csv(record.parent / "predictions.csv")["fold"])
            found[fold] = {p for ids in fit["patients_seen"].values() for p in ids}
    return found


@pytest.mark.parametrize("split", [{"split": "site"}, {"split": "external", "external": ["A"]}])
def test_ct_of_a_patient_of_two_sites_trains_nothing_while_one_of_them_is_held_out(run, cohort, split):
    # p00: X-ray at site A, CT at site B; p41, of the pretraining pairs: DRR at site B, CT at site A.
    moved = ["ct-0", "x-41"]
    change(cohort, site=lambda f: f["site"].mask(f["exam_id"].isin(moved), "B").mask(f["exam_id"] == "ct-41", "A"))
    code, out = run(designs=[{"name": "sites", "methods": ["cxr-only", "ridge-head"], **split}], hypotheses=[])
    assert code == 0
    own = pd.read_csv(cohort / "exams.csv")
    for fold, seen in seen_by_fold(out).items():
        at_site = set(own.loc[own["site"] == "ABC"[fold], "patient_id"])
        assert not seen & at_site
        assert seen == set(own["patient_id"]) - at_site


def test_patients_an_encoder_saw_train_while_another_site_is_held_out(run, tmp_path):
    data = write_cohort(tmp_path / "seen", seen=("p03", "p40"))
    sites = {"name": "sites", "split": "site", "methods": ["cxr-only", "ridge-head"]}
    code, out = run(data=data, encoder_training_patients="train", designs=[sites], hypotheses=[])
    assert code == 0
    splits = pd.read_csv(out / "cohort" / "splits.csv")
    own = splits.loc[splits["patient_id"] == "p03", ["fold", "part"]]
    assert own.to_numpy().tolist() == [[1, "train"], [2, "train"]]
    found = seen_by_fold(out)
    assert [("p03" in found[fold], "p40" in found[fold]) for fold in range(3)] == [
        (False, True), (True, False), (True, True),
    ]  # fmt: skip


def test_external_sites_are_scored_by_models_that_never_saw_them(run):
    external = {
        "name": "outside", "split": "external", "external": ["C"], "validation": True, "methods": ["cxr-only", "prior"],
    }  # fmt: skip
    code, out = run(designs=[external], hypotheses=[])
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    number = table["patient_id"].str[1:].astype(int)
    assert set(number[table["split"] == "test"] % 3) == {2}
    assert set(number[table["split"] == "val"] % 3) == {0, 1}
    assert rows(out, "outside")["prior"]["n_cases"] == 12


def test_monte_carlo_resamples_are_judged_with_the_corrected_t(run):
    design = {
        "name": "mc", "split": "resamples", "resamples": 4, "held_out_share": 0.3,
        "methods": ["cxr-only", "ridge-head"],
    }  # fmt: skip
    claim = {"name": "H1", "claim": "c", "design": "mc", "a": "ridge-head", "b": "cxr-only"}
    code, out = run(designs=[design], hypotheses=[claim])
    assert code == 0
    found = evidence(out, "mc")
    (comparison,) = found["comparisons"]
    assert comparison["test"] == "Nadeau-Bengio corrected resampled t"
    d = np.array(comparison["per_resample"])
    # five of the 18 patients of each class are held out, 26 train
    assert comparison["se"] == pytest.approx(np.sqrt((1 / 4 + 10 / 26) * d.var(ddof=1)))


def test_pretraining_pairs_come_first_and_never_from_a_held_out_group(run, cohort):
    change(cohort, group_id=lambda f: f["patient_id"].where(f["patient_id"] != "p36", "p00"))
    code, out = run()
    assert code == 0
    support = pd.read_csv(out / "support.csv")
    splits = pd.read_csv(out / "cohort" / "splits.csv").set_index(["patient_id", "fold"])["part"]
    wanted = [6 - (splits["p00", fold] != "train") for fold in range(3)]
    assert support["pretraining_pairs"].tolist() == wanted
    assert sorted(wanted) == [5, 5, 6]


def test_shares_of_labels_and_pairs_are_taken_from_training_alone_and_nested(run):
    sweep = {"label_fraction": [0.1, 1.0], "pair_fraction": [0.25, 1.0]}
    code, out = run(sweep=sweep, hypotheses=[])
    assert code == 0
    support = pd.read_csv(out / "support.csv")
    assert support["design"].nunique() == 4
    one = support[support["design"] == "kfold@label_fraction=0.1,pair_fraction=0.25"]
    train = one["train_images_pos"] + one["train_images_neg"]
    assert one["train_pairs"].tolist() == [round(0.25 * n) for n in train]
    assert (one["train_images_labelled"] < 0.3 * train).all()
    assert (one["train_images_labelled"] >= 2).all()
    assert one["held_out_images_pos"].sum() == 18
    table = pd.read_csv(out / "predictions.csv")
    assert table[table["split"] == "test"].groupby("design")["exam_id"].nunique().eq(36).all()
    # what a row without CT scores does not depend on how many pairs there are
    plain = table[table["method"] == "cxr-only"]
    wide = plain.pivot_table(index=["seed", "exam_id", "split"], columns="design", values="score")
    for share in ("0.1", "1"):
        a, b = (f"kfold@label_fraction={share},pair_fraction={f}" for f in ("0.25", "1"))
        pd.testing.assert_series_equal(wide[a], wide[b], check_names=False)
    assert "| label_fraction | pair_fraction | cxr-only |" in (out / "summary.md").read_text()


def test_labels_of_radiographs_can_be_rarer_than_those_of_cts(run):
    sweep = {"cxr_label_fraction": [0.1, 1.0]}
    design = {"name": "kfold", "split": "kfold", "folds": 3, "methods": ["cxr-only", "ct-only", "direct-head"]}
    code, out = run(sweep=sweep, hypotheses=[], designs=[design | {"reference": "cxr-only"}])
    assert code == 0
    support = pd.read_csv(out / "support.csv").set_index(["design", "fold"])
    few, every = (support.loc[f"kfold@cxr_label_fraction={share}"] for share in ("0.1", "1"))
    train = few["train_images_pos"] + few["train_images_neg"]
    assert (few["train_images_labelled"] < 0.3 * train).all()
    for column in ("teacher_ct_pos", "teacher_ct_neg", "teacher_patients", "train_images_pos"):
        pd.testing.assert_series_equal(few[column], every[column])
    table = pd.read_csv(out / "predictions.csv")
    wide = table.pivot_table(index=["method", "seed", "exam_id", "split"], columns="design", values="score")
    moved = (wide.iloc[:, 0] - wide.iloc[:, 1]).abs().groupby("method").max()
    # Only the method that is trained on labels of radiographs notices.
    assert moved["ct-only"] == 0
    assert moved["cxr-only"] > 0.01


def test_a_design_may_have_few_labelled_radiographs_where_another_has_all(run):
    base = {
        "split": "kfold", "folds": 3, "validation": True, "methods": ["cxr-only", "ct-only"], "reference": "cxr-only"
    }  # fmt: skip
    few, every = base | {"name": "few", "cxr_label_fraction": 0.1}, base | {"name": "every"}
    code, out = run(hypotheses=[], designs=[few, every])
    assert code == 0
    support = pd.read_csv(out / "support.csv").set_index(["design", "fold"])
    # of 12 training patients, six of either label, a tenth: one of each
    assert support.loc["few", "train_images_labelled"].tolist() == [2, 2, 2]
    table = pd.read_csv(out / "predictions.csv")
    held_out = table[table["split"] == "test"]
    assert held_out.groupby("design")["exam_id"].nunique().to_dict() == {"few": 36, "every": 36}
    # a threshold is chosen on these: of 12 validation patients, likewise
    chosen = table[table["split"] == "val"].groupby(["design", "fold"])["exam_id"].nunique()
    assert (chosen["few"] == 2).all()
    assert (chosen["every"] == 12).all()


def test_sweep_adjusts_over_all_its_settings_together(run):
    code, out = run(sweep={"fit.hidden": [4, 8], "fit.lr": [0.001, 0.01]})
    assert code == 0
    designs = json.loads((out / "evidence.json").read_text())["designs"]
    found = [c for e in designs.values() for c in e["comparisons"] if c["in_family"]]
    p = sorted(c["p"] for c in found)
    assert len(p) == 4
    assert min(c["p_holm"] for c in found) == pytest.approx(min(1.0, 4 * p[0]))
    assert "4 settings were run on the same held-out cases" in (out / "summary.md").read_text()


def test_swept_decision_rules_are_those_of_each_setting(run):
    design = {"name": "kfold", "split": "kfold", "folds": 3, "methods": ["constant", "ridge-head"]}
    claim = [{"name": "H1", "claim": "c", "design": "kfold", "a": "ridge-head", "b": "constant"}]
    code, out = run(
        designs=[design | {"reference": "constant"}], hypotheses=claim, sweep={"inference.unit": ["exam", "patient"]}
    )
    assert code == 0
    for unit in ("exam", "patient"):
        assert evidence(out, f"kfold@inference.unit={unit}")["unit"] == unit
    code = json.loads((out / "plan.json").read_text())["code"]
    assert code["methods"] == {name: registry.describe(name).version for name in ("constant", "ridge-head")}


BALANCED_ROWS = [
    "ct-only", "late-fusion", "cxr-only", "hinton-kd", "discom-kd", "direct-head", "ridge-head", "logistic",
    "clip-alignment", "labels",
]  # fmt: skip


def test_class_balance_reaches_every_row_that_trains_a_classifier(run, tmp_path):
    """One positive in six: rows trained on labels as they are score low, balanced ones near a half."""
    data = write_cohort(tmp_path / "many", 160, pretraining=0)
    change(data, **{"label:nodule": lambda f: (f["patient_id"].str[1:].astype(int) % 6 == 0).astype(int)})
    bce = {"l2": 1.0, "bce": 1.0, "bce_target": "labels"}
    settings = {
        "methods": {"labels": {"method": "prior", "options": {"objective": bce}}},
        "designs": [{"name": "fixed", "split": "fixed", "methods": BALANCED_ROWS}],
        "hypotheses": [],
        "fit": {"hidden": 8, "steps": 60, "lr": 0.03, "validate_every": 60},
    }
    mean, out = {}, None
    for balance in ("none", "class-weights", "sampler"):
        code, out = run(out=balance, balance=balance, data=data, **settings)
        assert code == 0
        table = pd.read_csv(out / "predictions.csv")
        mean[balance] = table.groupby("method")["score"].mean()
    for balance in ("class-weights", "sampler"):
        gain = mean[balance] - mean["none"]
        assert gain.min() > 0.05, f"{balance}: {gain.to_dict()}"
    # The prior's own cross-entropy with labels follows too, not only the head it looks through.
    trained = [json.loads(p.read_text()) for p in (out / "artifacts" / "prior").glob("*/prior.json")]
    assert trained
    assert all(c["config"]["objective"]["bce_balanced"] for c in trained)


def test_exam_without_an_embedding_is_dropped_and_counted(run, cohort):
    frame = pd.read_csv(cohort / "exams.csv")
    extra = frame.iloc[[0]].assign(exam_id="lost", modality="CXR")
    pd.concat([frame, extra]).to_csv(cohort / "exams.csv", index=False)
    code, out = run()
    assert code == 3
    flow = pd.read_csv(out / "cohort" / "flow.csv").set_index("step")
    assert flow.loc["embedding exists", "dropped"] == 1
    assert pd.read_csv(out / "failures.csv")["exam_id"].tolist() == ["lost"]


def test_claims_of_all_designs_are_one_family_and_read_the_plans_detectable_difference(run):
    """Three claims in two designs, one of non-inferiority: Holm counts three, and plan and evidence say one size."""
    first, second = BASE["designs"][0], {**BASE["designs"][0], "name": "again", "folds": 4}
    claims = [
        *BASE["hypotheses"],
        {"name": "H2", "claim": "c", "design": "again", "a": "ridge-head", "b": "cxr-only"},
        {"name": "H3", "claim": "no worse", "design": "again", "a": "ridge-head", "b": "cxr-only",
         "kind": "non-inferior", "margin": 0.3},
    ]  # fmt: skip
    code, out = run(designs=[first, second], hypotheses=claims)
    assert code == 0
    found = json.loads((out / "evidence.json").read_text())
    rows = [c for d in ("kfold", "again") for c in found["designs"][d]["comparisons"] if c["in_family"]]
    assert [r["claim"] for r in rows] == [
        "ridge-head > cxr-only", "ridge-head > cxr-only", "ridge-head >= cxr-only - 0.3",
    ]  # fmt: skip
    smallest = min(rows, key=lambda r: r["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p"]))
    assert smallest["holm_level"] == pytest.approx(0.05 / 3)
    plan = json.loads((out / "plan.json").read_text())["hypotheses"]
    for row, planned in zip(rows, plan, strict=True):
        assert planned["family"] == 3
        assert (row["min_detectable_delta"], row["min_detectable_delta_holm"]) == (
            planned["min_detectable_delta"], planned["min_detectable_delta_holm"],
        )  # fmt: skip
    statuses = {h["hypothesis"]: h["status"] for h in found["hypotheses"]}
    assert statuses["H3"] == rows[2]["verdict"]
    assert "ridge-head not worse than cxr-only by 0.3: " in (out / "summary.md").read_text()


def test_support_on_the_fixed_split_alone_is_tentative():
    row = {"a": "kd", "b": "cxr-only", "claim": "kd > cxr-only", "p": 0.01, "p_holm": 0.01, "delta": 0.1,
           "ci_low": 0.05, "ci_high": 0.2, "min_detectable_delta_holm": 0.04, "reason": None}  # fmt: skip
    evidence = {
        name: {"comparisons": [row | {"verdict": verdict}], "methods": []}
        for name, verdict in (("fixed", "supported"), ("pilot", "inconclusive"))
    }
    claims = [
        Hypothesis(name=f"H-{design}", claim="c", design=design, a="kd", b="cxr-only") for design in ("fixed", "pilot")
    ]
    table = hypothesis_table(claims, evidence, fixed=["fixed"])
    assert table["status"].tolist() == ["tentative on fixed split only", "inconclusive"]
