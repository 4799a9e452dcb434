"""Does pretraining on DRRs help or harm? Every row with and without it, on virtual patients, for two encoders.

Three populations: the demo's and two of other seeds. Their radiographs and DRRs are embedded by the demo's small
network, trained on radiographs of the same population, and by a frozen EfficientNet-Lite0 of natural images, for which
a DRR is far from a radiograph. 500 DRR–CT pairs, then 300 radiograph–CT pairs train, 80 and 100 choose, 300 patients
are held out; default settings throughout (only ``--quick`` trains less).

AUC by population, and over all of them: the mean of the populations' AUCs with its DeLong interval, and the paired
difference of a row with pretraining and the same row without. Bars, for the mean over populations and each encoder: no
row is more than .01 below its twin without pretraining, and the prior not more than .01 below the best of
``direct-head`` and ``ridge-head`` without pretraining.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common.measuring import Table
from sklearn.metrics import roc_auc_score

from embedprior.cache import EmbeddingCache, build_cache
from embedprior.config import load_config
from embedprior.demo.assets import LABEL, DemoAssets, build_assets
from embedprior.demo.config import DemoConfig
from embedprior.encoders.registry import create_encoder
from embedprior.evidence import evaluate_predictions
from embedprior.nn.config import FitConfig
from embedprior.prior.config import PriorConfig, TrainingConfig
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.config import Budget
from embedprior.students.registry import build_method
from embedprior.tables import LABEL_PREFIX
from embedprior.teachers.teacher import train_head

ROWS = ("ridge-head", "kernel-ridge-head", "mlp-head", "hinton-kd", "direct-head", "prior")
PARTS = ("drr train", "drr val", "cxr train", "cxr val", "cxr test")
WITHOUT = ", no pretraining"
SLACK = 0.01


def cases_of(assets: DemoAssets, cxr: EmbeddingCache, part: str, prefix: str) -> Cases:
    """Return the cases of one part ("drr train", …), ids preceded by ``prefix``."""
    modality, split = part.split()
    exams = assets.population.exams.set_index("exam_id")
    pairs = assets.population.pairs.merge(assets.population.splits[["patient_id", "part"]], on="patient_id")
    kept = pairs[
        (exams.loc[pairs["cxr_exam_id"], "modality"].to_numpy() == modality.upper()) & (pairs["part"] == split)
    ]
    radiographs, scans = kept["cxr_exam_id"].tolist(), kept["ct_exam_id"].tolist()
    label = exams.loc[radiographs, LABEL_PREFIX + LABEL].to_numpy(dtype=np.float64)
    patients = [prefix + patient for patient in kept["patient_id"]]
    x, z = (np.asarray(c.take(ids), np.float32) for c, ids in ((cxr, radiographs), (assets.ct, scans)))
    return Cases([prefix + exam for exam in radiographs], patients, label, x, z, label, modality)


def populations(
    config: DemoConfig, seeds: Sequence[int], out: Path, workers: int
) -> dict[tuple[str, int], dict[str, Cases]]:
    """Make the virtual patients and embed them (what exists is reused); return the cases by encoder and seed."""
    found = {}
    for seed in seeds:
        folder = out / str(seed)
        assets = build_assets(config, seed, folder, workers)
        pictures = assets.population.exams[assets.population.exams["modality"] != "CT"]
        encoder = create_encoder("efficientnet-lite0")
        lite, _ = build_cache(pictures, assets.population.root, encoder, folder / "caches" / "lite0", 64, "embed X-ray")
        for name, cache in (("small network", assets.cxr), ("EfficientNet-Lite0", lite)):
            found[name, seed] = {part: cases_of(assets, cache, part, f"{seed}-") for part in PARTS}
    return found


def scores(job: tuple[dict[str, Cases], str, bool, int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the held-out scores of one row, fitted with or without the DRR stage."""
    cases, row, pretraining, seed, steps = job
    torch.set_num_threads(1)
    stages = tuple(Stage(cases[f"{kind} train"], cases[f"{kind} val"]) for kind in ("drr", "cxr"))
    ct = [np.concatenate([getattr(s, part).paired_ct() for s in stages]) for part in ("train", "val")]
    label = [np.concatenate([getattr(s, part).ct_label for s in stages]) for part in ("train", "val")]
    head = train_head(ct[0], label[0], ct[1], label[1], FitConfig(), seed)
    budget = Budget()
    if steps:
        prior = PriorConfig(settings="auto", training=TrainingConfig(steps=steps))
        budget = Budget(fit=FitConfig(steps=steps), stages=(prior,))
    options = {} if row == "cxr-only" else {"pretraining": pretraining}
    fitted = build_method(row, budget, **options).fit(FitData(stages, head), seed)
    return np.asarray(fitted.scores(cases["cxr test"].without_ct()), dtype=np.float64)


