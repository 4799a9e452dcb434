"""``study run``: embeddings → every fit of the plan → predictions, put together in the plan's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cache import build_cache
from embedprior.cohort.base import Cohort
from embedprior.cohort.splits import Fold
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.runs import artifacts_root, is_full, one_thread, read_json
from embedprior.students.registry import Budget, build_method, describe
from embedprior.study.config import (
    SOURCE_ONLY,
    Design,
    MethodConfig,
    StudyConfig,
    method_infos,
)
from embedprior.study.executor import Outcome, reason_of, run_jobs
from embedprior.study.generated import Generated, generated_cases
from embedprior.study.inputs import Caches, StudyInputs, open_caches, patients_seen
from embedprior.study.keep import kept_models
from embedprior.study.prepare import StudyData, read_study_data
from embedprior.study.runner import RECORD, FoldRunner, Study, fit_jobs, read_scores
from embedprior.study.variants import Variant, variants
from embedprior.tables import PREDICTION_REQUIRED


@dataclass(frozen=True)
class DesignResult:
    """The cases of one design in one variant, which are evaluated together.

    Attributes:
        key: its name in every table.
        variant: the sweep's combination.
        design: settings.
        targets: X-rays to score whose embedding exists.
        folds: divisions into parts.
        user_splits: whether the splits are the user's.
    """

    key: str
    variant: Variant
    design: Design
    targets: pd.DataFrame
    folds: tuple[Fold, ...]
    user_splits: bool


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        study: variants and what they started from.
        cohort: of the first variant, after unreadable images were dropped.
        designs: designs × variants.
        predictions: long table with ``design`` and ``resample``; rows of split ``val`` where there are validation
            patients.
        support: one row a design, resample and fold: held-out and training counts.
        failures: unreadable images (``exam_id, stage, reason``).
        unfitted: fits that failed (same columns, and ``design, method``).
        unscored: cases a method gave no finite score (same columns).
        needs_ct: by method: does it need CT at inference.
        uses_ct: by method: did CT take part in its training.
        outcomes: of every fit.
        models: fitted models that were kept (see ``keep.kept_models``).
        generated: what the first prior generates for held-out cases; None without a prior.
    """

    study: Study
    cohort: Cohort
    designs: tuple[DesignResult, ...]
    predictions: pd.DataFrame
    support: pd.DataFrame
    failures: list[dict[str, str]]
    unfitted: list[dict[str, str]]
    unscored: list[dict[str, str]]
    needs_ct: dict[str, bool]
    uses_ct: dict[str, bool]
    outcomes: list[Outcome]
    models: pd.DataFrame
    generated: Generated | None = None


def read_study(config: StudyConfig, data: Path | str, splits_file: Path | str | None = None) -> Study:
    """Read what every combination of the sweep starts from; a cohort is read once.

    Raises:
        BadInput: see ``prepare.read_study_data`` and ``prepare.variants``.
    """
    data = Path(data)
    splits_file = None if splits_file is None else Path(splits_file)
    chosen = variants(config)
    kept = _encoder_training_patients([v.config for v in chosen], data)
    known: dict[str, StudyData] = {}
    data_of = []
    for variant in chosen:
        fields = {
            "source",
            "labels" if variant.config.labels else "label",
            "missing_images",
            "views",
            "complete",
            "duplicates",
            "seed",
            "encoder",
            "pixels",
            "caches",
            "encoder_training_patients",
        }
        key = variant.config.model_dump_json(include=fields | {"designs"})
        refuse_bad_methods(variant.config)
        if key not in known:
            known[key] = read_study_data(variant.config, data, splits_file, kept)
        data_of.append(known[key].for_label(variant.config) if variant.config.labels else known[key])
    refuse_nothing_testable(chosen, data_of)
    return Study(tuple(chosen), tuple(data_of))


def refuse_nothing_testable(chosen: Sequence[Variant], data_of: Sequence[StudyData]) -> None:
    """Check that some label can be tested in some design.

    Raises:
        BadInput: none can; the reasons are given.
    """
    reasons = [
        f"{variant.key(design)}: {prepared.untestable.get(design.name, '')}"
        for variant, prepared in zip(chosen, data_of, strict=True)
        for design in variant.config.designs
    ]
    if all(len(d.untestable) == len(v.config.designs) for v, d in zip(chosen, data_of, strict=True)):
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise BadInput(
            f"none of {len(reasons)} labels can be tested: {'; '.join(reasons[:3])}{more}. Next: a label with more "
            "patients, fewer folds, or a larger held-out share."
        )


