"""``study run``: embeddings → every fit of the plan → predictions, put together in the plan's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cache import build_cache
from embedprior.cohort.base import Cohort
from embedprior.cohort.splits import Round
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.runs import artifacts_root, one_thread, read_json
from embedprior.students.registry import Budget, build_method
from embedprior.study.caches import Caches, open_caches, patients_seen
from embedprior.study.config import SOURCE_ONLY, Design, Row, StudyConfig, refuse_unfit_rows, rows_of
from embedprior.study.executor import Outcome, reason_of, run_units
from embedprior.study.inputs import Materials
from embedprior.study.prepare import Prepared, Variant, prepare, variants
from embedprior.study.runner import RECORD, Bench, Study, read_scores, units_of
from embedprior.tables import PREDICTION_REQUIRED


@dataclass(frozen=True)
class Cell:
    """One design of one variant: cases that are evaluated together.

    Attributes:
        key: its name in every table.
        variant: the sweep's combination.
        design: settings.
        targets: X-rays to score whose embedding exists.
        rounds: divisions into parts.
        given: whether the splits are the user's.
    """

    key: str
    variant: Variant
    design: Design
    targets: pd.DataFrame
    rounds: tuple[Round, ...]
    given: bool


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        study: variants and what they started from.
        cohort: of the first variant, after unreadable images were dropped.
        cells: designs × variants.
        predictions: long table with ``design`` and ``resample``; rows of split ``val`` where there are validation
            patients.
        support: one row a design, resample and fold: held-out and training counts.
        failures: unreadable images (``exam_id, stage, reason``).
        unfitted: fits that failed (same columns, and ``design, method``).
        unscored: cases a method gave no finite score (same columns).
        needs_ct: by row: does it need CT at inference.
        uses_ct: by row: did CT take part in its training.
        outcomes: of every fit.
    """

    study: Study
    cohort: Cohort
    cells: tuple[Cell, ...]
    predictions: pd.DataFrame
    support: pd.DataFrame
    failures: list[dict[str, str]]
    unfitted: list[dict[str, str]]
    unscored: list[dict[str, str]]
    needs_ct: dict[str, bool]
    uses_ct: dict[str, bool]
    outcomes: list[Outcome]


def prepare_study(config: StudyConfig, data: Path, splits_file: Path | None = None) -> Study:
    """Read what every combination of the sweep starts from; a cohort is read once.

    Raises:
        BadInput: see ``prepare.prepare`` and ``sweep.variants``.
    """
    chosen = variants(config)
    kept = _seen_in_any([v.config for v in chosen], data)
    made: dict[str, Prepared] = {}
    prepared = []
    for variant in chosen:
        fields = {"source", "label", "missing_images", "duplicates", "seed", "encoder", "caches", "seen_patients"}
        key = variant.config.model_dump_json(include=fields | {"designs"})
        refuse_bad_rows(variant.config)
        if key not in made:
            made[key] = prepare(variant.config, data, splits_file, kept)
        prepared.append(made[key])
    return Study(tuple(chosen), tuple(prepared))


def _seen_in_any(configs: Sequence[StudyConfig], data: Path) -> frozenset[str]:
    """Patients who train because an encoder of some combination saw them: else combinations would differ in cases."""
    places = {c.caches.model_dump_json(): c.caches for c in configs if c.caches and c.seen_patients == "train"}
    seen = [found for choice in places.values() for found in patients_seen(open_caches(choice, data)).values()]
    return frozenset[str]().union(*seen)


def refuse_bad_rows(config: StudyConfig) -> None:
    """Check that every row can be built, before anything is read or written.

    Raises:
        BadInput: an option its method does not take, an input no cache gives, or CT where there is none.
    """
    refuse_unfit_rows(config)
    for name in dict.fromkeys(m for d in config.designs for m in d.methods if m != SOURCE_ONLY):
        row = config.rows.get(name, Row(method=name))
        build_method(row.method, Budget(fit=config.fit, balance=config.balance), **row.options)
        inputs = row.options.get("inputs", "embedding")
        if inputs != "embedding" and (config.caches is None or getattr(config.caches, inputs) is None):
            raise BadInput(f"row '{name}' reads {inputs}. Next: name the cache: 'caches: {{{inputs}: FOLDER}}'.")


