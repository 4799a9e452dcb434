from __future__ import annotations

import pandas as pd
import pytest

from embedprior.cohort import flow_table
from embedprior.cohort.sources import read_cohort
from embedprior.cohort.sources.tables import read_splits
from embedprior.errors import BadInput


def exams() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "exam_id": ["x1", "c1", "x2"],
            "patient_id": ["007", "007", "8"],
            "modality": ["CXR", "CT", "CXR"],
            "path": ["x1.png", "c1.png", "x2.png"],
            "label:nodule": [1, 1, None],
        }
    )


PAIRS = pd.DataFrame(
    [["p1", "007", "x1", "c1", 2, 1]],
    columns=["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"],
)


def write(root, table, pairs=None):
    table.to_csv(root / "exams.csv", index=False)
    if pairs is not None:
        pairs.to_csv(root / "pairs.csv", index=False)
    for path in table.get("path", []):
        (root / path).write_bytes(b"x")


def test_tables_are_read_with_ids_as_text_and_unknown_labels_kept(tmp_path):
    write(tmp_path, exams(), PAIRS)
    cohort = read_cohort("tables", tmp_path)
    assert list(cohort.exams["patient_id"]) == ["007", "007", "8"]
    assert list(cohort.exams["group_id"]) == ["007", "007", "8"]
    assert cohort.labels("nodule").isna().to_dict() == {"x1": False, "c1": False, "x2": True}
    assert len(cohort.pairs) == 1


def test_cohort_may_lack_pairs(tmp_path):
    write(tmp_path, exams())
    assert read_cohort("tables", tmp_path).pairs.empty


def test_unknown_label_names_the_nearest(tmp_path):
    write(tmp_path, exams())
    with pytest.raises(BadInput, match="Did you mean 'nodule'"):
        read_cohort("tables", tmp_path).labels("nodules")


def test_broken_tables_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"exams\.csv does not exist"):
        read_cohort("tables", tmp_path)
    write(tmp_path, exams().rename(columns={"modality": "modalty"}))
    with pytest.raises(BadInput, match=r"missing column 'modality'.*Did you mean 'modalty'"):
        read_cohort("tables", tmp_path)
    write(tmp_path, exams().assign(exam_id="x1"))
    with pytest.raises(BadInput, match="repeated 'exam_id' in line 3, 4"):
        read_cohort("tables", tmp_path)
    write(tmp_path, exams(), PAIRS.assign(patient_id="8"))
    with pytest.raises(BadInput, match="of another patient in line 2"):
        read_cohort("tables", tmp_path)
    write(tmp_path, exams().assign(group_id=["a", "b", "c"]))
    with pytest.raises(BadInput, match="more than one group_id: 007"):
        read_cohort("tables", tmp_path)


def test_missing_image_takes_its_pair_with_it_when_dropped(tmp_path):
    write(tmp_path, exams(), PAIRS)
    (tmp_path / "c1.png").unlink()
    with pytest.raises(BadInput, match=r"1 of 3 images do not exist .*c1\.png"):
        read_cohort("tables", tmp_path)
    cohort = read_cohort("tables", tmp_path, "drop")
    assert list(cohort.exams["exam_id"]) == ["x1", "x2"]
    assert cohort.pairs.empty
    assert flow_table(cohort.flow)["dropped"].tolist() == [0, 1]


def test_user_split_with_a_patient_in_two_folds_is_refused(tmp_path):
    rows = [["1", "1", "d", 0, 0, "test"], ["1", "1", "d", 0, 1, "test"], ["2", "2", "d", 0, 0, "train"]]
    columns = ["patient_id", "group_id", "design", "resample", "fold", "part"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(BadInput, match="held out in two folds: 1"):
        read_splits(tmp_path / "s.csv")
