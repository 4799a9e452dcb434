"""Tables as users have them: read, or refused with the cause and the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from embedprior.evidence import Claim, EvidenceError, evaluate_predictions
from embedprior.evidence.reading import from_wide, read_family, read_predictions

LABELS = np.repeat([1, 0], [15, 25])
IDS = [f"{i:03d}" for i in range(1, 41)]


def wide() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    scores = [np.round(1 / (1 + np.exp(-(rng.normal(size=40) + LABELS))), 6) for _ in range(2)]
    return pd.DataFrame({"patient_id": IDS, "label": LABELS, "cxr": scores[0], "prior": scores[1]})


def long() -> pd.DataFrame:
    return from_wide(wide()).reset_index(drop=True)


def written(tmp_path: Path, frame: pd.DataFrame, name: str = "table.csv", **options: Any) -> Path:
    path = tmp_path / name
    frame.to_csv(path, index=options.pop("index", False), **options)
    return path


def test_wide_tables_become_long() -> None:
    table = pd.DataFrame(
        {"patient_id": ["p1", "p2"], "label": [0, 1], "sex": ["f", "m"], "x": [0.1, 0.2], "y": [0.3, 0.4]}
    )
    found = from_wide(table)
    assert sorted(zip(found.exam_id, found.method, found.score, strict=True)) == [
        ("p1", "x", 0.1), ("p1", "y", 0.3), ("p2", "x", 0.2), ("p2", "y", 0.4),
    ]  # fmt: skip
    with pytest.raises(EvidenceError, match="listed twice"):
        from_wide(table.assign(patient_id="p1"))
    with pytest.raises(EvidenceError, match="no method column"):
        from_wide(table[["patient_id", "label"]])
    with pytest.raises(EvidenceError, match="Did you mean 'labels'"):
        from_wide(table.rename(columns={"label": "labels"}))


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("weight", np.linspace(45, 92, 40), r"'weight' runs from 45 to 92"),
        ("study_date", 20200101 + np.arange(40), r"'study_date' runs from"),
        ("Unnamed: 0", np.arange(40), r"'Unnamed: 0' has no name"),
    ],
)
def test_columns_that_may_be_no_scores_are_refused_by_name(
    tmp_path: Path, column: str, values: np.ndarray, words: str
) -> None:
    """A weight or pandas' index once became a method, entered Holm's family and turned the verdict."""
    path = written(tmp_path, wide().assign(**{column: values}))
    with pytest.raises(EvidenceError, match=words + r".*--method cxr --method prior"):
        read_predictions(path, wide=True)
    named = read_predictions(path, wide=True, methods=["cxr", "prior"])
    assert named["method"].unique().tolist() == ["cxr", "prior"]
    with pytest.raises(EvidenceError, match="Did you mean 'prior'"):
        read_predictions(path, wide=True, methods=["pror"])


def test_index_that_pandas_wrote_is_refused_and_logits_are_scores(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="an index that pandas wrote"):
        read_predictions(written(tmp_path, wide(), index=True), wide=True)
    logits = wide().assign(cxr=lambda f: np.log(f.cxr / (1 - f.cxr)))
    assert len(read_predictions(written(tmp_path, logits), wide=True)) == 80


@pytest.mark.parametrize(
    "options",
    [
        {"sep": ";"},
        {"sep": "\t"},
        {"sep": ";", "decimal": ","},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"float_format": "%.9e"},
    ],
    ids=str,
)
def test_separators_encodings_and_decimal_commas_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = read_predictions(written(tmp_path, long()))
    found = read_predictions(written(tmp_path, long(), "other.csv", **options))
    np.testing.assert_allclose(found["score"], plain["score"], atol=1e-9)
    assert found["patient_id"].tolist() == plain["patient_id"].tolist() == IDS * 2
    assert found.index.tolist()[:2] == [2, 3]


def test_parquet_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    long().to_parquet(tmp_path / "table.parquet")
    assert read_predictions(tmp_path / "table.parquet")["score"].tolist() == long()["score"].tolist()


def test_what_is_no_table_is_refused_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="does not exist"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    with pytest.raises(EvidenceError, match="not a CSV"):
        read_predictions(tmp_path / "empty.csv")
    latin = written(tmp_path, wide().rename(columns={"prior": "pr\u00e9via"}), "latin.csv", encoding="latin-1")
    with pytest.raises(EvidenceError, match=r"is not UTF-8 text.*save it as UTF-8"):
        read_predictions(latin, wide=True)
    twice = pd.DataFrame(
        np.column_stack([wide(), wide()["cxr"]]), columns=["patient_id", "label", "cxr", "prior", "cxr"]
    )
    with pytest.raises(EvidenceError, match="column 'cxr' twice"):
        read_predictions(written(tmp_path, twice), wide=True)


def test_ids_and_methods_that_look_empty_are_names(tmp_path: Path) -> None:
    odd = ["NA", "nan", "None", "null", "NULL", "n/a", "N/A"]
    path = written(tmp_path, wide().assign(patient_id=odd + IDS[7:]))
    found = read_predictions(path, wide=True)
    assert found["patient_id"].tolist()[:7] == odd
    for name in ("None", "NA"):
        table = long().assign(method=long()["method"].replace("prior", name))
        evidence = evaluate_predictions(read_predictions(written(tmp_path, table)), "cxr")
        assert [r["method"] for r in evidence["methods"]] == ["cxr", name]
    empty = long().astype({"label": float})
    empty.loc[0, "label"] = np.nan
    assert np.isnan(read_predictions(written(tmp_path, empty))["label"].iloc[0])


def test_names_of_other_tools_are_read_and_said(tmp_path: Path) -> None:
    found = read_predictions(written(tmp_path, long().rename(columns={"label": "y_true", "score": "y_score"})))
    assert found.attrs["read_as"] == {"y_true": "label", "y_score": "score"}
    upper = read_predictions(written(tmp_path, long().rename(columns=str.upper)))
    assert upper["score"].tolist() == long()["score"].tolist()
    assert upper["patient_id"].tolist() == IDS * 2


def test_labels_in_words_need_the_positive_one(tmp_path: Path) -> None:
    words = long().assign(label=np.where(long()["label"] == 1, "positive", "negative"))
    path = written(tmp_path, words)
    with pytest.raises(EvidenceError, match="--positive"):
        evaluate_predictions(read_predictions(path), "cxr")
    found = read_predictions(path, positive="positive")
    assert found["label"].tolist() == long()["label"].tolist()
    with pytest.raises(EvidenceError, match="Did you mean 'positive'"):
        read_predictions(path, positive="positiv")


def test_families_are_read_from_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("a,b\nx,y\n", encoding="utf-8")
    (tmp_path / "f.json").write_text('[["x", "y"]]', encoding="utf-8")
    assert read_family(tmp_path / "f.csv") == read_family(tmp_path / "f.json") == [Claim("x", "y")]
    (tmp_path / "k.csv").write_text("a,b,kind,margin\nx,y,non-inferior,.03\nx,z,,\n", encoding="utf-8")
    (tmp_path / "k.json").write_text('["x >= y - .03", ["x", "z"]]', encoding="utf-8")
    (tmp_path / "c.csv").write_text("claim\nx >= y - .03\nx > z\n", encoding="utf-8")
    expected = [Claim("x", "y", "non-inferior", 0.03), Claim("x", "z")]
    assert [read_family(tmp_path / name) for name in ("k.csv", "k.json", "c.csv")] == [expected] * 3
    (tmp_path / "bad.json").write_text("[3]", encoding="utf-8")
    (tmp_path / "bad.csv").write_text("a,c\nx,y\n", encoding="utf-8")
    (tmp_path / "kind.csv").write_text("a,b,kind\nx,y,noninferior\n", encoding="utf-8")
    for name, words in (
        ("bad.json", "list of pairs"),
        ("bad.csv", "columns a,b"),
        ("none.csv", "does not exist"),
        ("kind.csv", "Did you mean 'non-inferior'"),
    ):
        with pytest.raises(EvidenceError, match=words):
            read_family(tmp_path / name)
