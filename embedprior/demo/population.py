"""Virtual patients on disk, and the exam, pair and split tables that describe them."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.demo.config import CohortConfig, DemoConfig
from embedprior.phantom import VirtualPatient
from embedprior.phantom.findings import PhantomConfig
from embedprior.runs import progress, seed_for
from embedprior.tables import check_exams, check_pairs, check_splits

CODE_TAG = "phantoms-3"
LABEL = "lesion"
VOLUMES, PICTURES, PATIENTS = "volumes.npy", "radiographs.npy", "patients.csv"
CHUNK = 20


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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread_here) as pool:
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
        common = {"patient_id": patient, "offset_days": 0.0, "source": "phantom", f"label:{LABEL}": label}
        ct, picture = f"{patient}-ct", f"{patient}-{stage}"
        exams.append({"exam_id": ct, "modality": "CT", "path": f"{VOLUMES}#{index}", "view": "", **common})
        exams.append({"exam_id": picture, "modality": modality, "path": f"{PICTURES}#{index}", "view": "PA", **common})
        pairs.append(
            {
                "pair_id": picture, "patient_id": patient, "cxr_exam_id": picture, "ct_exam_id": ct,
                "offset_days": 0.0, "label_agree": True,
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
    label = exams.drop_duplicates("patient_id")[f"label:{LABEL}"].to_numpy()
    steps = [
        ("CT only, pretraining (CT + DRR)", cohort.pretrain_train + cohort.pretrain_val),
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
