"""What may be concluded from a study, and what may not: read off its designs, seeds, sources and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from embedprior.report.formatting import verdict_of
from embedprior.study.config import StudyConfig
from embedprior.study.run import StudyResult

COLUMNS = ["question", "answer", "why"]


def boundary_table(config: StudyConfig, result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return ``question, answer, why``: for each kind of conclusion whether this study allows it.

    Args:
        config: of the study.
        result: what it found.
        evidence: by design.
    """
    declared = [c for own in evidence.values() for c in own["comparisons"] if c["in_family"]]
    verdicts = [verdict_of(c) for c in declared]
    supported = sum(v.startswith("supported") for v in verdicts)
    untestable = sum(v.startswith("not testable") for v in verdicts)
    settled = "yes" if untestable == 0 and declared else "in part" if untestable < len(declared) else "no"
    rows: list[tuple[str, str, str]] = [
        (
            "Do methods differ on new patients like these?", settled,
            f"{len(declared)} claims declared, {supported} supported, {untestable} not testable at this size",
        )
    ]  # fmt: skip
    outside = [p.design for p in result.designs if p.design.split in ("external", "site")]
    names = ", ".join(dict.fromkeys(d.name for d in outside))
    rows.append(
        (
            "Do the results hold at other hospitals?", "see below" if outside else "unknown",
            f"held out by site or as an external cohort: {names}" if outside else
            "no site is held out and no external cohort is scored",
        )
    )  # fmt: skip
    seeds = min(len(config.seeds_of(design)) for design in config.designs)
    rows.append(
        (
            "Would training again give the same?", "in part" if seeds > 1 else "unknown",
            f"each fit with at least {seeds} seeds; intervals take the choice of training patients as given"
            if seeds > 1 else f"one training seed ({config.as_published or 'declared'})",
        )
    )  # fmt: skip
    confounded = [p.design.name for p in result.designs if p.targets["source"].nunique() > 1]
    if confounded:
        why = (
            f"pictures come from several sources in {', '.join(dict.fromkeys(confounded))}; a source may give the label"
        )
        rows.append(("Do the models read the disease, not the source?", "unknown", why))
    against = [
        (int(((t["label"] == 0) & (t["ct_label"] == 1)).sum()), int((t["label"] == 0).sum()))
        for t in (p.targets for p in result.designs if p.design.cases == "paired")
    ]
    wrong, negatives = max(against, default=(0, 0))
    if wrong:
        why = f"{wrong} of {negatives} negative pairs are positive on their own CT"
        rows.append(("Can this label judge what CT adds?", "no", why))
    uses = sorted(m for m, needs in result.needs_ct.items() if needs)
    if uses:
        why = f"they need CT at inference ({', '.join(uses)}): shown as upper limits, never ranked"
        rows.append(("Can the oracles be deployed on radiographs?", "no", why))
    rows.append(
        ("May a score guide the care of a patient?", "no", "research use only; nothing here was tested for that")
    )
    return pd.DataFrame(rows, columns=COLUMNS)
