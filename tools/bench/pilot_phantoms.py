"""The pilot study's matrix on virtual patients whose truth is planted: do its rows find it, and only it?

200 virtual patients, each with a radiograph and one CT slice, at the level where the lesion is or would be; two folds,
two seeds; 6 of 100 training radiographs have a label. The rows are those of ``covid_pilot_fair``, and those of
the pilot's revision, all with its 93,954-parameter student. In the first world the CT slices show the lesion and have
labels of their own: CT carries what most radiographs lack. In the second the slices are those of the
same patients without a lesion, and have no label: CT carries nothing. In the third their labels are swapped.
Bars (DeLong over patients and seeds, p after Holm at most .05): in the first world plain distillation is above the
X-ray-only student, above same-modality distillation and above itself on shuffled pairs; in the second no row is above
the student; in the third distillation is below the student. Prints AUC, seconds and memory of each row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.config import load_config
from embedprior.evidence import evaluate_predictions
from embedprior.nn.config import FitConfig
from embedprior.phantom import PhantomConfig, radiograph, virtual_patient
from embedprior.runs import measured, one_thread
from embedprior.students.base import Cases, FitData, Stage, training_data, visible_cases
from embedprior.students.registry import Augmentation, Budget, build_method
from embedprior.study.config import StudyConfig

PATIENTS, SIDE, COARSER = 200, 64, 2
PHANTOMS = PhantomConfig(
    prevalence=0.5,
    lesion_radius_mm=(28.0, 42.0),
    lesion_hidden_share=0.0,
    sign_rate_positive=0.2,
    sign_rate_negative=0.2,
)
WORLDS = ("carries", "nothing", "swapped")
FIT = FitConfig(lr=0.002, weight_decay=0.0001, batch_size=16, steps=100, validate_every=100)
SEEDS, LABELLED = (1, 2), 0.06
Drawn = list[tuple[int, np.ndarray, dict[str, np.ndarray]]]
REVISION = {
    "gated": "slice-gate", "pseudo-labels": "slice-pseudo-label", "contrast": "slice-crd", "relations": "slice-rkd",
    "prototypes": "slice-prototype", "lung-mask": "slice-lung-mask", "projected": "slice-projected-attention",
}  # fmt: skip
SHUFFLED, STUDENT = "plain-kd-shuffled", "student-only"
ORACLES = ("late-fusion-pixels", "ct-slice-only")


def pictures(index: int, seed: int) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
    """Return a patient's label, radiograph, and CT slice with and without the lesion (uint8, 32 × 32)."""
    own = virtual_patient(PHANTOMS, seed, index)
    with_lesion, without = (own if own.label == y else virtual_patient(PHANTOMS, seed, index, label=y) for y in (1, 0))
    assert with_lesion.lesion_centre_mm is not None
    level = round(with_lesion.lesion_centre_mm[2] / own.spacing_mm[0] + (own.volume.shape[0] - 1) / 2)
    slices = {
        name: coarser(np.clip((patient.volume[level] + 1000) / 1400 * 255, 0, 255))
        for name, patient in (("own", own), ("healthy", without))
    }
    return own.label, coarser(radiograph(own, "cxr", SIDE, seed)), slices


def coarser(picture: np.ndarray) -> np.ndarray:
    """Return the means of blocks of 2 × 2 pixels."""
    size = len(picture) // COARSER
    return picture.reshape(size, COARSER, size, COARSER).mean((1, 3)).astype(np.uint8)


