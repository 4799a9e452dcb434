"""Repeated k-fold: patients are counted once, repeats are further fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from embedprior.evidence import EvidenceError, evaluate_predictions
from embedprior.evidence.aggregate import join_repeats
from embedprior.evidence.predictions import held_out_blocks

METHODS = ("a", "b")


def predictions(rng: np.random.Generator, repeats: int, n: int = 120, noise: float = 0.3) -> pd.DataFrame:
    """Scores = a case's own value + a fit's noise; every repeat has its own folds."""
    label = np.arange(n) % 2
    own = {m: rng.normal(size=n) + strength * label for m, strength in zip(METHODS, (1.2, 0.8), strict=True)}
    rows = []
    for repeat in range(repeats):
        fold = rng.permutation(n) % 3
        for m in METHODS:
            scores = own[m] + noise * rng.normal(size=n)
            rows += [
                (f"e{i}", f"p{i}", label[i], m, scores[i], fold[i], 0, "test", repeat) for i in range(n)
            ]  # fmt: skip
    columns = ["exam_id", "patient_id", "label", "method", "score", "fold", "seed", "split", "resample"]
    return pd.DataFrame(rows, columns=columns)


def evaluated(frame: pd.DataFrame) -> dict:
    return evaluate_predictions(frame, "b", [("a", "b")], unit="patient")


def test_one_repeat_is_the_plain_k_fold():
    frame = predictions(np.random.default_rng(0), 1)
    found = evaluated(frame)
    plain = evaluate_predictions(frame.drop(columns="resample"), "b", [("a", "b")], unit="patient")
    for mine, theirs in zip(found["methods"], plain["methods"], strict=True):
        assert (mine["auc"], mine["se"]) == pytest.approx((theirs["auc"], theirs["se"]))
    assert found["comparisons"][0]["delta"] == pytest.approx(plain["comparisons"][0]["delta"])
    assert found["comparisons"][0]["se"] == pytest.approx(plain["comparisons"][0]["se"], rel=0.05)


def test_auc_is_the_mean_over_repeats_and_patients_are_counted_once():
    frame = predictions(np.random.default_rng(1), 4)
    found = evaluated(frame)
    each = [
        evaluate_predictions(part.drop(columns="resample"), "b", [("a", "b")], unit="patient")["methods"][0]["auc"]
        for _, part in frame.groupby("resample")
    ]
    assert found["methods"][0]["auc"] == pytest.approx(np.mean(each))
    assert found["methods"][0]["auc_per_seed"] == pytest.approx(each)
    assert found["n_patients"] == 120
    assert found["methods"][0]["n_patients"] == 120


def test_standard_error_over_repeats_is_the_spread_of_the_mean_over_new_patients():
    """The truth by simulation: the sd of the mean AUC over fresh patients, folds and fits."""
    rng = np.random.default_rng(2)
    runs = [evaluated(predictions(rng, 3, n=80)) for _ in range(100)]
    spread = np.std([r["methods"][0]["auc"] for r in runs], ddof=1)
    claimed = np.mean([r["methods"][0]["se"] for r in runs])
    assert claimed == pytest.approx(spread, rel=0.2)
    # a corrected resampled t over repeats would claim far less: repeats share every patient
    naive = [np.std(r["methods"][0]["auc_per_seed"], ddof=1) * np.sqrt(1 / 3 + 1.5) for r in runs]
    assert np.mean(naive) < 0.6 * spread


def test_repeats_with_different_cases_are_refused():
    frame = predictions(np.random.default_rng(3), 2)
    fewer = frame[~((frame["resample"] == 1) & (frame["exam_id"] == "e3"))]
    with pytest.raises(EvidenceError, match="different cases"):
        join_repeats(held_out_blocks(fewer, "patient"), clustered=False)


def labels_and_methods(rng, cases: int = 60, resamples: int = 1, draw_anew: bool = False) -> pd.DataFrame:
    """Two labels, two methods, scores anew in each resample; every third label of the second is unknown."""
    rows = []
    for resample in range(resamples):
        held = rng.permutation(cases)[: cases // 2] if draw_anew else np.arange(cases)
        for number, name in enumerate(("a", "b")):
            label = (np.arange(cases) % (2 + number) == 0).astype(float)
            if name == "b":
                label[::7] = np.nan
            for method, strength in (("x", 1.5), ("y", 0.5)):
                score = np.nan_to_num(label) * strength + rng.normal(size=cases)
                place = (method, resample, name, "test")
                rows += [(f"e{i}", f"p{i}", label[i], score[i], *place, i // 7 % 3) for i in held]
    columns = ["exam_id", "patient_id", "label", "score", "method", "resample", "label_name", "split", "fold"]
    return pd.DataFrame(rows, columns=columns)


def row_of(evidence, part: str, label: str):
    return next(r for r in evidence[part] if r["label_name"] == label)


def test_mean_over_labels_of_repeats_that_are_alike_is_that_of_one():
    once = labels_and_methods(np.random.default_rng(4))
    twice = pd.concat([once, once.assign(resample=1)])
    one = evaluate_predictions(once.drop(columns="resample"), "y")
    two = evaluate_predictions(twice, "y")
    for part, names in (("methods", ("auc", "se", "n_patients")), ("comparisons", ("delta", "se"))):
        a, b = (row_of(found, part, "macro") for found in (one, two))
        assert [a[n] for n in names] == pytest.approx([b[n] for n in names], rel=1e-9)
    both = evaluate_predictions(labels_and_methods(np.random.default_rng(5), resamples=2), "y")
    each = [row_of(both, "methods", name)["auc"] for name in ("a", "b")]
    assert row_of(both, "methods", "macro")["auc"] == pytest.approx(np.mean(each))
    assert sum(c["in_family"] for c in both["comparisons"]) == 3


def test_mean_over_labels_of_resamples_is_tested_by_the_corrected_t():
    frame = labels_and_methods(np.random.default_rng(6), 120, 5, draw_anew=True).drop(columns="fold")
    found = evaluate_predictions(frame, "y", train_size=60)
    differences = []
    for _, own in frame.dropna().groupby("resample"):
        aucs = {key: roc_auc_score(part["label"], part["score"]) for key, part in own.groupby(["label_name", "method"])}
        differences.append(np.mean([aucs[name, "x"] - aucs[name, "y"] for name in ("a", "b")]))
    row = row_of(found, "comparisons", "macro")
    assert row["per_resample"] == pytest.approx(differences)
    known = frame.dropna()[frame.dropna()["method"] == "x"]
    cases = len(known) / 5 / 2  # held out in a resample, of a label
    t = np.mean(differences) / np.sqrt((1 / 5 + cases / 60) * np.var(differences, ddof=1))
    assert row["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(t), 4))
