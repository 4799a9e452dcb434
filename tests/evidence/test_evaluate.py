"""The whole evaluation: what it says, what it leaves undefined with a reason, and what it refuses."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from embedprior.evidence import EvidenceError, delong, evaluate_predictions
from embedprior.evidence.predictions import held_out_blocks


def table(
    methods: dict[str, float], n: int = 120, *, seed: int = 0, exams: int = 1, seeds: int = 1, prevalence: float = 0.4
) -> pd.DataFrame:
    """Long predictions: exam-level scores in (0, 1), label per patient, one row per exam, method and seed."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), exams)
    label = (np.arange(n) < round(prevalence * n)).astype(int)[patient]
    parts = []
    for name, shift in methods.items():
        trait = rng.normal(size=n)[patient]
        for s in range(seeds):
            raw = trait + 0.5 * rng.normal(size=patient.size) + shift * label
            parts.append(
                pd.DataFrame(
                    {
                        "exam_id": [f"e{i}" for i in range(patient.size)],
                        "patient_id": [f"p{i}" for i in patient],
                        "label": label,
                        "method": name,
                        "score": 1 / (1 + np.exp(-raw)),
                        "seed": s,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def schema() -> dict[str, Any]:
    text = resources.files("embedprior.evidence").joinpath("evidence.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def check(evidence: dict[str, Any]) -> dict[str, Any]:
    """Every evaluation of this file is plain JSON and fits the schema."""
    json.dumps(evidence, allow_nan=False)
    jsonschema.Draft202012Validator(schema()).validate(evidence)
    return evidence


def by_method(evidence: dict[str, Any], label: str | None = None) -> dict[str, dict[str, Any]]:
    return {r["method"]: r for r in evidence["methods"] if r["label_name"] == label}


def test_one_split_equals_delong_and_holm_by_hand() -> None:
    frame = table({"ref": 0.5, "a": 1.5, "b": 0.6})
    evidence = check(evaluate_predictions(frame, "ref"))
    scores = np.stack([frame[frame.method == m].score for m in ("ref", "a", "b")])
    joint = delong(frame[frame.method == "ref"].label, scores)
    rows = by_method(evidence)
    for i, m in enumerate(("ref", "a", "b")):
        assert rows[m]["auc"] == pytest.approx(joint.auc[i])
        assert rows[m]["se"] == pytest.approx(np.sqrt(joint.covariance[i, i]))
        assert (rows[m]["n_pos"], rows[m]["n_neg"], rows[m]["n_patients"]) == (48, 72, 120)
    first, second = evidence["comparisons"]
    assert (first["a"], first["b"]) == ("a", "ref")
    assert first["delta"] == pytest.approx(joint.auc[1] - joint.auc[0])
    low, high = sorted([first["p"], second["p"]])
    assert sorted([first["p_holm"], second["p_holm"]]) == pytest.approx([2 * low, max(high, 2 * low)])
    assert second["min_detectable_delta_holm"] > second["min_detectable_delta"]


def test_only_test_rows_are_scored_and_thresholds_come_from_validation() -> None:
    test = table({"ref": 0.8, "a": 1.2})
    val = table({"ref": 0.8, "a": 1.2}, seed=9).assign(split="val")
    val = val.assign(patient_id="v" + val.patient_id, exam_id="v" + val.exam_id)
    without = check(evaluate_predictions(test, "ref"))
    evidence = check(evaluate_predictions(pd.concat([test.assign(split="test"), val]), "ref"))
    assert by_method(evidence)["a"]["auc"] == by_method(without)["a"]["auc"]
    assert by_method(without)["a"]["metrics"]["sensitivity"]["value"] is None
    assert "no validation rows" in by_method(without)["a"]["metrics"]["sensitivity"]["reason"]
    mine = val[val.method == "a"]
    gain = {
        t: ((mine.score >= t) & (mine.label == 1)).sum() / (mine.label == 1).sum()
        + ((mine.score < t) & (mine.label == 0)).sum() / (mine.label == 0).sum()
        for t in mine.score
    }
    threshold = max(gain, key=lambda t: gain[t])
    cases = test[test.method == "a"]
    expected = ((cases.score >= threshold) & (cases.label == 1)).sum() / (cases.label == 1).sum()
    row = by_method(evidence)["a"]
    assert row["operating_point"]["thresholds"] == [pytest.approx(threshold)]
    assert row["metrics"]["sensitivity"]["value"] == pytest.approx(expected)
    assert row["metrics"]["sensitivity"]["ci_method"] == "wilson"


def test_a_declared_threshold_is_used_as_it_is() -> None:
    frame = table({"ref": 0.8, "a": 1.2})
    evidence = check(evaluate_predictions(frame, "ref", threshold=0.5))
    row, cases = by_method(evidence)["a"], frame[frame.method == "a"]
    assert row["operating_point"] == {"source": "declared", "thresholds": [0.5], "reason": None}
    assert row["metrics"]["accuracy"]["value"] == pytest.approx(((cases.score >= 0.5) == (cases.label == 1)).mean())


def test_folds_are_stratified_and_never_pooled() -> None:
    frame = table({"ref": 0.8, "a": 1.2})
    frame["fold"] = frame.exam_id.str[1:].astype(int) % 4
    shifted = frame.assign(score=frame.score + frame.fold)
    a, b = (by_method(check(evaluate_predictions(f, "ref")))["a"] for f in (frame, shifted))
    assert a["auc"] == pytest.approx(b["auc"])
    assert a["n_folds"] == 4
    parts, weights = [], []
    for f in range(4):
        part = frame[(frame.method == "a") & (frame.fold == f)]
        parts.append(float(delong(part.label, part.score).auc[0]))
        weights.append((part.label == 1).sum() * (part.label == 0).sum())
    assert a["auc"] == pytest.approx(np.average(parts, weights=weights))


def test_several_seeds_average_aucs_and_the_ensemble_is_its_own_row() -> None:
    frame = table({"ref": 0.5, "a": 1.0}, seeds=3)
    rows = by_method(check(evaluate_predictions(frame, "ref", seed_ensemble=True)))
    per_seed = [float(delong(p.label, p.score).auc[0]) for _, p in frame[frame.method == "a"].groupby("seed")]
    assert rows["a"]["auc"] == pytest.approx(np.mean(per_seed))
    assert rows["a"]["auc_per_seed"] == pytest.approx(per_seed)
    mean = frame[frame.method == "a"].groupby("exam_id", sort=False).agg({"label": "first", "score": "mean"})
    assert rows["a (seed ensemble)"]["auc"] == pytest.approx(float(delong(mean.label, mean.score).auc[0]))
    assert rows["a"]["df"] is not None


def test_one_seed_of_a_deterministic_reference_is_compared_with_every_seed() -> None:
    frame = table({"ref": 0.5, "a": 1.0}, seeds=3)
    frame = frame[(frame.method == "a") | (frame.seed == 0)]
    (row,) = check(evaluate_predictions(frame, "ref"))["comparisons"]
    assert row["p"] is not None
    assert "3 seeds" in row["test"]


def test_methods_trained_with_other_seeds_are_not_compared() -> None:
    frame = table({"ref": 0.5, "a": 1.0}, seeds=2)
    frame.loc[frame.method == "a", "seed"] += 5
    (row,) = check(evaluate_predictions(frame, "ref"))["comparisons"]
    assert row["p"] is None
    assert "same seeds" in row["reason"]
    assert row["verdict"] == "not testable at this size"


def test_exam_unit_clusters_the_variance_and_patient_unit_averages() -> None:
    frame = table({"ref": 0.6, "a": 1.0}, n=60, exams=4)
    exam = by_method(check(evaluate_predictions(frame, "ref", unit="exam")))["a"]
    cases = frame[frame.method == "a"]
    naive = np.sqrt(delong(cases.label, cases.score).covariance[0, 0])
    assert exam["se"] > 1.3 * naive
    assert (exam["n_cases"], exam["n_patients"]) == (240, 60)
    patient = by_method(check(evaluate_predictions(frame, "ref", unit="patient")))["a"]
    mean = cases.groupby("patient_id").agg({"label": "first", "score": "mean"})
    assert patient["auc"] == pytest.approx(float(delong(mean.label, mean.score).auc[0]))
    assert patient["n_cases"] == 60


def test_conflicting_labels_of_a_patient_need_a_declared_rule() -> None:
    frame = table({"ref": 0.6, "a": 1.0}, n=40, exams=2)
    frame.loc[frame.exam_id.isin(["e1", "e60"]), "label"] = [0, 1] * 2
    with pytest.raises(EvidenceError, match=r"different labels.*e0.*e1"):
        evaluate_predictions(frame, "ref")
    most = by_method(evaluate_predictions(frame, "ref", patient_label="max"))["a"]
    index = by_method(evaluate_predictions(frame, "ref", patient_label="index"))["a"]
    assert (most["n_pos"], index["n_pos"]) == (17, 17 if frame[frame.exam_id == "e60"].label.iloc[0] else 16)


def test_oracles_are_shown_but_not_in_the_family() -> None:
    evidence = check(evaluate_predictions(table({"ref": 0.5, "a": 1.0, "ct": 2.0}), "ref", oracles=["ct"]))
    assert evidence["family"] == [["a", "ref"]]
    row = next(r for r in evidence["comparisons"] if r["a"] == "ct")
    assert (row["in_family"], row["p_holm"], row["verdict"]) == (False, None, "exploratory")
    assert evidence["omnibus"][0]["methods"] == ["ref", "a"]


def test_declared_family_is_adjusted_alone() -> None:
    frame = table({"ref": 0.5, "a": 1.0, "b": 0.7})
    evidence = check(evaluate_predictions(frame, "ref", family=[("a", "b")]))
    first = evidence["comparisons"][0]
    assert (first["a"], first["b"], first["p_holm"]) == ("a", "b", first["p"])
    assert [r["p_holm"] for r in evidence["comparisons"][1:]] == [None, None]


@pytest.mark.parametrize(
    ("family", "words"),
    [([("a", "reff")], "Did you mean 'ref'"), ([("a", "a")], "itself"), ([("a", "ref"), ("ref", "a")], "twice")],
)
def test_impossible_families_are_refused(family: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        evaluate_predictions(table({"ref": 0.5, "a": 1.0}), "ref", family=family)


@pytest.mark.parametrize(
    ("keep", "words", "has_auc"),
    [([1] * 9, "only positives", False), ([1] + [0] * 8, "at least 2", True), ([1] * 3 + [0] * 6, None, True)],
)
def test_degenerate_cohorts_give_null_and_the_reason(keep: list[int], words: str | None, has_auc: bool) -> None:
    frame = table({"ref": 0.5, "a": 1.0}, n=9)
    frame["label"] = keep * 2
    row = by_method(check(evaluate_predictions(frame, "ref", bootstrap=50)))["a"]
    assert (row["auc"] is not None) == has_auc
    if words:
        assert (row["ci_low"], row["se"], words in row["reason"]) == (None, None, True)


def test_perfect_and_identical_methods() -> None:
    frame = table({"ref": 0.5})
    perfect = frame.assign(method="perfect", score=frame.label.astype(float))
    same = frame.assign(method="same")
    evidence = check(evaluate_predictions(pd.concat([frame, perfect, same]), "ref", bootstrap=50))
    row = by_method(evidence)["perfect"]
    assert (row["auc"], row["ci_high"], row["ci_low"]) == (1.0, 1.0, pytest.approx(0.05 ** (1 / 48)))
    assert "exactly 1" in row["reason"]
    twin = next(r for r in evidence["comparisons"] if r["a"] == "same")
    assert (twin["delta"], twin["p"], twin["verdict"]) == (0.0, 1.0, "not testable at this size")
    assert "identically" in twin["reason"]


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    frame = table({"ref": 0.5, "a": 1.0})
    frame["score"] = frame.score * 10 - 3
    row = by_method(check(evaluate_predictions(frame, "ref")))["a"]
    for name in ("brier", "calibration_slope", "ece_10_bins"):
        assert row["metrics"][name]["value"] is None
        assert "[0, 1]" in row["metrics"][name]["reason"]
    assert row["reliability"] is None


def test_unknown_labels_are_left_out_and_counted() -> None:
    frame = table({"ref": 0.5, "a": 1.0})
    frame["label"] = frame.label.astype(float)
    frame.loc[frame.exam_id.isin(["e3", "e100", "e101"]), "label"] = np.nan
    evidence = check(evaluate_predictions(frame, "ref"))
    assert evidence["n_unknown_labels"] == 3
    assert (by_method(evidence)["a"]["n_pos"], by_method(evidence)["a"]["n_neg"]) == (47, 70)


def two_labels() -> pd.DataFrame:
    frame = table({"ref": 0.6, "a": 1.2})
    shifted = frame.assign(label_name="effusion", label=1 - frame.label, score=1 - frame.score)
    return pd.concat([frame.assign(label_name="embolism"), shifted], ignore_index=True)


def test_macro_of_a_label_and_its_mirror_is_the_label_itself() -> None:
    """Swapping label and score leaves the AUC as it is, so the macro mean has the AUC and the variance of one label."""
    evidence = check(evaluate_predictions(two_labels(), "ref", micro=True))
    one, macro = by_method(evidence, "embolism")["a"], by_method(evidence, "macro")["a"]
    assert macro["auc"] == pytest.approx(one["auc"])
    assert macro["se"] == pytest.approx(one["se"], rel=0.02)
    assert any("micro" in w for w in evidence["warnings"])
    assert by_method(evidence, "micro")["a"]["auc"] is not None
    assert evidence["comparisons"][0]["min_detectable_delta_holm"] > evidence["comparisons"][0]["min_detectable_delta"]


def test_macro_of_a_label_without_positives_is_undefined_with_the_label_named() -> None:
    frame = two_labels()
    frame.loc[frame.label_name == "effusion", "label"] = 0
    macro = by_method(check(evaluate_predictions(frame, "ref")), "macro")["a"]
    assert macro["auc"] is None
    assert "effusion" in macro["reason"]


def resamples(j: int = 6) -> pd.DataFrame:
    return pd.concat(
        [table({"ref": 0.4, "a": 1.4}, 40, seed=r).assign(resample=r) for r in range(j)], ignore_index=True
    )


def test_resamples_use_the_corrected_test_and_need_the_training_size() -> None:
    frame = resamples()
    without = check(evaluate_predictions(frame, "ref"))["comparisons"][0]
    assert without["p"] is None
    assert "train_size" in without["reason"]
    evidence = check(evaluate_predictions(frame, "ref", train_size=160))
    (row,) = evidence["comparisons"]
    d = []
    for _, part in frame.groupby("resample"):
        aucs = {m: float(delong(p.label, p.score).auc[0]) for m, p in part.groupby("method")}
        d.append(aucs["a"] - aucs["ref"])
    se = np.sqrt((1 / 6 + 40 / 160) * np.var(d, ddof=1))
    assert row["delta"] == pytest.approx(np.mean(d))
    assert row["z"] == pytest.approx(np.mean(d) / se)
    assert row["per_resample"] == pytest.approx(d)
    assert evidence["resamples"]["rank_stability"][0]["n_resamples"] == 6
    assert len(evidence["resamples"]["rows"]) == 12
    undefined = by_method(evidence)["a"]["metrics"]["sensitivity"]
    assert undefined["value"] is None
    assert undefined["reason"].startswith("undefined in every resample: no validation rows")


def test_training_size_is_counted_from_train_rows() -> None:
    frame = resamples().assign(split="test")
    train = pd.concat([table({"ref": 0.4}, 100, seed=r).assign(resample=r, split="train") for r in range(6)])
    train["patient_id"] = "t" + train["patient_id"]
    evidence = check(evaluate_predictions(pd.concat([frame, train]), "ref"))
    assert evidence["resamples"]["train_size"] == 100


def test_a_resample_with_one_class_is_left_out_and_said() -> None:
    frame = resamples()
    frame.loc[frame["resample"] == 2, "label"] = 1
    evidence = check(evaluate_predictions(frame, "ref", train_size=160))
    assert by_method(evidence)["a"]["n_resamples_defined"] == 5
    assert "1 of 6" in by_method(evidence)["a"]["reason"]


def test_subgroups_are_described_with_bands_for_age() -> None:
    frame = table({"ref": 0.5, "a": 1.0})
    number = frame.exam_id.str[1:].astype(int)
    frame["view"] = np.where(number % 3 == 0, "AP", "PA")
    frame["age"] = np.where(number % 2 == 0, 35.0, 61.0)
    evidence = check(evaluate_predictions(frame, "ref", subgroups=["view", "age"]))
    found = {(r["column"], r["subgroup"], r["method"]): r for r in evidence["subgroups"]}
    part = frame[(frame.view == "AP") & (frame.method == "a")]
    assert found["view", "AP", "a"]["auc"] == pytest.approx(float(delong(part.label, part.score).auc[0]))
    assert {k[1] for k in found if k[0] == "age"} == {"<40", "60-79"}
    with pytest.raises(EvidenceError, match="Did you mean 'view'"):
        evaluate_predictions(frame, "ref", subgroups=["vieww"])


def test_bootstrap_gives_intervals_and_repeats_exactly() -> None:
    frame = table({"ref": 0.5, "a": 1.0}, n=60)
    first, second = (evaluate_predictions(frame, "ref", bootstrap=200, threshold=0.5) for _ in range(2))
    assert first == check(second)
    row = by_method(first)["a"]
    for name in ("pr_auc", "balanced_accuracy", "macro_f1", "ece_10_bins"):
        entry = row["metrics"][name]
        assert entry["ci_low"] < entry["value"] < entry["ci_high"] or name == "ece_10_bins"
    assert row["metrics"]["roc_auc_bootstrap"]["se"] == pytest.approx(row["se"], rel=0.25)
    off = by_method(evaluate_predictions(frame, "ref"))["a"]["metrics"]["pr_auc"]
    assert (off["ci_low"], off["reason"]) == (None, "no interval: the bootstrap is off")


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    one = evaluate_predictions(table({"ref": 0.5, "a": 1.0}), "ref", bootstrap=20, threshold=0.5, margin=0.05)
    many = evaluate_predictions(resamples(), "ref", train_size=160)
    names = set(one) | set(one["methods"][0]) | set(one["methods"][0]["metrics"]) | set(one["comparisons"][0])
    names |= set(many["comparisons"][0]) | set(many["resamples"]) | set(one["comparisons"][0]["metrics"])
    names -= {"schema_version", "method", "label_name", "a", "b"}
    assert not {n for n in names if f"`{n}`" not in text and f"`{n}[]`" not in text}


def test_patients_who_choose_thresholds_or_train_are_not_tested_in_the_same_fold() -> None:
    """All 40 test patients are validation (training) patients too: they are named, and nothing is evaluated."""
    test = table({"ref": 0.8, "a": 1.2}, n=40).assign(split="test")
    for part in ("val", "train"):
        with pytest.raises(EvidenceError, match=rf"40 patients are in '{part}' and in 'test'.*'p0'"):
            evaluate_predictions(pd.concat([test, test.assign(split=part)]), "ref")
    number = test.exam_id.str[1:].astype(int)
    folds = pd.concat([test.assign(fold=number % 4), test.assign(fold=(number + 1) % 4, split="val")])
    assert evaluate_predictions(folds, "ref")["methods"][0]["operating_point"]["thresholds"] is not None
    folds.loc[(folds.split == "val") & (folds.patient_id == "p7"), "fold"] = 3
    with pytest.raises(EvidenceError, match=r"1 patients are in 'val' and in 'test' of one fold, e.g. 'p7'"):
        evaluate_predictions(folds, "ref")


def test_index_exam_gives_label_and_score() -> None:
    frame = pd.DataFrame(
        {"exam_id": ["a1", "a2", "b1", "c1"], "patient_id": ["A", "A", "B", "C"], "label": [0, 1, 1, 0],
         "method": "m", "score": [0.1, 0.9, 0.8, 0.2]}
    )  # fmt: skip
    (block,) = held_out_blocks(frame, "patient", "index")
    assert (block.labels.tolist(), block.scores["m"].tolist()) == ([False, True, False], [[0.1, 0.8, 0.2]])


def test_methods_that_differ_by_case_alone_are_said() -> None:
    evidence = check(evaluate_predictions(table({"cxr": 0.5, "Cxr": 1.0}), "cxr"))
    assert any("cxr and Cxr" in w for w in evidence["warnings"])


def validated() -> pd.DataFrame:
    val = table({"ref": 0.8, "a": 1.6}, seed=9).assign(split="val")
    val = val.assign(patient_id="v" + val.patient_id, exam_id="v" + val.exam_id)
    return pd.concat([table({"ref": 0.8, "a": 1.6}).assign(split="test"), val])


def test_sensitivity_and_specificity_are_compared_by_mcnemar_at_validation_thresholds() -> None:
    frame = validated()
    (row,) = check(evaluate_predictions(frame, "ref"))["comparisons"]
    cases, found = frame[frame.split == "test"], by_method(evaluate_predictions(frame, "ref"))
    right = {}
    for m in ("ref", "a"):
        (threshold,) = found[m]["operating_point"]["thresholds"]
        own = cases[(cases.method == m) & (cases.label == 1)]
        right[m] = (own.score >= threshold).to_numpy()
    only_a, only_ref = (right["a"] & ~right["ref"]).sum(), (~right["a"] & right["ref"]).sum()
    got = row["metrics"]["sensitivity"]
    assert got["delta"] == pytest.approx(right["a"].mean() - right["ref"].mean())
    assert got["p"] == pytest.approx(stats.binomtest(only_a, only_a + only_ref).pvalue)
    assert got["test"] == "exact McNemar"
    without = check(evaluate_predictions(cases, "ref"))["comparisons"][0]["metrics"]["sensitivity"]
    assert (without["delta"], "no operating point" in without["reason"]) == (None, True)


def test_clustered_and_brier_differences_are_those_of_patient_means() -> None:
    frame = table({"ref": 0.6, "a": 1.4}, n=60, exams=3)
    (row,) = check(evaluate_predictions(frame, "ref", unit="exam", threshold=0.5))["comparisons"]
    wide = frame.pivot(index=["patient_id", "exam_id", "label"], columns="method", values="score").reset_index()
    error = (wide["a"] - wide["label"]) ** 2 - (wide["ref"] - wide["label"]) ** 2
    each = error.groupby(wide["patient_id"]).mean()  # equal numbers of exams: the mean over patients
    expected = stats.ttest_1samp(each, 0)
    got = row["metrics"]["brier"]
    assert (got["delta"], got["p"]) == (pytest.approx(error.mean()), pytest.approx(expected.pvalue))
    positive = wide[wide["label"] == 1]
    gain = ((positive["a"] >= 0.5).astype(float) - (positive["ref"] >= 0.5)).groupby(positive["patient_id"]).mean()
    got = row["metrics"]["sensitivity"]
    assert (got["delta"], got["p"]) == (pytest.approx(gain.mean()), pytest.approx(stats.ttest_1samp(gain, 0).pvalue))
    assert got["test"] == "patient-clustered t"


def test_differences_of_pr_auc_and_partial_auc_are_bootstrapped() -> None:
    frame = table({"ref": 0.4, "a": 1.8}, n=100)
    evidence = check(evaluate_predictions(frame, "ref", bootstrap=400))
    metrics, rows = evidence["comparisons"][0]["metrics"], by_method(evidence)
    for name in ("pr_auc", "partial_auc_fpr_0.1"):
        assert metrics[name]["delta"] == pytest.approx(
            rows["a"]["metrics"][name]["value"] - rows["ref"]["metrics"][name]["value"]
        )
        assert metrics[name]["ci_low"] < metrics[name]["delta"] < metrics[name]["ci_high"]
    off = evaluate_predictions(frame, "ref")["comparisons"][0]["metrics"]["pr_auc"]
    assert (off["ci_low"], off["reason"]) == (None, "no interval: the bootstrap is off")


def test_clopper_pearson_and_another_prevalence_on_request() -> None:
    frame = validated()
    rows = by_method(check(evaluate_predictions(frame, "ref", proportions="clopper-pearson", prevalence=0.05)))
    metrics = rows["a"]["metrics"]
    sensitivity, specificity = metrics["sensitivity"], metrics["specificity"]
    assert sensitivity["ci_method"] == "clopper-pearson"
    k = round(sensitivity["value"] * 48)
    exact = stats.binomtest(k, 48).proportion_ci(method="exact")
    assert (sensitivity["ci_low"], sensitivity["ci_high"]) == pytest.approx((exact.low, exact.high))
    right = sensitivity["value"] * 0.05
    wrong = (1 - specificity["value"]) * 0.95
    assert metrics["ppv_at_prevalence_0.05"]["value"] == pytest.approx(right / (right + wrong))


def test_sensitivity_of_one_with_several_exams_a_patient_is_bounded_by_patients() -> None:
    frame = table({"ref": 0.6, "a": 1.0}, n=40, exams=3).assign(score=lambda f: 0.2 + 0.6 * f.label)
    row = by_method(check(evaluate_predictions(frame, "ref", unit="exam", threshold=0.5, bootstrap=20)))["a"]
    found = row["metrics"]["sensitivity"]
    assert (found["value"], found["ci_low"], found["ci_high"]) == (1.0, pytest.approx(0.05 ** (1 / 16)), 1.0)


def test_difference_within_subgroups_and_their_interaction() -> None:
    """Two halves of the patients: chi-square of independent differences, by hand."""
    frame = table({"ref": 0.5, "a": 1.5}, n=160)
    number = frame.exam_id.str[1:].astype(int)
    frame["sex"] = np.where(number % 2 == 0, "f", "m")
    evidence = check(evaluate_predictions(frame, "ref", subgroups=["sex"]))
    (found,) = evidence["subgroup_comparisons"]
    deltas, variances = [], []
    for sex, row in zip("fm", found["subgroups"], strict=True):
        part = frame[frame.sex == sex]
        joint = delong(part[part.method == "a"].label, np.stack([part[part.method == m].score for m in ("a", "ref")]))
        c = joint.covariance
        deltas.append(joint.auc[0] - joint.auc[1])
        variances.append(c[0, 0] + c[1, 1] - 2 * c[0, 1])
        assert (row["subgroup"], row["delta"]) == (sex, pytest.approx(deltas[-1]))
    chi2 = (deltas[0] - deltas[1]) ** 2 / sum(variances)
    assert found["interaction"]["chi2"] == pytest.approx(chi2)
    assert found["interaction"]["p"] == pytest.approx(stats.chi2.sf(chi2, 1))


def test_patients_in_two_subgroups_are_not_counted_as_independent() -> None:
    """The same exams as AP and as PA: both differences are one, and so is the interaction's p."""
    frame = table({"ref": 0.5, "a": 1.5}, n=80)
    both = pd.concat([frame.assign(view="AP"), frame.assign(view="PA", exam_id="x" + frame.exam_id)])
    (found,) = evaluate_predictions(both, "ref", unit="exam", subgroups=["view"])["subgroup_comparisons"]
    assert found["interaction"]["p"] == pytest.approx(1.0)


def test_decision_curve_has_a_band_that_is_the_mean_of_cases() -> None:
    frame = table({"ref": 0.8})
    point = check(evaluate_predictions(frame, "ref"))["methods"][0]["decision_curve"][19]
    t = point["threshold"]
    called = frame.score >= t
    gain = np.where(frame.label == 1, called, -t / (1 - t) * called)
    half = 1.959963984540054 * gain.std(ddof=1) / np.sqrt(120)
    assert (point["net_benefit"], point["ci_low"]) == (pytest.approx(gain.mean()), pytest.approx(gain.mean() - half))


def test_test_over_folds_that_pays_for_training_stands_beside() -> None:
    frame = table({"ref": 0.5, "a": 1.5})
    frame["fold"] = frame.exam_id.str[1:].astype(int) % 5
    (row,) = check(evaluate_predictions(frame, "ref"))["comparisons"]
    d = []
    for _, part in frame.groupby("fold"):
        aucs = [float(delong(p.label, p.score).auc[0]) for p in (part[part.method == m] for m in ("a", "ref"))]
        d.append(aucs[0] - aucs[1])
    t = np.mean(d) / np.sqrt((1 / 5 + 1 / 4) * np.var(d, ddof=1))
    assert row["corrected"]["t"] == pytest.approx(t)
    assert row["corrected"]["p"] == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert check(evaluate_predictions(frame.drop(columns="fold"), "ref"))["comparisons"][0]["corrected"] is None


def test_one_method_alone_has_an_interval_and_no_comparison() -> None:
    evidence = check(evaluate_predictions(table({"ref": 1.0}), "ref", bootstrap=20))
    assert evidence["comparisons"] == []
    assert evidence["methods"][0]["ci_low"] is not None
    assert evidence["omnibus"][0]["p"] is None


def test_constant_scores_have_no_interval() -> None:
    row = check(evaluate_predictions(table({"ref": 1.0}).assign(score=0.5), "ref", bootstrap=20))["methods"][0]
    assert (row["auc"], row["ci_low"]) == (0.5, None)
    assert "do not vary" in row["reason"]


def test_a_label_nobody_knows_is_undefined_everywhere() -> None:
    row = check(evaluate_predictions(table({"ref": 1.0}).assign(label=np.nan), "ref", bootstrap=20))["methods"][0]
    assert row["auc"] is None
    assert {m["value"] for m in row["metrics"].values()} == {None}


def test_folds_of_one_class_form_no_pairs_and_are_said() -> None:
    frame = table({"ref": 1.0})
    frame["fold"] = np.where(frame.label == 1, np.arange(120) % 2, np.arange(120) % 2 * 2)
    evidence = check(evaluate_predictions(frame, "ref"))
    inside = frame[frame.fold == 0]
    assert evidence["methods"][0]["auc"] == pytest.approx(float(delong(inside.label, inside.score).auc[0]))
    assert any("2 folds hold one class" in w for w in evidence["warnings"])


def test_an_auc_of_zero_in_every_resample_is_not_certain() -> None:
    frame = resamples(3)
    frame["score"] = 1.0 - frame.label
    row = check(evaluate_predictions(frame, "ref", train_size=160))["methods"][0]
    assert (row["auc"], row["ci_low"], row["ci_high"]) == (0.0, None, None)


def test_macro_of_labels_known_for_different_patients_counts_everyone() -> None:
    """The mean over two labels whose AUCs are independent has half the sum of their variances, a quarter each."""
    rng = np.random.default_rng(0)
    tables = []
    for label, start in (("embolism", 0), ("effusion", 200)):
        truth = np.arange(120) % 2
        for method in ("ref", "a"):
            ids = [f"p{start + i}" for i in range(120)]
            score = rng.normal(size=120) + truth
            tables.append(
                pd.DataFrame({"exam_id": ids, "patient_id": ids, "label": truth, "method": method, "score": score,
                              "label_name": label})
            )  # fmt: skip
    evidence = check(evaluate_predictions(pd.concat(tables[:2] + [t.iloc[:90] for t in tables[2:]]), "ref"))
    parts = [by_method(evidence, label)["a"] for label in ("embolism", "effusion")]
    macro = by_method(evidence, "macro")["a"]
    assert macro["auc"] == pytest.approx(np.mean([row["auc"] for row in parts]))
    assert macro["se"] == pytest.approx(np.sqrt(sum(row["se"] ** 2 for row in parts)) / 2, rel=1e-6)
    assert (parts[1]["n_patients"], macro["n_patients"]) == (90, 210)


def binormal_detectable(m: int, n: int) -> float:
    """The equation of the power written out: the chance that two positives score above one negative, as an integral."""

    def variance(auc: float) -> float:
        z = stats.norm.ppf(auc)
        both = stats.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([z, z])
        return (auc * (1 - auc) + (m + n - 2) * (both - auc**2)) / (m * n)

    def lacking(delta: float) -> float:
        one, other = variance(0.8), variance(0.8 + delta)
        se = np.sqrt(one + other - 2 * 0.5 * np.sqrt(one * other))
        return float((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * se - delta)

    return float(optimize.brentq(lacking, 1e-6, 0.199))


def labels_of_sizes(sizes: dict[str, tuple[int, int]], resamples: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    tables = []
    for label, (m, n) in sizes.items():
        truth, ids = np.repeat([1, 0], [m, n]), [f"p{i}" for i in range(m + n)]
        for resample in range(resamples):
            for method, shift in (("ref", 0.5), ("a", 1.5)):
                score = rng.normal(size=m + n) + shift * truth
                columns = {"exam_id": ids, "patient_id": ids, "label": truth, "method": method, "score": score}
                tables.append(pd.DataFrame({**columns, "label_name": label, "resample": resample}))
    return pd.concat(tables) if resamples > 1 else pd.concat(tables).drop(columns="resample")


def claim_on(evidence: dict[str, Any], label: str) -> dict[str, Any]:
    return next(c for c in evidence["comparisons"] if c["label_name"] == label)


@pytest.mark.parametrize("order", [("common", "rare"), ("rare", "common")])
def test_detectable_difference_of_a_macro_mean_counts_every_label(order: tuple[str, str]) -> None:
    sizes = {"common": (150, 150), "rare": (30, 270)}
    found = check(evaluate_predictions(labels_of_sizes({name: sizes[name] for name in order}), "ref"))
    each = [binormal_detectable(*sizes[name]) for name in order]
    assert [claim_on(found, name)["min_detectable_delta"] for name in order] == pytest.approx(each, rel=1e-4)
    assert claim_on(found, "macro")["min_detectable_delta"] == pytest.approx(np.mean(each), rel=1e-4)


def test_macro_mean_with_a_label_of_few_patients_is_not_testable_whichever_label_comes_first() -> None:
    sizes = {"common": (3000, 3000), "rare": (4, 5996)}
    for names in (("common", "rare"), ("rare", "common")):
        found = check(evaluate_predictions(labels_of_sizes({name: sizes[name] for name in names}), "ref"))
        assert claim_on(found, "common")["verdict"] == "supported"
        assert claim_on(found, "rare")["min_detectable_delta"] is None
        assert claim_on(found, "macro")["min_detectable_delta"] is None
        # the interval does not lie beyond the relevant difference: nothing is concluded at this size
        limits = claim_on(found, "macro")["ci_low_holm"]
        assert claim_on(found, "macro")["verdict"] == ("supported" if limits >= 0.05 else "not testable at this size")


def test_detectable_difference_of_a_macro_mean_over_resamples_is_the_mean_of_the_labels() -> None:
    frame = labels_of_sizes({"common": (150, 150), "rare": (60, 240)}, resamples=4)
    found = check(evaluate_predictions(frame, "ref", train_size=600))
    each = [claim_on(found, name)["min_detectable_delta"] for name in ("common", "rare")]
    assert each[1] > each[0] + 0.01
    assert claim_on(found, "macro")["min_detectable_delta"] == pytest.approx(np.mean(each))
