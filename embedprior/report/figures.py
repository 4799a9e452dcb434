"""The report's figures as PNG bytes: ROC and precision-recall curves, calibration, decision curves, forests."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from embedprior.evidence.curves import mean_pr, mean_roc, sweep, sweeps_of
from embedprior.evidence.predictions import Block, held_out_blocks
from embedprior.report import formatting
from embedprior.report.content import alpha_of, oracles

Floats = NDArray[np.float64]

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, INK, MUTED = "#E69F00", "#56B4E9", "#1b2430", "#6b7686"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))
WIDTH_INCHES, DPI = 5.2, 170


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes without a time stamp."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def clean(axes: Axes) -> None:
    """Leave only the two axes that are read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)


def held_out(predictions: pd.DataFrame, unit: str = "exam") -> pd.DataFrame:
    """Return the rows a ROC curve is drawn from: split ``test``, known label, one row per case.

    With ``unit="patient"`` a patient's scores are averaged and any positive exam makes the patient positive, as in
    the evaluation.
    """
    if predictions.empty:
        return predictions
    rows = predictions
    if "split" in rows.columns and bool((rows["split"] == "test").any()):
        rows = rows[rows["split"] == "test"]
    rows = rows[rows["label"].notna() & rows["score"].notna()]
    if unit != "patient":
        return rows
    keys = [k for k in ("label_name", "resample", "fold", "seed", "method", "patient_id") if k in rows.columns]
    return rows.groupby(keys, dropna=False, sort=False).agg({"label": "max", "score": "mean"}).reset_index()


def method_roc(rows: pd.DataFrame) -> tuple[Floats, Floats] | None:
    """Return one method's ROC curve, or None when no fold holds both classes.

    Scores of different folds and seeds are never pooled: the curves are averaged at equal false positive rate,
    weighted by positives x negatives, so that the area under the mean is the fold-stratified AUC.
    """
    keys = [k for k in ("resample", "fold", "seed") if k in rows.columns and rows[k].notna().any()]
    groups = [group for _, group in rows.groupby(keys, dropna=False)] if keys else [rows]
    sweeps = []
    for group in groups:
        positive = group["label"].to_numpy(dtype=np.float64) == 1
        if positive.any() and not positive.all():
            sweeps.append(sweep(positive, group["score"].to_numpy(dtype=np.float64)))
    return mean_roc(sweeps)


