"""The answer of a study in plain sentences: what became of its claims, and how many patients would tell more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from embedprior.evidence import EvidenceError
from embedprior.evidence.aggregate import MACRO
from embedprior.evidence.power import Design, patients_needed
from embedprior.report.formatting import claim_words, number, verdict_of

#: Claims named in one sentence; the others are counted.
MAX_NAMED = 3


def verdict_sentences(evidence: Mapping[str, Any], name: str = "", family: int | None = None) -> list[str]:
    """Return two sentences: the verdicts on the declared claims, and which size shows which difference.

    Args:
        evidence: of one design.
        name: of the design, set before the first sentence where a study has several.
        family: number of claims that Holm adjusts over, where it is more than this design's own.

    Example:
        >>> row = {"a": "prior", "b": "cxr-only", "in_family": True, "verdict": "supported", "delta": 0.08}
        >>> verdict_sentences({"comparisons": [row], "methods": []})
        ['The declared claim is supported: prior better than cxr-only.']
    """
    declared = [c for c in evidence.get("comparisons", ()) if c.get("in_family") and verdict_of(c)]
    start = f"{name}: " if name else ""
    if not declared:
        return [f"{start}no claim was declared beforehand; what follows describes, and decides nothing."]
    groups: dict[str, list[str]] = {}
    for comparison in sorted(declared, key=_rank):
        groups.setdefault(verdict_of(comparison), []).append(_claim(comparison))
    noun = "declared claim" if evidence.get("family_declared", True) else "comparison"
    sentences = [f"{start}{_counted(groups, len(declared), noun)}."]
    size = size_sentence(evidence, declared, family or len(declared))
    return [*sentences, size] if size else sentences


def label_sentences(evidence: Sequence[Mapping[str, Any]], name: str, family: int) -> list[str]:
    """Return a sentence a claim, with the labels of each verdict, and how many cases the relevant difference takes.

    Args:
        evidence: of one design on each label, and last on their mean where there is one.
        name: of the design, set before the sentences where a study has several.
        family: number of claims that Holm adjusts over.

    Example:
        >>> row = {"a": "prior", "b": "cxr-only", "in_family": True, "delta": 0.08}
        >>> shown = [("nodule", "supported"), ("effusion", "inconclusive"), ("macro", "supported")]
        >>> rows = [{"comparisons": [{**row, "label_name": n, "verdict": v}], "methods": []} for n, v in shown]
        >>> label_sentences(rows, "", 3)[0]
        'prior better than cxr-only: supported on nodule and the mean over labels; inconclusive on effusion.'
    """
    start = f"{name}: " if name else ""
    declared = [c for own in evidence for c in own["comparisons"] if c.get("in_family") and verdict_of(c)]
    if not declared:
        return verdict_sentences({"comparisons": []}, name)
    claims: dict[str, list[Mapping[str, Any]]] = {}
    for comparison in declared:
        claims.setdefault(claim_words(comparison), []).append(comparison)
    sentences = []
    for claim, rows in claims.items():
        groups: dict[str, list[str]] = {}
        for row in sorted(rows, key=_rank):
            groups.setdefault(verdict_of(row), []).append(str(row["label_name"]))
        parts = [f"{verdict} on {_labels(labels)}" for verdict, labels in groups.items()]
        sentences.append(f"{start}{claim}: {'; '.join(parts)}.")
    needed = _labels_needed(evidence, family)
    return [*sentences, needed] if needed else sentences


def _labels(names: Sequence[str]) -> str:
    own = [name for name in names if name != MACRO]
    mean = ["the mean over labels"] if len(own) < len(names) else []
    shown = own if len(own) <= MAX_NAMED else [f"{len(own)} labels"]
    words = [*shown, *mean]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def _labels_needed(evidence: Sequence[Mapping[str, Any]], family: int) -> str:
    """Say how many cases show the relevant difference: on the label that takes fewest, and on that of most."""
    found = []
    for own in evidence:
        row = next((m for m in own["methods"] if number(m.get("n_pos")) and number(m.get("n_neg"))), None)
        if row is None or row["label_name"] == MACRO or number(own.get("relevant_delta")) is None:
            continue
        needed = cases_needed(own, float(row["n_pos"]), float(row["n_neg"]), family)
        if needed is not None:
            found.append((*needed, str(row["label_name"]), own))
    if not found:
        return ""
    least, most, own = min(found), max(found), found[0][3]
    unit = f"held-out {own.get('unit', 'patient')}s"
    first, last = (
        f"about {_rounded(total)} {unit} (about {_rounded(positive)} positive) on {label}"
        for total, positive, label, _ in (least, most)
    )
    sentence = f"A difference in AUC of {float(own['relevant_delta']):g} would take {first}"
    return f"{sentence}." if least == most else f"{sentence}, the fewest of all labels, and {last}, the most."


def _counted(groups: Mapping[str, Sequence[str]], total: int, noun: str) -> str:
    if total == 1:
        ((verdict, claims),) = groups.items()
        return f"The {noun} is {verdict}: {claims[0]}"
    parts = []
    for place, (verdict, claims) in enumerate(groups.items()):
        if len(claims) == total:
            count = "Both" if total == 2 else f"All {total}"
        else:
            count = str(len(claims)) if place else f"{len(claims)} of {total}"
        named = f" {noun}s" if not place else ""
        verb = "is" if len(claims) == 1 else "are"
        parts.append(f"{count}{named} {verb} {verdict}: {_named(claims)}")
    return "; ".join(parts)


def verdict_rank(verdict: str) -> int:
    """Return the place of a verdict in a list: what is supported first, what can't be tested last."""
    order = ("supported", "tentative", "excluded", "inconclusive")
    return next((i for i, start in enumerate(order) if verdict.startswith(start)), len(order))