def run_study(study: Study, out: Path, stage: Callable[..., None], workers: int = 1) -> StudyResult:
    """Embed what is not in the cache yet, run every fit that is not done, and collect the predictions.

    Args:
        study: see ``prepare_study``.
        out: folder of the run; artifacts lie under it, or under ``$EMBEDPRIOR_HOME``.
        stage: called with the name and the counts of each stage when it ends.
        workers: processes that fit.

    Raises:
        EmbedpriorError: no image could be read, or no fit succeeded.
    """
    materials, failures = study_materials(study, out, stage)
    return run_materials(study, materials, stage, workers, failures)


def study_materials(
    study: Study, out: Path, stage: Callable[..., None]
) -> tuple[list[Materials], list[dict[str, str]]]:
    """Return what the fits of each variant read, pictures embedded first; and the exams that can't be read."""
    root = artifacts_root(out)
    failures: list[dict[str, str]] = []
    embedded: dict[int, tuple[Caches, frozenset[str]]] = {}
    materials = []
    for variant, prepared in study.pairs():
        if id(prepared) not in embedded:
            caches, failed = _embed(variant.config, prepared, root)
            failures += [f for f in failed if f not in failures]
            embedded[id(prepared)] = (caches, frozenset(f["exam_id"] for f in failed))
            stage("embeddings", exams=len(caches.cxr.ids), unreadable=len(failed), cache=caches.cxr.path.name)
        caches, gone = embedded[id(prepared)]
        materials.append(materials_of(variant, prepared, caches, gone, root))
    return materials, failures


def run_materials(
    study: Study, materials: Sequence[Materials], stage: Callable[..., None], workers: int = 1,
    failures: Sequence[dict[str, str]] = (),
) -> StudyResult:  # fmt: skip
    """Run every fit on materials that are there already; see ``run_study``."""
    units = units_of(study)
    outcomes = run_units(units, partial(benches, [m.unread() for m in materials]), workers)
    stage(
        "fits", fits=len(outcomes), reused=sum(o.reused for o in outcomes),
        failed=sum(o.path is None for o in outcomes),
        seconds_in_fits=round(sum(o.seconds for o in outcomes), 1),
    )  # fmt: skip
    return collect(study, materials, outcomes, list(failures))


def collect(
    study: Study, materials: Sequence[Materials], outcomes: list[Outcome], failures: list[dict[str, str]]
) -> StudyResult:
    """Put the predictions together, in the order of the plan.

    Raises:
        EmbedpriorError: no fit succeeded.
    """
    frames, unfitted, unscored = [], [], []
    for outcome in outcomes:
        unit = outcome.unit
        if outcome.path is None:
            unfitted.append(
                {
                    "exam_id": "", "stage": str(unit), "reason": outcome.reason, "design": unit.key,
                    "method": unit.method,
                }
            )  # fmt: skip
            continue
        frames.append(read_scores(outcome.path).assign(design=unit.key))
        lost = read_json(outcome.path / RECORD)["unscored"]
        unscored += [
            {"exam_id": u["exam_id"], "stage": str(unit), "reason": u["reason"], "design": unit.key,
             "method": unit.method}
            for u in lost
        ]  # fmt: skip
    if not frames:
        reasons = sorted({u["reason"] for u in unfitted})
        raise EmbedpriorError(f"no method could be fitted: {'; '.join(reasons)}")
    table = pd.concat(frames, ignore_index=True)[[*PREDICTION_REQUIRED, "resample", "design"]]
    cells = [
        Cell(
            variant.key(design), variant, design, m.targets[design.name],
            tuple(r for (name, _, _), r in m.rounds.items() if name == design.name), design.name in prepared.given,
        )
        for (variant, prepared), m in zip(study.pairs(), materials, strict=True)
        for design in variant.config.designs
    ]  # fmt: skip
    infos = rows_of(study.variants[0].config)
    named = {m for v in study.variants for d in v.config.designs for m in d.methods}
    return StudyResult(
        study, materials[0].cohort, tuple(cells), table, _support(study, materials), failures, unfitted, unscored,
        needs_ct={name: infos[name].needs_ct for name in named},
        uses_ct={name: infos[name].uses_ct for name in named},
        outcomes=outcomes,
    )  # fmt: skip


def materials_of(
    variant: Variant, prepared: Prepared, caches: Caches, unreadable: frozenset[str], root: Path,
    teacher_stream: str = "teacher",
) -> Materials:  # fmt: skip
    """Return what the fits of one variant read; unreadable exams are dropped and counted."""
    cohort = prepared.cohort
    if unreadable:
        cohort = cohort.drop(sorted(unreadable), "image readable", "image damaged (see failures.csv)")
    readable = {}
    for name, targets in prepared.targets.items():
        gone = targets["exam_id"].isin(unreadable) | targets["ct_exam_id"].isin(unreadable)
        readable[name] = targets[~gone].reset_index(drop=True)
    rounds = {
        (design.name, r.resample, r.fold): r for design in variant.config.designs for r in prepared.rounds(design.name)
    }
    return Materials(
        variant.config,
        cohort,
        readable,
        rounds,
        caches,
        root,
        rows_of(variant.config),
        teacher_stream,
        prepared.externals,
    )


