"""Tables that would bend a comparison are refused, and the rows are named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from embedprior.evidence import EvidenceError, evaluate_predictions
from embedprior.evidence.predictions import blocks_of


def frame() -> pd.DataFrame:
    rows = [
        {"exam_id": f"e{i}", "patient_id": f"p{i}", "label": i % 2, "method": m, "score": i / 10 + (m == "b") * (i % 2)}
        for m in ("a", "b")
        for i in range(10)
    ]
    table = pd.DataFrame(rows)
    table.index = pd.RangeIndex(2, 22, name="line")
    return table


def put(column: str, line: int, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table[column] = table[column].astype(object)
        table.loc[line, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("score", 7, np.nan), r"line 7 \(exam 'e5'"),
        (put("score", 7, np.inf), "line 7"),
        (put("score", 7, "abc"), r"line 7 .*'abc'"),
        (put("label", 4, 2), "line 4"),
        (put("label", 4, 0.5), "line 4"),
        (put("label", 4, "yes"), r"line 4 .*'yes'"),
        (put("exam_id", 3, None), r"'exam_id' is empty in line 3"),
        (put("patient_id", 3, None), r"'patient_id' is empty in line 3"),
        (put("exam_id", 3, "e0"), r"scored twice .*line 2.*line 3"),
        (put("label", 13, 0), r"two values of 'label'.*line 13"),
        (put("patient_id", 13, "other"), r"two values of 'patient_id'.*line 13"),
        (lambda t: t.drop(index=15), r"b lacks 1 of 10 exams, e.g. 'e3'"),
        (lambda t: t.rename(columns={"score": "scores"}), r"no column 'score'.*Did you mean 'scores'"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(split="val"), "no row has split 'test'"),
        (lambda t: t.assign(split="testing"), r"Did you mean 'test'"),
    ],
)
def test_bad_rows_are_refused_and_named(change: Callable[[pd.DataFrame], pd.DataFrame], words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        evaluate_predictions(change(frame()), "a")


def test_a_patient_in_two_folds_is_refused() -> None:
    table = frame().assign(fold=lambda t: t.exam_id.isin(["e0", "e3"]).astype(int))
    table["patient_id"] = table.patient_id.replace({"p0": "p2"})
    with pytest.raises(EvidenceError, match=r"fold"):
        evaluate_predictions(table, "a")
    with pytest.raises(EvidenceError, match=r"fold"):
        evaluate_predictions(table, "a", unit="exam")


def test_cases_align_whatever_the_order_of_rows() -> None:
    table = frame()
    shuffled = table.sample(frac=1, random_state=3)
    (one,), (two,) = blocks_of(table, "exam"), blocks_of(shuffled, "exam")
    expected = {(m, e): s for m in one.methods for e, s in zip(one.case_ids, one.scores[m][0], strict=True)}
    found = {(m, e): s for m in two.methods for e, s in zip(two.case_ids, two.scores[m][0], strict=True)}
    assert found == expected
    assert expected["b", "e3"] == pytest.approx(1.3)


def test_patients_are_averaged_in_the_order_exams_are_listed() -> None:
    table = frame()
    table["patient_id"] = "p" + (table.exam_id.str[1:].astype(int) % 4).astype(str)
    table["label"] = (table.exam_id.str[1:].astype(int) % 4 < 2).astype(int)
    (block,) = blocks_of(table, "patient")
    assert block.case_ids.tolist() == ["e0", "e1", "e2", "e3"]
    assert block.scores["a"][0].tolist() == pytest.approx([0.4, 0.5, 0.4, 0.5])
    assert block.labels.tolist() == [True, True, False, False]
