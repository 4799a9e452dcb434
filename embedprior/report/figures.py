"""The report's main figures: ROC curves with bands, forests of AUCs and of their differences; and how figures look."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from embedprior.evidence.curves import mean_roc, roc_band, sweep
from embedprior.report import formatting
from embedprior.report.content import Figure, alpha_of, oracles

Floats = NDArray[np.float64]

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, INK, MUTED = "#E69F00", "#56B4E9", "#1b2430", "#6b7686"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))
WIDTH_INCHES, DPI = 5.2, 170


def png(figure: Canvas, dpi: int = DPI) -> bytes:
    """Return a figure as PNG bytes without a time stamp."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
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
    sweeps = []
    for group in fits_of(rows):
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


def evidence_styles(evidence: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the line styles of an evaluation's methods: the same in every figure, whichever of them it shows."""
    return style_of(list(dict.fromkeys(str(m["method"]) for m in evidence.get("methods", ()))), oracles(evidence))


#: Curves of more methods than this can't be told apart; tables hold all of them.
MAX_CURVES = 8


def shown_methods(evidence: Mapping[str, Any], limit: int = MAX_CURVES) -> list[str]:
    """Return the methods that a figure of curves shows: the reference, those of declared claims, others, one oracle.

    Example:
        >>> rows = [{"method": name, "auc": 0.8, "oracle": name == "ct"} for name in ("ct", "a", "b", "cxr")]
        >>> shown_methods({"methods": rows, "comparisons": [], "reference": "cxr"}, 3)
        ['cxr', 'a', 'ct']
    """
    needs_ct = oracles(evidence)
    known = [str(m["method"]) for m in evidence.get("methods", ()) if formatting.number(m.get("auc")) is not None]
    claimed = [c[end] for c in evidence.get("comparisons", ()) if c.get("in_family", True) for end in ("a", "b")]
    ordered = dict.fromkeys([str(evidence.get("reference")), *map(str, claimed), *known])
    deployable = [m for m in ordered if m in known and m not in needs_ct]
    oracle = [m for m in dict.fromkeys(known) if m in needs_ct]
    room = limit if not oracle else limit - 1
    chosen = deployable[:room]
    return chosen + oracle[: limit - len(chosen)]


def left_out(evidence: Mapping[str, Any], shown: Sequence[str]) -> str:
    """Return a sentence about the methods that a figure leaves out; empty where it shows all."""
    known = dict.fromkeys(
        m["method"] for m in evidence.get("methods", ()) if formatting.number(m.get("auc")) is not None
    )
    return f" {len(shown)} of {len(known)} methods are drawn; the tables hold all." if len(known) > len(shown) else ""


def roc_figure(
    evidence: Mapping[str, Any], predictions: pd.DataFrame, label: str | None = None, width: float = WIDTH_INCHES
) -> Figure | None:
    """Return the ROC curves, a band around those of the first declared claim; None when none can be drawn.

    The AUCs in the legend are the evaluated ones, never recomputed here.

    Args:
        evidence: the evaluation.
        predictions: the held-out scores.
        label: only this ``label_name``.
        width: of the figure, in inches.
    """
    rows = held_out(predictions, str(evidence.get("unit", "exam")))
    if rows.empty:
        return None
    if label is not None:
        rows = rows[rows["label_name"] == label]
    declared = [m for m in evidence.get("methods", ()) if label is None or m.get("label_name") == label]
    aucs = {str(m["method"]): m.get("auc") for m in declared}
    needs_ct = oracles(evidence)
    styles = evidence_styles(evidence)
    scored, chosen = set(rows["method"]), shown_methods(evidence)
    curves = {m: method_roc(rows[rows["method"] == m]) for m in chosen if m in scored and m in aucs}
    if not any(curve is not None for curve in curves.values()):
        return None
    banded = [m for m in curves if m not in needs_ct][:2]
    first = next((c for c in evidence.get("comparisons", ()) if c.get("in_family")), None)
    if first is not None and first["a"] in curves and first["b"] in curves:
        banded = [str(first["a"]), str(first["b"])]
    legend_inches = 0.2 * len(curves) + 0.25
    figure = Canvas(figsize=(width, width - 0.3 + legend_inches), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#b9c0ca", linewidth=1, zorder=0)
    drawn: list[pd.DataFrame] = []
    for method, curve in curves.items():
        name = short_name(method) + (" (oracle: needs CT)" if method in needs_ct else "")
        x, y = curve if curve is not None else (np.array([]), np.array([]))
        axes.plot(x, y, label=f"{name}  {formatting.fixed(aucs[method])}", **styles[method])
        drawn.append(pd.DataFrame({"method": method, "false_positive_rate": x, "sensitivity": y}))
        if method in banded and curve is not None:
            grid, low, high = roc_band(_parts(rows[rows["method"] == method]), alpha_of(evidence))
            axes.fill_between(grid, low, high, color=styles[method]["color"], alpha=0.13, linewidth=0)
            drawn.append(pd.DataFrame({"method": method, "false_positive_rate": grid, "low": low, "high": high}))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("1 − specificity", fontsize=10, color=INK)
    axes.set_ylabel("sensitivity", fontsize=10, color=INK)
    clean(axes)
    figure.legend(
        loc="outside lower left", fontsize=9, frameon=False, title="AUC", title_fontsize=9, alignment="left",
        labelspacing=0.3,
    )  # fmt: skip
    suffix, percent = f" for {label}" if label else "", formatting.percent(alpha_of(evidence))
    caption = (
        f"ROC curves on the held-out cases{suffix}{_averaging(evidence)}. Bands: "
        f"{percent} at each point, by resampled patients, for {' and '.join(banded)}.{left_out(evidence, list(curves))}"
    )
    alt = "ROC curves. AUC: " + ", ".join(f"{m} {formatting.fixed(aucs[m])}" for m in curves)
    name = "roc" + (f"-{label}" if label else "")
    return Figure(name, caption, png(figure), pd.concat(drawn, ignore_index=True), alt)


def _averaging(evidence: Mapping[str, Any]) -> str:
    rows = evidence.get("methods", ())
    kinds = (("n_folds", "folds"), ("n_seeds", "seeds"), ("n_resamples", "resamples"))
    names = [name for key, name in kinds if any((m.get(key) or 1) > 1 for m in rows)]
    return f", averaged over {' and '.join(names)} at equal false positive rate" if names else ""


def fits_of(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Return one method's rows by resample, fold and seed: what one fit scored."""
    keys = [k for k in ("resample", "fold", "seed") if k in rows.columns and rows[k].notna().any()]
    return [group for _, group in rows.groupby(keys, dropna=False)] if keys else [rows]


def _parts(rows: pd.DataFrame) -> list[tuple[NDArray[np.bool_], Floats, NDArray[np.int64]]]:
    number = rows.assign(number=pd.factorize(rows["patient_id"])[0])
    return [
        (part["label"].to_numpy() == 1, part["score"].to_numpy(dtype=np.float64), part["number"].to_numpy(np.int64))
        for part in fits_of(number)
    ]


def auc_figure(evidence: Mapping[str, Any]) -> Figure | None:
    """Return a forest of the AUCs with their intervals, oracles apart; None when no AUC has an interval."""
    rows = [m for m in evidence.get("methods", ()) if formatting.number(m.get("auc")) is not None]
    if not any(formatting.number(m.get("ci_low")) is not None for m in rows):
        return None
    needs_ct, several = oracles(evidence), len({m.get("label_name") for m in rows}) > 1
    rows = sorted(rows, key=lambda m: str(m["method"]) in needs_ct)
    figure = Canvas(figsize=(WIDTH_INCHES, 0.3 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color="#b9c0ca", linewidth=1)
    for place, row in enumerate(rows):
        colour = MUTED if str(row["method"]) in needs_ct else BLUE
        low, high = (formatting.number(row.get(k)) for k in ("ci_low", "ci_high"))
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([row["auc"]], [place], marker="o", markersize=6, color=colour)
    names = [
        short_name(row["method"]) + (f" · {row['label_name']}" if several else "")
        + (" (needs CT)" if str(row["method"]) in needs_ct else "") for row in rows
    ]  # fmt: skip
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"AUC ({formatting.percent(alpha_of(evidence))} CI)", fontsize=10, color=INK)
    clean(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    data = pd.DataFrame([{k: m.get(k) for k in ("method", "label_name", "auc", "ci_low", "ci_high")} for m in rows])
    alt = "AUC by method: " + "; ".join(
        f"{m['method']} {formatting.fixed(m['auc'])} ({formatting.interval(m.get('ci_low'), m.get('ci_high'))})"
        for m in rows
    )
    return Figure("auc", "AUC of every method; grey: needs CT at inference.", png(figure), data, alt)


#: A longer name is cut in figures; tables hold it whole.
MAX_NAME = 34


def short_name(name: Any) -> str:
    """Return a method's name as figures show it: cut in the middle where it would take the figure's width.

    Example:
        >>> short_name("prior"), short_name("a" * 40 + "end")
        ('prior', 'aaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaend')
    """
    text = str(name)
    return text if len(text) <= MAX_NAME else f"{text[:18]}…{text[-(MAX_NAME - 19) :]}"


def forest_figure(evidence: Mapping[str, Any]) -> Figure | None:
    """Return the differences of AUC with their intervals, grouped by what they are compared with.

    Of several labels a group is a comparison, and its lines are the labels.

    Filled points are of supported claims; a bracket marks the smallest detectable difference. Comparisons with an
    oracle stand at the bottom in grey. None when there is nothing to draw.
    """
    comparisons, needs_ct, alpha = list(evidence.get("comparisons", ())), oracles(evidence), alpha_of(evidence)
    if not any(formatting.number(c.get("delta")) is not None for c in comparisons):
        return None
    lines = list(_forest_lines(comparisons, needs_ct))
    figure = Canvas(figsize=(WIDTH_INCHES, 0.33 * len(lines) + 0.95), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(*_reach(comparisons))
    axes.axvline(0, color=INK, linewidth=1)
    for row, (_, comparison, is_oracle) in enumerate(lines):
        if comparison is None:
            continue
        _forest_row(axes, row, comparison, MUTED if is_oracle else BLUE)
    axes.set_yticks(range(len(lines)), [text for text, _, _ in lines])
    for tick, (_, comparison, _) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if comparison is None else "normal")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    # centred below the whole figure: long names leave the axes too narrow for it
    figure.supxlabel(f"← worse    Δ AUC ({formatting.percent(alpha)} CI)    better →", fontsize=10, color=INK)
    clean(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    names = ("a", "b", "label_name", "delta", "ci_low", "ci_high", "p", "p_holm", "min_detectable_delta", "verdict")
    data = pd.DataFrame([{k: c.get(k) for k in names} for c in comparisons])
    caption = (
        "Differences of AUC. Filled points: claims that are supported; all others are hollow. Orange brackets: the "
        "smallest difference that these sizes could detect."
    )
    alt = " ".join(formatting.comparison_sentence(c, alpha) for c in comparisons[:20])
    return Figure("differences", caption, png(figure), data, alt)


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
    several_labels = len({c.get("label_name") for c in comparisons}) > 1

    def group(c: Mapping[str, Any]) -> tuple[bool, str]:
        is_oracle, a, b = str(c["a"]) in needs_ct or str(c["b"]) in needs_ct, short_name(c["a"]), short_name(c["b"])
        if several_labels:
            return is_oracle, f"{a} against {b}"
        return is_oracle, f"{'oracle against' if is_oracle else 'against'} {b}"

    names = list(dict.fromkeys(map(group, comparisons)))
    for is_oracle, heading in sorted(names, key=lambda name: name[0]):
        yield heading, None, is_oracle
        for comparison in comparisons:
            if group(comparison) == (is_oracle, heading):
                yield short_name(comparison["label_name" if several_labels else "a"]), comparison, is_oracle


def _forest_row(axes: Axes, row: int, comparison: Mapping[str, Any], colour: str) -> None:
    delta, low, high = (formatting.number(comparison.get(k)) for k in ("delta", "ci_low", "ci_high"))
    if delta is None:
        axes.text(0.01, row, "none can be computed", va="center", fontsize=8, color=MUTED, style="italic")
        return
    detectable = formatting.number(comparison.get("min_detectable_delta"))
    if detectable is not None:
        for edge in (-detectable, detectable):
            axes.plot([edge, edge], [row - 0.22, row + 0.22], color=ORANGE, linewidth=1.6)
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    supported = formatting.tone_of(comparison) == "supported"
    axes.plot(
        [delta], [row], marker="o", markersize=6.5, color=colour, markerfacecolor=colour if supported else "white",
        markeredgewidth=1.6,
    )  # fmt: skip
    if low is None or high is None:
        axes.annotate(
            "no interval", (delta, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8,
            color=MUTED, style="italic",
        )  # fmt: skip
