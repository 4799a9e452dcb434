from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import embedprior
from embedprior.evidence import EvidenceError, evaluate_predictions

LABELS = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
A = [0.1, 0.2, 0.3, 0.5, 0.4, 0.35, 0.6, 0.35, 0.8, 0.9, 0.7, 0.3]
B = [0.2, 0.6, 0.3, 0.5, 0.4, 0.1, 0.1, 0.7, 0.8, 0.45, 0.55, 0.6]


def by_pairs(labels: list[int], *scores: list[float]) -> tuple[list[float], np.ndarray]:
    """DeLong by its definition: every positive against every negative, ties one half."""
    y = np.array(labels) == 1
    wins = [
        np.sign(np.subtract.outer(np.array(s)[y], np.array(s)[~y])) / 2 + 0.5 for s in scores
    ]  # (positives, negatives)
    over_pos, over_neg = np.stack([w.mean(axis=1) for w in wins]), np.stack([w.mean(axis=0) for w in wins])
    covariance = np.cov(over_pos) / y.sum() + np.cov(over_neg) / (~y).sum()
    return [float(w.mean()) for w in wins], covariance


def test_the_test_is_delongs_by_its_definition() -> None:
    aucs, covariance = by_pairs(LABELS, A, B)
    result = embedprior.delong_test(LABELS, A, B)
    assert result.auc == pytest.approx(aucs)
    assert result.delta == pytest.approx(aucs[0] - aucs[1])
    assert result.se == pytest.approx(math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    assert result.z == pytest.approx(result.delta / result.se)
    assert (result.n_pos, result.n_neg, result.n_groups) == (6, 6, 12)
    assert result.ci[0] < result.delta < result.ci[1]
    for auc, (low, high) in zip(result.auc, result.auc_ci, strict=True):
        assert 0 < low < auc < high < 1


def test_a_large_sample_has_the_normal_p() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    a, b = labels + rng.normal(size=2000), labels + 1.1 * rng.normal(size=2000)
    result = embedprior.delong_test(labels, a, b)
    assert result.p == pytest.approx(2 * norm.sf(abs(result.z)), rel=0.02)
    assert result.ci == pytest.approx((result.delta - 1.96 * result.se, result.delta + 1.96 * result.se), abs=2e-3)


@pytest.mark.parametrize(
    "given",
    [
        (np.array(LABELS), np.array(A), np.array(B)),
        ([float(y) for y in LABELS], tuple(A), np.array(B, dtype=np.float32).astype(float).round(6)),
        ([y == 1 for y in LABELS], np.array(A)[:, None], pd.Series(B)),
        (pd.Series(LABELS, index=range(100, 112)), pd.Series(A, index=range(100, 112)), B),
        (pd.array(LABELS, dtype="Int64"), [str(a) for a in A], B),
    ],
    ids=["arrays", "float labels", "bool labels and a column", "Series with an index", "nullable and text"],
)
def test_odd_but_clear_inputs_give_the_same_result(given: tuple[object, object, object]) -> None:
    plain = embedprior.delong_test(LABELS, A, B)
    assert embedprior.delong_test(*given).to_dict() == plain.to_dict()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "a", "b", "message"),
    [
        (LABELS[:-1], A, B, "scores_a has 12 values, but there are 11 labels"),
        (LABELS, A, B[:-1], "scores_b has 11 values, but there are 12 labels"),
        ([2, *LABELS[1:]], A, B, r"labels must be 0 or 1; case position 0 has 2 \(1 such\)"),
        ([float("nan"), *LABELS[1:]], A, B, r"case position 0 has nan .*leave cases with an unknown label out"),
        (["yes", *LABELS[1:]], A, B, "labels must be 0 or 1; got"),
        (LABELS, [float("nan"), *A[1:]], B, r"scores_a must be finite; NaN or infinite at case positions \[0\]"),
        (LABELS, A, [float("inf"), *B[1:]], r"scores_b must be finite"),
        (LABELS, np.stack([A, B], axis=1), B, r"scores_a has shape \(12, 2\).*predict_proba\(...\)\[:, 1\]"),
        (LABELS, A, 0.5, r"scores_b has shape \(\)"),
        (LABELS, [[1, 2], [3]], B, "scores_a"),
        (pd.Series(LABELS), pd.Series(A)[::-1], B, "labels and scores_a are pandas Series with different indexes"),
    ],
)
def test_what_can_not_be_tested_is_refused_by_name(labels: object, a: object, b: object, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        embedprior.delong_test(labels, a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["p1"] * 11, "groups has 11 values"),
        ([None, *["p1"] * 11], r"groups must name every case; missing at case positions \[0\]"),
        ([float("nan"), *range(11)], "groups must name every case"),
    ],
)
def test_groups_name_every_case(groups: object, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        embedprior.delong_test(LABELS, A, B, groups=groups)  # type: ignore[arg-type]


def test_one_class_gives_no_number_but_the_reason() -> None:
    result = embedprior.delong_test([1] * 12, A, B)
    assert all(math.isnan(x) for x in (*result.auc, result.delta, result.p, *result.ci))
    assert result.reason is not None
    assert "only positives" in result.reason
    assert result.to_dict()["p"] is None
    assert "undefined" in result.summary()
    single = embedprior.delong_test([0] * 11 + [1], A, B)
    assert not math.isnan(single.delta)
    assert math.isnan(single.p)
    assert single.reason is not None


def test_the_same_scores_are_equal_and_say_so() -> None:
    result = embedprior.delong_test(LABELS, A, A)
    assert (result.delta, result.p) == (0, 1)
    assert result.reason is not None


def test_cases_listed_twice_count_once_when_groups_say_so() -> None:
    """Every patient twice with the same scores: Obuchowski's variance is that of the patients listed once."""
    once = embedprior.delong_test(LABELS, A, B)
    ids = [f"p{n}" for n in range(12)]
    twice = embedprior.delong_test(LABELS * 2, A * 2, B * 2, groups=ids * 2)
    naive = embedprior.delong_test(LABELS * 2, A * 2, B * 2)
    assert twice.se == pytest.approx(once.se)
    assert naive.se < 0.8 * once.se
    assert (twice.n_groups, twice.n_pos) == (12, 12)
    assert "patient" in twice.method


def test_folds_compare_within_a_fold_only() -> None:
    """The second fold's scores lie one unit higher, which would count as discrimination were the folds pooled."""
    folds = [0] * 12 + [1] * 12
    labels, a, b = LABELS + LABELS, A + [x + 1 for x in A], B + [x + 1 for x in B]
    stratified = embedprior.delong_test(labels, a, b, folds=folds)
    once = embedprior.delong_test(LABELS, A, B)
    assert stratified.auc == pytest.approx(once.auc)
    assert stratified.se == pytest.approx(once.se / math.sqrt(2))
    with pytest.raises(EvidenceError, match="more than one stratum"):
        embedprior.delong_test(labels, a, b, folds=folds, groups=[f"p{n}" for n in range(12)] * 2)


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": [f"p{n}" for n in range(12)], "label": LABELS, "a": A, "b": B, **columns})


def long() -> pd.DataFrame:
    return frame().melt(["patient_id", "label"], var_name="method", value_name="score").assign(
        exam_id=lambda f: f["patient_id"]
    )  # fmt: skip


def test_an_evaluation_holds_what_delong_test_finds() -> None:
    result = embedprior.evaluate(frame(), reference="b", method_columns=True)
    alone = embedprior.delong_test(LABELS, A, B)
    (row,) = result.comparisons.to_dict("records")
    assert (row["a"], row["b"]) == ("a", "b")
    assert row["delta"] == pytest.approx(alone.delta)
    assert row["p"] == pytest.approx(alone.p)
    assert result.methods.set_index("method")["auc"].to_dict() == pytest.approx({"a": alone.auc[0], "b": alone.auc[1]})
    assert "| a > b |" in result.summary()
    copied = result.to_dict()
    copied["methods"].clear()
    assert len(result.to_dict()["methods"]) == 2


def test_a_frame_and_its_csv_give_the_same_evidence_whatever_the_index(tmp_path: Path) -> None:
    table = long()
    table.to_csv(tmp_path / "predictions.csv", index=False)
    expected = evaluate_predictions(table, "b")
    for given in (
        table, str(tmp_path / "predictions.csv"), tmp_path / "predictions.csv",
        table.set_index(pd.Index([7] * len(table))), table.sample(frac=1, random_state=0),
        table.assign(label=table["label"].astype(float)), table.assign(label=table["label"] == 1),
    ):  # fmt: skip
        found = embedprior.evaluate(given, "b").to_dict()
        for part in ("methods", "comparisons"):
            numbers = [
                {k: row[k] for k in ("auc", "delta", "p", "se") if k in row}
                for row in sorted(found[part], key=lambda row: row.get("method", ""))
            ]
            wanted = [{k: row[k] for k in ("auc", "delta", "p", "se") if k in row} for row in expected[part]]
            assert numbers == [pytest.approx(row) for row in wanted]


def test_a_reference_that_was_not_named_is_told() -> None:
    result = embedprior.evaluate(long(), oracles=["a"])
    assert result.to_dict()["reference"] == "b"
    assert any("no reference was given: b" in text for text in result.warnings)
    with pytest.raises(EvidenceError, match="every method is an oracle"):
        embedprior.evaluate(long(), oracles=["a", "b"])


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ([[1, 2]], {}, "evaluate was given a list. Allowed: a DataFrame or the path of a CSV"),
        (pd.DataFrame({"x": [1]}), {}, "no column 'exam_id'"),
        ("nowhere.csv", {}, "nowhere.csv does not exist"),
        (long(), {"bootstraps": 10}, r"no setting 'bootstraps'.*Did you mean 'bootstrap'\?"),
        (long(), {"reference": "c"}, "'c' is not in the table"),
        (long().assign(score=np.nan), {}, "scores must be finite"),
        (long().assign(label=3), {}, "labels must be 0, 1 or empty"),
    ],
)
def test_an_unusable_table_or_setting_is_refused(given: object, settings: dict[str, object], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        embedprior.evaluate(given, **settings)  # type: ignore[arg-type]


def test_one_class_is_evaluated_to_a_reason() -> None:
    rows = embedprior.evaluate(long().assign(label=1), "b").methods
    assert rows["auc"].isna().all()
    assert rows["reason"].str.contains("only positives").all()
