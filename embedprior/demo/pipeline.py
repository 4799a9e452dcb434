"""The demo, stage after stage: phantoms → encoders → caches → teacher → methods → evidence → report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.cache import EmbeddingCache, build_cache
from embedprior.demo.config import DemoConfig
from embedprior.demo.population import CODE_TAG as PHANTOM_TAG
from embedprior.demo.population import LABEL, PATIENTS, PICTURES, VOLUMES, Population, describe, generate, parts
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
    MetricsLog,
    Run,
    artifact,
    artifacts_root,
    hash_array,
    one_thread,
    seed_for,
    write_json,
)
from embedprior.students.base import Cases, FitData, Method, Stage
from embedprior.students.prior_method import PriorStudent
from embedprior.students.registry import create_method
from embedprior.study.runner import score_fold
from embedprior.tables import LABEL_PREFIX, write_table
from embedprior.teachers.head import TeacherHead, train_head

Rows = NDArray[np.intp]
Labels = NDArray[np.float64]
Pictures = NDArray[np.uint8]

ENCODER_TAG, TEACHER_TAG = "small-cnn-2", "teacher-1"
METHODS = ("ct-only", "cxr-only", "hinton-kd", "ridge-head", "direct-head", "prior-shuffled", "prior")
ORACLES = ("ct-only",)
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
    encoders = {
        "ct": artifact(
            "encoder", {"phantoms": made.key}, {"ct": config.ct_encoder, "seed": seed}, ENCODER_TAG,
            lambda work: _train_ct_encoder(config, seed, population, work), root,
        ),
        "cxr": artifact(
            "encoder", {"phantoms": made.key}, {"cxr": config.cxr_encoder, "seed": seed}, ENCODER_TAG,
            lambda work: _train_cxr_encoder(config, seed, population, work), root,
        ),
    }  # fmt: skip
    _stage(run, "frozen encoders", reused=all(e.reused for e in encoders.values()))
    exams, is_ct = population.exams, population.exams["modality"] == "CT"
    slices = create_encoder("slice-cnn", weights=encoders["ct"].path)
    pictures = create_encoder("radiograph-cnn", weights=encoders["cxr"].path)
    ct, ct_failures = build_cache(exams[is_ct], made.path, slices, out / "caches" / "ct", 16, "embed CT")
    cxr, cxr_failures = build_cache(exams[~is_ct], made.path, pictures, out / "caches" / "cxr", 64, "embed X-ray")
    _stage(run, "embedding caches", ct=len(ct.ids), cxr=len(cxr.ids))
    return Spine(population, ct, cxr, ct_failures + cxr_failures)


def cases_of(spine: Spine, stage: str, part: str) -> Cases:
    """Return the cases of one stage (``"drr"`` or ``"cxr"``) and part, CT included."""
    exams = spine.population.exams.set_index("exam_id")
    pairs = spine.population.pairs.merge(spine.population.splits[["patient_id", "part"]], on="patient_id")
    wanted = (exams.loc[pairs["cxr_exam_id"], "modality"].to_numpy() == stage.upper()) & (pairs["part"] == part)
    embedded = pairs["cxr_exam_id"].isin(spine.cxr.ids) & pairs["ct_exam_id"].isin(spine.ct.ids)
    kept = pairs[wanted & embedded]
    label = exams.loc[kept["cxr_exam_id"], LABEL_PREFIX + LABEL].to_numpy(dtype=np.float64)
    return Cases(
        exam_ids=kept["cxr_exam_id"].tolist(),
        patient_ids=kept["patient_id"].tolist(),
        label=label,
        cxr=spine.cxr.take(kept["cxr_exam_id"].tolist()),
        ct=spine.ct.take(kept["ct_exam_id"].tolist()),
        ct_label=exams.loc[kept["ct_exam_id"], LABEL_PREFIX + LABEL].to_numpy(dtype=np.float64),
        source=stage,
    )


def fit_data(config: DemoConfig, spine: Spine, seed: int, root: Path) -> FitData:
    """Return the training stages and the teacher head of one repetition."""
    stages = tuple(Stage(cases_of(spine, s, "train"), cases_of(spine, s, "val")) for s in ("drr", "cxr"))
    train, val = _ct_of([s.train for s in stages]), _ct_of([s.val for s in stages])

    def build(work: Path) -> None:
        train_head(train[0], train[1], val[0], val[1], config.teacher, seed).save(work)

    inputs = {"embeddings": hash_array(train[0]), "labels": hash_array(train[1]), "val": hash_array(val[0])}
    made = artifact("teacher", inputs, {"head": config.teacher, "seed": seed}, TEACHER_TAG, build, root)
    return FitData(stages, TeacherHead.load(made.path))


def _ct_of(cases: Sequence[Cases]) -> tuple[NDArray[np.float32], Labels]:
    return np.concatenate([c.paired_ct() for c in cases]), np.concatenate([c.ct_label for c in cases])


def methods_of(config: DemoConfig, root: Path, names: Sequence[str] = METHODS) -> list[Method]:
    """Return the methods to compare."""
    prior = {
        "stages": (config.prior.pretrain, config.prior.finetune),
        "folder": root,
        "samples": config.prior.samples,
        "sampler": config.prior.sampler,
        "steps": config.prior.steps,
    }
    student = {"fit_config": config.student}
    options: dict[str, dict[str, Any]] = {
        "cxr-only": student, "hinton-kd": student, "direct-head": student, "prior": prior, "prior-shuffled": prior,
    }  # fmt: skip
    return [create_method(name, **options.get(name, {})) for name in names]


def run_demo(config: DemoConfig, seed: int, out: Path, workers: int) -> int:
    """Run the whole demo into ``out`` and return the exit code (3 when an exam or a fit failed)."""
    from embedprior.demo.story import tell
    from embedprior.evidence import evaluate_predictions
    from embedprior.report import summary_markdown, write_report

    run = Run(out, "demo", config, seed, {})
    spine = build_spine(config, seed, out, workers, run)
    for name in ("exams", "pairs", "splits", "flow"):
        (out / "cohort").mkdir(exist_ok=True)
        write_table(getattr(spine.population, name), out / "cohort" / f"{name}.csv")
    scored = {"val": cases_of(spine, "cxr", "val"), "test": cases_of(spine, "cxr", "test")}
    root, tables, failures, generated = artifacts_root(out), [], list(spine.failures), None
    for repetition in range(config.fits):
        fit_seed = seed_for(seed, "fit", repetition) % 2**31
        with one_thread():
            data = fit_data(config, spine, fit_seed, root)
            table, failed, fitted = score_fold(
                methods_of(config, root), data, scored, fit_seed, desc=f"fit {repetition + 1} of {config.fits}"
            )
        tables.append(table)
        failures += failed
        student = fitted.get("prior")
        if generated is None and isinstance(student, PriorStudent):
            generated = student.generate(scored["test"].without_ct())
        run.stage(f"methods, fit {repetition + 1}", seed=fit_seed, methods=sorted(fitted))
    predictions = pd.concat(tables, ignore_index=True).drop(columns="resample")
    write_table(predictions, out / "predictions.csv")
    have = set(predictions["method"])
    family = [(a, b) for a, b in FAMILY if a in have and b in have]
    evidence = evaluate_predictions(predictions, REFERENCE, family, "patient", ORACLES)
    write_json(out / "evidence.json", evidence)
    report = tell(config, seed, spine, evidence, predictions, scored["test"], generated, failures, out)
    write_report(out, report)
    outputs = {"phantoms": spine.population.root, "ct": spine.ct.path, "cxr": spine.cxr.path}
    run.finish(summary_markdown(report), failures, outputs=outputs)
    print(f"\n{summary_markdown(report)}\nreport: {out / 'report.html'}  ({run.seconds:.0f} s)", file=sys.stdout)
    return NEEDS_ATTENTION if failures else DONE


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
    network, history = train_small_cnn(*train, *val, settings, seed, f"train {desc}")
    save_small_cnn(network, CnnConfig(**settings.model_dump(include=set(CnnConfig.model_fields))), profile, work)
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
