"""Do priors trained on shuffled pairs score at chance? Mean AUC of many, with a t-interval.

Runs on the caches that ``embedprior demo`` leaves (they are made when absent). Every repetition has its own
seed for the shuffle, the teacher head, the prior and its samples; held-out radiographs are untouched. A 95 %
interval misses the truth once in twenty runs, whatever the seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from embedprior.config import load_config
from embedprior.demo.assets import build_assets, default_workers
from embedprior.demo.config import DemoConfig
from embedprior.demo.pipeline import study_of
from embedprior.runs import artifacts_root, one_thread, progress, seed_for
from embedprior.study.runner import FoldRunner, fit_jobs, method_of


def main() -> int:
    """Print the interval and return 1 when it does not cover 0.5."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo")
    parser.add_argument("--config", default="trained_encoders", help="of configs/demo")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--repetitions", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    repetitions = 3 if options.quick else options.repetitions
    config = load_config(DemoConfig, options.config, "demo")
    assets = build_assets(config, options.seed, options.out, default_workers())
    _, study, inputs = study_of(config, options.seed, assets, artifacts_root(options.out))
    job, runner = next(u for u in fit_jobs(study) if u.method == "prior"), FoldRunner(inputs)
    held_out = runner.cases(job.fold_id).scored["test"]
    aucs = []
    for repetition in progress(range(repetitions), "shuffled priors", total=repetitions):
        seeded = replace(job, seed=seed_for(options.seed, "shuffled bench", repetition) % 2**31)
        with one_thread():
            shuffled = method_of(inputs, "prior-shuffled", {}, job.fold_id.design)
            fitted = shuffled.fit(runner.data(seeded), seeded.seed)
            scores = fitted.scores(held_out.without_ct())
        aucs.append(float(roc_auc_score(held_out.label, scores)))
    mean, se = float(np.mean(aucs)), float(np.std(aucs, ddof=1) / np.sqrt(repetitions))
    half = float(stats.t.ppf(0.975, repetitions - 1)) * se
    covered = mean - half <= 0.5 <= mean + half
    print(f"AUC of {repetitions} shuffled-pair priors (seed {options.seed}): {', '.join(f'{a:.3f}' for a in aucs)}")
    print(f"mean {mean:.3f}, 95 % t-interval {mean - half:.3f} to {mean + half:.3f}")
    print(f"bar: the interval covers 0.5: {'met' if covered else 'MISSED'}")
    if options.json:
        result = {"seed": options.seed, "aucs": aucs, "mean": mean, "low": mean - half, "high": mean + half}
        options.json.write_text(json.dumps(result | {"met": covered}, indent=2) + "\n")
    return 0 if covered else 1


if __name__ == "__main__":
    sys.exit(main())
