"""Curves, tables and files made from an evaluation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from embedprior.evidence import evaluate_predictions
from embedprior.evidence.curves import mean_pr, mean_roc, sweep, sweeps_of
from embedprior.evidence.predictions import blocks_of, held_out_blocks
from embedprior.evidence.tables import latex, markdown
from embedprior.report.curves import draw_curves


def frame(folds: int = 1, seeds: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    label = (np.arange(90) % 3 == 0).astype(int)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "exam_id": [f"e{i}" for i in range(90)],
                    "patient_id": [f"p{i}" for i in range(90)],
                    "label": label,
                    "method": m,
                    "score": np.round(1 / (1 + np.exp(-(rng.normal(size=90) + shift * label))), 2),
                    "fold": np.arange(90) // 3 % folds,
                    "seed": s,
                }
            )
            for m, shift in (("ref", 0.7), ("a_b", 1.4))
            for s in range(seeds)
        ],
        ignore_index=True,
    )


def test_roc_and_pr_points_equal_scikit_learn() -> None:
    (block,) = blocks_of(frame(), "patient")
    scores = block.scores["a_b"][0]
    fpr, tpr, _ = sk.roc_curve(block.labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(sweep(block.labels, scores).roc(), [fpr, tpr])
    precision, recall, _ = sk.precision_recall_curve(block.labels, scores)
    np.testing.assert_allclose(sweep(block.labels, scores).precision_recall(), [recall[-2::-1], precision[-2::-1]])


def test_area_under_the_averaged_roc_is_the_fold_stratified_auc() -> None:
    table = frame(folds=3, seeds=2)
    blocks = blocks_of(table, "patient")
    points = mean_roc(sweeps_of(blocks, "a_b"))
    assert points is not None
    rows = {r["method"]: r for r in evaluate_predictions(table, "ref")["methods"]}
    assert np.trapezoid(points[1], points[0]) == pytest.approx(rows["a_b"]["auc"], abs=1e-12)
    pr = mean_pr(sweeps_of(blocks, "a_b"))
    assert pr is not None
    assert pr[1].max() <= 1


def test_tables_show_intervals_reasons_and_escape_names() -> None:
    evidence = evaluate_predictions(frame(), "ref", oracles=["a_b"])
    text, tex = markdown(evidence), latex(evidence)
    row = next(r for r in evidence["methods"] if r["method"] == "ref")
    shown = f"{row['auc']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})"
    assert shown in text
    assert shown in tex
    assert "oracle" in text
    assert "no interval: the bootstrap is off" in text
    assert r"a\_b" in tex
    assert "a_b >" not in tex


def figures(table: pd.DataFrame) -> dict[str, bytes]:
    evidence = evaluate_predictions(table, "ref")
    drawn = draw_curves(table, evidence)
    assert drawn == draw_curves(held_out_blocks(table, "patient"), evidence)
    return drawn


def test_figures_are_drawn_unless_undefined() -> None:
    table = frame()
    drawn = figures(table)
    assert set(drawn) == {"roc.png", "precision_recall.png", "calibration.png", "decision.png"}
    assert all(data.startswith(b"\x89PNG") for data in drawn.values())
    logits = table.assign(score=table.score * 8 - 4)
    assert set(figures(logits)) == {"roc.png", "precision_recall.png"}
    one_class = table.assign(label=1)
    assert "roc.png" not in figures(one_class)


def test_names_are_shown_as_they_are_and_never_as_markup() -> None:
    table = frame()
    named = {"ref": "ref", "a_b": "<script>alert(1)</script>"}
    table = table.assign(method=[named.get(m, '"><img src=x>|\\input{x}') for m in table["method"]])
    text = markdown(evaluate_predictions(table, "ref"))
    assert "<script" not in text
    assert "<img" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "alert" in line]
    assert rows
    assert "&lt;script>alert(1)&lt;/script>" in rows[0]
    for block in text.split("### ")[1:]:
        cells = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("| ")}
        assert len(cells) == 1
