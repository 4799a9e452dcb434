"""What ``embedprior evaluate-embeddings`` and ``train alignment`` report, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embedprior.alignment.config import TrainAlignmentConfig
from embedprior.alignment.model import Alignment
from embedprior.evidence.tables import markdown
from embedprior.nn.training import ValidationHistory
from embedprior.report.formatting import RESEARCH_USE, estimate, fixed, interval, markdown_table, signed
from embedprior.study.leakage import Leakage
from embedprior.transfer.probes import ProbeResult
from embedprior.transfer.retrieval import OVERLAP, RetrievalResult
from embedprior.transfer.zero_shot import ZeroShotResult

FEW_PATIENTS = 100
"""Below this, retrieval shows that the parts fit together, not how well they do."""


def alignment_summary(
    config: TrainAlignmentConfig, alignment: Alignment, history: ValidationHistory, notes: Sequence[str]
) -> str:
    """Return ``summary.md`` of an alignment.

    Args:
        config: what was trained.
        alignment: the result.
        history: one record a validation.
        notes: sentences about the data.
    """
    weights = config.alignment
    sides = ", ".join(alignment.network.sides)
    scored = [record for record in history if "val_loss" in record]
    best = min(scored, key=lambda record: record["val_loss"]) if scored else None
    parts = [
        "# Alignment of radiograph, CT and report" if weights.reads_reports else "# Alignment of radiograph and CT",
        f"Loss: {weights.alpha:g} · L(CT, report) + {weights.beta:g} · L(CXR, report) + {weights.gamma:g} · "
        "L(CXR, CT). "
        f"Common space of {alignment.dim}; trained sides: {sides}. "
        f"{sum(p.numel() for p in alignment.network.sides.parameters()):,} parameters.",
        "\n".join(f"- {note}" for note in notes),
    ]
    if best is None:
        parts.append("No validation patients: the last step was kept, and nothing was chosen.")
    else:
        terms = ", ".join(f"{name.removeprefix('val_')} {fixed(best[name])}" for name in best if "-" in name)
        parts.append(
            f"Step {int(best['step'])} of {weights.steps} kept: validation loss {fixed(best['val_loss'])} ({terms})."
        )
    return "\n\n".join([*parts, RESEARCH_USE]) + "\n"


def retrieval_summary(found: RetrievalResult, match: str) -> str:
    """Return ``summary.md`` of a retrieval.

    Args:
        found: the result.
        match: what counts as found: ``patient`` or ``scan``.
    """
    counts = found.counts
    target = "of the same patient" if match == "patient" else "that a pair connects with the query"
    parts = [
        "# Retrieval between radiographs and CTs",
        f"{counts['radiographs']} radiographs and {counts['cts']} CTs of {counts['patients']} patients. "
        + f"Found is any exam {target}. "
        + "Queries are averaged within patients, patients weigh alike; 95 % intervals draw patients (the gallery "
        "stays). Equal similarities count by their expectation over all orders.",
    ]
    if counts["queries_without_target"]:
        parts.append(f"{counts['queries_without_target']} queries have no target in the gallery and are left out.")
    if counts["patients"] < FEW_PATIENTS:
        parts.append(
            f"**{counts['patients']} patients: this shows that the parts fit together, not how well they do.**"
        )
    for metric, title in (("recall", "Recall@k"), (OVERLAP, "Label overlap@k (Jaccard index)")):
        rows = [row for row in found.rows if row["metric"] == metric]
        if rows:
            cells = [
                [row["system"], row["direction"], str(row["k"]),
                 row["reason"] or estimate(fixed(row["value"]), interval(row["ci_low"], row["ci_high"])),
                 fixed(row["chance"])]
                for row in rows
            ]  # fmt: skip
            header = ["system", "direction", "k", "value (95 % CI)", "chance"]
            parts.append(f"## {title}\n\n{markdown_table(header, cells, [False, False, True, True, True])}")
    if found.differences:
        cells = [
            [row["system"], row["direction"], row["metric"], str(row["k"]),
             estimate(signed(row["value"]), interval(row["ci_low"], row["ci_high"], sign=True))]
            for row in found.differences
        ]  # fmt: skip
        header = ["system", "direction", "metric", "k", f"less {found.differences[0]['reference']} (95 % CI)"]
        parts.append(
            f"## Differences, patients paired\n\n{markdown_table(header, cells, [False, False, False, True, True])}"
        )
    return "\n\n".join([*parts, RESEARCH_USE]) + "\n"


TITLES = {
    "linear-probe": "Probes on frozen embeddings",
    "few-shot": "Probes on shares of the training patients",
    "zero-shot": "Zero-shot, by text prompts",
    "external": "Trained on one cohort, scored on another",
}


def probes_summary(verb: str, found: Mapping[str, ProbeResult | ZeroShotResult], alike: Leakage | None = None) -> str:
    """Return ``summary.md`` of probes or prompts: mean AUC over labels first, then the tables of the evidence.

    Args:
        verb: of ``TITLES``.
        found: share of the training patients (or empty) → result.
        alike: of two cohorts: exams that look alike, and what was compared.
    """
    parts = [f"# {TITLES[verb]}", _overview(found)]
    for name, result in found.items():
        if name:
            parts.append(f"## {name} of the training patients")
        skipped = [f"- {record['label']}: {record['reason']}" for record in result.skipped]
        if skipped:
            parts.append("Labels left out:\n\n" + "\n".join(skipped))
        parts.append(markdown(result.evidence).strip())
    if alike is not None:
        compared = "\n".join(f"- {text}" for text in alike.compared)
        listed = f"Near-copies listed in near_copies.csv: {len(alike.duplicates)}."
        parts.append(f"## Compared for copies\n\n{compared}\n\n{listed}")
    return "\n\n".join([*parts, RESEARCH_USE]) + "\n"


def _overview(found: Mapping[str, ProbeResult | ZeroShotResult]) -> str:
    """One line a share and system: the mean of ROC-AUC and PR-AUC over labels, or the one label's."""
    rows = []
    for name, result in found.items():
        methods = result.evidence["methods"]
        names = {row["label_name"] for row in methods}
        wanted = "macro" if "macro" in names else next(iter(names))
        labels = len(names - {"macro", "micro"})
        for row in methods:
            if row["label_name"] == wanted:
                auc = estimate(fixed(row["auc"]), interval(row["ci_low"], row["ci_high"]))
                system = row["method"] + (" (needs CT)" if row["oracle"] else "")
                own = [each for each in methods if each["method"] == row["method"] and each["label_name"] in names]
                areas = [each["metrics"]["pr_auc"]["value"] for each in own if "pr_auc" in each["metrics"]]
                area = fixed(None if None in areas or not areas else sum(areas) / len(areas))
                rows.append([name or "all", system, row["reason"] or auc, area, str(labels), str(row["n_seeds"])])
    header = ["training patients", "system", "mean ROC-AUC over labels (95 % CI)", "mean PR-AUC", "labels", "draws"]
    return markdown_table(header, rows, [False, False, True, True, True, True])