def report(table: Table, encoder: str, frame: pd.DataFrame, rows: Sequence[str], slack: float) -> None:
    """Print the rows of one encoder with intervals, and hold the means over populations to their bars."""
    family = [(row, row + WITHOUT) for row in rows]
    evidence = evaluate_predictions(frame, "cxr-only", family, "patient", ())
    auc = {row["method"]: row["auc"] for row in evidence["methods"]}
    print(f"\n{encoder}: {len(frame['patient_id'].unique())} held-out patients")
    print(f"{'row':<34}{'mean AUC (95 % CI)':<26}by population and seed of the fit")
    for row in evidence["methods"]:
        parts = frame[frame["method"] == row["method"]].groupby(["fold", "seed"])
        each = " ".join(f"{roc_auc_score(part['label'], part['score']):.3f}" for _, part in parts)
        print(f"{row['method']:<34}{row['auc']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})    {each}")
    print(f"{'with less without pretraining':<34}difference (95 % CI)")
    for row in evidence["comparisons"]:
        if (row["a"], row["b"]) in family:
            print(f"{row['a']:<34}{row['delta']:+.3f} ({row['ci_low']:+.3f} to {row['ci_high']:+.3f})")
    for row in rows:
        gap = auc[row] - auc[row + WITHOUT]
        table.hold(f"{row}: with less without pretraining", gap, "AUC", least=-slack, case=encoder)
    if {"prior", "direct-head", "ridge-head"} <= set(rows):
        best = max(auc["direct-head"], auc["ridge-head" + WITHOUT])
        table.hold("prior less best of direct-head and ridge", auc["prior"] - best, "AUC", least=-slack, case=encoder)


def main() -> int:
    """Run, print, return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the virtual patients (default: runs/pretraining)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2026, 77, 78], help="of the populations")
    parser.add_argument("--fits", type=int, default=1, help="seeds of every fit")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="toy size, two rows, few steps, wide bars; says nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quick = options.quick
    rows, seeds = (["ridge-head", "prior"], options.seeds[:1]) if quick else (options.rows, options.seeds)
    out = options.out or Path("runs/pretraining-quick" if quick else "runs/pretraining")
    config = load_config(DemoConfig, "quick" if quick else "trained_encoders", "demo")
    made = populations(config, seeds, out, options.workers)
    variants = {"cxr-only": ("cxr-only", False)}
    for row in rows:
        variants |= {row: (row, True), row + WITHOUT: (row, False)}
    jobs = [(key, name, fit) for key in made for name in variants for fit in range(options.fits)]
    table, frames = Table(), list[pd.DataFrame]()
    with ProcessPoolExecutor(options.workers) as pool:
        work = pool.map(scores, [(made[key], *variants[name], fit, 40 if quick else 0) for key, name, fit in jobs])
        for ((encoder, seed), name, fit), score in zip(jobs, work, strict=True):
            test = made[encoder, seed]["cxr test"]
            print(
                f"{encoder}, population {seed}, {name}, fit {fit}: AUC {roc_auc_score(test.label, score):.3f}",
                flush=True,
            )
            columns = {"exam_id": list(test.exam_ids), "patient_id": list(test.patient_ids), "score": score}
            columns |= {"label": test.label.astype(int), "method": name, "fold": seeds.index(seed), "seed": fit}
            frames.append(pd.DataFrame({**columns, "split": "test", "encoder": encoder}))
    frame = pd.concat(frames, ignore_index=True)
    for encoder in dict.fromkeys(encoder for encoder, _ in made):
        own = frame[frame["encoder"] == encoder].drop(columns="encoder")
        report(table, encoder, own, rows, 0.3 if quick else SLACK)
    return table.finish(options.json, seeds=seeds, fits=options.fits)


if __name__ == "__main__":
    sys.exit(main())
