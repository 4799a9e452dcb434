"""Does pretraining on DRRs help a prior that has 50 real pairs? Phantoms, several repetitions, paired.

The virtual patients and caches are the demo's (made when absent; another seed than the demo's own, so that the demo's
held-out patients stay unseen). One repetition draws 50 training and 25 validation pairs anew and seeds everything
anew. The arms:

* scratch: the prior from nothing on the 50 pairs;
* pretrained: on 500 DRR-CT pairs of other patients, then on the 50; the same steps in all as scratch;
* DRR only: the pretrained prior without the 50 pairs, radiographs scaled as if they were DRRs;
* ridge: linear regression on the 50 pairs, the floor to stand on.

The pairs come from patients whom the radiograph encoder was not fitted on: the embeddings of those that it was fitted
on know the label better than new ones do. The CT head is trained on the DRR patients' CTs. Every arm is scored on the
same held-out radiographs by the mean of the head over 64 samples. No bar: whatever comes out is told.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import RidgeCV

from embedprior.config import load_config
from embedprior.demo.assets import LABEL, DemoAssets, build_assets, default_workers
from embedprior.demo.config import DemoConfig
from embedprior.evidence import evaluate_predictions
from embedprior.nn.config import FitConfig
from embedprior.prior.config import PriorConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior
from embedprior.prior.trainer import train_prior
from embedprior.runs import one_thread, progress, seed_for
from embedprior.tables import LABEL_PREFIX
from embedprior.teachers.teacher import TeacherHead, train_head

ARMS = ("scratch", "pretrained", "DRR only", "ridge")
SAMPLES, STEPS = 64, 16


@dataclass(frozen=True)
class Sides:
    """Pairs of one kind and the label of each."""

    pairs: PairArrays
    label: NDArray[np.float64]
    patients: list[str]

    def take(self, rows: NDArray[np.intp]) -> Sides:
        """Return some of the pairs."""
        ids, patients = [self.pairs.ids[i] for i in rows], [self.patients[i] for i in rows]
        few = replace(
            self.pairs, condition=self.pairs.condition[rows], target=self.pairs.target[rows], ids=ids,
            patients=patients,
        )  # fmt: skip
        return Sides(few, self.label[rows], patients)


def sides_of(assets: DemoAssets, source: str, part: str) -> Sides:
    """Return the pairs whose radiograph is a DRR ("drr") or real ("cxr"), of one part."""
    exams = assets.population.exams.set_index("exam_id")
    pairs = assets.population.pairs.merge(assets.population.splits[["patient_id", "part"]], on="patient_id")
    modality = exams.loc[pairs["cxr_exam_id"], "modality"].to_numpy()
    kept = pairs[(modality == source.upper()) & (pairs["part"] == part)]
    radiographs, scans = kept["cxr_exam_id"].tolist(), kept["ct_exam_id"].tolist()
    label = exams.loc[radiographs, LABEL_PREFIX + LABEL].to_numpy(dtype=np.float64)
    patients = kept["patient_id"].tolist()
    condition, target = assets.cxr.take(radiographs), assets.ct.take(scans)
    arrays = PairArrays(condition, target, radiographs, "drr" if source == "drr" else "cxr", patients=patients)
    return Sides(arrays, label, patients)


def settings(base: PriorConfig, seed: int, steps: int) -> PriorConfig:
    """Return the demo's settings with another seed and budget."""
    changed = {"seed": seed, "steps": steps, "checkpoint_every": steps}
    return base.model_copy(update={"training": base.training.model_copy(update=changed)})


def scored(prior: Prior, head: TeacherHead, test: Sides, source: Any, seed: int) -> NDArray[np.float64]:
    """Return the mean of the head's probability over samples."""
    drawn = prior.sample(test.pairs.condition, SAMPLES, "analytic", STEPS, seed, source)
    logits = head.logits(drawn.reshape(-1, drawn.shape[-1])).astype(np.float64)
    return np.asarray(expit(logits).reshape(drawn.shape[:2]).mean(axis=1))


def explained(prior: Prior, test: Sides, guess: NDArray[np.floating]) -> float:
    """Return the share of the held-out CT embeddings' variance that a regression explains, standardised units."""
    real, found = (prior.target_scaler.forward(np.asarray(x, np.float32)) for x in (test.pairs.target, guess))
    return float(1 - ((real - found) ** 2).sum() / ((real - real.mean(axis=0)) ** 2).sum())


