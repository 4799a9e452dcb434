from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from embedprior.config import load_config
from embedprior.errors import BadInput
from embedprior.evidence.schema import NOT_TESTABLE
from embedprior.students.base import CannotFit, Cases, FitData, Stage
from embedprior.study.config import Design, Hypothesis, StudyConfig
from embedprior.study.confounding import SourceOnly, label_conflicts, method_notes, source_by_label, within_source
from embedprior.study.evidence import balanced_accuracies, design_evidence, hypothesis_table, one_answer
from embedprior.study.run import refuse_unsuitable_methods

METHODS = ("cxr-only", "hinton-kd", "late-fusion")


def resampled(negatives: int, resamples: int = 4, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(1, resamples + 1):
        for method in METHODS:
            for i in range(6 + negatives):
                label = int(i < 6)
                score = float(1 / (1 + np.exp(-(rng.normal() + 0.5 * label))))
                rows.append((f"e{k}-{i}", f"p{k}-{i}", label, method, score, 0, 42, "test", k, "pilot"))
    columns = ["exam_id", "patient_id", "label", "method", "score", "fold", "seed", "split", "resample", "design"]
    return pd.DataFrame(rows, columns=columns)


def naive_auc(part: pd.DataFrame) -> float:
    positive, negative = (part.loc[part["label"] == v, "score"].to_numpy() for v in (1, 0))
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return float(np.mean(wins))


DESIGN = Design(name="pilot", split="resamples", methods=METHODS)
H1 = Hypothesis(name="H1", claim="c", design="pilot", a="hinton-kd", b="cxr-only")
H4 = Hypothesis(name="H4", claim="c", design="pilot", missing="modules are not built")


def test_one_negative_patient_a_resample_gives_a_mean_and_no_interval_with_the_reason():
    frame = resampled(negatives=1)
    evidence = design_evidence(frame, DESIGN, [H1, H4], ["late-fusion"], [])
    rows = {r["method"]: r for r in evidence["methods"]}
    for method in METHODS:
        per = [naive_auc(p[p["method"] == method]) for _, p in frame.groupby("resample")]
        assert rows[method]["auc_per_resample"] == pytest.approx(per)
        assert rows[method]["auc"] == pytest.approx(np.mean(per))
        assert rows[method]["sd_over_resamples"] == pytest.approx(np.std(per, ddof=1))
        assert rows[method]["ci_low"] is None
        assert rows[method]["ci_high"] is None
        assert "only 1 negative patient" in rows[method]["reason"]
        assert (rows[method]["n_pos"], rows[method]["n_neg"], rows[method]["n_patients"]) == (6, 1, 7)
    assert rows["late-fusion"]["oracle"] is True
    found = {(c["a"], c["b"]): c for c in evidence["comparisons"]}
    declared = found["hinton-kd", "cxr-only"]
    assert declared["in_family"] is True
    assert declared["p"] is None
    assert declared["verdict"] == NOT_TESTABLE
    assert declared["delta"] == pytest.approx(rows["hinton-kd"]["auc"] - rows["cxr-only"]["auc"])
    assert found["late-fusion", "cxr-only"]["in_family"] is False


def test_hypotheses_are_not_testable_with_the_reason_of_the_size():
    evidence = {"pilot": design_evidence(resampled(negatives=1), DESIGN, [H1, H4], ["late-fusion"], [])}
    table = hypothesis_table([H1, H4], evidence).set_index("hypothesis")
    assert set(table["status"]) == {"not testable at this size"}
    assert "only 1 negative patient" in table.loc["H1", "why"]
    assert table.loc["H4", "why"].startswith("modules are not built; and only 1 negative patient")


def test_hypothesis_in_a_large_design_gets_the_verdict_of_its_test():
    rng = np.random.default_rng(1)
    rows = []
    for i in range(600):
        label = i % 2
        for method, strength in (("cxr-only", 0.3), ("hinton-kd", 2.0), ("late-fusion", 2.0)):
            score = 1 / (1 + np.exp(-(strength * label + rng.normal())))
            rows.append((f"e{i}", f"p{i}", label, method, score, i % 5, 42, "test", 0, "pilot"))
    frame = pd.DataFrame(rows, columns=list(resampled(1, 1).columns))
    design = Design(name="pilot", split="kfold", methods=METHODS)
    evidence = {"pilot": design_evidence(frame, design, [H1], ["late-fusion"], [])}
    assert hypothesis_table([H1], evidence)["status"].tolist() == ["supported"]


def test_method_that_could_not_be_fitted_has_a_null_row_and_the_others_are_still_compared():
    frame = resampled(negatives=1)
    frame = frame[~((frame["method"] == "hinton-kd") & (frame["resample"] == 2))]
    record = {"design": "pilot", "method": "hinton-kd", "reason": "no CT teacher: only class 1"}
    evidence = design_evidence(frame, DESIGN, [H1], ["late-fusion"], [record])
    row = next(r for r in evidence["methods"] if r["method"] == "hinton-kd")
    assert row["auc"] is None
    assert row["reason"] == "not fitted in 1 of 4 folds: no CT teacher: only class 1"
    assert {r["method"] for r in evidence["methods"] if r["auc"] is not None} == {"cxr-only", "late-fusion"}
    table = hypothesis_table([H1], {"pilot": evidence})
    assert table["status"].tolist() == [NOT_TESTABLE]
    assert "hinton-kd: not fitted in 1 of 4 folds" in table["why"][0]
    assert evidence["family"] == [["hinton-kd", "cxr-only"]]


def test_a_claim_whose_method_failed_still_counts_in_holms_family():
    """Two claims declared, one method unscored in one case: the other's p is doubled, as when both had been tested."""
    rng = np.random.default_rng(5)
    label = np.arange(80) < 30
    common = rng.normal(size=80)
    rows = []
    for method, gain in (("cxr-only", 0.5), ("late-fusion", 1.3), ("hinton-kd", 0.9)):
        scores = common + rng.normal(size=80) + gain * label
        rows += [(f"e{i}", f"p{i}", int(label[i]), method, scores[i], 0, 42, "test", 0, "pilot") for i in range(80)]
    frame = pd.DataFrame(rows, columns=list(resampled(1, 1).columns))
    design = Design(name="pilot", split="kfold", methods=METHODS)
    claims = [Hypothesis(name=m, claim="c", design="pilot", a=m, b="cxr-only") for m in ("late-fusion", "hinton-kd")]
    evidence = design_evidence(frame.iloc[:-1], design, claims, [], [])
    whole, lost = evidence["comparisons"][:2]
    assert (whole["a"], lost["a"], lost["p"]) == ("late-fusion", "hinton-kd", None)
    assert whole["p_holm"] == pytest.approx(2 * whole["p"])
    assert "not every held-out case was scored" in lost["reason"]


def test_a_design_that_no_method_finished_has_reasons_and_no_numbers():
    frame = resampled(negatives=3, resamples=1)
    broken = frame[frame["exam_id"] != "e1-0"]
    broken = pd.concat([broken, frame[(frame["exam_id"] == "e1-0")].iloc[:0]])
    keep = [broken[broken["method"] == m].drop(broken[broken["method"] == m].index[i]) for i, m in enumerate(METHODS)]
    evidence = design_evidence(pd.concat(keep), DESIGN, [H1], ["late-fusion"], [])
    assert [r["auc"] for r in evidence["methods"]] == [None] * 3
    assert [(c["p"], c["verdict"]) for c in evidence["comparisons"]] == [(None, NOT_TESTABLE)]


def test_reason_names_the_class_that_is_short():
    for frame, words in (
        (resampled(1), "1 negative patient held out"),
        (resampled(1).assign(label=lambda f: 1 - f["label"]), "1 positive patient held out"),
    ):
        evidence = design_evidence(frame, DESIGN, [H1], ["late-fusion"], [])
        assert all(words in row["reason"] for row in evidence["methods"])


def test_notes_stand_beside_every_row_that_uses_ct():
    targets = pd.DataFrame({"label": [1, 0, 0, 0], "ct_label": [1, 1, 1, 1]})
    uses = {"cxr-only": False, "hinton-kd": True, "late-fusion": True}
    notes = method_notes(DESIGN, targets, uses)
    assert set(notes) == {"hinton-kd", "late-fusion"}
    assert all("all 3 negative pairs are positive on CT" in n for n in notes.values())
    some = method_notes(DESIGN, targets.assign(ct_label=[1, 1, 0, 0]), uses)
    assert "1 of 3 negative pairs" in some["hinton-kd"]
    assert method_notes(DESIGN, targets.assign(ct_label=[1, 0, 0, 0]), uses) == {}


def cases(ids, labels) -> Cases:
    y = np.array(labels, dtype=float)
    return Cases(ids, ids, y, np.zeros((len(ids), 2)), None, np.full(len(ids), np.nan))


def test_source_only_scores_by_the_training_share_of_the_source():
    sources = {"a": "A", "b": "A", "c": "B", "d": "B", "x": "A", "y": "B", "z": "new"}
    data = FitData((Stage(cases(list("abcd"), [1, 1, 0, 1]), cases([], [])),), None)
    scores = SourceOnly(sources).fit(data, 0).scores(cases(list("xyz"), [1, 0, 1]))
    assert scores == pytest.approx([(2 + 0.75) / 3, (1 + 0.75) / 3, 0.75])
    with pytest.raises(CannotFit):
        SourceOnly(sources).fit(FitData((Stage(cases(["a", "b"], [1, 1]), cases([], [])),), None), 0)


def test_inside_one_source_a_model_that_only_tells_sources_apart_is_at_chance():
    rng = np.random.default_rng(0)
    rows, sources = [], {}
    for i in range(400):
        source = "A" if i % 2 else "B"
        label = int(rng.random() < (0.9 if source == "A" else 0.1))
        sources[f"e{i}"] = source
        score = (0.8 if source == "A" else 0.2) + 0.1 * rng.random()
        rows.append((f"e{i}", f"p{i}", label, "cxr-only", score, i % 3, 42, "test", 0, "reference"))
    frame = pd.DataFrame(rows, columns=list(resampled(1, 1).columns))
    assert naive_auc(frame) > 0.85
    table = within_source(frame, "cxr-only", sources)
    assert table["source"].tolist() == ["A", "B"]
    for row in table.to_dict("records"):
        low, high = map(float, row["95 % CI"].split("–"))
        assert low < 0.5 < high
    assert within_source(frame.assign(label=1), "cxr-only", sources).empty


def test_source_table_counts():
    targets = pd.DataFrame({"source": list("AAB"), "patient_id": ["1", "1", "2"], "label": [1, 0, 0]})
    assert source_by_label(targets).to_dict("records") == [
        {"source": "A", "patients": 1, "X-rays": 2, "positive": 1, "negative": 1, "positive share": 0.5},
        {"source": "B", "patients": 1, "X-rays": 1, "positive": 0, "negative": 1, "positive share": 0.0},
    ]


def test_patients_with_both_labels_are_counted():
    exams = pd.DataFrame({"patient_id": list("1122"), "label:y": [1, 0, 1, np.nan]})
    assert label_conflicts(exams, "y") == 1


def test_shipped_configuration_is_the_protocol():
    config = load_config(StudyConfig, "covid_pilot", "study")
    pilot, reference = config.designs
    assert (pilot.resamples, pilot.positives, pilot.negatives, config.seed) == (8, 4, 1, 42)
    assert set(pilot.methods) == {"cxr-only", "late-fusion", "same-modality-kd", "hinton-kd", "prior"}
    assert (reference.cases, reference.split, reference.folds) == ("cxr", "kfold", 5)
    assert [h.name for h in config.hypotheses] == ["H1", "H2", "H3", "H4", "H5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("cxr-only", "hintn-kd")}, "Did you mean 'hinton-kd'"),
        ({"methods": ("hinton-kd",)}, "reference 'cxr-only' is not among"),
        ({"methods": ("cxr-only", "cxr-only")}, "names a method twice"),
        ({"methods": ("cxr-only",), "folds": 2, "validation": True}, "at least 3 folds"),
        ({"methods": ("cxr-only",), "split": "fixed", "repeats": 2}, "'repeats' belongs to split kfold"),
        ({"methods": ("cxr-only",), "split": "external"}, "names sites in 'external' or a folder in 'data'"),
    ],
)
def test_impossible_designs_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        study(designs=[{"name": "d", **changes}])


