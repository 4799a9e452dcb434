"""``embedprior train``: an encoder, an alignment, a CT teacher, the prior (``train_prior.py``), a method, or a study's
final fit."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from click import option

from embedprior.alignment.config import TrainAlignmentConfig
from embedprior.cli.options import DEVICE, PATH, command
from embedprior.cli.settings import settings_command
from embedprior.encoders.config import TrainEncoderConfig
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput, EmbedpriorError
from embedprior.prior.config import TrainPriorConfig
from embedprior.students.config import TrainStudentConfig
from embedprior.teachers.config import TrainTeacherConfig


@settings_command(TrainEncoderConfig, "encoder")
@option("--device", type=DEVICE, default="cpu", help="where it is trained: cpu or cuda")
def encoder(config: TrainEncoderConfig, device: str) -> int:
    """Train one encoder; return the exit code. A stopped training in the same ``--out`` goes on where it stopped.

    Raises:
        BadInput: see ``teachers.encoder.prepare_training``; nothing was written.
    """
    from embedprior.teachers.encoder import prepare_training, train_encoder

    prepared = prepare_training(config, device)
    out = Path(config.out)
    if prepared.finished:
        print(f"{out}: trained already, with the same data and settings. Next: embedprior embed --encoder {out}")
        return DONE
    from embedprior.report.training_report import encoder_summary
    from embedprior.runs import Run

    run = Run(out, "train encoder", config, config.seed, prepared.fingerprint)
    outcome = train_encoder(prepared)
    for record in outcome.history:
        run.metrics.write(event="validation", **record)
    summary = encoder_summary(config, outcome.counts, outcome.predictions)
    run.finish(summary, outcome.failures, exams=outcome.counts)
    print(summary)
    print(f"encoder: {out}. Next: embedprior embed --encoder {out}", file=sys.stderr)
    return NEEDS_ATTENTION if outcome.failures else DONE


@settings_command(TrainAlignmentConfig, "alignment", "trimodal")
@option("--device", type=DEVICE, default="cpu", help="where it is trained: cpu or cuda")
def alignment(config: TrainAlignmentConfig, device: str) -> int:
    """Train one alignment; return the exit code. Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: see ``alignment.data.load`` and ``alignment.train.train_alignment``.
    """
    from embedprior.runs.distributed import process_group

    processes = process_group(command="train alignment --config ...")
    from embedprior.alignment.data import load
    from embedprior.alignment.train import train_alignment
    from embedprior.nn.training import Resume
    from embedprior.report.transfer_report import alignment_summary
    from embedprior.runs import Run, hash_of, noting_a_stop

    loaded = load(config)
    out, state = Path(config.out), Path(config.out) / "state"
    made_of = {**loaded.inputs, "settings": hash_of(config.alignment)}

    def begin() -> Run:
        return Run(out, "train alignment", config, config.alignment.seed, loaded.inputs)

    with noting_a_stop(out, begin) if processes.is_main else nullcontext():
        fitted, history = train_alignment(
            loaded.train, loaded.val, config.alignment, loaded.caches, processes, device,
            progress_bar="alignment" if processes.is_main else None,
            resume=Resume(state, made_of, writes=processes.is_main),
        )  # fmt: skip
    processes.barrier()  # nobody leaves while another still sends
    if not processes.is_main:
        return DONE
    run = begin()
    for record in history:
        run.metrics.write(event="validation", **record)
    fitted.save(out)
    shutil.rmtree(state)
    summary = alignment_summary(config, fitted, history, loaded.notes)
    run.finish(summary, list(loaded.dropped))
    print(summary)
    print(f"alignment: {out}. Next: embedprior align --alignment {out} --side cxr --cache DIR", file=sys.stderr)
    return _attention(loaded.dropped)


@settings_command(TrainTeacherConfig, "teacher", "demo")
@option("--device", type=DEVICE, default="cpu", help="where a sequence model is trained: cpu or cuda")
def teacher(config: TrainTeacherConfig, device: str) -> int:
    """Train one teacher; return the exit code. Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: see ``teachers.train``.
    """
    from embedprior.report.training_report import part_aucs, teacher_summary
    from embedprior.runs import Run, hash_of, noting_a_stop, one_thread, write_json
    from embedprior.tables import write_table
    from embedprior.teachers.train import predictions, read_cases, train_teacher

    dropped: list[dict[str, str]] = []
    cases, cache, inputs = read_cases(config, dropped)
    out = Path(config.out)

    def begin() -> Run:
        return Run(out, "train teacher", config, config.teacher.seed, inputs)

    with one_thread(), noting_a_stop(out, begin):
        fitted, history = train_teacher(
            cases["train"], cases["val"], config.teacher, config.label, hash_of(cache.key), device
        )
        scored = predictions(fitted, cases, config)
    run = begin()
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
    aucs = part_aucs(scored, "no labelled CT in this part")
    write_json(out / "teacher_auc.json", aucs)
    summary = teacher_summary(config, {part: len(each.known()) for part, each in cases.items()}, aucs, outputs)
    run.finish(summary, dropped, outputs=outputs)
    print(summary)
    print(f"teacher: {out}", file=sys.stderr)
    return _attention(dropped)


@settings_command(TrainPriorConfig, "prior")
def prior(config: TrainPriorConfig) -> int:
    """Train a diffusion prior from embedding caches and tables; return the exit code.

    A stopped training in the same ``--out`` goes on where it stopped.

    Raises:
        BadInput: see ``prior.data``, ``nn.checkpoint`` and ``prior.losses``; nothing was written.
    """
    from embedprior.runs.distributed import process_group

    process_group(command="train prior --config ...")
    from embedprior.prior.data import SEEN, patients_of, patients_seen, read_pairs

    dropped: list[dict[str, str]] = []
    train, val, inputs = read_pairs(config, dropped)
    from embedprior.prior.trainer import train_prior
    from embedprior.report.training_report import prior_summary
    from embedprior.runs import Run, claimed, hash_of, noting_a_stop
    from embedprior.teachers.teacher import load_head

    frozen = None
    if config.teacher is not None:
        frozen = load_head(config.teacher)
        inputs["teacher"] = hash_of({k: v.tolist() for k, v in frozen.network.state_dict().items()})
    out = Path(config.out)
    start = None if config.init_from is None else Path(config.init_from)

    seen = {SEEN: patients_of(train, val, start)}  # also of a training that is stopped: the prior before it stays

    def begin() -> Run:
        return Run(out, "train_prior.py", config, config.prior.training.seed, inputs, keep_log=True, facts=seen)

    leads = os.environ.get("RANK", "0") == "0"
    with claimed(out) if leads else nullcontext():
        with noting_a_stop(out, begin, even_if_done=True) if leads else nullcontext():
            fitted = train_prior(train, val, config.prior, out, start, frozen, trackers=config.trackers)
        if not leads:
            return DONE
        run, counts = begin(), {"train": len(train), "val": len(val)}
        caveats = fitted.caveats()
        if start is not None and patients_seen(start) is None:
            unsaid = "what it started from doesn't say which patients it learned from: held-out ones may be among them"
            caveats = [*caveats, unsaid]
        summary = prior_summary(fitted.network.parameter_parts(), counts, caveats)
        run.finish(summary, dropped, pairs=counts, parameters=fitted.network.parameter_parts(), caveats=caveats)
    print(summary)
    print(f"prior: {out}", file=sys.stderr)
    return _attention(dropped)


def _attention(dropped: Sequence[dict[str, str]]) -> int:
    """Say which exams were left out, and return the exit code."""
    if not dropped:
        return DONE
    names = ", ".join(record["exam_id"] for record in dropped[:5]) + (", …" if len(dropped) > 5 else "")
    print(f"{len(dropped)} exams were left out (failures.csv): {names}", file=sys.stderr)
    return NEEDS_ATTENTION


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
    config.refuse_missing_ct(info.uses_ct)
    from embedprior.report.training_report import part_aucs, student_summary
    from embedprior.runs import Run, noting_a_stop, one_thread
    from embedprior.students.base import CannotFit, training_data, visible_cases
    from embedprior.students.storage import load_fitted, refuse_unsaveable, save_fitted
    from embedprior.students.tables import load, predictions_of
    from embedprior.tables import write_table

    loaded = load(config, info.needs_teacher)
    out = Path(config.out)

    def begin() -> Run:
        return Run(out, "train student", config, config.seed, loaded.inputs)

    try:
        with one_thread(), noting_a_stop(out, begin):
            fitted = method.fit(training_data(method, loaded.data), config.seed)
    except CannotFit as error:
        raise BadInput(f"method '{config.method}' can't be fitted on {config.exams}: {error}") from error
    refuse_unsaveable(fitted, config.method)
    run = begin()
    fit_summary = getattr(fitted, "fit_summary", None)
    for record in fit_summary.history if fit_summary is not None else ():
        run.metrics.write(**{"event": "validation", **record})
    cxr_dim = int(loaded.data.target.train.cxr.shape[1])
    about = {"inputs": config.inputs, "cxr_dim": cxr_dim, "encoder": loaded.encoder, "label": config.label}
    save_fitted(fitted, out, config.method, about)
    scored = {part: visible_cases(method, cases) for part, cases in loaded.scored.items()}
    started = time.monotonic()
    predictions = predictions_of(config, fitted, scored)
    seconds = time.monotonic() - started
    if len(predictions):
        again = predictions_of(config, load_fitted(out), scored)
        if not predictions.equals(again):
            raise EmbedpriorError(f"the method read back from {out} scores differently from the one that was saved.")
        write_table(predictions, out / "predictions.csv")
    text = student_summary(config, fit_summary, part_aucs(predictions), len(predictions), seconds)
    run.finish(text, list(loaded.dropped))
    print(text)
    print(f"student: {out}", file=sys.stderr)
    return _attention(loaded.dropped)


@command(epilog="Nobody is held out: what to expect of these models is what the study found.")
@option("--study", type=PATH, required=True, metavar="DIR", help="folder of a finished study")
@option("--method", required=True, metavar="NAME", help="of the study; it must need no CT at inference")
@option("--design", metavar="NAME", help="of the study [default: the only one that has the method]")
@option("--data", type=PATH, metavar="DIR", help="folder of the cohort [default: where the study read it]")
@option("--splits", type=PATH, metavar="FILE", help="the split table that the study was given, if any")
def final(study: Path, method: str, design: str | None, data: Path | None, splits: Path | None) -> int:
    """Fit one method of a study on everybody; return the exit code.

    Raises:
        BadInput: see ``study.final.train_final``.
    """
    from embedprior.study.final import train_final

    found = train_final(study, method, design=design, data=data, splits=splits)
    print(found.summary)
    print(f"final models: {found.folder}", file=sys.stderr)
    return DONE
