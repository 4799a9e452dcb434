"""What ``embedprior train`` reports: the AUC of a teacher or a student on each part, and a summary in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.encoders.config import TrainEncoderConfig
from embedprior.evidence import delong, delong_test
from embedprior.evidence.intervals import auc_interval
from embedprior.report.formatting import RESEARCH_USE, UNDEFINED, estimate, fixed, interval, markdown_table, signed
from embedprior.students.config import TrainStudentConfig
from embedprior.students.fit_summary import FitSummary
from embedprior.teachers.config import TrainTeacherConfig

PARTS = {"val": "validation (chose the checkpoint: too high)", "test": "held out"}

Aucs = dict[str, dict[str, Any]]


def part_aucs(predictions: pd.DataFrame, missing: str = "no labelled case in this part") -> Aucs:
    """Return AUC, 95 % logit interval (patients are the clusters) and counts of the validation and held-out cases.

    Args:
        predictions: ``patient_id, label, score, split`` of the labelled cases; may be empty.
        missing: the reason given for a part without cases.

    Returns:
        ``val`` and ``test`` → ``auc, ci_low, ci_high, pos, neg, reason``; a number that is not defined is None, and
        ``reason`` says why.
    """
    found: Aucs = {}
    for part in PARTS:
        rows = predictions[predictions["split"] == part] if len(predictions) else predictions
        if not len(rows):
            found[part] = {"auc": None, "reason": missing}
            continue
        joint = delong(rows["label"].to_numpy(), rows["score"].to_numpy(), clusters=rows["patient_id"].to_numpy())
        ends = auc_interval(
            float(joint.auc[0]), joint.variance(np.ones(1)), joint.independent_pairs, reason=joint.reason
        )
        numbers = {"auc": float(joint.auc[0]), "ci_low": ends.low, "ci_high": ends.high}
        found[part] = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        found[part] |= {"pos": joint.n_pos, "neg": joint.n_neg, "reason": ends.reason}
    return found


def teacher_summary(
    config: TrainTeacherConfig, labelled: Mapping[str, int], aucs: Aucs, outputs: Mapping[str, Path]
) -> str:
    """Return ``summary.md`` of a teacher.

    Args:
        config: what was trained.
        labelled: part → labelled CTs.
        aucs: of ``part_aucs``.
        outputs: name → folder that was written.
    """
    kind = "a head on embeddings" if config.teacher.kind == "head" else "a sequence model with its head"
    parts = [
        f"# CT teacher for {config.label}: {kind}",
        f"Trained on {labelled['train']} labelled CTs; {labelled['val']} chose the step.",
        _auc_table("CTs", aucs),
        "\n".join(f"{name}: `{path}`" for name, path in outputs.items()),
        RESEARCH_USE,
    ]
    return "\n\n".join(parts) + "\n"


def student_summary(
    config: TrainStudentConfig, fit: FitSummary | None, aucs: Aucs, scored: int = 0, scoring_seconds: float = 0.0
) -> str:
    """Return ``summary.md`` of one method.

    Args:
        config: what was fitted.
        fit: what it cost; None for a method that trains nothing.
        aucs: of ``part_aucs``.
        scored, scoring_seconds: cases that were scored, and the time it took: a prior draws samples then.
    """
    parts = [f"# {config.method} for {config.label}"]
    if fit is not None:
        losses = f"; losses: {', '.join(fit.losses)}" if fit.losses else ""
        reads = f" ({fit.total:,} with the frozen head it reads)" if fit.total > fit.trainable else ""
        noun = "parameter" if fit.trainable == 1 else "parameters"
        parts.append(f"{fit.trainable:,} {noun} trained{reads}; {fit.steps:,} steps, {fit.seconds:.1f} s{losses}.")
        parts += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in fit.sentences()]
    if scored:
        parts.append(f"{scored} cases scored in {scoring_seconds:.1f} s.")
    return "\n\n".join([*parts, _auc_table("cases", aucs), RESEARCH_USE]) + "\n"


def prior_summary(parameters: Mapping[str, int], pairs: Mapping[str, int], caveats: Sequence[str]) -> str:
    """Return ``summary.md`` of a trained prior.

    Args:
        parameters: of each part of the network.
        pairs: part → pairs.
        caveats: what its training warns of.
    """
    parts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    lines = [
        f"A prior of {sum(parameters.values()):,} parameters ({parts}), from {pairs['train']} pairs; its checkpoint "
        f"was chosen on {pairs['val']} others.",
        *(f"note: {caveat}" for caveat in caveats),
    ]
    return "\n".join(lines) + "\n"


def encoder_summary(config: TrainEncoderConfig, counts: Mapping[str, int], predictions: pd.DataFrame) -> str:
    """Return ``summary.md`` of a trained encoder: its AUC, and that of a head on what it was trained from.

    Args:
        config: what was trained.
        counts: part → labelled exams.
        predictions: of ``teachers.encoder.train_encoder``.
    """
    what = "a sequence model over slice tokens" if config.kind == "sequence" else "every weight of the network"
    start = "the mean of its slices" if config.kind == "sequence" else "its embedding"
    tables = {name: part_aucs(predictions[predictions["method"] == name]) for name in ("trained", "start")}
    parts = [
        f"# {config.encoder}, trained on {config.label}: {what}",
        f"Trained on {counts['train']} labelled exams; {counts['val']} chose the epoch.",
        f"The trained encoder:\n\n{_auc_table('exams', tables['trained'])}",
        f"A head on {start}, before training:\n\n{_auc_table('exams', tables['start'])}",
    ]
    held_out = predictions[predictions["split"] == "test"]
    if len(held_out):
        parts.append(_difference(held_out))
    return "\n\n".join([*parts, RESEARCH_USE]) + "\n"


def _difference(held_out: pd.DataFrame) -> str:
    scores = held_out.pivot(index="exam_id", columns="method", values="score")
    first = held_out.drop_duplicates("exam_id").set_index("exam_id").loc[scores.index]
    test = delong_test(
        first["label"].to_numpy(), scores["trained"].to_numpy(), scores["start"].to_numpy(),
        groups=first["patient_id"].to_numpy(),
    )  # fmt: skip
    if test.ci[0] != test.ci[0]:
        return f"Held out, trained minus before: no interval ({test.reason})."
    limits = f"95 % CI {interval(*test.ci, sign=True)}"
    return f"Held out, trained minus before: ΔAUC {estimate(signed(test.delta), limits)}, p = {fixed(test.p)}."


def _auc_table(heading: str, aucs: Aucs) -> str:
    rows = []
    for part, text in PARTS.items():
        row = aucs[part]
        if "pos" not in row:
            rows.append([text, row["reason"], ""])
            continue
        limits = row["reason"] or interval(row["ci_low"], row["ci_high"])
        auc = fixed(row["auc"])
        shown = f"{UNDEFINED} ({limits})" if auc == UNDEFINED else estimate(auc, limits)
        rows.append([text, shown, f"{row['pos']} / {row['neg']}"])
    return markdown_table([heading, "AUC (95 % CI)", "pos / neg"], rows, [False, True, True])