def test_method_that_uses_ct_is_refused_where_there_is_none():
    with pytest.raises(BadInput, match="'prior' uses CT and can't be in design 'd'"):
        refuse_unsuitable_methods(study(designs=[{"name": "d", "methods": ("cxr-only", "prior"), "cases": "cxr"}]))
    designs = [{"name": "d", "methods": ("cxr-only", "prior")}]
    with pytest.raises(BadInput, match="'prior' uses CT, but 'caches' names no CT cache"):
        refuse_unsuitable_methods(study(designs=designs, caches={"cxr": "caches/cxr"}))


def test_hypothesis_about_a_method_that_is_not_run_is_refused():
    with pytest.raises(ValidationError, match="does not run 'prior'"):
        study(hypotheses=(H1.model_copy(update={"a": "prior"}),))


def study(**changes) -> StudyConfig:
    return StudyConfig(**{"title": "t", "label": "y", "designs": (DESIGN,), **changes})


def test_fewer_than_three_seeds_need_a_published_protocol():
    assert study().fit_seeds == (42, 43, 44)
    with pytest.raises(ValidationError, match="2 seeds: give at least 3"):
        study(seeds=(1, 2))
    assert study(seeds=(42,), as_published="arXiv 2603.29167").fit_seeds == (42,)
    with pytest.raises(ValidationError, match="holds a seed twice"):
        study(seeds=(1, 1, 2))


