"""How results spread: over resamples, seeds, settings of a sweep, shares of labels, and subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from embedprior.report import formatting
from embedprior.report.content import Figure, alpha_of, oracles
from embedprior.report.figures import (
    BLUE,
    INK,
    MAX_CURVES,
    MUTED,
    ORANGE,
    WIDTH_INCHES,
    clean,
    png,
    short_name,
    style_of,
)

LABEL_COLUMNS = ["series", "method", "labelled", "auc", "ci_low", "ci_high", "oracle"]


def dots_figure(evidence: Mapping[str, Any], field: str, noun: str) -> Figure | None:
    """Return one dot a resample (or seed) and method, with their mean; None where no method has two of them.

    Args:
        evidence: of one design.
        field: ``auc_per_resample`` or ``auc_per_seed``.
        noun: what a dot is.
    """
    rows = [m for m in evidence.get("methods", ()) if len(_known(m.get(field))) > 1]
    if not rows:
        return None
    needs_ct, several = oracles(evidence), len({m.get("label_name") for m in rows}) > 1
    figure = Canvas(figsize=(WIDTH_INCHES, 0.34 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    found = []
    for place, row in enumerate(rows):
        values, name = np.array(_known(row[field])), str(row["method"])
        colour = MUTED if name in needs_ct else BLUE
        jitter = np.linspace(-0.2, 0.2, values.size)
        axes.plot(values, place + jitter, "o", ms=4.5, color=colour, alpha=0.7, mew=0)
        axes.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=INK, lw=1.8)
        found += [{"method": name, noun: i, "auc": value} for i, value in enumerate(row[field]) if value is not None]
    names = [short_name(m["method"]) + (f" · {m['label_name']}" if several else "") for m in rows]
    _rows(axes, names)
    axes.set_xlabel(f"AUC, a dot a {noun}; line: mean", fontsize=10, color=INK)
    axes.axvline(0.5, color="#b9c0ca", lw=1, zorder=0)
    caption = f"Spread over {noun}s: every method scored the same cases in the same {noun}. Dots, not intervals."
    return Figure(f"{noun}s", caption, png(figure), pd.DataFrame(found))


def _known(values: Any) -> list[float]:
    return [float(v) for v in values or () if formatting.number(v) is not None]


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    clean(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e8ec", lw=0.8)
    axes.set_axisbelow(True)


def sweep_figure(name: str, data: pd.DataFrame, settings: Sequence[str]) -> Figure | None:
    """Return the AUC of every method in every combination of a sweep: a heat map with its numbers.

    Two settings of one method make a grid of these; else a row is a combination and a column a method.

    Args:
        name: of the design.
        data: ``method, auc`` and a column a setting.
        settings: names of these columns.
    """
    if data.empty or data["auc"].isna().all():
        return None
    methods = list(dict.fromkeys(data["method"]))
    grid = len(settings) == 2 and len(methods) <= 4
    tables: list[tuple[str, pd.DataFrame]] = []
    if grid:
        for method in methods:
            own = data[data["method"] == method]
            tables.append((method, own.pivot(index=settings[0], columns=settings[1], values="auc")))
    else:
        label = data[list(settings)].astype(str).agg(", ".join, axis=1)
        table = data.assign(combination=label).pivot_table(
            index="combination", columns="method", values="auc", sort=False, observed=True
        )
        tables.append(("", table[[m for m in methods if m in table.columns]]))
    values = data["auc"].dropna()
    low, high = float(values.min()), float(values.max())
    width = sum(0.75 * table.shape[1] + 1.5 for _, table in tables)
    height = 0.42 * max(table.shape[0] for _, table in tables) + 1.7
    figure = Canvas(figsize=(max(width, 3.5), height), layout="constrained")
    for axes, (title, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        shown = table.to_numpy(dtype=float)
        axes.imshow(shown, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        for (i, j), value in np.ndenumerate(shown):
            bright = (value - low) / max(high - low, 1e-9) > 0.55
            text = "–" if np.isnan(value) else f"{value:.3f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="black" if bright else "white")
        axes.set_yticks(range(table.shape[0]), [short_name(v) for v in table.index], fontsize=8)
        angle = 0 if grid else 35
        axes.set_xticks(
            range(table.shape[1]), [short_name(v) for v in table.columns], fontsize=8, rotation=angle,
            ha="center" if grid else "right",
        )  # fmt: skip
        axes.set_title(short_name(title), fontsize=10, color=INK)
        if grid:
            axes.set_xlabel(settings[1], fontsize=9)
            axes.set_ylabel(settings[0], fontsize=9)
    caption = (
        f"AUC by setting ({name}). No setting was chosen: the largest of many values is partly the largest by chance."
    )
    return Figure(f"sweep-{name}", caption, png(figure), data)


def label_forest_figure(name: str, data: pd.DataFrame, needs_ct: frozenset[str], alpha: float) -> Figure | None:
    """Return the AUC of every method on every label with its interval; None where no AUC has one.

    Args:
        name: of the design.
        data: ``label, method, auc, ci_low, ci_high``, labels from top to bottom.
        needs_ct: methods that need CT at inference, drawn in grey.
        alpha: level of the intervals.
    """
    known = data.dropna(subset=["auc", "ci_low", "ci_high"])
    if known.empty:
        return None
    methods, labels = list(dict.fromkeys(known["method"])), list(dict.fromkeys(data["label"]))
    shown = [m for m in methods if m not in needs_ct][:MAX_CURVES]
    shown += [m for m in methods if m in needs_ct][: MAX_CURVES - len(shown)]
    styles = style_of(shown, needs_ct)
    height = (0.11 * len(shown) + 0.12) * len(labels) + 0.2 * len(shown) + 0.9
    figure = Canvas(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots()
    for place, method in enumerate(shown):
        own = known[known["method"] == method]
        at = np.array([labels.index(label) for label in own["label"]])
        at = at + (place - (len(shown) - 1) / 2) * 0.8 / len(shown)
        colour = styles[method]["color"]
        axes.hlines(at, own["ci_low"], own["ci_high"], color=colour, lw=1.4)
        axes.plot(own["auc"], at, "o", ms=3.5, color=colour, label=short_name(method) + _oracle(method, needs_ct))
    for edge in range(1, len(labels)):
        axes.axhline(edge - 0.5, color="#e5e8ec", lw=0.8, zorder=0)
    _rows(axes, [short_name(label) for label in labels])
    axes.axvline(0.5, color="#b9c0ca", lw=1, zorder=0)
    axes.set_xlabel(f"AUC ({formatting.percent(alpha)} CI)", fontsize=10, color=INK)
    figure.legend(loc="outside lower left", fontsize=9, frameon=False, labelspacing=0.3)
    left_out = f" {len(shown)} of {len(methods)} methods are drawn; the table holds all." if shown != methods else ""
    absent = [label for label in labels if label not in set(known["label"])]
    left_out += f" Without an interval: {', '.join(map(str, absent))}." if absent else ""
    caption = f"AUC of every method on each label, with its interval ({name}).{left_out}"
    return Figure(f"label-auc-{name}", caption, png(figure), data)


def _oracle(method: str, needs_ct: frozenset[str]) -> str:
    return " (oracle: needs CT)" if method in needs_ct else ""


def label_curve_figure(
    data: pd.DataFrame, title: str = "", alpha: float = 0.05, methods: Sequence[str] | None = None
) -> Figure | None:
    """Return AUC against the number of labelled radiographs, a band a method; None with fewer than two numbers.

    Args:
        data: ``series, method, labelled, auc, ci_low, ci_high, oracle``: one row a method and number of labelled
            training radiographs; several ``series`` (designs, worlds) get a panel each.
        title: set before the caption.
        alpha: of the intervals.
        methods: to draw; None = all. The colours are those of all.
    """
    every = list(dict.fromkeys(data["method"]))
    styles = style_of(every, frozenset(data.loc[data["oracle"].astype(bool), "method"]))
    data = data[data["auc"].notna() & (data["method"].isin(every if methods is None else methods))]
    series = [s for s, own in data.groupby("series", sort=False) if own["labelled"].nunique() > 1]
    if not series:
        return None
    data = data[data["series"].isin(series)]
    figure = Canvas(figsize=(5.2 if len(series) == 1 else 4.2 * len(series), 4.1), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(series), sharey=True, squeeze=False)[0], series, strict=True):
        for method, own in data[data["series"] == name].groupby("method", sort=False):
            own, style = own.sort_values("labelled"), styles[str(method)]
            axes.plot(own["labelled"], own["auc"], marker="o", ms=4, label=short_name(method), **style)
            if own[["ci_low", "ci_high"]].notna().all(axis=None):
                axes.fill_between(own["labelled"], own["ci_low"], own["ci_high"], color=style["color"], alpha=0.1, lw=0)
        counts = sorted(data.loc[data["series"] == name, "labelled"].unique())
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{c:,.0f}" for c in counts])
        axes.minorticks_off()
        axes.set_xlabel("labelled radiographs in training", fontsize=10, color=INK)
        if len(series) > 1:
            axes.set_title(short_name(name), fontsize=10, color=INK)
        clean(axes)
    figure.axes[0].set_ylabel("AUC", fontsize=10, color=INK)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    caption = (
        f"{title + ': ' if title else ''}AUC against the number of labelled radiographs, all else equal; bands: "
        f"{formatting.percent(alpha)} CI. Grey: needs CT at inference."
    )
    alt = "; ".join(
        f"{m}: " + ", ".join(f"{r.auc:.3f} with {r.labelled:.0f}" for r in own.sort_values("labelled").itertuples())
        for m, own in data.groupby("method", sort=False)
    )
    return Figure("label-efficiency", caption, png(figure), data.reset_index(drop=True), alt)


def subgroup_figure(evidence: Mapping[str, Any]) -> Figure | None:
    """Return the differences of AUC inside each subgroup, with intervals; None without subgroups."""
    rows = [
        {"comparison": f"{c['a']} − {c['b']}", "column": c["column"], **g}
        for c in evidence.get("subgroup_comparisons") or () for g in c["subgroups"]
    ]  # fmt: skip
    data = pd.DataFrame(rows)
    if data.empty or data["delta"].isna().all():
        return None
    names = [
        f"{short_name(r['comparison'])} · {r['column']} {r['subgroup']}" for r in data.to_dict("records")
    ]  # fmt: skip
    figure = Canvas(figsize=(6.4, 0.3 * len(data) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, lw=1)
    for place, row in enumerate(data.to_dict("records")):
        delta, low, high = (formatting.number(row.get(k)) for k in ("delta", "ci_low", "ci_high"))
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=BLUE, lw=2)
        if delta is not None:
            axes.plot([delta], [place], "o", ms=6, color=BLUE, mfc="white", mew=1.6)
        else:
            axes.text(0.01, place, "no difference can be computed", va="center", fontsize=8, color=MUTED)
    _rows(axes, names)
    axes.set_xlabel(f"Δ AUC ({formatting.percent(alpha_of(evidence))} CI), not adjusted", fontsize=10, color=INK)
    kept = [c for c in ("comparison", "column", "subgroup", "delta", "ci_low", "ci_high") if c in data.columns]
    caption = "Differences inside subgroups: described, never part of the declared family."
    return Figure("subgroups", caption, png(figure), data[kept])


def bars_figure(data: pd.DataFrame, value: str, noun: str) -> Figure | None:
    """Return a bar a method for the mean of a metric, with a dot a resample or seed; None without a value.

    Args:
        data: ``method, <noun>, <value>``, optional ``tier`` (methods of one tier stand together in one colour).
        value: name of the metric's column.
        noun: name of the column that a dot stands for.
    """
    data = data[data[value].notna()]
    if data.empty:
        return None
    tiers = list(dict.fromkeys(data["tier"])) if "tier" in data else [""]
    colours = dict(zip(tiers, (BLUE, ORANGE, "#009E73", "#CC79A7", MUTED) * len(tiers), strict=False))
    order = data.sort_values("tier", key=lambda c: c.map(tiers.index), kind="stable") if "tier" in data else data
    methods = list(dict.fromkeys(order["method"]))
    figure = Canvas(figsize=(max(5.2, 0.55 * len(methods) + 1.4), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, method in enumerate(methods):
        own = data[data["method"] == method]
        colour = colours[own["tier"].iloc[0]] if "tier" in own else BLUE
        axes.bar(place, own[value].mean(), color=colour, alpha=0.55, width=0.7)
        axes.plot(place + np.linspace(-0.22, 0.22, len(own)), own[value], "o", ms=4, color=INK, mew=0)
    axes.set_xticks(range(len(methods)), [short_name(m) for m in methods], rotation=40, ha="right", fontsize=8)
    axes.set_ylabel(value, fontsize=10, color=INK)
    axes.set_ylim(0, 1.02 if tiers == [""] else 1.18)  # room for the legend above the dots
    clean(axes)
    if tiers != [""]:
        for tier in tiers:
            axes.bar(0, 0, color=colours[tier], alpha=0.55, label=tier)
        axes.legend(frameon=False, fontsize=8, ncols=3)
    return Figure(f"{value}-by-{noun}", f"{value}: bars are means, a dot is a {noun}.", png(figure), data)