def _rank(comparison: Mapping[str, Any]) -> int:
    return verdict_rank(verdict_of(comparison))


def _claim(comparison: Mapping[str, Any]) -> str:
    label = comparison.get("label_name")
    return claim_words(comparison) + (f" ({label})" if label else "")


def _named(claims: Sequence[str]) -> str:
    if len(claims) <= MAX_NAMED + 1:  # a name is no longer than "and 1 more"
        return ", ".join(claims)
    return f"{', '.join(claims[:MAX_NAMED])} and {len(claims) - MAX_NAMED} more"


def size_sentence(evidence: Mapping[str, Any], declared: Sequence[Mapping[str, Any]], family: int) -> str:
    """Return which difference these sizes could show, and how many cases the relevant difference needs."""
    relevant, power = number(evidence.get("relevant_delta")), number(evidence.get("power"))
    row = next((m for m in evidence.get("methods", ()) if number(m.get("n_pos")) is not None), None)
    if relevant is None or power is None or row is None:
        return ""
    unit = str(evidence.get("unit", "patient"))
    pos, neg = float(row["n_pos"]), float(row["n_neg"])
    have = f"{round(pos + neg)} held-out {unit}s ({round(pos)} positive)"
    if (number(row.get("n_resamples")) or 0) > 1:
        have += " in each resample"
    found = [_detectable(c) for c in declared]
    known = [one for one in found if one is not None]
    best = min(known, default=1.0)
    chance = f"with {power:.0%} power".replace("%", " %")
    if best <= relevant:
        return f"The {have} are enough to show a difference in AUC of {relevant:g} {chance}."
    shows = f"could show a difference in AUC of {best:.2f} or more {chance}" if best < 1 else "could show no difference"
    needed = cases_needed(evidence, pos, neg, family)
    if needed is None:
        return f"The {have} {shows}; no number of {unit}s can show a difference of {relevant:g} from the assumed AUC."
    total, positive = needed
    return (
        f"The {have} {shows}; a difference of {relevant:g} would take about {_rounded(total)} held-out {unit}s "
        f"(about {_rounded(positive)} positive)."
    )


def _detectable(comparison: Mapping[str, Any]) -> float | None:
    holm = number(comparison.get("min_detectable_delta_holm"))
    return holm if holm is not None else number(comparison.get("min_detectable_delta"))


def cases_needed(evidence: Mapping[str, Any], pos: float, neg: float, family: int) -> tuple[int, int] | None:
    """Return how many cases, and positives among them, show the relevant difference; None where none would do.

    Args:
        evidence: ``relevant_delta, power, alpha, assumed_auc, assumed_correlation``.
        pos, neg: of the present cases, for the share of positives.
        family: claims that Holm adjusts over.
    """
    if not pos or not neg:
        return None
    scale = max(1.0, 2 / min(pos, neg))
    auc, correlation = (number(evidence.get(key)) for key in ("assumed_auc", "assumed_correlation"))
    try:
        design = Design(
            math.ceil(pos * scale), math.ceil(neg * scale), 0.8 if auc is None else auc,
            0.5 if correlation is None else correlation, alpha=float(evidence.get("alpha") or 0.05),
            power=float(evidence["power"]), comparisons=family,
        )  # fmt: skip
        positive, negative = patients_needed(design, float(evidence["relevant_delta"]))
    except EvidenceError:
        return None
    return positive + negative, positive


def _rounded(count: int) -> str:
    """Return a count to two digits: what rests on an assumed AUC promises no more."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}".replace(",", "\u202f")