def _encoder_training_patients(configs: Sequence[StudyConfig], data: Path) -> frozenset[str]:
    """Return the patients on whom any encoder of the sweep was trained.

    They stay in training for every combination, so that all combinations share one test set.
    """
    places = {
        c.caches.model_dump_json(): c.caches for c in configs if c.caches and c.encoder_training_patients == "train"
    }
    seen = [found for choice in places.values() for found in patients_seen(open_caches(choice, data)).values()]
    return frozenset[str]().union(*seen)


def refuse_unsuitable_methods(config: StudyConfig) -> None:
    """Check that no design asks CT of a method where there is none.

    Raises:
        BadInput: a method that uses CT in a design without CT, or without a CT cache.
    """
    infos = method_infos(config)
    for design in config.designs:
        for name in design.methods:
            if design.cases == "cxr" and infos[name].uses_ct:
                raise BadInput(f"method '{name}' uses CT and can't be in design '{design.name}' (cases: cxr). Next: "
                               "take it out, or give the design 'cases: paired'")  # fmt: skip
            if config.caches is not None and config.caches.ct is None and infos[name].uses_ct:
                raise BadInput(f"method '{name}' uses CT, but 'caches' names no CT cache. Next: caches: {{ct: FOLDER}}")


def refuse_bad_methods(config: StudyConfig) -> None:
    """Check that every method can be built, before anything is read or written.

    Raises:
        BadInput: an option its method does not take, an input no cache gives, or CT where there is none.
    """
    refuse_unsuitable_methods(config)
    for name in dict.fromkeys(m for d in config.designs for m in d.methods if m != SOURCE_ONLY):
        named = config.methods.get(name, MethodConfig(method=name))
        build_method(named.method, Budget(fit=config.fit, balance=config.balance), **named.options)
        inputs = named.options.get("inputs", describe(named.method).inputs[0])
        there = config.caches is not None and getattr(config.caches, inputs, None) is not None
        if inputs != "embedding" and not there and not (inputs == "pixels" and config.pixels):
            raise BadInput(f"method '{name}' reads {inputs}. Next: name the cache: 'caches: {{{inputs}: FOLDER}}'.")


def run_study(study: Study, out: Path | str, stage: Callable[..., None], workers: int = 1) -> StudyResult:
    """Embed what is not in the cache yet, run every fit that is not done, and collect the predictions.

    Args:
        study: see ``read_study``.
        out: folder of the run; artifacts lie under it, or under ``$EMBEDPRIOR_HOME``.
        stage: called with the name and the counts of each stage when it ends.
        workers: processes that fit.

    Raises:
        EmbedpriorError: no image could be read, or no fit succeeded.
    """
    out = Path(out)
    inputs, failures = study_inputs(study, out, stage)
    return run_fits(study, inputs, stage, workers, failures)


def study_inputs(study: Study, out: Path, stage: Callable[..., None]) -> tuple[list[StudyInputs], list[dict[str, str]]]:
    """Return what the fits of each variant read, pictures embedded first; and the exams that can't be read."""
    root = artifacts_root(out)
    failures: list[dict[str, str]] = []
    embedded: dict[int, tuple[Caches, frozenset[str]]] = {}
    inputs = []
    for variant, prepared in study.combinations():
        if id(prepared.cohort) not in embedded:
            caches, failed = _embed(variant.config, prepared, root)
            failures += [f for f in failed if f not in failures]
            # what a cache lacks is no part of the cohort any more
            gone = frozenset(f["exam_id"] for f in failed) - frozenset(prepared.unembedded)
            embedded[id(prepared.cohort)] = (caches, gone)
            stage("embeddings", exams=len(caches.cxr.ids), unreadable=len(failed), cache=caches.cxr.path.name)
        caches, gone = embedded[id(prepared.cohort)]
        inputs.append(inputs_of(variant, prepared, caches, gone, root))
    return inputs, failures


