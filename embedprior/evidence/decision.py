"""From evidence to the status of declared hypotheses, over a fixed split and over resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.schema import NOT_TESTABLE, SUPPORTED

TENTATIVE = "tentative on fixed split only"


def status(fixed: str | None, resampled: str | None) -> str:
    """Combine the verdict on a fixed split with the one over resamples, which decides where there is one.

    Support on the fixed split alone is *tentative* once resamples were run and did not bear it out.
    """
    if resampled is None:
        return NOT_TESTABLE if fixed is None else fixed
    if resampled != SUPPORTED and fixed == SUPPORTED:
        return TENTATIVE
    return resampled


def judge(
    hypotheses: Sequence[Mapping[str, str]],
    fixed: Mapping[str, Any] | None,
    resampled: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the status of each hypothesis ``{name, a, b}`` ("a scores higher than b").

    Args:
        fixed, resampled: results of ``evaluate_predictions`` on the two designs; None when not run.

    Raises:
        EvidenceError: a hypothesis that neither evaluation declared in its family.
    """
    rows = []
    for hypothesis in hypotheses:
        found = {
            design: _find(evidence, hypothesis["a"], hypothesis["b"])
            for design, evidence in (("fixed", fixed), ("resampled", resampled))
        }
        if not any(found.values()):
            raise EvidenceError(
                f"hypothesis {hypothesis.get('name', '')!r} ({hypothesis['a']} > {hypothesis['b']}) is in no declared "
                "family; add the pair to the family before evaluating."
            )
        verdicts = {design: row["verdict"] if row else None for design, row in found.items()}
        rows.append({**hypothesis, **verdicts, "status": status(verdicts["fixed"], verdicts["resampled"])})
    return rows


def _find(evidence: Mapping[str, Any] | None, a: str, b: str) -> Mapping[str, Any] | None:
    if evidence is None:
        return None
    for row in evidence["comparisons"]:
        if row["in_family"] and row["a"] == a and row["b"] == b and row["label_name"] in (None, "macro"):
            found: Mapping[str, Any] = row
            return found
    return None
