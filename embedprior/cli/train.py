"""``embedprior train``: a CT teacher, the diffusion prior (``train_prior.py``), or one method alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import option

from embedprior.cli.settings import settings_command
from embedprior.errors import DONE, BadInput, EmbedpriorError
from embedprior.prior.config import TrainPriorConfig
from embedprior.students.config import TrainStudentConfig
from embedprior.teachers.config import TrainTeacherConfig

if TYPE_CHECKING:
    import pandas as pd

    from embedprior.students.base import Cases, Fitted


@settings_command(TrainTeacherConfig, "teacher", "demo")
@option("--device", default="cpu", help="where a sequence model is trained: cpu or cuda")
def teacher(config: TrainTeacherConfig, device: str) -> int:
    """Train one teacher; return the exit code. Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: see ``teachers.train``.
    """
    from embedprior.runs import Run, hash_of, one_thread, write_json
    from embedprior.tables import write_table
    from embedprior.teachers.train import predictions, read_cases, train_teacher

    cases, cache, inputs = read_cases(config)
    with one_thread():
        fitted, history = train_teacher(
            cases["train"], cases["val"], config.teacher, config.label, hash_of(cache.key), device
        )
        scored = predictions(fitted, cases, config)
    out = Path(config.out)
    run = Run(out, "train teacher", config, config.teacher.seed, inputs)
    for record in history:
        run.metrics.write(event="validation", **record)
    fitted.save(out)
    outputs = {"teacher": out}
    if config.embeddings is not None:
        from embedprior.teachers.train import write_embeddings

        made = write_embeddings(fitted, out, cache, Path(config.embeddings))
        outputs["embeddings"] = made.path
    if len(scored):
        write_table(scored, out / "predictions.csv")
    aucs = _teacher_aucs(scored)
    write_json(out / "teacher_auc.json", aucs)
    summary = _teacher_summary(config, {part: len(each.known()) for part, each in cases.items()}, aucs, outputs)
    run.finish(summary, [], outputs=outputs)
    print(summary)
    print(f"teacher: {out}", file=sys.stderr)
    return DONE


def _teacher_aucs(scored: Any) -> dict[str, dict[str, Any]]:
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


def _teacher_summary(
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


@settings_command(TrainPriorConfig, "prior")
def prior(config: TrainPriorConfig) -> int:
    """Train a diffusion prior from embedding caches and tables; return the exit code.

    A stopped training in the same ``--out`` goes on where it stopped.

    Raises:
        BadInput: see ``prior.data``, ``prior.checkpoint`` and ``prior.losses``; nothing was written.
    """
    from embedprior.runs.distributed import process_group

    process_group(command="train prior --config ...")
    from embedprior.prior.data import read_pairs

    train, val, inputs = read_pairs(config)
    from embedprior.prior.trainer import train_prior
    from embedprior.runs import canonical, hash_of, versions, write_json
    from embedprior.teachers.teacher import load_head

    frozen = None
    if config.teacher is not None:
        frozen = load_head(config.teacher)
        inputs["teacher"] = hash_of({k: v.tolist() for k, v in frozen.network.state_dict().items()})
    out = Path(config.out)
    start = None if config.init_from is None else Path(config.init_from)
    fitted = train_prior(train, val, config.prior, out, start, frozen, trackers=config.trackers)
    if int(os.environ.get("RANK", "0")) != 0:
        return DONE
    write_json(
        out / "run.json",
        {
            "command": "train_prior.py",
            "config": canonical(config),
            "inputs": inputs,
            "pairs": {"train": len(train), "val": len(val)},
            "parameters": fitted.network.parameter_parts(),
            "caveats": fitted.caveats(),
            "versions": versions(),
        },
    )
    parts = ", ".join(f"{name} {count:,}" for name, count in fitted.network.parameter_parts().items())
    print(f"{out}: a prior of {fitted.network.parameter_count():,} parameters ({parts}), from {len(train)} pairs")
    for caveat in fitted.caveats():
        print(f"mind: {caveat}")
    return DONE


@settings_command(TrainStudentConfig, "student", "demo")
def student(config: TrainStudentConfig) -> int:
    """Fit one method; return the exit code. Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: unknown method or option, no CT for a method that learns from it, cases that do not allow a fit (one
            class only, say), or see ``students.tables.load``.
        EmbedpriorError: the method read back from its folder scores differently.
    """
    from embedprior.students.registry import build_method, describe

    method = build_method(config.method, config.budget, **({"inputs": config.inputs} | config.options))
    info = describe(config.method)
    missing = {"CT cache": config.ct_cache is None, "pair table": config.pairs is None}
    if info.uses_ct and any(missing.values()):
        raise BadInput(
            f"method '{config.method}' learns from CT, and no {' and no '.join(w for w in missing if missing[w])} is "
            "given. Next: --ct-cache DIR --pairs FILE, or a method without CT (embedprior methods)"
        )
    from embedprior.runs import Run, one_thread
    from embedprior.students.base import CannotFit, training_data, visible_cases
    from embedprior.students.storage import load_fitted, refuse_unsaveable, save_fitted
    from embedprior.students.tables import load
    from embedprior.tables import write_table

    loaded = load(config, info.needs_teacher)
    try:
        with one_thread():
            fitted = method.fit(training_data(method, loaded.data), config.seed)
    except CannotFit as error:
        raise BadInput(f"method '{config.method}' can't be fitted on {config.exams}: {error}") from error
    refuse_unsaveable(fitted, config.method)
    out = Path(config.out)
    run = Run(out, "train student", config, config.seed, loaded.inputs)
    fit_summary = getattr(fitted, "fit_summary", None)
    for record in fit_summary.history if fit_summary is not None else ():
        run.metrics.write(event="validation", **record)
    cxr_dim = int(loaded.data.target.train.cxr.shape[1])
    about = {"inputs": config.inputs, "cxr_dim": cxr_dim, "encoder": loaded.encoder, "label": config.label}
    save_fitted(fitted, out, config.method, about)
    scored = {part: visible_cases(method, cases) for part, cases in loaded.scored.items()}
    predictions = _predictions(config, fitted, scored)
    if len(predictions):
        again = _predictions(config, load_fitted(out), scored)
        if not predictions.equals(again):
            raise EmbedpriorError(f"the method read back from {out} scores differently from the one that was saved.")
        write_table(predictions, out / "predictions.csv")
    text = _student_summary(config, fit_summary, _student_aucs(predictions))
    run.finish(text, [])
    print(text)
    print(f"student: {out}", file=sys.stderr)
    return DONE


def _predictions(config: TrainStudentConfig, fitted: Fitted, scored: Mapping[str, Cases]) -> pd.DataFrame:
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "exam_id": list(cases.exam_ids), "patient_id": list(cases.patient_ids),
                "label": cases.label.astype(int), "method": config.method, "score": fitted.scores(cases),
                "fold": config.fold, "seed": config.seed, "split": part,
            }
        )
        for part, cases in scored.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _student_aucs(predictions: pd.DataFrame) -> list[tuple[str, str, str]]:
    import numpy as np

    from embedprior.evidence import delong
    from embedprior.evidence.intervals import auc_interval

    rows = []
    for part, text in (("val", "validation (chose the checkpoint: too high)"), ("test", "held out")):
        own = predictions[predictions["split"] == part] if len(predictions) else predictions
        if not len(own):
            rows.append((text, "no labelled case", ""))
            continue
        joint = delong(own["label"].to_numpy(), own["score"].to_numpy(), clusters=own["patient_id"].to_numpy())
        ends = auc_interval(
            float(joint.auc[0]), float(joint.covariance[0, 0]), joint.independent_pairs, reason=joint.reason
        )
        bounds = ends.reason if ends.reason else f"{ends.low:.3f}–{ends.high:.3f}"
        auc = f"{joint.auc[0]:.3f}" if np.isfinite(joint.auc[0]) else "–"
        rows.append((text, f"{auc} ({bounds})", f"{joint.n_pos} / {joint.n_neg}"))
    return rows


def _student_summary(config: TrainStudentConfig, fit_summary: Any, aucs: Sequence[tuple[str, str, str]]) -> str:
    lines = [f"# {config.method} for {config.label}", ""]
    if fit_summary is not None:
        losses = f"; losses: {', '.join(fit_summary.losses)}" if fit_summary.losses else ""
        frozen = fit_summary.total - fit_summary.trainable
        reads = f" ({fit_summary.total:,} with the frozen head it reads)" if frozen else ""
        lines += [
            f"{fit_summary.trainable:,} parameter{'s' if fit_summary.trainable != 1 else ''} trained{reads}; "
            f"{fit_summary.steps:,} steps, {fit_summary.seconds:.1f} s{losses}.",
            "",
        ]
    lines += ["| cases | AUC (95 % CI) | pos / neg |", "| --- | ---: | ---: |"]
    lines += [f"| {part} | {auc} | {counts} |" for part, auc, counts in aucs]
    return "\n".join([*lines, "", "Research use only: not a medical device, not for diagnosis.", ""])
