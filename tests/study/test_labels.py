"""Several labels in one plan: shared patients and priors, evidence a label and their mean, one family of claims."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from embedprior.cohort.splits import multilabel_parts
from embedprior.evidence import delong_test
from embedprior.study.config import StudyConfig
from embedprior.study.variants import variants

from .conftest import BASE, change, refusal, write_cohort

LABELS = ["nodule", "effusion", "rare"]
METHODS = ["cxr-only", "ridge-head", "prior"]
DESIGN = {"name": "kfold", "split": "kfold", "folds": 3, "validation": True, "methods": METHODS}
CLAIMS = [
    {"name": "H1", "claim": "CT helps", "design": "kfold", "a": "ridge-head", "b": "cxr-only"},
    {"name": "H2", "claim": "the prior helps", "design": "kfold", "a": "prior", "b": "cxr-only"},
]


def plant(folder: Path) -> None:
    """Add a label that is unknown for every seventh patient, and one of a single positive patient."""
    number = pd.read_csv(folder / "exams.csv")["patient_id"].str[1:].astype(int)
    effusion = np.where(number % 7 == 0, np.nan, (number % 3 == 0).astype(float))
    change(folder, **{"label:effusion": lambda f: effusion, "label:rare": lambda f: (number == 0).astype(float)})


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    folder = write_cohort(tmp_path / "planted", patients=60)
    plant(folder)
    return folder


@pytest.fixture
def several(run, planted):
    """Run a command on the planted cohort with several labels."""

    def call(*more, **changes):
        return run(*more, data=planted, **{"label": "", "labels": LABELS, "designs": [DESIGN], "hypotheses": CLAIMS,
                                           **changes})  # fmt: skip

    return call


def test_one_plan_of_three_labels_holds_out_the_same_patients_and_tests_each(several, planted, capsys):
    code, out = several()
    assert code == 0
    plan = json.loads((out / "plan.json").read_text())
    splits, exams = pd.read_csv(out / "cohort" / "splits.csv"), pd.read_csv(planted / "exams.csv")
    assert splits["design"].unique().tolist() == ["kfold"]  # one table for all labels
    rows = pd.read_csv(out / "predictions.csv")
    assert rows["label_name"].unique().tolist() == ["nodule", "effusion"]
    assert rows["design"].unique().tolist() == ["kfold@label=nodule", "kfold@label=effusion"]
    test = rows[rows["split"] == "test"]
    held = {f: set(part["patient_id"]) for f, part in splits[splits["part"] == "test"].groupby("fold")}
    truth = exams[exams["modality"] == "CXR"].set_index("exam_id")
    for (label, fold, method), part in test.groupby(["label_name", "fold", "method"]):
        known = truth[truth["patient_id"].isin(held[fold]) & truth[f"label:{label}"].notna()]
        assert sorted(part["exam_id"]) == sorted(known.index), (label, fold, method)
        assert part["label"].tolist() == truth.loc[part["exam_id"], f"label:{label}"].astype(int).tolist()
    # the label of one positive patient is in the plan, is not fitted, and is said
    designs = {d["design"]: d for d in plan["designs"]}
    assert designs["kfold@label=rare"]["held_out_pos"] == 1
    assert not [f for f in plan["fits"] if f["design"] == "kfold@label=rare"]
    said = [h["reason"] for h in plan["hypotheses"] if h["design"] == "kfold@label=rare"]
    assert len(said) == 2
    assert all(
        reason.startswith("1 positive and 59 negative patients: no positive one trains in fold ") for reason in said
    )
    assert f"kfold: rare can't be tested: {said[0]}" in capsys.readouterr().out


def test_auc_and_difference_of_a_label_are_those_of_its_own_scores(several):
    _, out = several()
    rows = pd.read_csv(out / "predictions.csv")
    evidence = json.loads((out / "evidence.json").read_text())["designs"]
    assert set(evidence) == {f"kfold@label={name}" for name in [*LABELS, "macro"]}
    means = {method: [] for method in METHODS}
    for label in ("nodule", "effusion"):
        own = evidence[f"kfold@label={label}"]
        wide = rows[(rows["split"] == "test") & (rows["label_name"] == label)].pivot(
            index=["patient_id", "label", "fold"], columns="method", values="score"
        )
        truth, folds = wide.index.get_level_values("label"), wide.index.get_level_values("fold")
        for method in METHODS:
            within = [
                (roc_auc_score(part.index.get_level_values("label"), part[method]),
                 np.prod(np.bincount(part.index.get_level_values("label"))))
                for _, part in wide.groupby("fold")
            ]  # fmt: skip
            auc = np.average([a for a, _ in within], weights=[w for _, w in within])
            row = next(m for m in own["methods"] if m["method"] == method)
            assert row["auc"] == pytest.approx(auc, abs=1e-12)
            assert row["label_name"] == label
            means[method].append(auc)
        found = delong_test(truth, wide["ridge-head"], wide["cxr-only"], folds=folds)
        row = next(c for c in own["comparisons"] if c["a"] == "ridge-head")
        assert (row["delta"], row["se"], row["p"]) == pytest.approx((found.delta, found.se, found.p), rel=1e-9)
    for row in evidence["kfold@label=macro"]["methods"]:
        assert row["auc"] == pytest.approx(np.mean(means[row["method"]]), abs=1e-12)
        assert row["label_name"] == "macro"


def test_holm_adjusts_over_all_labels_their_mean_and_all_claims(several):
    _, out = several()
    evidence = json.loads((out / "evidence.json").read_text())["designs"]
    family = [c for own in evidence.values() for c in own["comparisons"] if c["in_family"]]
    assert len(family) == 2 * (len(LABELS) + 1)
    p = [1.0 if c["p"] is None else c["p"] for c in family]  # what could not be tested counts
    # closed testing: a claim holds when every set of claims around it is rejected by Bonferroni
    sets = [s for n in range(1, 9) for s in itertools.combinations(range(8), n)]
    adjusted = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(8)]
    tested = [(c["p_holm"], a) for c, a in zip(family, adjusted, strict=True) if c["p"] is not None]
    assert len(tested) == 6
    assert [found for found, _ in tested] == pytest.approx([a for _, a in tested])
    plan = json.loads((out / "plan.json").read_text())
    assert {h["family"] for h in plan["hypotheses"]} == {8}
    assert [h["design"] for h in plan["hypotheses"] if h["name"] == "H1"] == [
        f"kfold@label={name}" for name in [*LABELS, "macro"]
    ]
    by = {h["design"]: h for h in plan["hypotheses"] if h["name"] == "H1"}
    each = [by[f"kfold@label={name}"]["min_detectable_delta"] for name in ("nodule", "effusion")]
    assert by["kfold@label=macro"]["min_detectable_delta"] == pytest.approx(np.mean(each))


def test_a_prior_is_trained_once_for_all_labels(several):
    _, out = several()
    stages, folds, seeds = 2, 3, 1
    # the stage on DRRs holds out nobody, so folds share it
    assert len(list((out / "artifacts" / "prior").iterdir())) == seeds * (folds + stages - 1)
    fits = [json.loads(p.read_text()) for p in (out / "artifacts" / "fit").glob("*/artifact.json")]
    assert sum(f["config"]["row"] == "prior" for f in fits) == 2 * folds * seeds


def test_a_label_more_refits_nothing_of_the_others(several, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDPRIOR_HOME", str(tmp_path / "home"))
    root = tmp_path / "home" / "artifacts"
    _, one = several(labels=["nodule", "rare"], out="one")
    before = {p.name for p in root.glob("*/*")}
    _, two = several(labels=["effusion", "nodule", "rare"], out="two")
    added = {p for p in root.glob("[!.]*/*") if p.name not in before}
    assert {p.parent.name for p in added} == {"fit", "teacher"}
    assert sum(p.parent.name == "fit" for p in added) == 3 * len(METHODS)
    scores = [pd.read_csv(out / "predictions.csv", dtype=str) for out in (one, two)]
    old, new = (f[f["label_name"] == "nodule"].reset_index(drop=True) for f in scores)
    pd.testing.assert_frame_equal(old, new)
    splits = [(out / "cohort" / "splits.csv").read_bytes() for out in (one, two)]
    assert splits[0] == splits[1]
    hashes = [json.loads((out / "plan.json").read_text())["hash"] for out in (one, two)]
    assert hashes[0] != hashes[1]


def test_label_set_is_read_by_name_and_its_definition_is_in_the_plan(several, planted, tmp_path):
    text = (
        "name: mine\nsource: a test\nlabels: [nodule, any]\nmade_of:\n  other:\n    nodule: [nodule]\n    any: [{}]\n"
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.format("nodule, effusion"))
    code, out = several(labels=str(mine))
    assert code == 0
    plan = json.loads((out / "plan.json").read_text())
    assert [d["design"] for d in plan["designs"]] == ["kfold@label=nodule", "kfold@label=any"]
    exams = pd.read_csv(planted / "exams.csv").set_index("exam_id")
    values = exams[["label:nodule", "label:effusion"]]
    made = values.max(axis=1).where(values.max(axis=1).eq(1) | values.notna().all(axis=1))
    rows = pd.read_csv(out / "predictions.csv")
    rows = rows[(rows["label_name"] == "any") & (rows["split"] == "test")]
    assert rows["label"].tolist() == made[rows["exam_id"]].astype(int).tolist()
    mine.write_text(text.format("effusion"))
    again = json.loads((several(labels=str(mine), out="again")[1] / "plan.json").read_text())
    changed = [name for name in plan["inputs"] if plan["inputs"][name] != again["inputs"][name]]
    assert changed == ["exams", "label set"]  # the values made of others, and how they are made
    assert plan["hash"] != again["hash"]


def test_a_study_of_one_label_is_hashed_as_before_there_were_several(run):
    _, out = run(command="plan")
    plan = json.loads((out / "plan.json").read_text())
    assert "labels" not in plan["config"]
    assert plan["config"]["label"] == "nodule"
    assert "label set" not in plan["inputs"]
    assert plan["schema_version"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": "nodule"}, "give 'label', one label, or 'labels', several"),
        ({"labels": []}, "give 'label', one label, or 'labels', several"),
        ({"labels": ["nodule", "nodule"]}, "'labels' holds a label twice"),
        ({"labels": ["nodule", "macro"]}, "'macro' is the name of the mean over labels"),
        ({"labels": ["nodule", "efusion"]}, "no label 'efusion' (1 of 2 missing)"),
        ({"labels": "ct-rate-81"}, "ct-rate-18"),
        ({"labels": ["rare"]}, "none of 1 labels can be tested"),
        ({"designs": [{"name": "kfold", "split": "resamples", "methods": METHODS}]}, "'held_out_share'"),
        ({"sweep": {"label": ["nodule"]}}, "'label' can't be swept beside 'labels'"),
        ({"sweep": {"labels": [["nodule"]]}}, "'labels' can't be swept"),
    ],
)
def test_refused(several, capsys, changes, said):
    assert said in refusal(capsys, several(**changes)[0])


def test_labels_follow_each_combination_of_a_sweep():
    config = {**BASE, "label": "", "labels": ["a", "b"], "sweep": {"label_fraction": [0.5, 1.0]}}
    found = variants(StudyConfig.model_validate(config))
    assert [v.label for v in found] == [
        f"label_fraction={share},label={name}" for share in ("0.5", "1") for name in ("a", "b")
    ]
    assert [v.combination for v in found] == ["label_fraction=0.5"] * 2 + ["label_fraction=1"] * 2
    assert [v.config.label for v in found] == ["a", "b"] * 2


def test_every_label_is_divided_evenly_and_no_group_twice():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in range(200)]
    exams = pd.DataFrame({"exam_id": [f"{g}-{k}" for g in groups for k in (0, 1)], "group_id": np.repeat(groups, 2)})
    prevalence = [0.03, 0.1, 0.3, 0.5]
    table = pd.DataFrame(
        {
            f"l{i}": np.where(rng.random(400) < 0.2, np.nan, np.repeat(rng.random(200) < p, 2))
            for i, p in enumerate(prevalence)
        },
        index=exams["exam_id"],
    )  # fmt: skip
    parts = multilabel_parts(exams, table, [0.2] * 5, seed=3)
    assert sorted(parts) == sorted(groups)
    highest = table.set_axis(exams["group_id"].to_numpy()).groupby(level=0).max()
    for name in table:
        counts = [
            np.bincount([parts[g] for g in highest.index[highest[name] == value]], minlength=5) for value in (0, 1)
        ]
        rarer = min(counts, key=sum)
        assert rarer.max() - rarer.min() <= 2, (name, counts)
