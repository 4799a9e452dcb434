"""Curves of scores: precision and recall, calibration, decision curves, and what a threshold does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from embedprior.evidence.curves import mean_pr, mean_roc, sweeps_of
from embedprior.evidence.intervals import wilson
from embedprior.evidence.predictions import Block, held_out_blocks
from embedprior.report import formatting
from embedprior.report.content import Figure, alpha_of
from embedprior.report.figures import (
    DASHES,
    INK,
    MUTED,
    PALETTE,
    clean,
    evidence_styles,
    fits_of,
    held_out,
    left_out,
    png,
    short_name,
    shown_methods,
)

#: Cases of either class below which ten bins of a calibration curve hold too few each.
MIN_CALIBRATION = 20
MAX_PANELS = 6
THRESHOLDS = np.round(np.arange(0.1, 0.95, 0.1), 1)


def calibration_data(rows: Sequence[Mapping[str, Any]], alpha: float = 0.05) -> pd.DataFrame:
    """Return the bins of every method that hold a case: counts, mean score, observed share with Wilson's interval.

    Example:
        >>> bins = [{"low": 0.2, "high": 0.3, "n": 10.0, "mean_score": 0.25, "observed": 0.5}]
        >>> calibration_data([{"method": "m", "reliability": bins}]).round(3)[["ci_low", "ci_high"]].values.tolist()
        [[0.237, 0.763]]
    """
    found = []
    for row in rows:
        for one in row.get("reliability") or ():
            if one["n"] > 0:
                low, high = wilson(one["observed"] * one["n"], one["n"], alpha)
                found.append({"method": row["method"], **one, "ci_low": low, "ci_high": high})
    names = ["method", "low", "high", "n", "mean_score", "observed", "ci_low", "ci_high"]
    return pd.DataFrame(found, columns=names)


def calibration_canvas(rows: Sequence[Mapping[str, Any]], alpha: float = 0.05) -> Canvas | None:
    """Draw a panel a method: observed share by score with intervals, and the number of cases of each bin."""
    data = calibration_data(rows, alpha)
    names = list(dict.fromkeys(data["method"]))[:MAX_PANELS]
    if not names:
        return None
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure = Canvas(figsize=(2.6 * columns + 0.6, 2.75 * lines + 0.2), layout="constrained")
    for axes, name in zip(figure.subplots(lines, columns, squeeze=False).ravel(), names, strict=False):
        own = data[data["method"] == name]
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
        errors = np.clip([own["observed"] - own["ci_low"], own["ci_high"] - own["observed"]], 0, None)
        axes.errorbar(
            own["mean_score"], own["observed"], yerr=errors, fmt="o", ms=4, color=PALETTE[0], lw=1.2, capsize=2
        )
        for one in own.to_dict("records"):
            axes.annotate(
                f"{one['n']:.0f}", (one["mean_score"], -0.09), fontsize=7, ha="center", color=INK,
                annotation_clip=False,
            )  # fmt: skip
        axes.set_title(short_name(name), fontsize=9, color=INK)
        axes.set(xlim=(0, 1), ylim=(-0.14, 1.04))
        axes.set_xlabel("score (below: cases)", fontsize=8)
        axes.set_ylabel("observed share", fontsize=8)
        clean(axes)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(names) :]:
        axes.set_visible(False)
    return figure


def calibration_figure(evidence: Mapping[str, Any], label: str | None = None) -> tuple[Figure | None, str]:
    """Return the calibration of the methods shown, or None with the reason: too few cases, or no probabilities."""
    scored = [row for row in _of_label(evidence, label) if row["n_pos"] is not None]  # others could not be fitted
    rows = [row for row in scored if row.get("reliability")]
    if not rows:
        return None, ""
    pos, neg = (min(float(row[k]) for row in rows) for k in ("n_pos", "n_neg"))
    if min(pos, neg) < MIN_CALIBRATION:
        return None, (
            f"No calibration curve: with {formatting.count(pos)} positive and {formatting.count(neg)} negative cases "
            f"its bins would hold a few each, and say nothing; at least {MIN_CALIBRATION} of either class are needed."
        )
    shown = shown_methods(evidence, MAX_PANELS)
    by_name = {str(row["method"]): row for row in rows}
    chosen = [by_name[name] for name in shown if name in by_name]
    figure = calibration_canvas(chosen, alpha_of(evidence))
    if figure is None:
        return None, ""
    percent = formatting.percent(alpha_of(evidence))
    caption = (
        f"Calibration: the share of positives among cases of similar score, with "
        f"{percent} intervals (Wilson, each case counted once) and the number of cases below. On the dashed line a "
        f"score is a probability.{left_out(evidence, [str(r['method']) for r in chosen])}"
    )
    return _named("calibration", label, caption, figure, calibration_data(chosen, alpha_of(evidence))), ""


def decision_canvas(
    rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]] | None = None
) -> Canvas | None:
    """Draw the net benefit of every method by threshold, with bands, beside treating all and treating none.

    Args:
        rows: of the methods.
        styles: of their lines; None = those of these methods alone.
    """
    rows = [row for row in rows if row.get("decision_curve")]
    if not rows:
        return None
    figure = Canvas(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    everyone = rows[0]["decision_curve"]
    axes.plot(
        [c["threshold"] for c in everyone], [c["treat_all"] for c in everyone], color=INK, lw=0.9, ls=(0, (4, 3)),
        label="treat all",
    )  # fmt: skip
    axes.axhline(0, color=MUTED, lw=0.9, label="treat none")
    styles = styles or evidence_styles({"methods": rows})
    for place, row in enumerate(rows):
        curve, style = row["decision_curve"], styles[str(row["method"])]
        x = [c["threshold"] for c in curve]
        low, high = ([c.get(k) for c in curve] for k in ("ci_low", "ci_high"))
        if place < 2 and None not in (*low, *high):
            axes.fill_between(x, low, high, color=style["color"], alpha=0.12, lw=0)
        axes.plot(x, [c["net_benefit"] for c in curve], label=short_name(row["method"]), **style)
    top = max(max(c["net_benefit"], c["treat_all"]) for row in rows for c in row["decision_curve"])
    axes.set(xlim=(0, 1), ylim=(-0.3 * max(top, 0.05), 1.15 * max(top, 0.05)))
    axes.set_xlabel("threshold probability", fontsize=10, color=INK)
    axes.set_ylabel("net benefit", fontsize=10, color=INK)
    clean(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def decision_figure(evidence: Mapping[str, Any], label: str | None = None) -> Figure | None:
    """Return the decision curves of the methods shown; None without scores that are probabilities."""
    by_name = {str(row["method"]): row for row in _of_label(evidence, label)}
    chosen = [by_name[m] for m in shown_methods(evidence) if m in by_name and by_name[m].get("decision_curve")]
    figure = decision_canvas(chosen, evidence_styles(evidence))
    if figure is None:
        return None
    data = pd.DataFrame([{"method": row["method"], **point} for row in chosen for point in row["decision_curve"]])
    caption = (
        "Decision curves: the net benefit of acting on scores above a threshold. A method is of use at a threshold "
        "where it lies above both 'treat all' and 'treat none'; bands (95 %, at each point) for the first two."
    )
    return _named("decision", label, caption + left_out(evidence, [str(r["method"]) for r in chosen]), figure, data)


def threshold_data(rows: pd.DataFrame) -> pd.DataFrame:
    """Return sensitivity, specificity and balanced accuracy at fixed thresholds, means over fits with both classes.

    Args:
        rows: held-out scores in [0, 1]: ``method, label, score`` and what names a fit.
    """
    found = []
    for method, own in rows.groupby("method", sort=False):
        fits = [(part["label"].to_numpy() == 1, part["score"].to_numpy(dtype=float)) for part in fits_of(own)]
        fits = [(y, s) for y, s in fits if y.any() and not y.all()]
        for threshold in THRESHOLDS if fits else ():
            sensitivity = float(np.mean([(s[y] >= threshold).mean() for y, s in fits]))
            specificity = float(np.mean([(s[~y] < threshold).mean() for y, s in fits]))
            balanced = (sensitivity + specificity) / 2
            found.append([method, threshold, sensitivity, specificity, balanced])
    return pd.DataFrame(found, columns=["method", "threshold", "sensitivity", "specificity", "balanced accuracy"])


def threshold_figure(evidence: Mapping[str, Any], predictions: pd.DataFrame, label: str | None = None) -> Figure | None:
    """Return what each threshold from .1 to .9 does to sensitivity and specificity; None for scores beyond [0, 1]."""
    rows = held_out(predictions, str(evidence.get("unit", "exam")))
    if rows.empty or rows["score"].min() < 0 or rows["score"].max() > 1:
        return None
    if label is not None:
        rows = rows[rows["label_name"] == label]
    shown = shown_methods(evidence, MAX_PANELS)
    data = threshold_data(rows[rows["method"].isin(shown)])
    if data.empty:
        return None
    figure = Canvas(figsize=(7.8, 3.2), layout="constrained")
    styles = evidence_styles(evidence)
    for axes, quantity in zip(figure.subplots(1, 3, sharey=True), list(data.columns[2:]), strict=True):
        for method, own in data.groupby("method", sort=False):
            axes.plot(own["threshold"], own[quantity], label=short_name(method), **styles[str(method)])
        axes.set_title(quantity, fontsize=10, color=INK)
        axes.set(xlim=(0.08, 0.92), ylim=(-0.02, 1.02))
        axes.set_xlabel("threshold", fontsize=9)
        clean(axes)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    caption = (
        "What a threshold does, from .1 to .9: means over the fits. Where the curves of two methods cross, their order "
        f"rests on the threshold.{left_out(evidence, shown)}"
    )
    return _named("thresholds", label, caption, figure, data)


def _of_label(evidence: Mapping[str, Any], label: str | None) -> list[Mapping[str, Any]]:
    return [m for m in evidence.get("methods", ()) if label is None or m.get("label_name") == label]


def _named(name: str, label: str | None, caption: str, figure: Canvas, data: pd.DataFrame) -> Figure:
    suffix = f" ({label})" if label else ""
    return Figure(name + (f"-{label}" if label else ""), caption + suffix, png(figure), data)


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


def _figures(blocks: Sequence[Block], rows: Sequence[Mapping[str, Any]]) -> dict[str, Canvas | None]:
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

    return {
        "roc": _figure(rows, roc, "False positive rate", "Sensitivity", [(0, 1), (0, 1)], "chance"),
        "precision_recall": _figure(
            rows, pr, "Recall", "Precision", [(0, 1), (prevalence, prevalence)], f"prevalence {prevalence:.3f}"
        ),
        "calibration": calibration_canvas(rows),
        "decision": decision_canvas(rows),
    }


def _figure(
    rows: Sequence[Mapping[str, Any]], draw: Draw, x: str, y: str, guide: Sequence[Any], guide_name: str
) -> Canvas | None:
    figure = Canvas(figsize=(5.2, 4.4), layout="constrained")
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