def style_of(methods: list[str], needs_ct: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Return line styles: a colour per deployable method, grey dashes for oracles."""
    styles: dict[str, dict[str, Any]] = {}
    deployable = [m for m in methods if m not in needs_ct]
    for index, method in enumerate(deployable):
        turn, colour = divmod(index, len(PALETTE))
        styles[method] = {"color": PALETTE[colour], "linestyle": DASHES[turn % len(DASHES)], "linewidth": 1.8}
    for index, method in enumerate(m for m in methods if m in needs_ct):
        styles[method] = {"color": MUTED, "linestyle": (0, (5 - index % 3, 2)), "linewidth": 1.6}
    return styles


def roc_figure(evidence: Mapping[str, Any], predictions: pd.DataFrame, label: str | None = None) -> bytes | None:
    """Return the ROC curves of every method, or None when none can be drawn.

    The AUCs in the legend are the evaluated ones, never recomputed here.

    Args:
        evidence: the evaluation.
        predictions: the held-out scores.
        label: only this ``label_name``.
    """
    rows = held_out(predictions, str(evidence.get("unit", "exam")))
    if rows.empty:
        return None
    if label is not None:
        rows = rows[rows["label_name"] == label]
    declared = [m for m in evidence.get("methods", ()) if label is None or m.get("label_name") == label]
    aucs = {str(m["method"]): m.get("auc") for m in declared}
    needs_ct = oracles(evidence)
    styles = style_of(list(aucs), needs_ct)
    scored = set(rows["method"])
    curves = {m: method_roc(rows[rows["method"] == m]) for m in aucs if m in scored}
    if not any(curve is not None for curve in curves.values()):
        return None
    ordered = [m for m in curves if m not in needs_ct] + [m for m in curves if m in needs_ct]
    legend_inches = 0.2 * len(ordered) + 0.25
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES - 0.3 + legend_inches), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#b9c0ca", linewidth=1, zorder=0)
    for method in ordered:
        curve, name = curves[method], method + (" (oracle: needs CT)" if method in needs_ct else "")
        x, y = curve if curve is not None else (np.array([]), np.array([]))
        axes.plot(x, y, label=f"{name}  {formatting.fixed(aucs[method])}", **styles[method])
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("1 − specificity", fontsize=10, color=INK)
    axes.set_ylabel("sensitivity", fontsize=10, color=INK)
    clean(axes)
    figure.legend(
        loc="outside lower left", fontsize=9, frameon=False, title="AUC", title_fontsize=9, alignment="left",
        labelspacing=0.3,
    )  # fmt: skip
    return png(figure)


def forest_figure(evidence: Mapping[str, Any]) -> bytes | None:
    """Return the differences of AUC with their intervals, grouped by what they are compared with.

    Filled points are significant, hollow ones are not; a bracket marks the smallest detectable difference.
    Comparisons with an oracle stand at the bottom in grey. None when there is nothing to draw.
    """
    comparisons, needs_ct, alpha = list(evidence.get("comparisons", ())), oracles(evidence), alpha_of(evidence)
    if not any(formatting.number(c.get("delta")) is not None for c in comparisons):
        return None
    lines = list(_forest_lines(comparisons, needs_ct))
    figure = Figure(figsize=(WIDTH_INCHES, 0.33 * len(lines) + 0.95), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(*_reach(comparisons))
    axes.axvline(0, color=INK, linewidth=1)
    for row, (_, comparison, is_oracle) in enumerate(lines):
        if comparison is None:
            continue
        _forest_row(axes, row, comparison, alpha, MUTED if is_oracle else BLUE)
    axes.set_yticks(range(len(lines)), [text for text, _, _ in lines])
    for tick, (_, comparison, _) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if comparison is None else "normal")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(f"← worse    Δ AUC ({formatting.percent(alpha)} CI)    better →", fontsize=10, color=INK)
    clean(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    return png(figure)


def _reach(comparisons: list[Mapping[str, Any]]) -> tuple[float, float]:
    ends = [formatting.number(c.get(k)) for c in comparisons for k in ("delta", "ci_low", "ci_high")]
    sizes = [formatting.number(c.get("min_detectable_delta")) for c in comparisons]
    known = [v for v in ends if v is not None] + [s * v for v in sizes if v is not None for s in (-1, 1)]
    low, high = min(-0.05, *known), max(0.05, *known)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _forest_lines(
    comparisons: list[Mapping[str, Any]], needs_ct: frozenset[str]
) -> Iterator[tuple[str, Mapping[str, Any] | None, bool]]:
    def group(c: Mapping[str, Any]) -> tuple[bool, str]:
        return (str(c["a"]) in needs_ct or str(c["b"]) in needs_ct, str(c["b"]))

    names = list(dict.fromkeys(map(group, comparisons)))
    several_labels = len({c.get("label_name") for c in comparisons}) > 1
    for is_oracle, reference in sorted(names, key=lambda name: name[0]):
        yield f"{'oracle against' if is_oracle else 'against'} {reference}", None, is_oracle
        for comparison in comparisons:
            if group(comparison) == (is_oracle, reference):
                suffix = f" · {comparison['label_name']}" if several_labels else ""
                yield f"{comparison['a']}{suffix}", comparison, is_oracle


def _forest_row(axes: Axes, row: int, comparison: Mapping[str, Any], alpha: float, colour: str) -> None:
    delta, low, high = (formatting.number(comparison.get(k)) for k in ("delta", "ci_low", "ci_high"))
    if delta is None:
        axes.text(0.01, row, "not testable", va="center", fontsize=8, color=MUTED, style="italic")
        return
    detectable = formatting.number(comparison.get("min_detectable_delta"))
    if detectable is not None:
        for edge in (-detectable, detectable):
            axes.plot([edge, edge], [row - 0.22, row + 0.22], color=ORANGE, linewidth=1.6)
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    significant = formatting.state_of(comparison, alpha) in ("higher", "lower")
    axes.plot(
        [delta], [row], marker="o", markersize=6.5, color=colour, markerfacecolor=colour if significant else "white",
        markeredgewidth=1.6,
    )  # fmt: skip
    if low is None or high is None:
        axes.annotate(
            "no interval", (delta, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8,
            color=MUTED, style="italic",
        )  # fmt: skip


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
        low, high = ([c.get(k) for c in curve] for k in ("ci_low", "ci_high"))
        if curve and None not in (*low, *high):
            axes.fill_between([c["threshold"] for c in curve], low, high, color=style["color"], alpha=0.12, lw=0)
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
