"""What the demo starts from: virtual patients and their tables, frozen encoders, and the embedding caches."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.cache import EmbeddingCache, build_cache
from embedprior.demo.config import CohortConfig, DemoConfig
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
from embedprior.phantom import VirtualPatient
from embedprior.phantom.findings import PhantomConfig
from embedprior.runs import QUIET, Artifact, MetricsLog, Run, artifact, artifacts_root, progress, seed_for
from embedprior.runs.workers import worker_pool
from embedprior.tables import check_exams, check_pairs, check_splits

PHANTOM_TAG, ENCODER_TAG = "phantoms-3", "small-cnn-5"
LABEL = "lesion"
VOLUMES, PICTURES, PATIENTS = "volumes.npy", "radiographs.npy", "patients.csv"
CHUNK = 20
DRAWN = {"pretrain_train", "pretrain_val", "train", "val", "test", "radiograph_size"}
"""Settings of the cohort that decide what is drawn; the others decide who has a label."""

Rows = NDArray[np.intp]
Labels = NDArray[np.float64]
Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Population:
    """The demo's cohort.

    Attributes:
        root: folder the exam paths are relative to.
        exams: CT, DRR and CXR rows with ``label:lesion``.
        pairs: each radiograph or DRR with its CT.
        splits: one row a patient; the fixed design.
        flow: counts by step.
    """

    root: Path
    exams: pd.DataFrame
    pairs: pd.DataFrame
    splits: pd.DataFrame
    flow: pd.DataFrame


def parts(cohort: CohortConfig) -> list[tuple[str, str]]:
    """Return (stage, part) of every patient, by index: stage is ``"drr"`` or ``"cxr"``."""
    return (
        [("drr", "train")] * cohort.pretrain_train
        + [("drr", "val")] * cohort.pretrain_val
        + [("cxr", "train")] * cohort.train
        + [("cxr", "val")] * cohort.val
        + [("cxr", "test")] * cohort.test
    )


def patient_id(index: int) -> str:
    """Return the id of a virtual patient."""
    return f"v{index:05d}"


def generate(config: DemoConfig, seed: int, workers: int, out: Path) -> None:
    """Write volumes (int16 HU), radiographs (uint8) and ``patients.csv`` into ``out``.

    Patient ``i`` is the same whatever the number of workers.
    """
    styles = [stage for stage, _ in parts(config.cohort)]
    size = config.cohort.radiograph_size
    _create(out / VOLUMES, np.int16, (len(styles), *config.phantom.shape))
    _create(out / PICTURES, np.uint8, (len(styles), size, size))
    chunks = [range(i, min(i + CHUNK, len(styles))) for i in range(0, len(styles), CHUNK)]
    stream = seed_for(seed, "phantoms") % 2**32
    rows: list[dict[str, Any]] = []
    with worker_pool(workers, one_thread_here) as pool:
        jobs = [
            pool.submit(_generate_chunk, config.phantom, stream, [(i, styles[i]) for i in chunk], size, out)
            for chunk in chunks
        ]
        for job in progress(as_completed(jobs), f"virtual patients (by {CHUNK})", total=len(jobs)):
            rows += job.result()
    pd.DataFrame(rows).sort_values("index").to_csv(out / PATIENTS, index=False)


def describe(config: DemoConfig, root: Path) -> Population:
    """Return the tables of a generated population."""
    patients = pd.read_csv(root / PATIENTS)
    exams, pairs, splits = [], [], []
    for index, ((stage, part), label) in enumerate(zip(parts(config.cohort), patients["label"], strict=True)):
        patient, modality = patient_id(index), stage.upper()
        ct_labelled = stage == "drr" or config.cohort.pair_ct_labels
        common = {"patient_id": patient, "offset_days": 0.0, "source": "phantom", "view": ""}
        on_ct = {**common, f"label:{LABEL}": label if ct_labelled else np.nan}
        on_picture = {**common, "view": "PA", f"label:{LABEL}": label}
        ct, picture = f"{patient}-ct", f"{patient}-{stage}"
        exams.append({"exam_id": ct, "modality": "CT", "path": f"{VOLUMES}#{index}", **on_ct})
        exams.append({"exam_id": picture, "modality": modality, "path": f"{PICTURES}#{index}", **on_picture})
        pairs.append(
            {
                "pair_id": picture, "patient_id": patient, "cxr_exam_id": picture, "ct_exam_id": ct,
                "offset_days": 0.0, "label_agree": 1.0 if ct_labelled else np.nan,
            }
        )  # fmt: skip
        splits.append(
            {"patient_id": patient, "group_id": patient, "design": "fixed", "resample": 0, "fold": 0, "part": part}
        )
    exam_table = check_exams(pd.DataFrame(exams), "virtual patients")
    return Population(
        root=root,
        exams=exam_table,
        pairs=check_pairs(pd.DataFrame(pairs), exam_table, "virtual pairs"),
        splits=check_splits(pd.DataFrame(splits), "virtual split", patients=exam_table["patient_id"]),
        flow=_flow(config.cohort, exam_table),
    )


def _flow(cohort: CohortConfig, exams: pd.DataFrame) -> pd.DataFrame:
    label = exams.loc[exams["modality"] != "CT", f"label:{LABEL}"].to_numpy()
    steps = [
        ("labelled CT without radiograph (CT and its DRR)", cohort.pretrain_train + cohort.pretrain_val),
        ("CT and radiograph, training", cohort.train),
        ("CT and radiograph, validation", cohort.val),
        ("CT and radiograph, held out", cohort.test),
    ]
    rows, start = [("virtual patients generated", len(label), int(label.sum()))], 0
    for name, count in steps:
        rows.append((name, count, int(label[start : start + count].sum())))
        start += count
    return pd.DataFrame(
        [
            {"step": name, "exams": 2 * n, "patients": n, "dropped": 0, "reason": f"{k} with lesion, {n - k} without"}
            for name, n, k in rows
        ]
    )


def lesion_slices(patient: VirtualPatient) -> tuple[int, int]:
    """Return the first and last slice that holds at least half the lesion's width; (-1, -1) without a lesion."""
    if patient.lesion is None or patient.lesion_centre_mm is None:
        return -1, -1
    spacing = patient.spacing_mm[0]
    centre = patient.lesion_centre_mm[2] / spacing + (len(patient.volume) - 1) / 2
    reach = 0.866 * patient.lesion.radius_mm / spacing
    return max(round(centre - reach), 0), min(round(centre + reach), len(patient.volume) - 1)


