"""What may be concluded from a study, and what may not: read off its designs, seeds, sources and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from embedprior.report.formatting import verdict_of
from embedprior.study.config import StudyConfig
from embedprior.study.confounding import label_conflicts
from embedprior.study.run import DesignResult, StudyResult

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


def design_findings(part: DesignResult, evidence: Mapping[str, Any], inside: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return what a reader has to know of a design beside its verdicts: what has no test or AUC, and confounding.

    Args:
        part: the design.
        evidence: of it.
        inside: method → its AUCs within one source (see ``study.confounding.within_source``).
    """
    targets, sentences = part.targets, []
    declared = [c for c in evidence["comparisons"] if c["in_family"]]
    if declared and all(c["p"] is None for c in declared):
        sentences = [f"no declared claim can be tested: {declared[0]['reason']}."]
    for row in evidence["methods"]:
        if row["auc"] is None:
            sentences.append(f"{row['method']} has no AUC: {row['reason']}.")
    for method, table in inside.items():
        aucs = ", ".join(f"{r['AUC']:.2f} ({r['source']})" for r in table.to_dict("records") if pd.notna(r["AUC"]))
        sentences.append(f"within one source, where recognising the source does not help, {method} has AUC {aucs}.")
    negative = targets[targets["label"] == 0]
    on_ct = int((negative["ct_label"] == 1).sum())
    if on_ct:
        share = f"all {on_ct}" if on_ct == len(negative) else f"{on_ct} of {len(negative)}"
        sentences.append(f"{share} negative pairs are positive on CT, so no method that uses CT can show what CT adds.")
    return sentences


def by_text(found: Sequence[tuple[str, str]]) -> list[str]:
    """Return ``(design, sentence)`` as sentences, each once, preceded by the designs that it is true of.

    Example:
        >>> by_text([("fixed", "no CT."), ("kfold", "no CT."), ("fixed", "one site.")])
        ['fixed, kfold: no CT.', 'fixed: one site.']
    """
    designs: dict[str, list[str]] = {}
    for name, text in found:
        designs.setdefault(text, []).append(name)
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in designs.items()]


def study_caveats(config: StudyConfig, result: StudyResult) -> list[str]:
    """Return what the figures of a study do not show: conflicting labels, unknown days, sources, sweeps."""
    caveats = []
    for name in config.label_names:
        both = label_conflicts(result.cohort.exams, name)
        if both:
            xrays = label_conflicts(result.cohort.of("CXR"), name)
            which = f"The label {name}" if config.labels else "The label"
            caveats.append(
                f"{which} belongs to the image: {both} patients carry both labels, {xrays} of them on X-rays alone."
            )
    said = list[tuple[str, str]]()
    first = [c for c in result.designs if c.variant is result.study.variants[0]]
    for part in first:
        if part.design.cases == "paired":
            own = result.cohort.pairs[result.cohort.pairs["cxr_exam_id"].isin(part.targets["exam_id"])]
            known, pairs = int(own["offset_days"].notna().sum()), len(own)
            if known < pairs:
                said.append((part.design.name, f"days between X-ray and CT are known for {known} of {pairs} pairs."))
        elif part.targets["source"].nunique() > 1:
            text = (
                "the source of a picture confounds its label; an AUC here is no evidence that a model reads the lungs."
            )
            said.append((part.design.name, text))
    caveats += by_text(said)
    if config.sweep:
        caveats.append(
            f"{len({v.combination for v in result.study.variants})} settings were run on the same held-out cases: the "
            "best of them is partly the best by chance. Choose settings on validation patients, and test the choice on "
            "other patients."
        )
    return caveats