def rows(world: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return method and options of every row: those of ``covid_pilot_fair``, the revision's, and shuffled pairs."""
    fair = load_config(StudyConfig, "covid_pilot_fair", "study").methods
    found = {name: (row.method, dict(row.options)) for name, row in fair.items()}
    found |= {name: (method, {}) for name, method in REVISION.items()}
    found[SHUFFLED] = ("slice-kd", {"shuffled": True})
    for _, options in found.values():
        for key in ("teacher_labels", "labels"):
            options.pop(key, None)  # by default the CTs' own
    return {name: found[name] for name in (STUDENT, "plain-kd")} if world == "swapped" else found


def cases(world: str, drawn: Drawn) -> Cases:
    """Return the patients of one world as cases, CT embeddings blank."""
    label = np.array([one[0] for one in drawn], dtype=float)
    ct_label = {"carries": label, "nothing": np.full(len(drawn), np.nan), "swapped": 1 - label}[world]
    shown = "healthy" if world == "nothing" else "own"
    names, blank = [f"p{i:03d}" for i in range(len(drawn))], np.zeros((len(drawn), 2), np.float32)
    xrays, slices = np.stack([one[1] for one in drawn]), np.stack([one[2][shown] for one in drawn])
    return Cases(names, names, label, blank, blank, ct_label, pixels=xrays, ct_pixels=slices)


def fitted_rows(fold: int, seed: int, world: str, drawn: Drawn, budget: Budget) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit every row on one half of the patients and score the other; return the scores, and what each fit cost."""
    whole = cases(world, drawn)
    halves = np.random.default_rng(7).permutation(len(whole)).reshape(2, -1)
    train, test = whole.take(halves[1 - fold]), whole.take(halves[fold])
    kept = np.zeros(len(train), dtype=bool)
    for value in (0, 1):  # a share of each class has a label
        own = np.flatnonzero(train.label == value)
        kept[own[: round(LABELLED * len(own))]] = True
    train = replace(train, label=np.where(kept, train.label, np.nan))
    data, scores, costs = FitData((Stage(train, train.take([])),), None, "none"), [], []
    for name, (method, options) in rows(world).items():
        built = build_method(method, budget, **options)
        with measured() as cost, one_thread():
            fitted: Any = built.fit(training_data(built, data), seed)
        found = fitted.scores(visible_cases(built, test))
        keys = {"exam_id": test.exam_ids, "patient_id": test.patient_ids, "label": test.label.astype(int)}
        scores.append(pd.DataFrame({**keys, "method": name, "score": found, "fold": fold, "seed": seed}))
        alone = cost.seconds + fitted.fit_summary.shared_seconds
        costs.append({"method": name, "s": alone, "CPU s": cost.cpu_seconds, "peak MB": cost.peak_mb})
    return pd.concat(scores), pd.DataFrame(costs)


def claims(world: str) -> list[tuple[str, str]]:
    """Return what is declared of a world: a scores above b."""
    if world == "carries":
        return [("plain-kd", STUDENT), ("plain-kd", "same-modality"), ("plain-kd", SHUFFLED)]
    if world == "swapped":
        return [(STUDENT, "plain-kd")]
    return [(name, STUDENT) for name in rows(world) if name not in (*ORACLES, STUDENT)]


def run(world: str, drawn: Drawn, budget: Budget, seeds: tuple[int, ...], workers: int) -> tuple[pd.DataFrame, Any]:
    """Return the table of one world, and its comparisons."""
    places = [(fold, seed) for fold in (0, 1) for seed in seeds]
    work = partial(fitted_rows, world=world, drawn=drawn, budget=budget)
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(work, *zip(*places, strict=True)))
    evidence = evaluate_predictions(
        pd.concat([scores for scores, _ in parts]),
        STUDENT,
        claims(world),
        oracles=[o for o in ORACLES if o in rows(world)],
    )
    costs = pd.concat([cost for _, cost in parts]).groupby("method", sort=False)
    table = pd.DataFrame([{k: m[k] for k in ("method", "auc", "ci_low", "ci_high")} for m in evidence["methods"]])
    shown = costs[["s", "CPU s"]].median().join(costs["peak MB"].max())
    return table.merge(shown, on="method"), [c for c in evidence["comparisons"] if c["in_family"]]


def main() -> int:
    """Print the tables and the comparisons; return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the steps; no bar is judged")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = SEEDS[:1] if options.quick else SEEDS
    fit = FIT.model_copy(update={"steps": FIT.steps // 4}) if options.quick else FIT
    drawn = [pictures(i, options.seed) for i in range(PATIENTS)]
    met, result = True, {}
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            budget = Budget(
                fit=fit, balance="class-weights", augment=Augmentation(flip=True, shift=1), artifacts=Path(folder)
            )
            table, found = run(world, drawn, budget, seeds, options.workers)
        print(f"\nCT {world}: {PATIENTS} patients, {sum(label for label, *_ in drawn)} with a lesion")
        print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"), flush=True)
        for one in found:
            above = one["p_holm"] is not None and one["p_holm"] <= 0.05 and one["delta"] > 0
            as_planted = above == (world != "nothing")
            met &= as_planted
            interval = f"{one['delta']:+.3f} ({one['ci_low']:+.3f} to {one['ci_high']:+.3f})"
            print(f"{one['claim']}: {interval}, Holm p {one['p_holm']:.3f}: {'as planted' if as_planted else 'MISSED'}")
        kept = ("claim", "delta", "ci_low", "ci_high", "p_holm", "verdict")
        result[world] = {"rows": table.to_dict("records"), "claims": [{k: c[k] for k in kept} for c in found]}
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "met": met, "worlds": result}, indent=2) + "\n")
    return 0 if met or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