def default_workers() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _create(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def one_thread_here() -> None:
    """Give this worker process one thread: the same sums on every machine, and no quarrel between workers."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _generate_chunk(
    phantom: PhantomConfig, seed: int, members: list[tuple[int, str]], size: int, out: Path
) -> list[dict[str, Any]]:
    from embedprior.phantom import radiograph, virtual_patient

    volumes = np.load(out / VOLUMES, mmap_mode="r+")
    pictures = np.load(out / PICTURES, mmap_mode="r+")
    rows = []
    for index, style in members:
        patient = virtual_patient(phantom, seed, index)
        volumes[index] = patient.volume
        pictures[index] = radiograph(patient, style, size, seed)
        first, last = lesion_slices(patient)
        rows.append(
            {
                "index": index, "label": patient.label, "secondary_sign": int(patient.secondary_sign),
                "lesion_first": first, "lesion_last": last,
            }
        )  # fmt: skip
    volumes.flush()
    pictures.flush()
    return rows


@dataclass(frozen=True)
class DemoAssets:
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


def build_assets(config: DemoConfig, seed: int, out: Path, workers: int, run: Run | None = None) -> DemoAssets:
    """Generate the virtual patients, train and freeze the encoders, and fill the caches; what exists is reused.

    Raises:
        BadInput: the weights of the radiographs' encoder are not installed; nothing was made yet.
    """
    root = artifacts_root(out)
    if config.cxr_encoder_name != "radiograph-cnn":
        create_encoder(config.cxr_encoder_name)
    made = artifact(
        "phantoms",
        {},
        {"cohort": config.cohort.model_dump(include=DRAWN), "phantom": config.phantom, "seed": seed},
        PHANTOM_TAG,
        lambda work: generate(config, seed, workers, work),
        root,
    )
    population = describe(config, made.path)
    _stage(run, "virtual patients", patients=len(population.splits), reused=made.reused)
    encoders = _train_encoders(config, seed, population, made.key, root, out, workers)
    _stage(run, "frozen encoders", reused=all(e.reused for e in encoders.values()))
    cts = population.exams[population.exams["modality"] == "CT"]
    slices = create_encoder("slice-cnn", weights=encoders["ct"].path)
    ct, ct_failures = build_cache(cts, made.path, slices, out / "caches" / "ct", 16, "embed CT")
    own = {"weights": encoders["cxr"].path} if "cxr" in encoders else {}
    cxr, cxr_failures = _embed_pictures(config.cxr_encoder_name, own, population, out)
    _stage(run, "embedding caches", ct=len(ct.ids), cxr=len(cxr.ids))
    return DemoAssets(population, ct, cxr, ct_failures + cxr_failures)


def _train_encoders(
    config: DemoConfig, seed: int, population: Population, phantoms: str, root: Path, out: Path, workers: int
) -> dict[str, Artifact]:
    """Return the encoders that are trained, each in a process with one thread: the same on every number of cores.

    An encoder of the radiographs that need not be trained embeds them meanwhile.
    """
    trained = ("ct", "cxr") if config.cxr_encoder_name == "radiograph-cnn" else ("ct",)
    with worker_pool(min(workers, 2), _quiet_worker) as pool:
        jobs = {kind: pool.submit(_encoder, kind, config, seed, population, phantoms, root) for kind in trained}
        waiting: list[Future[Any]] = list(jobs.values())
        if "cxr" not in trained:
            waiting.append(pool.submit(_embed_pictures, config.cxr_encoder_name, {}, population, out))
        for done in progress(as_completed(waiting), "frozen encoders", total=len(waiting)):
            done.result()
        return {kind: job.result() for kind, job in jobs.items()}


def _embed_pictures(
    name: str, options: dict[str, Any], population: Population, out: Path
) -> tuple[EmbeddingCache, list[dict[str, str]]]:
    pictures = population.exams[population.exams["modality"] != "CT"]
    encoder = create_encoder(name, **options)
    return build_cache(pictures, population.root, encoder, out / "caches" / "cxr", 64, "embed X-ray")


def _quiet_worker() -> None:
    os.environ[QUIET] = "1"
    one_thread_here()


def _encoder(kind: str, config: DemoConfig, seed: int, population: Population, phantoms: str, root: Path) -> Artifact:
    train, settings = {
        "ct": (_train_ct_encoder, config.ct_encoder), "cxr": (_train_cxr_encoder, config.cxr_encoder)
    }[kind]  # fmt: skip
    return artifact(
        "encoder", {"phantoms": phantoms},
        {kind: settings, "seed": seed, "pair_ct_labels": config.cohort.pair_ct_labels}, ENCODER_TAG,
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
    labelled = ("drr", "cxr") if config.cohort.pair_ct_labels else ("drr",)
    _train_encoder(config, population, labelled, read, settings, seed, profile, "CT encoder", work)


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