def run_fits(
    study: Study, inputs: Sequence[StudyInputs], stage: Callable[..., None], workers: int = 1,
    failures: Sequence[dict[str, str]] = (),
) -> StudyResult:  # fmt: skip
    """Run every fit on inputs that are there already; see ``run_study``."""
    jobs = fit_jobs(study)
    outcomes = run_jobs(jobs, partial(fold_runners, [m.without_data() for m in inputs]), workers)
    stage(
        "fits", fits=len(outcomes), reused=sum(o.reused for o in outcomes),
        failed=sum(o.path is None for o in outcomes),
        seconds_in_fits=round(sum(o.seconds for o in outcomes), 1),
    )  # fmt: skip
    found = collect(study, inputs, outcomes, list(failures))
    return replace(found, generated=generated_cases(study, inputs, outcomes))


def collect(
    study: Study, inputs: Sequence[StudyInputs], outcomes: list[Outcome], failures: list[dict[str, str]]
) -> StudyResult:
    """Put the predictions together, in the order of the plan.

    Raises:
        EmbedpriorError: no fit succeeded.
    """
    frames, unfitted, unscored = [], [], []
    for outcome in outcomes:
        job = outcome.job
        if outcome.path is None:
            unfitted.append(
                {
                    "exam_id": "", "stage": str(job), "reason": outcome.reason, "design": job.key,
                    "method": job.method,
                }
            )  # fmt: skip
            continue
        label = study.variants[job.fold_id.variant].label_name
        of_label = {} if label is None else {"label_name": label}
        frames.append(read_scores(outcome.path).assign(design=job.key, **of_label))
        lost = read_json(outcome.path / RECORD)["unscored"]
        unscored += [
            {"exam_id": u["exam_id"], "stage": str(job), "reason": u["reason"], "design": job.key,
             "method": job.method}
            for u in lost
        ]  # fmt: skip
    if not frames:
        reasons = sorted({u["reason"] for u in unfitted})
        raise EmbedpriorError(f"no method could be fitted: {'; '.join(reasons)}")
    columns = [*PREDICTION_REQUIRED, "resample", "design", *(["label_name"] if "label_name" in frames[0] else [])]
    table = pd.concat(frames, ignore_index=True)[columns]
    designs = [
        DesignResult(
            variant.key(design), variant, design,
            m.targets[design.name].dropna(subset="label").reset_index(drop=True),
            tuple(r for (name, _, _), r in m.folds.items() if name == design.name),
            design.name in prepared.user_splits,
        )
        for (variant, prepared), m in zip(study.combinations(), inputs, strict=True)
        for design in variant.config.designs
    ]  # fmt: skip
    infos = method_infos(study.variants[0].config)
    named = {m for v in study.variants for d in v.config.designs for m in d.methods}
    return StudyResult(
        study, inputs[0].cohort, tuple(designs), table, _support(study, inputs), failures, unfitted, unscored,
        needs_ct={name: infos[name].needs_ct for name in named},
        uses_ct={name: infos[name].uses_ct for name in named},
        outcomes=outcomes,
        models=kept_models(inputs, {o.path.name: o.job.key for o in outcomes if o.path is not None}),
    )  # fmt: skip


def inputs_of(
    variant: Variant, prepared: StudyData, caches: Caches, unreadable: frozenset[str], root: Path,
    teacher_stream: str = "teacher",
) -> StudyInputs:  # fmt: skip
    """Return what the fits of one variant read; unreadable exams are dropped and counted."""
    cohort = prepared.cohort
    if unreadable:
        cohort = cohort.drop(sorted(unreadable), "image readable", "image damaged (see failures.csv)")
    readable = {}
    for name, targets in prepared.targets.items():
        gone = targets["exam_id"].isin(unreadable) | targets["ct_exam_id"].isin(unreadable)
        readable[name] = targets[~gone].reset_index(drop=True)
    folds = {
        (design.name, r.resample, r.fold): r for design in variant.config.designs for r in prepared.folds(design.name)
    }
    return StudyInputs(
        variant.config,
        cohort,
        readable,
        folds,
        caches,
        root,
        method_infos(variant.config),
        teacher_stream,
        prepared.externals,
    )


def needed_exams(config: StudyConfig, prepared: StudyData) -> pd.DataFrame:
    """Return the exams whose pictures have to be embedded."""
    exams = prepared.cohort.exams
    wanted = {i for t in prepared.targets.values() for i in t["exam_id"]}
    if any(d.cases == "paired" for d in config.designs):
        wanted |= set(prepared.cohort.of("CT")["exam_id"]) | set(prepared.cohort.of("DRR")["exam_id"])
    return exams[exams["exam_id"].isin(wanted)]


