"""The demo, stage after stage: phantoms → encoders → caches → teacher → methods → evidence → report."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from embedprior.cache import EmbeddingCache, build_cache
from embedprior.cohort.base import Cohort
from embedprior.demo.config import DemoConfig
from embedprior.demo.population import CODE_TAG as PHANTOM_TAG
from embedprior.demo.population import (
    LABEL,
    PATIENTS,
    PICTURES,
    VOLUMES,
    Population,
    describe,
    generate,
    one_thread_here,
    parts,
    patient_id,
)
from embedprior.encoders.config import CnnConfig
from embedprior.encoders.registry import create_encoder
from embedprior.encoders.small_cnn import (
    ct_profile,
    ct_slabs,
    radiograph_picture,
    radiograph_profile,
    save_small_cnn,
    train_small_cnn,
)
from embedprior.errors import DONE, NEEDS_ATTENTION
from embedprior.runs import (
    QUIET,
    Artifact,
    MetricsLog,
    Run,
    artifact,
    artifacts_root,
    one_thread,
    progress,
    seed_for,
    write_json,
)
from embedprior.students.base import Cases
from embedprior.study.caches import Caches, patients_seen
from embedprior.study.config import Decision, Design, Hypothesis, PriorChoice, StudyConfig
from embedprior.study.hypotheses import all_evidence
from embedprior.study.inputs import Materials
from embedprior.study.plan import PLAN, make_plan
from embedprior.study.prepare import NO_DUPLICATES, Variant, prepare_cohort
from embedprior.study.run import StudyResult, materials_of, run_materials
from embedprior.study.runner import Bench, Study, method_of, units_of
from embedprior.tables import write_table

Rows = NDArray[np.intp]
Labels = NDArray[np.float64]
Pictures = NDArray[np.uint8]

ENCODER_TAG, DESIGN = "small-cnn-4", "fixed"
METHODS = ("ct-only", "cxr-only", "hinton-kd", "ridge-head", "direct-head", "prior-shuffled", "prior")
REFERENCE = "cxr-only"
FAMILY = (
    ("hinton-kd", REFERENCE), ("ridge-head", REFERENCE), ("direct-head", REFERENCE), ("prior-shuffled", REFERENCE),
    ("prior", REFERENCE), ("prior", "direct-head"),
)  # fmt: skip


@dataclass(frozen=True)
class Spine:
    """What every fit of the demo reads.

    Attributes:
        population: the cohort.
        ct: cache of the CT embeddings.
        cxr: cache of the radiograph and DRR embeddings.
        failures: exams that could not be embedded.
    """

    population: Population
    ct: EmbeddingCache
    cxr: EmbeddingCache
    failures: list[dict[str, str]]


def build_spine(config: DemoConfig, seed: int, out: Path, workers: int, run: Run | None = None) -> Spine:
    """Generate the virtual patients, train and freeze the encoders, and fill the caches; what exists is reused."""
    root = artifacts_root(out)
    made = artifact(
        "phantoms",
        {},
        {"cohort": config.cohort, "phantom": config.phantom, "seed": seed},
        PHANTOM_TAG,
        lambda work: generate(config, seed, workers, work),
        root,
    )
    population = describe(config, made.path)
    _stage(run, "virtual patients", patients=len(population.splits), reused=made.reused)
    encoders = _train_encoders(config, seed, population, made.key, root, workers)
    _stage(run, "frozen encoders", reused=all(e.reused for e in encoders.values()))
    exams, is_ct = population.exams, population.exams["modality"] == "CT"
    slices = create_encoder("slice-cnn", weights=encoders["ct"].path)
    pictures = create_encoder("radiograph-cnn", weights=encoders["cxr"].path)
    ct, ct_failures = build_cache(exams[is_ct], made.path, slices, out / "caches" / "ct", 16, "embed CT")
    cxr, cxr_failures = build_cache(exams[~is_ct], made.path, pictures, out / "caches" / "cxr", 64, "embed X-ray")
    _stage(run, "embedding caches", ct=len(ct.ids), cxr=len(cxr.ids))
    return Spine(population, ct, cxr, ct_failures + cxr_failures)


def study_of(config: DemoConfig, seed: int, spine: Spine, root: Path) -> tuple[StudyConfig, Study, Materials]:
    """Return the demo as a study: its settings, its fixed split, and what its fits read.

    The CT head's fit keeps the seed of the repetition itself (no stream of its own), as the demo always did.
    """
    seeds = tuple(seed_for(seed, "fit", repetition) % 2**31 for repetition in range(config.fits))
    design = Design(name=DESIGN, split="fixed", methods=METHODS, reference=REFERENCE)
    settings = StudyConfig(
        title="virtual patients",
        label=LABEL,
        seed=seed,
        seeds=seeds,
        as_published="" if config.fits >= 3 else "a demo at toy size",
        fit=config.student,
        teacher=config.teacher,
        prior=PriorChoice(
            training=config.prior.finetune, pretrain=config.prior.pretrain, samples=config.prior.samples,
            sampler=config.prior.sampler, steps=config.prior.steps,
        ),
        designs=(design,),
        hypotheses=tuple(
            Hypothesis(name=f"{a} > {b}", claim=f"{a} scores higher than {b}", design=DESIGN, a=a, b=b)
            for a, b in FAMILY
        ),
        decision=Decision(unit="patient"),
    )  # fmt: skip
    population = spine.population
    cohort = Cohort(population.root, population.exams, population.pairs, ()).checked("virtual patients")
    caches = Caches(spine.cxr, spine.ct)
    prepared = prepare_cohort(
        settings, cohort, NO_DUPLICATES, None, caches, patients_seen(caches), splits=population.splits
    )
    study = Study((Variant("", {}, settings),), (prepared,))
    unreadable = frozenset(f["exam_id"] for f in spine.failures)
    materials = materials_of(study.variants[0], prepared, caches, unreadable, root, teacher_stream="")
    return settings, study, materials


def run_demo(config: DemoConfig, seed: int, out: Path, workers: int) -> int:
    """Run the whole demo into ``out`` and return the exit code (3 when an exam or a fit failed)."""
    from embedprior.demo.report import tell
    from embedprior.report import summary_markdown, write_report

    run = Run(out, "demo", config, seed, {})
    spine = build_spine(config, seed, out, workers, run)
    for name in ("exams", "pairs", "splits", "flow"):
        (out / "cohort").mkdir(exist_ok=True)
        write_table(getattr(spine.population, name), out / "cohort" / f"{name}.csv")
    settings, study, materials = study_of(config, seed, spine, artifacts_root(out))
    write_json(out / PLAN, make_plan(settings, study, out))
    # One repetition is a toy: starting processes would take longer than it does.
    result = run_materials(study, [materials], run.stage, workers if config.fits > 1 else 1)
    predictions = result.predictions.drop(columns=["resample", "design"])
    write_table(predictions, out / "predictions.csv")
    evidence = all_evidence(settings, result)[DESIGN]
    write_json(out / "evidence.json", evidence)
    held_out, generated = _generated(study, materials, result)
    failures = [
        *spine.failures,
        *({k: f[k] for k in ("exam_id", "stage", "reason")} for f in [*result.unfitted, *result.unscored]),
    ]
    report = tell(config, seed, spine, evidence, predictions, held_out, generated, failures, out)
    write_report(out, report)
    outputs = {"phantoms": spine.population.root, "ct": spine.ct.path, "cxr": spine.cxr.path}
    run.finish(summary_markdown(report), failures, outputs=outputs)
    print(f"\n{summary_markdown(report)}\nreport: {out / 'report.html'}  ({run.seconds:.0f} s)", file=sys.stdout)
    return NEEDS_ATTENTION if failures else DONE


def _generated(
    study: Study, materials: Materials, result: StudyResult
) -> tuple[Cases, Float[np.ndarray, "cases samples ct_dim"] | None]:
    """Return the held-out cases, with CT, and the CT embeddings that the first repetition's prior draws for them."""
    from embedprior.students.prior_method import PriorStudent

    unit = next(u for u in units_of(study) if u.method == "prior")
    bench = Bench(materials)
    held_out = bench.cases(unit.round).scored["test"]
    if not any(o.unit == unit and o.path is not None for o in result.outcomes):
        return held_out, None
    with one_thread():
        fitted = method_of(materials, unit.method, {}).fit(bench.data(unit), unit.seed)
        assert isinstance(fitted, PriorStudent)
        return held_out, fitted.generate(held_out.without_ct())


