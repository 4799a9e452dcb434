"""The model card of a bundle: what it is, what the study found, and what it must not be used for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

CAVEAT = "Research use only: not a medical device, not for diagnosis."


def model_card(config: Mapping[str, Any], flow: Sequence[Mapping[str, Any]]) -> str:
    """Return the card as Markdown with the hub's front matter.

    Args:
        config: content of ``config.json``.
        flow: who was included: the rows of the study's ``flow.csv``.
    """
    evidence, spec = config["evidence"], config["encoder"]["spec"]
    licence = spec.get("licence") or "unknown"
    lines = [
        "---",
        "library_name: embedprior",
        *_licence_lines(config["licence"]),
        "tags: [chest-x-ray, embedprior]",
        "---",
        "",
        f"# {config['method']} for {config['label']}",
        "",
        f"**{CAVEAT}** Needs a chest X-ray only; a score is the mean over {config['models']} "
        f"model{'s' if config['models'] > 1 else ''} of one study.",
        "",
        "```",
        "embedprior predict --bundle . IMAGE.dcm",
        "```",
        "",
        "## What the study found",
        f"AUC on held-out patients: {_estimate(evidence['auc'], evidence['ci_low'], evidence['ci_high'])} "
        f"({evidence['n_patients']} patients, {evidence['n_pos']} positive and {evidence['n_neg']} negative cases).",
    ]
    if config["final"]:
        lines.append(
            "These models were fitted on everybody. The figures are of models of the same study that were fitted on "
            "fewer patients and scored on the others; no patient is left on whom these could be scored."
        )
    if evidence["reason"]:
        lines.append(f"Mind: {evidence['reason']}.")
    lines += ["", "| claim | ΔAUC (95 % CI) | Holm p | verdict |", "|---|---|---|---|"]
    lines += [
        f"| {c['a']} > {c['b']} | {_estimate(c['delta'], c['ci_low'], c['ci_high'])} | {_number(c['p_holm'])} | "
        f"{c['verdict']} |"
        for c in evidence["comparisons"]
    ]
    if any(c["verdict"] != "supported" for c in evidence["comparisons"]):
        lines += ["", "A claim that is not *supported* was not shown: this model may be no better than the other."]
    lines += ["", *(f"- {text}" for text in evidence["warnings"]), "", "## Operating point"]
    point = config["operating_point"]
    if point["threshold"] is None:
        lines.append(f"None: {point['reason']}.")
    else:
        lines.append(f"Positive from a score of {point['threshold']:.4g} on ({point['source']}).")
        for name, found in point["held_out"].items():
            if found["value"] is not None:
                shown = _estimate(found["value"], found["ci_low"], found["ci_high"])
                lines.append(f"- {_named(name)} on held-out patients of the study: {shown}")
    lines += ["", "## Calibration", _calibration(config)]
    train, val = config["patients"]["train"], config["patients"]["val"]
    lines += ["", "## Data", f"{train} patients trained a model, {val} chose a checkpoint and the operating point."]
    included = (
        "not included, its weights are checked by their hash"
        if config["encoder"]["weights"] is None
        else "its weights are in this folder, with their own licence"
    )
    lines += ["", "| step | exams | patients |", "|---|---|---|"]
    lines += [_flow_row(row) for row in flow]
    lines += [
        "",
        "## Parts and licences",
        f"- X-ray encoder: {config['encoder']['key']['encoder']} ({spec.get('source', 'unknown source')}), licence "
        f"{licence}; {included}.",
        f"- model: safetensors; licence: {config['licence'] or 'not stated; the terms of the training data apply'}.",
        "",
        "## Limits",
        "Scores hold for radiographs like those of the study. Every prediction carries a distance from the training "
        "images and warnings about the picture (lateral, inverted, no chest): do not rely on the score of a far or "
        "flagged image.",
        "",
    ]
    return "\n".join(lines)


def _licence_lines(licence: str) -> list[str]:
    """The hub's front matter: its identifiers are lower case without spaces; any other text is a licence's name."""
    if not licence:
        return []
    known = licence.lower()
    if re.fullmatch(r"[a-z0-9.+-]+", known):
        return [f"license: {known}"]
    return ["license: other", f"license_name: {_plain(licence)}"]


def _calibration(config: Mapping[str, Any]) -> str:
    found = config["calibration"]
    if found is None:
        return f"None: {config['calibration_reason']}. `probability` is the score as it is; do not read it as a risk."
    return (
        f"`probability` = 1 / (1 + exp(−({found['intercept']:.3f} + {found['slope']:.3f} · logit(score)))), fitted on "
        f"{found['n_pos']} positive and {found['n_neg']} negative validation patients of the study alone. It holds for "
        "their share of positives."
    )


def _named(metric: str) -> str:
    return metric.upper() if metric in ("ppv", "npv") else metric


def _flow_row(row: Mapping[str, Any]) -> str:
    cells = [str(value) for value in row.values()]
    return "| " + " | ".join([*cells, "", "", ""][:3]) + " |"


def _estimate(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _plain(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'
