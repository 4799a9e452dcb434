from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.errors import BadInput
from embedprior.evidence.reading import read_predictions
from embedprior.runs import Run
from embedprior.tables import (
    EXAM_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    label_columns,
    read_table,
    write_table,
)


def exams() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "exam_id": ["a-ct", "a-x", "b-ct", "b-x"],
            "patient_id": ["a", "a", "b", "b"],
            "modality": ["CT", "CXR", "CT", "CXR"],
            "path": ["1", "2", "3", "4"],
            "label:pe": [1, 1, 0, None],
        }
    )


def pairs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair_id": ["p1", "p2"], "patient_id": ["a", "b"], "cxr_exam_id": ["a-x", "b-x"],
            "ct_exam_id": ["a-ct", "b-ct"], "offset_days": [0.0, 1.0], "label_agree": [True, False],
        }
    )  # fmt: skip


def splits(rows: list[tuple[str, str, int, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"patient_id": p, "group_id": g, "design": "kfold", "resample": 0, "fold": f, "part": part}
            for p, g, f, part in rows
        ]
    )


def test_good_tables_pass_and_labels_are_listed() -> None:
    table = check_exams(exams(), "exams.csv")
    assert label_columns(table) == ["pe"]
    assert len(check_pairs(pairs(), table, "pairs.csv")) == 2


def test_missing_column_is_named_with_the_nearest_match(tmp_path: Path) -> None:
    path = tmp_path / "exams.csv"
    exams().rename(columns={"patient_id": "patientid"}).to_csv(path, index=False)
    with pytest.raises(BadInput, match=r"missing column 'patient_id'.*Did you mean 'patientid'\?"):
        read_table(path, EXAM_REQUIRED)


def test_identifiers_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "exams.csv"
    path.write_text("exam_id,patient_id,modality,path\n007,0042,CXR,a.png\n")
    assert read_table(path, EXAM_REQUIRED).loc[0, "patient_id"] == "0042"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("exam_id", "a-ct", r"repeated 'exam_id' in line 5"),
        ("patient_id", None, r"empty 'patient_id' in line 5"),
        ("modality", "MR", r"modality not one of CT, CXR, DRR, REPORT in line 5"),
        ("label:pe", 2, r"label 'pe' not 1, 0 or empty in line 5"),
    ],
)
def test_bad_exam_rows_are_named(column: str, value: object, message: str) -> None:
    table = exams().astype({"label:pe": object})
    table.loc[3, column] = value
    with pytest.raises(BadInput, match=message):
        check_exams(table, "exams.csv")


def test_unknown_exam_column_is_refused() -> None:
    with pytest.raises(BadInput, match=r"unknown column 'veiw'.*Did you mean 'view'\?"):
        check_exams(exams().assign(veiw="PA"), "exams.csv")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ct_exam_id", "nobody", "not in the exam table"),
        ("ct_exam_id", "b-x", "of a modality other than CT"),
        ("ct_exam_id", "a-ct", "of another patient"),
        ("pair_id", "p1", "repeated 'pair_id'"),
    ],
)
def test_bad_pairs_are_refused(column: str, value: str, message: str) -> None:
    table = pairs()
    table.loc[1, column] = value
    with pytest.raises(BadInput, match=message):
        check_pairs(table, exams(), "pairs.csv")


def test_patient_held_out_in_two_folds_is_refused() -> None:
    table = splits([("a", "a", 0, "test"), ("b", "b", 0, "train"), ("a", "a", 1, "test"), ("b", "b", 1, "train")])
    with pytest.raises(BadInput, match="held out in two folds: a"):
        check_splits(table, "splits.csv")


def test_group_on_two_sides_is_refused() -> None:
    table = splits([("a", "joined", 0, "test"), ("b", "joined", 0, "train")])
    with pytest.raises(BadInput, match="group_id on two sides of one fold: joined"):
        check_splits(table, "splits.csv")


def test_patient_without_a_row_is_refused() -> None:
    table = splits([("a", "a", 0, "test"), ("b", "b", 0, "train")])
    with pytest.raises(BadInput, match="1 patients of the cohort have no row: c"):
        check_splits(table, "splits.csv", patients=["a", "b", "c"])


FORMULAS = ["=cmd()", "+1+1", "-x", "@SUM(A1)", "\tx", "'=x", "''@y"]


def test_no_text_of_a_written_table_is_a_formula_and_all_come_back(tmp_path: Path) -> None:
    plain = ["'quoted'", "a-b", "e=1", "-0.1", "+3", "-inf", ""]
    table = pd.DataFrame({"exam_id": [*FORMULAS, *plain], "score": np.linspace(-1, 1, 14)})
    write_table(table, tmp_path / "t.csv")
    cells = list(csv.reader((tmp_path / "t.csv").open(newline="")))[1:]
    assert [one for one, _ in cells] == [*(f"'{text}" for text in FORMULAS), *plain]
    assert [float(score) for _, score in cells] == pytest.approx(table["score"].tolist(), abs=1e-9)
    back = read_table(tmp_path / "t.csv", ("exam_id",))
    assert back["exam_id"].fillna("").tolist() == table["exam_id"].tolist()


def test_an_evaluation_reads_the_names_as_they_were(tmp_path: Path) -> None:
    methods = ["=cmd|' /C calc'!A0", "cxr-only"]
    rows = [(f"=x{i}", f"-p{i}", i % 2, m, 0.5, 0, 0, "test") for i in range(4) for m in methods]
    columns = ["exam_id", "patient_id", "label", "method", "score", "fold", "seed", "split"]
    write_table(pd.DataFrame(rows, columns=columns), tmp_path / "p.csv")
    assert "\n=" not in (tmp_path / "p.csv").read_text()
    found = read_predictions(tmp_path / "p.csv")
    assert found["exam_id"].tolist() == [row[0] for row in rows]
    assert found["patient_id"].tolist() == [row[1] for row in rows]
    assert found["method"].astype(str).tolist() == [row[3] for row in rows]


def test_a_table_that_a_run_left_is_not_read_once_it_was_changed(tmp_path: Path) -> None:
    run = Run(tmp_path, "drr", {}, 0, {})
    write_table(exams(), tmp_path / "exams.csv")
    (tmp_path / "cohort").mkdir()
    write_table(pairs(), tmp_path / "cohort" / "pairs.csv")
    run.finish("# done", [])
    for name in ("exams.csv", "cohort/pairs.csv"):
        path = tmp_path / name
        whole = path.read_text()
        assert len(read_table(path, ()))
        path.write_text(whole.replace("a", "b"))
        with pytest.raises(BadInput, match=f"{path.name} no longer has the contents it was written with by the run"):
            read_table(path, ())
        path.write_text(whole)
    write_table(exams(), tmp_path / "own.csv")  # a file that is no result of the run
    assert len(read_table(tmp_path / "own.csv", ()))
