"""What figures show is counted from the scores, and left out where too few cases would mislead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from embedprior.evidence import evaluate_predictions
from embedprior.evidence.curves import roc_band
from embedprior.report.curves import (
    calibration_data,
    calibration_figure,
    decision_canvas,
    threshold_data,
    threshold_figure,
)
from embedprior.report.figures import PALETTE, evidence_styles, shown_methods
from embedprior.report.flow import flow_svg
from embedprior.report.spreads import label_curve_figure, sweep_figure
from embedprior.report.verdicts import verdict_sentences


def scores(pos: int, neg: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.repeat([1, 0], [pos, neg])
    frames = []
    for method in ("ref", "new"):
        score = np.clip(0.4 + 0.2 * label + 0.15 * rng.normal(size=label.size), 0.01, 0.99)
        frames.append(pd.DataFrame({"exam_id": [f"x{i}" for i in range(label.size)], "label": label, "score": score,
                                    "method": method, "split": "test", "fold": 0, "seed": 0}))  # fmt: skip
    return pd.concat(frames).assign(patient_id=lambda t: t["exam_id"])


def test_the_band_is_that_of_a_plain_bootstrap_of_the_cases() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(80) % 2 == 0
    score = np.round(labels + rng.normal(size=80), 1)
    grid, low, high = roc_band([(labels, score, np.arange(80))], replicates=1500, seed=1)
    curves = []
    for _ in range(1500):
        chosen = np.concatenate([rng.choice(np.flatnonzero(labels == k), 40) for k in (True, False)])
        fpr, tpr, _ = roc_curve(labels[chosen], score[chosen], drop_intermediate=False)
        curves.append(np.interp(grid, fpr, tpr))
    expected = np.quantile(curves, [0.025, 0.975], axis=0)
    assert np.abs(low - expected[0]).mean() < 0.015
    assert np.abs(high - expected[1]).mean() < 0.015


def test_a_patients_exams_are_drawn_together_so_the_band_is_wider() -> None:
    rng = np.random.default_rng(4)
    label = np.repeat(np.arange(30) % 2 == 0, 5)
    score = label + np.repeat(rng.normal(size=30), 5) + 0.01 * rng.normal(size=150)
    (_, low, high), (_, low_1, high_1) = (
        roc_band([(label, score, patients)]) for patients in (np.repeat(np.arange(30), 5), np.arange(150))
    )
    assert (high - low).mean() > 1.5 * (high_1 - low_1).mean()


def test_calibration_bins_count_cases_and_have_wilsons_intervals() -> None:
    table = scores(60, 60)
    evidence = evaluate_predictions(table, "ref", bootstrap=0)
    found = calibration_data(evidence["methods"])
    own = table[table["method"] == "new"]
    for one in found[found["method"] == "new"].to_dict("records"):
        inside = own[(own["score"] >= one["low"]) & (own["score"] < one["high"])]
        assert one["n"] == len(inside)
        limits = binomtest(int(inside["label"].sum()), len(inside)).proportion_ci(method="wilson")
        assert (one["ci_low"], one["ci_high"]) == pytest.approx((limits.low, limits.high))


def test_few_cases_give_a_sentence_instead_of_a_calibration_curve() -> None:
    figure, why = calibration_figure(evaluate_predictions(scores(6, 40), "ref", bootstrap=0))
    assert figure is None
    assert "6 positive and 40 negative" in why
    figure, why = calibration_figure(evaluate_predictions(scores(25, 40), "ref", bootstrap=0))
    assert figure is not None
    assert why == ""


def test_thresholds_are_counted_in_each_fit_and_averaged() -> None:
    table = pd.concat([scores(20, 30, seed).assign(seed=seed) for seed in (1, 2)])
    found = threshold_data(table).set_index(["method", "threshold"])
    fits = [part for _, part in table[table["method"] == "new"].groupby("seed")]
    sensitivity = np.mean([(p.loc[p["label"] == 1, "score"] >= 0.4).mean() for p in fits])
    specificity = np.mean([(p.loc[p["label"] == 0, "score"] < 0.4).mean() for p in fits])
    row = found.loc[("new", 0.4)]
    assert row.tolist() == pytest.approx([sensitivity, specificity, (sensitivity + specificity) / 2])
    evidence = evaluate_predictions(scores(20, 30), "ref", bootstrap=0)
    assert threshold_figure(evidence, scores(20, 30).assign(score=lambda t: 5 * t["score"])) is None


def test_figures_of_many_methods_keep_the_reference_the_claims_and_one_oracle() -> None:
    rows: list[dict[str, Any]] = [{"method": f"m{i}", "auc": 0.7, "oracle": i < 3} for i in range(40)]
    evidence = {"methods": rows, "reference": "m30", "comparisons": [{"a": "m20", "b": "m30", "in_family": True}]}
    shown = shown_methods(evidence, 5)
    assert shown == ["m30", "m20", "m3", "m4", "m0"]


def label_rows(series: str, counts: list[int]) -> pd.DataFrame:
    rows = [
        {"series": series, "method": m, "labelled": float(n), "auc": 0.6 + 0.001 * n, "ci_low": 0.5, "ci_high": 0.9,
         "oracle": m == "ct-only"} for n in counts for m in ("cxr-only", "prior", "ct-only")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_label_curves_need_two_numbers_of_labels_and_keep_what_they_draw() -> None:
    assert label_curve_figure(label_rows("few", [20])) is None
    both = pd.concat([label_rows("few", [20, 60]), label_rows("many", [100])])
    figure = label_curve_figure(both)
    assert figure is not None
    assert set(figure.data["series"]) == {"few"}
    assert "prior: 0.620 with 20, 0.660 with 60" in figure.alt
    some = label_curve_figure(both, methods=("cxr-only", "ct-only"))
    assert some is not None
    assert set(some.data["method"]) == {"cxr-only", "ct-only"}


def test_a_method_has_one_colour_whichever_others_a_figure_shows() -> None:
    """The order of the rows gives the colours; figures show the reference first, and some of the methods."""
    rows = [{"method": name, "auc": 0.7, "oracle": name == "ct-only"} for name in ("a", "ct-only", "b", "c")]
    styles = evidence_styles({"methods": rows, "reference": "c"})
    assert [styles[name]["color"] for name in ("a", "b", "c")] == list(PALETTE[:3])
    points = [{"threshold": t, "net_benefit": 0.1, "treat_all": 0.2, "ci_low": 0.0, "ci_high": 0.2} for t in (0.2, 0.4)]
    figure = decision_canvas([rows[3] | {"decision_curve": points}], styles)
    assert figure is not None
    (line,) = [one for one in figure.axes[0].get_lines() if one.get_label() == "c"]
    assert line.get_color() == PALETTE[2]


def test_two_settings_of_a_sweep_make_a_grid_and_gaps_stay_gaps() -> None:
    rows = [{"t": t, "w": w, "method": "kd", "auc": None if (t, w) == ("4", ".9") else 0.7}
            for t in ("2", "4") for w in (".3", ".9")]  # fmt: skip
    figure = sweep_figure("pilot", pd.DataFrame(rows).astype({"auc": float}), ["t", "w"])
    assert figure is not None
    assert figure.data["auc"].isna().sum() == 1
    assert sweep_figure("pilot", pd.DataFrame(rows).assign(auc=np.nan), ["t", "w"]) is None


EVIDENCE = {
    "alpha": 0.05, "power": 0.8, "relevant_delta": 0.05, "assumed_auc": 0.8, "assumed_correlation": 0.5,
    "unit": "patient", "methods": [{"method": "m", "n_pos": 40, "n_neg": 90}],
}  # fmt: skip


def claim(verdict: str, detectable: float = 0.103, **fields: Any) -> dict[str, Any]:
    return {"a": "new", "b": "ref", "in_family": True, "verdict": verdict, "min_detectable_delta": detectable, **fields}


def test_the_answer_names_the_verdict_and_how_many_patients_would_tell() -> None:
    # 190 + 426 patients: the example of evidence.power.patients_needed, rounded to two digits
    said = verdict_sentences(EVIDENCE | {"comparisons": [claim("not testable at this size")]})
    assert said == [
        "The declared claim is not testable at this size: new better than ref.",
        "The 130 held-out patients (40 positive) could show a difference in AUC of 0.10 or more with 80 % power; a "
        "difference of 0.05 would take about 620 held-out patients (about 190 positive).",
    ]


def test_several_verdicts_are_counted_the_supported_ones_first() -> None:
    rows = [claim("inconclusive", a="x"), claim("supported", a="y"), claim("inconclusive", a="z")]
    first = verdict_sentences(EVIDENCE | {"comparisons": rows}, "design")[0]
    assert first == (
        "design: 1 of 3 declared claims is supported: y better than ref; 2 are inconclusive: x better than ref, z "
        "better than ref."
    )
    four, five = ([claim("supported", a=name) for name in names] for names in ("wxyz", "vwxyz"))
    named = verdict_sentences(EVIDENCE | {"comparisons": four})[0]
    assert named.endswith("supported: w better than ref, x better than ref, y better than ref, z better than ref.")
    counted = verdict_sentences(EVIDENCE | {"comparisons": five})[0]
    assert counted.endswith("v better than ref, w better than ref, x better than ref and 2 more.")
    enough = verdict_sentences(EVIDENCE | {"comparisons": [claim("excluded", 0.04)]})[1]
    assert "are enough to show a difference in AUC of 0.05" in enough
    undeclared = EVIDENCE | {"comparisons": [claim("excluded"), claim("excluded", a="z")], "family_declared": False}
    assert verdict_sentences(undeclared)[0].startswith("Both comparisons are excluded")
    assert "no claim was declared" in verdict_sentences(EVIDENCE | {"comparisons": []})[0]


def test_the_flow_is_drawn_from_its_counts_and_designs_branch_off_the_cohort() -> None:
    rows = [
        ["read", 100, 60, 0, ""], ["one row per file", 100, 60, 0, ""], ["with a label", 80, 50, 20, "label unknown"],
        ["pilot: X-rays", 50, 50, 30, "CTs are not scored"], ["pilot: scored", 45, 45, 5, "no score"],
        ["other: X-rays", 50, 50, 30, "CTs are not scored"],
    ]  # fmt: skip
    drawn = flow_svg(pd.DataFrame(rows, columns=["step", "exams", "patients", "dropped", "reason"]))
    assert drawn.count("<rect") == 5  # two steps that left the same exams share a box
    assert drawn.count("design pilot") == drawn.count("design other") == 1
    for text in ("20 exams left out: label unknown", "45 exams of 45 patients", "read; one row per file"):
        assert text in drawn
    assert flow_svg(pd.DataFrame({"step": ["a"]})) == ""