def repetition(
    config: DemoConfig, assets: DemoAssets, count: int, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Return the held-out scores of every arm, and the variance that its regression explains."""
    drr_train, drr_val = sides_of(assets, "drr", "train"), sides_of(assets, "drr", "val")
    pool, test = sides_of(assets, "cxr", "val"), sides_of(assets, "cxr", "test")
    order = np.random.default_rng(seed).permutation(len(pool.label))
    train, val = pool.take(order[:count]), pool.take(order[count : count + count // 2])
    head = train_head(drr_train.pairs.target, drr_train.label, drr_val.pairs.target, drr_val.label, FitConfig(), seed)
    first, second = config.prior.pretrain, config.prior.finetune
    steps = first.training.steps, second.training.steps
    quiet = {"show_progress": False}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = train_prior(drr_train.pairs, drr_val.pairs, settings(first, seed, steps[0]), folder / "drr", **quiet)
        tuned = train_prior(
            train.pairs, val.pairs, settings(second, seed, steps[1]), folder / "tuned", folder / "drr", **quiet
        )
        scratch = train_prior(train.pairs, val.pairs, settings(first, seed, sum(steps)), folder / "scratch", **quiet)
    mean, scale = train.pairs.condition.mean(0), train.pairs.condition.std(0) + 1e-6
    ridge = RidgeCV(np.logspace(0, 4, 9)).fit((train.pairs.condition - mean) / scale, train.pairs.target)
    guess = ridge.predict((test.pairs.condition - mean) / scale)
    scores = {
        "scratch": scored(scratch, head, test, "cxr", seed),
        "pretrained": scored(tuned, head, test, "cxr", seed),
        "DRR only": scored(begun, head, test, "drr", seed),
        "ridge": expit(head.logits(np.asarray(guess, np.float32)).astype(np.float64)),
    }
    regressions = {
        "scratch": scratch.one_step(test.pairs.condition),
        "pretrained": tuned.one_step(test.pairs.condition),
        "DRR only": begun.one_step(test.pairs.condition, "drr"),
        "ridge": guess,
    }
    return scores, {arm: explained(begun, test, rows) for arm, rows in regressions.items()}


def shown(value: float | None) -> str:
    """Return a number, or that it is not defined."""
    return "undefined" if value is None else f"{value:.3f}"


def main() -> int:
    """Print AUCs and paired differences over patients and repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the virtual patients (default: runs/pretrain-finetune)")
    parser.add_argument("--seed", type=int, default=77, help="of the population")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="toy size: 12 pairs, two repetitions; says nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count, repetitions = (12, 2) if options.quick else (options.pairs, options.repetitions)
    out = options.out or Path("runs/pretrain-finetune-quick" if options.quick else "runs/pretrain-finetune")
    config = load_config(DemoConfig, "quick" if options.quick else "trained_encoders", "demo")
    if count + count // 2 > config.cohort.val:
        parser.error(f"--pairs {count} and half as many for validation, of {config.cohort.val} patients")
    assets = build_assets(config, options.seed, out, default_workers())
    test = sides_of(assets, "cxr", "test")
    rows: list[pd.DataFrame] = []
    shares: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with one_thread():
        for number in progress(range(repetitions), "repetitions", total=repetitions):
            seed = seed_for(options.seed, "pretrain-finetune", number) % 2**31
            scores, explains = repetition(config, assets, count, seed)
            for arm, score in scores.items():
                shares[arm].append(explains[arm])
                rows.append(
                    pd.DataFrame(
                        {"exam_id": list(test.pairs.ids), "patient_id": test.patients, "label": test.label.astype(int),
                         "method": arm, "score": score, "fold": 0, "seed": number, "split": "test"}
                    )
                )  # fmt: skip
    family = [("pretrained", "scratch"), ("pretrained", "DRR only"), ("pretrained", "ridge")]
    evidence = evaluate_predictions(pd.concat(rows, ignore_index=True), "scratch", family, "patient", ())
    print(f"\n{count} pairs, {repetitions} repetitions, {len(test.label)} held-out patients (seed {options.seed})")
    print(f"{'arm':<12}{'AUC (95 % CI)':<28}variance explained by the one-step x0: mean, least, most")
    for row in evidence["methods"]:
        share = shares[row["method"]]
        ends = f"{row['auc']:.3f} ({shown(row['ci_low'])} to {shown(row['ci_high'])})"
        print(f"{row['method']:<12}{ends:<28}{np.mean(share):+.3f}  {min(share):+.3f}  {max(share):+.3f}")
    print("\npaired differences, over patients and repetitions (Holm over these three):")
    declared = [row for row in evidence["comparisons"] if (row["a"], row["b"]) in family]
    for row in declared:
        ends = f"{row['delta']:+.3f} ({shown(row['ci_low'])} to {shown(row['ci_high'])})"
        print(f"{row['a']} - {row['b']:<12}{ends:<30}p = {shown(row['p'])}, Holm {shown(row['p_holm'])}")
    gain = np.array(shares["pretrained"]) - np.array(shares["scratch"])
    half = float(stats.t.ppf(0.975, repetitions - 1)) * float(gain.std(ddof=1)) / np.sqrt(repetitions)
    print(f"variance explained, pretrained - scratch: {gain.mean():+.3f} (95 % t over repetitions: ± {half:.3f})")
    if options.json:
        found = {"pairs": count, "repetitions": repetitions, "evidence": evidence, "explained": shares}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