def collapse_rows(scores: list[list[float]], labels: list[int], method: str = "m") -> pd.DataFrame:
    """One fit a fold."""
    parts = [
        pd.DataFrame(
            {"method": method, "resample": 0, "fold": fold, "seed": 0, "label": labels, "score": each}
        )
        for fold, each in enumerate(scores)
    ]  # fmt: skip
    return pd.concat(parts)


def test_a_method_with_one_answer_in_most_fits_is_named_with_its_answer() -> None:
    labels = [0] + [1] * 4
    high, mixed = [0.6, 0.7, 0.8, 0.9, 0.5], [0.1, 0.7, 0.8, 0.9, 0.9]
    (text,) = one_answer(collapse_rows([high, high, mixed], labels))
    assert text.startswith(
        "m collapsed to one answer: at .5 it calls 93 % of the held-out cases positive (nearly all alike in 2 of 3"
    )
    low = [[value / 2 - 0.01 for value in high]] * 2
    assert (
        "calls 100 % of the held-out cases negative (nearly all alike in 2 of 2"
        in one_answer(collapse_rows(low, labels))[0]
    )
    assert one_answer(collapse_rows([mixed, mixed, high], labels)) == []


def test_one_answer_is_no_finding_where_there_is_one_class() -> None:
    assert one_answer(collapse_rows([[0.9] * 20], [0] + [1] * 19)) == []
    assert len(one_answer(collapse_rows([[0.9] * 20], [0] * 2 + [1] * 18))) == 1


