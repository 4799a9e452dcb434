"""``embedprior train teacher``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedprior.teachers.config import TrainTeacherConfig

HELP = "train a CT classifier on an embedding or token cache; its frozen head scores generated embeddings"


def main(argv: Sequence[str]) -> int:
    """Train one teacher; returns the exit code. Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: see ``teachers.train``.
    """
    from embedprior.cli.options import parse
    from embedprior.errors import DONE
    from embedprior.teachers.config import TrainTeacherConfig

    config, common = parse(
        TrainTeacherConfig, "teacher", argv, "embedprior train teacher", HELP, "demo",
        device=(str, "cpu", "cpu or cuda: where a sequence model is trained"),
    )  # fmt: skip
    from embedprior.runs import Run, hash_of, one_thread, write_json
    from embedprior.tables import write_table
    from embedprior.teachers.train import predictions, read_cases, train_teacher

    cases, cache, inputs = read_cases(config)
    with one_thread():
        teacher, looks = train_teacher(
            cases["train"], cases["val"], config.teacher, config.label, hash_of(cache.key), common["device"]
        )
        scored = predictions(teacher, cases, config)
    out = Path(config.out)
    run = Run(out, "train teacher", config, config.teacher.seed, inputs)
    for look in looks:
        run.metrics.write(event="validation", **look)
    teacher.save(out)
    outputs = {"teacher": out}
    if config.embeddings is not None:
        from embedprior.teachers.train import write_embeddings

        made = write_embeddings(teacher, out, cache, Path(config.embeddings))
        outputs["embeddings"] = made.path
    if len(scored):
        write_table(scored, out / "predictions.csv")
    aucs = _aucs(scored)
    write_json(out / "teacher_auc.json", aucs)
    summary = _summary(config, {part: len(each.known()) for part, each in cases.items()}, aucs, outputs)
    run.finish(summary, [], outputs=outputs)
    print(summary)
    print(f"teacher: {out}", file=sys.stderr)
    return DONE


def _aucs(scored: Any) -> dict[str, dict[str, Any]]:
    """Return AUC, logit interval and counts by part; numbers that are not defined are None, with the reason."""
    import math

    from embedprior.evidence import delong
    from embedprior.evidence.intervals import auc_interval

    found: dict[str, dict[str, Any]] = {}
    for part in ("val", "test"):
        rows = scored[scored["split"] == part] if len(scored) else scored
        if not len(rows):
            found[part] = {"auc": None, "reason": "no labelled CT in this part"}
            continue
        joint = delong(rows["label"].to_numpy(), rows["score"].to_numpy(), clusters=rows["patient_id"].to_numpy())
        ends = auc_interval(
            float(joint.auc[0]), float(joint.covariance[0, 0]), joint.independent_pairs, reason=joint.reason
        )
        numbers = {"auc": float(joint.auc[0]), "ci_low": ends.low, "ci_high": ends.high}
        found[part] = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        found[part] |= {"pos": joint.n_pos, "neg": joint.n_neg, "reason": ends.reason}
    return found


def _summary(
    config: TrainTeacherConfig, counts: dict[str, int], aucs: dict[str, dict[str, Any]], outputs: dict[str, Path]
) -> str:
    kind = "a head on embeddings" if config.teacher.kind == "head" else "a sequence model with its head"
    lines = [
        f"# CT teacher for {config.label}: {kind}",
        "",
        f"Trained on {counts['train']} labelled CTs; {counts['val']} chose the step.",
        "",
        "| CTs | AUC (95 % CI) | pos / neg |",
        "| --- | ---: | ---: |",
    ]
    for part, text in (("val", "validation (chose the step: too high)"), ("test", "held out")):
        row = aucs[part]
        if row["auc"] is None:
            lines.append(f"| {text} | {row['reason']} | |")
            continue
        ends = f" ({row['ci_low']:.3f}–{row['ci_high']:.3f})" if row["ci_low"] is not None else f" ({row['reason']})"
        lines.append(f"| {text} | {row['auc']:.3f}{ends} | {row['pos']} / {row['neg']} |")
    lines += ["", *(f"{name}: `{path}`" for name, path in outputs.items()), ""]
    return "\n".join([*lines, "Research use only: not a medical device, not for diagnosis.", ""])
