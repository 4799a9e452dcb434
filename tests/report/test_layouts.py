"""A study's results in the layouts of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from embedprior.cli import main
from embedprior.evidence import evaluate_predictions
from embedprior.report import EvidenceSection, Report
from embedprior.report.output import finish_report
from embedprior.runs import Run, write_json
from embedprior.tables import write_table


def _scores(design: str, resamples: int, seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for resample in range(resamples):
        for case in range(24):
            for method in ("cxr-only", "hinton-kd", "prior", "direct-head"):
                for seed in range(seeds):
                    label = case % 3 == 0
                    rows.append(
                        {
                            "exam_id": f"x{case}", "patient_id": f"p{case}", "label": int(label), "method": method,
                            "score": float(np.clip(0.4 + 0.2 * label + 0.2 * rng.normal(), 0, 1)), "fold": 0,
                            "seed": seed, "split": "test", "resample": resample, "design": design,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """A finished study of two designs, made of scores alone."""
    scores = pd.concat([_scores("fixed", 1, 4), _scores("again", 5, 1)], ignore_index=True)
    evidence, sections = {}, []
    for name, size in (("fixed", None), ("again", 40.0)):
        own = scores[scores["design"] == name].drop(columns="design")
        own = own.drop(columns="resample") if name == "fixed" else own
        evidence[name] = evaluate_predictions(own, "cxr-only", train_size=size, bootstrap=0)
        sections.append(EvidenceSection(name, evidence[name], own, key=name))
    exams = [
        {"exam_id": f"{kind}{i}", "patient_id": f"p{i}", "modality": kind, "path": "", "label:pe": i % 3 == 0}
        for kind, count in (("CXR", 24), ("CT", 9)) for i in range(count)
    ]  # fmt: skip
    config = {"label": "pe", "designs": [{"name": "fixed", "split": "fixed"}, {"name": "again", "split": "resamples"}]}
    run = Run(tmp_path / "run", "study run", config, 1, {})
    write_table(scores, run.out / "predictions.csv")
    (run.out / "cohort").mkdir()
    write_table(pd.DataFrame(exams).astype({"label:pe": int}), run.out / "cohort" / "exams.csv")
    support = {"design": ["fixed", "again"], "held_out_images_pos": [8, 8], "held_out_images_neg": [16, 16]}
    write_table(pd.DataFrame(support), run.out / "support.csv")
    write_json(run.out / "evidence.json", {"designs": evidence})
    boundary = pd.DataFrame([["q", "no", "w"]], columns=["question", "answer", "why"])
    finish_report(run, Report("S", "", [], sections, boundary=boundary), [])
    return run.out, scores


def test_the_pilots_tables_hold_its_metrics_counted_from_the_scores(study: tuple[Path, pd.DataFrame]) -> None:
    out, scores = study
    assert main(["report", str(out), "--layout", "pilot"]) == 0
    made = out / "layout-pilot"
    names = {path.name for path in made.iterdir()}
    assert {f"table_{n}.csv" for n in range(1, 7)} | {f"table_{n}.tex" for n in range(1, 7)} <= names
    assert {"figure_2.png", "figure_3.png", "figure_5.png"} <= names
    assert main(["verify", str(made)]) == 0
    whole = (made / "table_1.tex").read_bytes()
    (made / "table_1.tex").write_bytes(whole[:-1])
    assert main(["verify", str(made)]) == 3
    assert main(["report", str(out), "--layout", "pilot"]) == 0
    assert (made / "table_1.tex").read_bytes() == whole
    for table, design, keys in (("table_4", "fixed", "seed"), ("table_5", "again", "resample")):
        row = pd.read_csv(made / f"{table}.csv").set_index("method").loc["hinton-kd"]
        own = scores[(scores["design"] == design) & (scores["method"] == "hinton-kd")]
        fits = [(part["label"] == 1, part["score"] >= 0.5) for _, part in own.groupby(keys)]
        assert row["fits"] == len(fits)
        for name, expected in (
            ("balanced accuracy", [balanced_accuracy_score(*fit) for fit in fits]),
            ("macro-F1", [f1_score(*fit, average="macro") for fit in fits]),
        ):
            assert row[name].startswith(f"{np.mean(expected):.3f} ± {np.std(expected, ddof=1):.3f}")
    again = pd.read_csv(made / "table_5.csv").set_index("method").loc["prior", "accuracy"]
    own = scores[(scores["design"] == "again") & (scores["method"] == "prior")]
    each = [((p["score"] >= 0.5) == p["label"]).mean() for _, p in own.groupby("resample")]
    low, high = np.quantile(each, [0.025, 0.975])
    assert again.endswith(f"[{low:.3f}, {high:.3f}]")


def test_the_cohort_and_its_support_are_counted(study: tuple[Path, pd.DataFrame]) -> None:
    out, _ = study
    main(["report", str(out), "--layout", "pilot"])
    cohort = pd.read_csv(out / "layout-pilot" / "table_2.csv").set_index("set")
    assert cohort.loc["CXR exams"].tolist() == [24, 24, 8, 16, 0]
    assert cohort.loc["CT exams"].tolist() == [9, 9, 3, 6, 0]
    regimes = pd.read_csv(out / "layout-pilot" / "table_3.csv")
    assert regimes["role"].tolist() == ["feasibility", "primary"]
    assert regimes["held out +"].tolist() == [8, 8]


def test_what_a_study_lacks_is_said_with_its_reason(study: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    out, _ = study
    assert main(["report", str(out), "--layout", "pe-paper", "--out", str(tmp_path / "pe")]) == 0
    text = (tmp_path / "pe" / "layout.md").read_text()
    assert "Not in this study: no embedding was generated" in text
    first = pd.read_csv(tmp_path / "pe" / "table_1.csv")
    assert first["method"].tolist() == ["cxr-only", "hinton-kd", "prior", "direct-head"]
    assert list(first.columns) == ["method", "AUC", "accuracy", "sensitivity", "specificity"]
    main(["report", str(out), "--layout", "pilot"])
    assert "Not in this study: no setting is swept" in (out / "layout-pilot" / "layout.md").read_text()
