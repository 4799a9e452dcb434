"""A study's plan in words: its fits, what it could show, its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedprior.evidence import Claim


def plan_text(plan: Mapping[str, Any], workers: int = 1) -> str:
    """Return the plan in a few lines."""
    lines = [f"plan {plan['hash'][:12]}: {len(plan['fits'])} fits"]
    lines += _label_lines(plan)
    for d in (d for d in plan["designs"] if "label" not in d):
        lines.append(
            f"{d['design']}: {d['cases']} X-rays of {d['patients']} patients, {len(d['methods'])} methods × "
            f"{d['rounds']} folds × {d['seeds']} seeds; held out {d['held_out_pos']:g} positive and "
            f"{d['held_out_neg']:g} negative patients{d['per']}"
        )
    for h in (h for h in plan["hypotheses"] if "label" not in h):
        if h["min_detectable_delta"] is None:
            lines.append(f"{h['name']} ({h['design']}): not testable: {h['reason']}")
        else:
            claim = Claim(h["a"], h["b"], h["kind"], h["margin"]).text
            lines.append(
                f"{h['name']} ({h['design']}): {claim}: detects ΔAUC ≥ {h['min_detectable_delta']:.3f} "
                f"(Holm's first step of {h['family']}: {_difference(h['min_detectable_delta_holm'])}) {_assumed(h)}"
            )
    found = plan["cost"]
    minutes = found["minutes"] / max(workers, 1)
    if len(found["unknown"]) == len(found["methods"]):
        lines.append(
            "cost: unknown; measure it with --time-fits (one fit of each method), or declare 'seconds_per_fit'"
        )
    else:
        least = " at least" if found["unknown"] else ""
        share = f" with {workers} workers" if workers > 1 else ""
        lines.append(f"cost:{least} {minutes:.1f} min{share}")
        lines += [
            f"  {m['method']}: {m['fits']} × "
            + (f"{m['seconds_per_fit']:.2f} s ({m['basis']})" if m["seconds_per_fit"] is not None else "unknown")
            for m in found["methods"]
        ]
    kept = plan["models"]
    if kept is not None:
        least = " at least" if kept["unknown"] else ""
        size = f"{kept['bytes'] / 1e6:.1f} MB{least}" if kept["bytes"] else "unknown until one is kept"
        lines.append(f"models kept (keep: {kept['keep']}): {kept['models']}; size: {size}")
    return "\n".join(lines)


def _label_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return, of a study of several labels, a line a design and claim and a table with a row a label."""
    lines: list[str] = []
    for shared in dict.fromkeys(d["shared"] for d in plan["designs"] if "label" in d):
        designs = [d for d in plan["designs"] if d.get("shared") == shared]
        claims = [h for h in plan["hypotheses"] if h.get("shared") == shared]
        first = designs[0]
        lines.append(
            f"{shared}: {len(designs)} labels of {first['cases']} X-rays of {first['patients']} patients, "
            f"{len(first['methods'])} methods × {first['rounds']} folds × {first['seeds']} seeds; the same patients "
            "are held out for every label"
        )
        by_claim: dict[str, list[Mapping[str, Any]]] = {}
        for h in claims:
            by_claim.setdefault(h["name"], []).append(h)
        for name, each in by_claim.items():
            h = each[0]
            words = h["reason"] if h["a"] is None else Claim(h["a"], h["b"], h["kind"], h["margin"]).text
            lines.append(
                f"{name} ({shared}): {words}, on each label and on their mean: {len(each)} of {h['family']} claims of "
                f"one family, {_assumed(h)}"
            )
        lines += _label_table(designs, next(iter(by_claim.values()), []))
    return lines


def _label_table(designs: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = {d["label"]: (f"{d['held_out_pos']:g}", f"{d['held_out_neg']:g}") for d in designs}
    rows: list[tuple[str, ...]] = [("label", "held out +", "held out −", "detects ΔAUC", "Holm's first step", "")]
    for h in claims:
        detects = [_difference(h[name]) for name in ("min_detectable_delta", "min_detectable_delta_holm")]
        why = f"not testable: {h['reason']}" if h["min_detectable_delta"] is None and h["reason"] else ""
        rows.append((h["label"], *counts.get(h["label"], ("", "")), *detects, why))
    if not claims:
        rows = [rows[0][:3], *((label, *both) for label, both in counts.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _difference(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _assumed(h: Mapping[str, Any]) -> str:
    return f"at AUC {h['assumed_auc']:g}, correlation {h['assumed_correlation']:g}, {100 * h['power']:g} % power"
