"""Figures of an evaluation: ROC, precision-recall, calibration and decision curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from embedprior.evidence.curves import mean_pr, mean_roc, sweeps_of
from embedprior.evidence.predictions import Block, held_out_blocks
from embedprior.report.figures import DASHES, MUTED, PALETTE, clean, png

Draw = Callable[[Axes, str, dict[str, Any]], bool]


def draw_curves(predictions: pd.DataFrame | Sequence[Block], evidence: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the curves of every method, one set per label.

    Args:
        predictions: the long table that was evaluated, or its ``held_out_blocks``.
        evidence: what ``evaluate_predictions`` made of them.

    Returns:
        ``{file name: PNG}``: ``roc``, ``precision_recall``, ``calibration`` and ``decision`` (with ``-LABEL`` where
        there are several labels). A figure without a defined curve, such as the calibration of scores that are no
        probabilities, is left out. Several seeds, folds and resamples are averaged; oracles are grey.
    """
    blocks = predictions
    if isinstance(blocks, pd.DataFrame):
        blocks = held_out_blocks(blocks, evidence["unit"], evidence["patient_label"])
    labels = list(dict.fromkeys(b.label_name for b in blocks))
    drawn: dict[str, bytes] = {}
    for label in labels:
        mine = [b for b in blocks if b.label_name == label]
        rows = [r for r in evidence["methods"] if r["label_name"] == label and r["method"] in mine[0].methods]
        suffix = f"-{label}".replace("/", "_") if len(labels) > 1 else ""
        for name, figure in _figures(mine, rows).items():
            if figure is not None:
                drawn[f"{name}{suffix}.png"] = png(figure)
    return drawn


def _figures(blocks: Sequence[Block], rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure | None]:
    by_name = {r["method"]: r for r in rows}
    with ThreadPoolExecutor() as pool:
        sweeps = dict(zip(by_name, pool.map(lambda m: sweeps_of(blocks, m), by_name), strict=True))
    prevalence = sum(b.labels.sum() for b in blocks) / max(sum(b.labels.size for b in blocks), 1)

    def roc(axes: Axes, method: str, style: dict[str, Any]) -> bool:
        points = mean_roc(sweeps[method])
        auc = by_name[method]["auc"]
        if points is None or auc is None:
            return False
        axes.plot(*points, label=f"{method}: {auc:.3f}", **style)
        return True

    def pr(axes: Axes, method: str, style: dict[str, Any]) -> bool:
        points = mean_pr(sweeps[method])
        if points is None:
            return False
        axes.plot(*points, drawstyle="steps-pre", label=method, **style)
        return True

    def calibration(axes: Axes, method: str, style: dict[str, Any]) -> bool:
        bins = [b for b in by_name[method]["reliability"] or () if b["n"] > 0]
        axes.plot(
            [b["mean_score"] for b in bins], [b["observed"] for b in bins], marker="o", ms=3, label=method, **style
        )
        return bool(bins)

    def decision(axes: Axes, method: str, style: dict[str, Any]) -> bool:
        curve = by_name[method]["decision_curve"] or ()
        axes.plot([c["threshold"] for c in curve], [c["net_benefit"] for c in curve], label=method, **style)
        return bool(curve)

    found = {
        "roc": _figure(rows, roc, "False positive rate", "Sensitivity", [(0, 1), (0, 1)], "chance"),
        "precision_recall": _figure(
            rows, pr, "Recall", "Precision", [(0, 1), (prevalence, prevalence)], f"prevalence {prevalence:.3f}"
        ),
        "calibration": _figure(rows, calibration, "Mean score", "Observed share", [(0, 1), (0, 1)], "perfect"),
    }
    curves = [r["decision_curve"] for r in rows if r["decision_curve"]]
    if curves:
        all_line = [c["threshold"] for c in curves[0]], [c["treat_all"] for c in curves[0]]
        figure = _figure(rows, decision, "Threshold probability", "Net benefit", list(all_line), "treat all")
        if figure is not None:
            axes = figure.axes[0]
            axes.axhline(0, color=MUTED, lw=0.8)
            top = max(c["net_benefit"] for curve in curves for c in curve)
            axes.set_ylim(-0.25 * max(top, 0.05), 1.15 * max(top, prevalence, 0.05))
        found["decision"] = figure
    return found


def _figure(
    rows: Sequence[Mapping[str, Any]], draw: Draw, x: str, y: str, guide: Sequence[Any], guide_name: str
) -> Figure | None:
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*guide, color=MUTED, lw=0.8, ls=(0, (4, 3)), label=guide_name)
    styles = cycle([{"color": c, "ls": d, "lw": 1.6} for d in DASHES for c in PALETTE])
    drawn = [
        draw(axes, r["method"], {"color": MUTED, "lw": 1.2, "ls": "-"} if r["oracle"] else next(styles)) for r in rows
    ]
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    clean(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure if any(drawn) else None