def _train_encoders(
    config: DemoConfig, seed: int, population: Population, phantoms: str, root: Path, workers: int
) -> dict[str, Artifact]:
    """Return both encoders, each trained in a process with one thread: the same on every number of cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, 2), mp_context=context, initializer=_quiet_worker) as pool:
        jobs = {pool.submit(_encoder, kind, config, seed, population, phantoms, root): kind for kind in ("ct", "cxr")}
        return {jobs[job]: job.result() for job in progress(as_completed(jobs), "frozen encoders", total=len(jobs))}


def _quiet_worker() -> None:
    os.environ[QUIET] = "1"
    one_thread_here()


def _encoder(kind: str, config: DemoConfig, seed: int, population: Population, phantoms: str, root: Path) -> Artifact:
    train, settings = {
        "ct": (_train_ct_encoder, config.ct_encoder), "cxr": (_train_cxr_encoder, config.cxr_encoder)
    }[kind]  # fmt: skip
    return artifact(
        "encoder", {"phantoms": phantoms}, {kind: settings, "seed": seed}, ENCODER_TAG,
        lambda work: train(config, seed, population, work), root,
    )  # fmt: skip


def _train_ct_encoder(config: DemoConfig, seed: int, population: Population, work: Path) -> None:
    settings = config.ct_encoder
    volumes = np.load(population.root / VOLUMES, mmap_mode="r")
    patients = pd.read_csv(population.root / PATIENTS).to_dict("records")
    rng = np.random.default_rng(seed_for(seed, "slabs"))

    def read(rows: Rows) -> tuple[Pictures, Labels]:
        pictures, labels = [], []
        for index in rows:
            slabs = ct_slabs(volumes[index], settings.window, settings.slab)
            ill = slab_labels(patients[index], len(slabs), settings.slab)
            with_lesion = np.flatnonzero(ill)
            others = rng.choice(np.flatnonzero(~ill), settings.slabs_per_patient, replace=False)
            chosen = np.concatenate([with_lesion, others])
            pictures.append(slabs[chosen])
            labels.append(ill[chosen].astype(np.float64))
        return np.concatenate(pictures), np.concatenate(labels)

    profile = ct_profile(settings.window, settings.slab)
    _train_encoder(config, population, ("drr", "cxr"), read, settings, seed, profile, "CT encoder", work)


def _train_cxr_encoder(config: DemoConfig, seed: int, population: Population, work: Path) -> None:
    pictures = np.load(population.root / PICTURES, mmap_mode="r")
    label = pd.read_csv(population.root / PATIENTS)["label"].to_numpy(dtype=np.float64)

    def read(rows: Rows) -> tuple[Pictures, Labels]:
        return np.concatenate([radiograph_picture(pictures[i] / np.float32(255)) for i in rows]), label[rows]

    size = config.cohort.radiograph_size
    profile = radiograph_profile((size, size))
    _train_encoder(config, population, ("cxr",), read, config.cxr_encoder, seed, profile, "X-ray encoder", work)


def _train_encoder(
    config: DemoConfig, population: Population, stages: tuple[str, ...],
    read: Callable[[Rows], tuple[Pictures, Labels]], settings: CnnConfig, seed: int, profile: dict[str, Any],
    desc: str, work: Path,
) -> None:  # fmt: skip
    members = parts(config.cohort)
    train, val = (
        read(np.array([i for i, (stage, part) in enumerate(members) if stage in stages and part == wanted]))
        for wanted in ("train", "val")
    )
    seen = [patient_id(i) for i, (stage, part) in enumerate(members) if stage in stages and part in ("train", "val")]
    network, history = train_small_cnn(*train, *val, settings, seed, f"train {desc}")
    plain = CnnConfig(**settings.model_dump(include=set(CnnConfig.model_fields)))
    save_small_cnn(network, plain, profile, work, patients_seen=seen)
    log = MetricsLog(work / "metrics.jsonl")
    for epoch in history:
        log.write(**epoch)


def slab_labels(patient: Mapping[Hashable, Any], count: int, slab: int) -> NDArray[np.bool_]:
    """Return which of a CT's slabs hold the lesion, as public CT sets label slices."""
    first, last = int(patient["lesion_first"]), int(patient["lesion_last"])
    start = np.arange(count) * slab
    return np.asarray((first >= 0) & (start <= last) & (start + slab - 1 >= first))


def _stage(run: Run | None, name: str, **fields: Any) -> None:
    if run is not None:
        run.stage(name, **fields)
