"""Do the intervals of retrieval and few-shot evaluation hold the truth? Coverage by simulation at the level of scores.

Retrieval: patients with one to four radiographs and one CT each, all drawn anew, gallery included; how often does the
95 % interval of recall@k, and of its difference between two systems, hold the mean over 4,000 such cohorts? Few-shot:
two probes, five draws of labelled patients; a draw moves the AUC of both, the same and each by itself, and the truth is
the mean over all draws, in closed form. The product's own functions make every interval. Exits 1 when a coverage is
below .92 (less two Monte-Carlo standard errors). ``--quick``: fewer cohorts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from embedprior.evidence import evaluate_predictions
from embedprior.evidence.retrieval import Ranks, difference, patient_mean, rank_targets

BAR = 0.92
PATIENTS, KS, DIM = (15, 50, 200), (1, 5), 8
NOISES = {"hard": (0.9, 1.1), "easy": (0.25, 0.35)}
SIZES, DRAWS = ((10, 30), (40, 120), (150, 150)), 5
MEANS, SPREAD = (0.9, 1.3), 0.25


def systems(rng: np.random.Generator, patients: int, noises: tuple[float, float]) -> tuple[list[Ranks], np.ndarray]:
    """Return where the own CT stands for every radiograph, by two systems, and the patient of each radiograph."""
    anatomy = rng.normal(size=(patients, DIM))
    owner = np.repeat(np.arange(patients), rng.integers(1, 5, size=patients))
    of_patient, of_exam = rng.normal(size=(patients, DIM)), rng.normal(size=(len(owner), DIM))
    shown = (of_patient[owner] + of_exam) / np.sqrt(2)
    gallery = anatomy + 0.3 * rng.normal(size=(patients, DIM))
    ranks = [
        rank_targets(
            anatomy[owner] + noise * (shown + rng.normal(size=shown.shape)), gallery, owner, np.arange(patients)
        )
        for noise in noises
    ]
    return ranks, owner


def recall_truth(rng: np.random.Generator, patients: int, noises: tuple[float, float], cohorts: int) -> np.ndarray:
    """Return (systems, ks): recall@k of a cohort of this size, the patient being the unit."""
    found = []
    for _ in range(cohorts):
        ranks, owner = systems(rng, patients, noises)
        count = np.bincount(owner)
        found.append([[(np.bincount(owner, each.hits(k)) / count).mean() for k in KS] for each in ranks])
    return np.mean(found, axis=0)


def retrieval(rng: np.random.Generator, cohorts: int) -> list[dict[str, Any]]:
    """Return the coverage of recall@k and of its difference, by difficulty, patients and k."""
    rows = []
    for name, noises in NOISES.items():
        for patients in PATIENTS:
            truth, own = recall_truth(rng, patients, noises, 10 * cohorts), []
            for _ in range(cohorts):
                ranks, owner = systems(rng, patients, noises)
                for j, k in enumerate(KS):
                    means = [patient_mean(each.hits(k), owner) for each in ranks]
                    limits = [(m.low, m.high) for m in means] + [difference(*means)[1:]]
                    wanted = [truth[0, j], truth[1, j], truth[0, j] - truth[1, j]]
                    own.append((k, [low <= w <= high for (low, high), w in zip(limits, wanted, strict=True)]))
            for j, k in enumerate(KS):
                hits = np.array([inside for each, inside in own if each == k])
                for what, column in (("recall", 0), ("difference", 2)):
                    value = truth[0, j] if column == 0 else truth[0, j] - truth[1, j]
                    cell = {"part": f"retrieval, {name}", "patients": patients, "k": k, "what": what, "truth": value}
                    rows.append({**cell, "coverage": hits[:, column].mean(), "cohorts": cohorts})
    return rows


def few_shot_table(rng: np.random.Generator, pos: int, neg: int) -> pd.DataFrame:
    """Return the scores of two probes in every draw: a case's own trait, and noise of the draw."""
    label, trait = np.repeat([1, 0], [pos, neg]), rng.normal(size=pos + neg)
    ids = [f"p{i}" for i in range(pos + neg)]
    tables = []
    for draw in range(DRAWS):
        shared = rng.normal()
        for method, mean in zip(("a", "b"), MEANS, strict=True):
            moved = mean + SPREAD * (shared + rng.normal()) / np.sqrt(2)
            score = moved * label + (trait + rng.normal(size=pos + neg)) / np.sqrt(2)
            columns = {"exam_id": ids, "patient_id": ids, "label": label, "method": method, "score": score}
            tables.append(pd.DataFrame({**columns, "seed": draw}))
    return pd.concat(tables, ignore_index=True)


def few_shot(rng: np.random.Generator, replicates: int) -> list[dict[str, Any]]:
    """Return the coverage of a probe's AUC and of the difference of two, by patients."""
    # E Phi((m + s b) / sqrt 2) over b ~ N(0, 1) = Phi(m / sqrt(2 + s^2))
    truth = [float(stats.norm.cdf(mean / np.sqrt(2 + SPREAD**2))) for mean in MEANS]
    rows = []
    for pos, neg in SIZES:
        inside = []
        for _ in range(replicates):
            found = evaluate_predictions(few_shot_table(rng, pos, neg), "a", None, "patient", patient_label="max")
            first, (apart,) = found["methods"][0], found["comparisons"]
            pairs = ((first, truth[0]), (apart, truth[1] - truth[0]))
            inside.append([row["ci_low"] <= value <= row["ci_high"] for row, value in pairs])
        for what, value, hits in zip(
            ("AUC", "difference"), (truth[0], truth[1] - truth[0]), np.array(inside).T, strict=True
        ):
            cell = {"part": f"few-shot, {DRAWS} draws", "patients": f"{pos}+{neg}", "k": None, "what": what}
            rows.append({**cell, "truth": value, "coverage": hits.mean(), "cohorts": replicates})
    return rows


def main() -> int:
    """Print every coverage; return 1 when one is too low."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cohorts (about 20 s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    start = time.process_time()
    streams = [np.random.default_rng(np.random.SeedSequence([2026, part])) for part in range(2)]
    rows = retrieval(streams[0], 100 if options.quick else 400)
    rows += few_shot(streams[1], 60 if options.quick else 300)
    table = pd.DataFrame(rows)
    error = np.sqrt(BAR * (1 - BAR) / table["cohorts"])
    table["met"] = table["coverage"] >= BAR - 2 * error
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    spent = time.process_time() - start
    print(f"{table['met'].sum()} of {len(table)} coverages are {BAR} or more; {spent:.0f} s of CPU")
    if options.json:
        options.json.write_text(json.dumps({"rows": table.to_dict("records"), "cpu_seconds": spent}, indent=1) + "\n")
    return 0 if table["met"].all() else 1


if __name__ == "__main__":
    sys.exit(main())