def needed_exams(config: StudyConfig, prepared: Prepared) -> pd.DataFrame:
    """Return the exams whose pictures have to be embedded."""
    exams = prepared.cohort.exams
    wanted = {i for t in prepared.targets.values() for i in t["exam_id"]}
    if any(d.cases == "paired" for d in config.designs):
        wanted |= set(prepared.cohort.of("CT")["exam_id"]) | set(prepared.cohort.of("DRR")["exam_id"])
    return exams[exams["exam_id"].isin(wanted)]


def _embed(config: StudyConfig, prepared: Prepared, root: Path) -> tuple[Caches, list[dict[str, str]]]:
    if prepared.caches is not None:
        _refuse_missing(config, prepared, prepared.caches)
        return prepared.caches, []
    assert prepared.encoder is not None
    needed = needed_exams(config, prepared)
    cache, failures = build_cache(
        needed, prepared.cohort.root, prepared.encoder, root / "caches", config.batch_size, "embedding images"
    )
    if len({f["exam_id"] for f in failures}) == len(needed):
        raise EmbedpriorError(f"none of the {len(needed)} images could be read; the first: {failures[0]['reason']}")
    return Caches(cache, cache), failures


def _refuse_missing(config: StudyConfig, prepared: Prepared, caches: Caches) -> None:
    """Every exam a design reads must be in the cache of its modality."""
    for design in config.designs:
        every, outside = prepared.targets[design.name], prepared.externals.get(design.name)
        targets = every[~every["exam_id"].isin(outside.targets["exam_id"])] if outside else every
        wanted = [("X-ray", caches.cxr.ids, targets["exam_id"])]
        if design.cases == "paired":
            wanted.append(("CT", caches.need_ct().ids, targets["ct_exam_id"]))
        if outside is not None:
            wanted.append((f"{outside.name} X-ray", outside.caches.cxr.ids, outside.targets["exam_id"]))
        if outside is not None and outside.paired:
            wanted.append((f"{outside.name} CT", outside.caches.need_ct().ids, outside.targets["ct_exam_id"]))
        for what, have, ids in wanted:
            absent = sorted(set(ids) - set(have))
            if absent:
                raise BadInput(
                    f"design '{design.name}': {len(absent)} {what} exams have no embedding: {', '.join(absent[:5])}."
                )


def benches(materials: Sequence[Materials]) -> list[Bench]:
    """Return one bench a variant (called in every process that fits)."""
    return [Bench(m) for m in materials]


def _support(study: Study, materials: Sequence[Materials]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, int, int]] = set()
    all_benches = [Bench(m) for m in materials]
    for unit in units_of(study):
        where = unit.round
        key = (unit.key, where.resample, where.fold)
        if key in seen:
            continue
        seen.add(key)
        cases = all_benches[where.variant].cases(where)
        test = cases.scored.get("test")
        held = materials[where.variant].targets[where.design]
        own = held[held["exam_id"].isin(test.exam_ids)] if test is not None else held.iloc[:0]
        design = materials[where.variant].design(where.design)
        site = ", ".join(sorted(set(own["site"]))) if design.split in ("site", "external") else None
        named = {"site": site} if site is not None else {}
        rows.append({"design": unit.key, "resample": where.resample, "fold": where.fold, **named, **cases.counts})
    return pd.DataFrame(rows)


def measure_units(study: Study, out: Path) -> list[str]:
    """Run the first fit of each row and return one line for each that failed.

    Raises:
        EmbedpriorError: none could be fitted.
    """
    import torch

    materials, _ = study_materials(study, out, lambda name, **fields: None)
    # The first optimiser of a process loads modules for seconds: no part of what a fit costs.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    benches = [Bench(m) for m in materials]
    first = {unit.method: unit for unit in reversed(units_of(study))}
    failed = []
    with one_thread():
        for unit in first.values():
            try:
                benches[unit.round.variant].fit(unit)
            except Exception as error:  # a row that can't be fitted has no cost to measure; the others have
                failed.append(f"{unit}: {reason_of(error)}")
    if len(failed) == len(first):
        raise EmbedpriorError(f"no method could be fitted: {'; '.join(failed)}")
    return failed
