"""Several labels in one plan: shared patients and priors, evidence a label and their mean, one family of claims."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from embedprior.cache import write_cache
from embedprior.cohort.label_sets import label_set
from embedprior.cohort.splits import multilabel_parts
from embedprior.evidence import delong_test
from embedprior.evidence.power import Design, patients_needed
from embedprior.prior.config import PriorConfig, TrainingConfig
from embedprior.prior.model import Prior
from embedprior.report.output import remake_report
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.config import Budget
from embedprior.students.prior_method import DRAWN, PriorMethod
from embedprior.students.regression_heads import FITTED, MlpHead
from embedprior.study.config import StudyConfig
from embedprior.study.variants import variants

from .conftest import BASE, TINY, change, refusal, spec, write_cohort, write_other

LABELS = ["nodule", "effusion", "rare"]
METHODS = ["cxr-only", "ridge-head", "prior"]
DESIGN = {"name": "kfold", "split": "kfold", "folds": 3, "validation": True, "methods": METHODS}
CLAIMS = [
    {"name": "H1", "claim": "CT helps", "design": "kfold", "a": "ridge-head", "b": "cxr-only"},
    {"name": "H2", "claim": "the prior helps", "design": "kfold", "a": "prior", "b": "cxr-only"},
]


def plant(folder: Path) -> None:
    """Add a label that is unknown for every seventh patient, and one of a single positive patient."""
    number = pd.read_csv(folder / "exams.csv")["patient_id"].str.extract(r"(\d+)$")[0].astype(int)
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
    design = {"name": "kfold", "cases": "cxr", "split": "kfold", "folds": 2, "methods": ["cxr-only"]}
    _, out = run(designs=[design], hypotheses=[])
    plan = json.loads((out / "plan.json").read_text())
    fits = [json.loads(p.read_text())["config"] for p in (out / "artifacts" / "fit").glob("*/artifact.json")]
    assert len(fits) == 2
    assert not [f for f in fits if "shared_by_labels" in f["budget"]]
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


def test_workers_and_a_resumed_run_that_shares_nothing_give_the_same_file(several, monkeypatch):
    code, one = several(out="one")
    assert code == 0
    code, two = several("--workers", "2", out="two")
    assert code == 0
    scores = (one / "predictions.csv").read_bytes()
    assert (two / "predictions.csv").read_bytes() == scores
    # stopped in the middle of what the labels of a fold share: every second fit is made again
    fits = sorted((two / "artifacts" / "fit").glob("[!.]*"))
    for folder in fits[::2]:
        shutil.rmtree(folder)
    for kept in (DRAWN, FITTED):
        kept.kept.clear()
        monkeypatch.setattr(kept, "size", 0)
    assert several(out="two")[0] == 0
    assert (two / "predictions.csv").read_bytes() == scores
    assert len(list((two / "artifacts" / "fit").glob("[!.]*"))) == len(fits)


def test_what_labels_share_is_computed_once_a_fold_and_seed(several, monkeypatch):
    drawn, fitted = [], []
    sample, network = Prior.sample, MlpHead._fitted

    def counted(self, *args, **kwargs):
        drawn.append(args[1:4])
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(Prior, "sample", counted)
    monkeypatch.setattr(MlpHead, "_fitted", lambda self, *args: fitted.append(1) or network(self, *args))
    design = {**DESIGN, "methods": ["cxr-only", "prior", "mlp-head"]}
    costs = []
    for labels in (["nodule", "rare"], LABELS):
        drawn.clear()
        fitted.clear()
        DRAWN.kept.clear()
        FITTED.kept.clear()
        code, out = several(labels=labels, designs=[design], hypotheses=[], out="-".join(labels))
        assert code == 0
        scored = [asked for asked in drawn if asked == (2, "analytic", 4)]  # the study's; others judge the prior
        costs.append((len(scored), len(fitted), len(list((out / "artifacts" / "prior").glob("[!.]*")))))
    assert costs[0] == costs[1]
    assert costs[0][0] == 2 * 3 + 2  # validation and test patients of three folds; the report's map of both stages
    assert costs[0][1] > 0


def test_settings_of_a_shared_prior_are_chosen_without_a_head(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 3)).astype(np.float32)
    names = [f"p{i}" for i in range(30)]
    everyone = Cases(names, names, np.full(30, np.nan), z, z + 1, np.full(30, np.nan))
    stage = Stage(everyone.take(range(20)), everyone.take(range(20, 30)))
    auto = PriorConfig(settings="auto", training=TrainingConfig(steps=4, batch=8))
    budget = Budget(stages=(auto,), artifacts=tmp_path, samples=2, steps=4, shared_by_labels=True)
    heads = [Linear(np.array(w, np.float32)) for w in ((1, 0, 0), (0, 0, 1))]
    found = [PriorMethod(budget).fit(FitData((stage,), head), seed=0) for head in heads]
    (folder,) = (tmp_path / "prior").glob("[!.]*")
    assert json.loads((folder / "search.json").read_text())["compared_by"] == "energy score"
    drawn = found[0].generate(everyone.without_ct())
    np.testing.assert_array_equal(drawn, found[1].generate(everyone.without_ct()))
    for head, fitted in zip(heads, found, strict=True):
        one_noise = fitted._drawn(everyone, [0] * 30)
        expected = (1 / (1 + np.exp(-one_noise.astype(float) @ head.weights))).mean(axis=1)
        np.testing.assert_allclose(fitted.scores(everyone), expected, rtol=1e-6)


class Linear:
    """A frozen head of fixed weights."""

    def __init__(self, weights):
        self.weights = weights

    def logits(self, embeddings):
        return embeddings @ self.weights


def test_labels_of_one_site_or_an_external_folder_are_scored_where_they_are_known(several, planted, tmp_path, capsys):
    away = write_other(tmp_path / "away", 40)
    plant(away)
    number = pd.read_csv(planted / "exams.csv")["patient_id"].str[1:].astype(int)
    site = pd.Series(np.array(list("ABC"))[number // 3 % 3])
    change(planted, site=lambda f: site)
    change(planted, **{"label:effusion": lambda f: f["label:effusion"].where(site != "B")})
    designs = [
        {"name": "site", "split": "site", "methods": ["cxr-only", "ridge-head"]},
        {"name": "outside", "split": "external", "data": "../away", "methods": ["cxr-only", "ridge-head"]},
    ]
    code, out = several(designs=designs, hypotheses=[], labels=["nodule", "effusion"])
    assert code == 0, capsys.readouterr().err
    rows = pd.read_csv(out / "predictions.csv")
    rows = rows[rows["split"] == "test"]
    exams = pd.read_csv(planted / "exams.csv").set_index("exam_id")
    scored = rows[rows["design"] == "site@label=effusion"]
    known = exams[(exams["modality"] == "CXR") & exams["label:effusion"].notna()]
    assert set(scored["exam_id"]) == set(known.index)
    assert set(exams.loc[scored["exam_id"], "site"]) == {"A", "C"}
    theirs = pd.read_csv(away / "exams.csv").set_index("exam_id")
    for label in ("nodule", "effusion"):
        part = rows[rows["design"] == f"outside@label={label}"].drop_duplicates("exam_id")
        wanted = theirs.loc[(theirs["modality"] == "CXR") & theirs[f"label:{label}"].notna(), f"label:{label}"]
        assert part.set_index("exam_id")["label"].to_dict() == wanted.astype(int).to_dict()
    evidence = json.loads((out / "evidence.json").read_text())["designs"]
    site_row = next(m for m in evidence["site@label=effusion"]["methods"] if m["method"] == "ridge-head")
    assert (site_row["n_folds"], site_row["n_patients"]) == (2, known["patient_id"].nunique())


def test_plan_prints_a_row_a_label(several, capsys):
    assert several(command="plan")[0] == 0
    printed = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(printed) if line.startswith("  label "))
    assert [line.split()[0] for line in printed[start + 1 : start + 5]] == [*LABELS, "macro"]
    assert printed[start + 1].split()[1:3] == ["30", "30"]
    assert "not testable: 1 positive and 59 negative patients" in printed[start + 3]
    assert "on each label and on their mean: 4 of 8 claims of one family" in "\n".join(printed)
    assert sum("@label=" in line for line in printed) == 0


def test_report_draws_the_roc_curve_of_each_label_and_names_the_labels_of_each_verdict(several):
    _, out = several()
    evidence = json.loads((out / "evidence.json").read_text())["designs"]
    page = (out / "report.html").read_text()
    assert "ROC curves of each label (2)" in page
    assert "No ROC curves" not in page
    assert sorted(p.stem for p in (out / "figures").glob("roc-*.csv")) == ["roc-kfold-effusion", "roc-kfold-nodule"]
    for label in ("nodule", "effusion"):
        drawn = pd.read_csv(out / "figures" / f"roc-kfold-{label}.csv").dropna(subset=["sensitivity"])
        for row in evidence[f"kfold@label={label}"]["methods"]:
            curve = drawn[drawn["method"] == row["method"]]
            area = np.trapezoid(curve["sensitivity"], curve["false_positive_rate"])
            assert area == pytest.approx(row["auc"], abs=1e-9)
    intervals = pd.read_csv(out / "figures" / "label-auc-kfold.csv").set_index(["label", "method"])
    for key, own in evidence.items():
        for row in own["methods"]:
            low = intervals.loc[(key.partition("=")[2], row["method"]), "ci_low"]
            assert low == pytest.approx(row["ci_low"], nan_ok=True) if row["ci_low"] is not None else np.isnan(low)
    kept = json.loads((out / "report.json").read_text())
    for claim, a in (("ridge-head better than cxr-only", "ridge-head"), ("prior better than cxr-only", "prior")):
        (sentence,) = (text for text in kept["verdict"] if text.startswith(f"{claim}: "))
        for key, own in evidence.items():
            verdict = next(c["verdict"] for c in own["comparisons"] if c["a"] == a and c["in_family"])
            part = next(part for part in sentence.split("; ") if verdict in part)
            assert {"macro": "the mean over labels"}.get(key.partition("=")[2], key.partition("=")[2]) in part
    # 8 claims; nodule has 30 of 60 positive patients and effusion, known for 51, has 17
    needed = [sum(patients_needed(Design(*n, 0.8, 0.5, comparisons=8), 0.05)) for n in ((30, 30), (17, 34))]
    assert needed[0] < needed[1]
    said = [f"{float(f'{n:.2g}'):.0f}" for n in needed]
    assert f"about {said[0]} held-out exams" in kept["verdict"][-1]
    assert kept["verdict"][-1].index(said[0]) < kept["verdict"][-1].index(said[1])
    remake_report(out)
    assert (out / "report.html").read_text() == page


@pytest.mark.slow
def test_eighteen_labels_of_a_cohort_like_ct_rate_in_one_plan(tmp_path, run, monkeypatch, capsys):
    """The shipped set, rare and common findings, a tenth of the labels unknown, one finding in a single patient."""
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    rng, people = np.random.default_rng(7), 400
    names = label_set("ct-rate-18").labels
    hidden = rng.normal(size=(people, len(names)))
    prevalence = np.geomspace(0.03, 0.5, len(names))
    labels = (hidden > np.quantile(hidden, 1 - prevalence, axis=0).diagonal()).astype(float)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[:, 4] = 0
    labels[0, 4] = 1
    folder = tmp_path / "chest"
    folder.mkdir()
    rows = {
        "cxr": (hidden + 1.5 * rng.normal(size=hidden.shape)) @ rng.normal(size=(18, 40)),
        "ct": (hidden + 0.3 * rng.normal(size=hidden.shape)) @ rng.normal(size=(18, 36)),
    }
    patients = [f"p{i}" for i in range(people)]
    exams, ids = [], {}
    for name, modality in (("cxr", "CXR"), ("ct", "CT")):
        ids[name] = [f"{name}-{i}" for i in range(people)]
        encoder = spec(f"{name}-net", modality, rows[name].shape[1], None)
        write_cache(folder / "caches" / name, encoder, ids[name], ["0" * 64] * people, rows[name].astype(np.float32))
        table = pd.DataFrame({"exam_id": ids[name], "patient_id": patients, "modality": modality})
        exams.append(table.assign(**{f"label:{n}": labels[:, k] for k, n in enumerate(names)}))
    pd.concat(exams).to_csv(folder / "exams.csv", index=False)
    pairs = {"pair_id": patients, "patient_id": patients, "cxr_exam_id": ids["cxr"], "ct_exam_id": ids["ct"]}
    pd.DataFrame({**pairs, "offset_days": 0, "label_agree": 1}).to_csv(folder / "pairs.csv", index=False)
    methods = ["cxr-only", "ridge-head", "direct-head", "prior", "prior-shuffled"]
    training = {**TINY["training"], "steps": 100, "batch": 64}
    process = {"regression": "ridge", "whitening": True, "condition_dropout": 0.0, "sigma_data": 1.0}
    prior = {"samples": 16, "steps": 8, "training": {**TINY, "process": process, "training": training}}
    began = time.process_time()
    code, out = run(
        data=folder, label="", labels="ct-rate-18", prior=prior, teacher={"hidden": 16, "steps": 150},
        designs=[{"name": "kfold", "split": "kfold", "folds": 3, "validation": True, "methods": methods}],
        hypotheses=[
            {"name": "H1", "claim": "CT helps", "design": "kfold", "a": "ridge-head", "b": "cxr-only"},
            {"name": "H2", "claim": "the prior helps", "design": "kfold", "a": "prior", "b": "cxr-only"},
        ],
    )  # fmt: skip
    spent = time.process_time() - began
    assert code == 0
    evidence = json.loads((out / "evidence.json").read_text())["designs"]
    assert len(evidence) == 19
    family = [c for own in evidence.values() for c in own["comparisons"] if c["in_family"]]
    assert len(family) == 2 * 19
    assert [c["label_name"] for c in family if c["p"] is None] == [names[4]] * 2
    macro = {m["method"]: m for m in evidence["kfold@label=macro"]["methods"]}
    assert macro["prior"]["auc"] > 0.6
    assert macro["prior-shuffled"]["ci_low"] < 0.5 < macro["prior-shuffled"]["ci_high"]
    priors = [json.loads(p.read_text()) for p in (out / "artifacts" / "prior").glob("[!.]*/artifact.json")]
    assert len(priors) == 2 * 3  # the prior and its control, in three folds: not once a label
    fits = list((out / "artifacts" / "fit").glob("[!.]*"))
    assert len(fits) == 17 * 5 * 3
    report = (out / "report.md").read_text()
    table = report[report.index("### AUC by label: kfold") :].split("\n\n")[1].splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == [*names, "macro"]
    page = (out / "report.html").read_text()
    assert "ROC curves of each label (17)" in page
    assert len(page) < 5_000_000
    print(f"{spent:.0f} s of CPU")