def _embed(config: StudyConfig, prepared: StudyData, root: Path) -> tuple[Caches, list[dict[str, str]]]:
    if prepared.caches is not None:
        _refuse_missing(config, prepared, prepared.caches)
        reason = "no embedding in the caches; the record of embedprior embed says why"
        return prepared.caches, [{"exam_id": i, "stage": "embedding", "reason": reason} for i in prepared.unembedded]
    assert prepared.encoder is not None
    needed = needed_exams(config, prepared)
    cache, failures = build_cache(
        needed, prepared.cohort.root, prepared.encoder, root / "caches", config.batch_size, "embedding images"
    )
    if len({f["exam_id"] for f in failures}) == len(needed):
        raise EmbedpriorError(f"none of the {len(needed)} images could be read; the first: {failures[0]['reason']}")
    if not config.pixels:
        return Caches(cache, cache), failures
    readable, encoder = needed[needed["exam_id"].isin(cache.ids)], create_encoder("pixels-128")
    pictures, more = build_cache(
        readable, prepared.cohort.root, encoder, root / "caches", config.batch_size, "keeping pictures"
    )
    return Caches(cache, cache, pictures), [*failures, *more]


def _refuse_missing(config: StudyConfig, prepared: StudyData, caches: Caches) -> None:
    """Every exam a design reads must be in the cache of its modality."""
    for design in config.designs:
        every, outside = prepared.targets[design.name], prepared.externals.get(design.name)
        targets = every[~every["exam_id"].isin(outside.targets["exam_id"])] if outside else every
        wanted = [("X-ray", caches.cxr.ids, targets["exam_id"])]
        if design.cases == "paired":
            wanted.append(("CT", caches.require_ct().ids, targets["ct_exam_id"]))
        if outside is not None:
            wanted.append((f"{outside.name} X-ray", outside.caches.cxr.ids, outside.targets["exam_id"]))
        if outside is not None and outside.paired:
            wanted.append((f"{outside.name} CT", outside.caches.require_ct().ids, outside.targets["ct_exam_id"]))
        for what, have, ids in wanted:
            absent = sorted(set(ids) - set(have))
            if absent:
                raise BadInput(
                    f"design '{design.name}': {len(absent)} {what} exams have no embedding: {', '.join(absent[:5])}."
                )


def fold_runners(inputs: Sequence[StudyInputs]) -> list[FoldRunner]:
    """Return one runner a variant (called in every process that fits); those of several labels share what they read."""
    shared: dict[str, dict[Any, Any]] = {}
    keys = [m.config.model_copy(update={"label": ""} if m.config.labels else {}).model_dump_json() for m in inputs]
    return [FoldRunner(m, shared.setdefault(key, {})) for m, key in zip(inputs, keys, strict=True)]


def _support(study: Study, inputs: Sequence[StudyInputs]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, int, int]] = set()
    runners = fold_runners(inputs)
    for job in fit_jobs(study):
        where = job.fold_id
        key = (job.key, where.resample, where.fold)
        if key in seen:
            continue
        seen.add(key)
        cases = runners[where.variant].cases(where)
        test = cases.scored.get("test")
        held = inputs[where.variant].targets[where.design]
        own = held[held["exam_id"].isin(test.exam_ids)] if test is not None else held.iloc[:0]
        design = inputs[where.variant].design(where.design)
        site = ", ".join(sorted(set(own["site"]))) if design.split in ("site", "external") else None
        named = {"site": site} if site is not None else {}
        rows.append({"design": job.key, "resample": where.resample, "fold": where.fold, **named, **cases.counts})
    return pd.DataFrame(rows)


def measure_jobs(study: Study, out: Path) -> list[str]:
    """Run the first fit of each method and return one line for each that failed.

    Raises:
        EmbedpriorError: none could be fitted.
    """
    import torch

    inputs, _ = study_inputs(study, out, lambda name, **fields: None)
    # The first optimiser of a process loads modules for seconds: not part of what a fit costs.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    runners = fold_runners(inputs)
    first = {job.method: job for job in reversed(fit_jobs(study))}
    failed = []
    with one_thread():
        for job in first.values():
            try:
                runners[job.fold_id.variant].fit(job)
            except Exception as error:  # a method that can't be fitted has no cost to measure; the others have
                if is_full(error):
                    raise
                failed.append(f"{job}: {reason_of(error)}")
    if len(failed) == len(first):
        raise EmbedpriorError(f"no method could be fitted: {'; '.join(failed)}")
    return failed