def test_a_control_that_means_to_give_one_score_has_not_collapsed() -> None:
    labels = [0] + [1] * 4
    constant, varied = (
        collapse_rows([[0.8] * 5], labels, "constant"),
        collapse_rows([[0.8, 0.9, 0.7, 0.6, 0.8]], labels),
    )
    both = pd.concat([constant, varied])
    assert [text.split()[0] for text in one_answer(both, ["constant", "m"])] == ["m"]
    assert one_answer(both) == [
        "2 methods collapsed to one answer (calls at .5 over all held-out cases, and fits in which nearly all are "
        "alike): constant (100 % positive, 1 of 1 fits); m (100 % positive, 1 of 1 fits)"
    ]


def test_balanced_accuracy_at_a_threshold_weighs_the_classes_alike_and_leaves_out_fits_of_one_class() -> None:
    one = {"resample": 1, "fold": 0, "seed": 0, "label": [0, 0, 0, 1], "score": [0.1, 0.2, 0.6, 0.8]}
    other = {"resample": 2, "fold": 0, "seed": 0, "label": [0, 1, 1, 1], "score": [0.5, 0.5, 0.4, 0.9]}
    lone = {"resample": 3, "fold": 0, "seed": 0, "label": [1, 1, 1, 1], "score": [0.1, 0.1, 0.1, 0.1]}
    rows = pd.concat([pd.DataFrame(part) for part in (one, other, lone)])
    found = balanced_accuracies(rows, [0.5, 0.7])
    first, second = (2 / 3 + 1) / 2, (0 + 2 / 3) / 2  # a score at the threshold is a positive answer
    assert found[0.5] == pytest.approx((first + second) / 2)
    assert found[0.7] == pytest.approx(((1 + 1) / 2 + (1 + 1 / 3) / 2) / 2)
    assert np.isnan(balanced_accuracies(pd.DataFrame(lone), [0.5])[0.5])
