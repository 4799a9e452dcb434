"""What every method costs on the demo's cohort, under one budget: parameters, steps, seconds, AUC over seeds.

Runs on what ``embedprior demo`` leaves in ``--out`` (made when absent); every fit is kept, so a stopped run goes on.
Bars: every method that trains the shared student takes the same steps in each stage it learns from and has the same
backbone (``cxr-only-long`` takes the steps of two stages in one: the control for longer training); every method is
fitted with at least three seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from embedprior.config import load_config
from embedprior.demo.assets import LABEL, build_assets, default_workers
from embedprior.demo.config import DemoConfig
from embedprior.errors import choose
from embedprior.runs import artifact, artifacts_root, one_thread, progress, read_json, write_json
from embedprior.students.config import Budget, TrainStudentConfig
from embedprior.students.registry import build_method, methods
from embedprior.students.student import LogitStudent, StudentMethod
from embedprior.students.tables import Loaded, load
from embedprior.tables import write_table

CODE_TAG = "budgets-3"
MIN_SEEDS = 3


def one(name: str, budget: Budget, loaded: Loaded, seed: int) -> dict[str, Any]:
    """Fit a method once and return its cost and its held-out AUC."""
    method, info = build_method(name, budget), methods()[name]
    cases = loaded.scored["test"]
    with one_thread():
        fitted: Any = method.fit(loaded.data, seed)
    fit_summary, student = fitted.fit_summary, isinstance(method, StudentMethod)
    pretrained = info.uses_ct and getattr(method, "pretraining", False)
    stages = len(loaded.data.stages) if pretrained else 1
    trainings = stages + (stages > 1)  # the last stage with and without what the others taught
    expected = trainings * budget.fit.steps * getattr(method, "step_multiplier", 1)
    backbone = sum(p.numel() for p in fitted.network.backbone.parameters()) if isinstance(fitted, LogitStudent) else 0
    auc = roc_auc_score(cases.label, fitted.scores(cases if info.needs_ct else cases.without_ct()))
    return {
        "trained": fit_summary.trainable, "total": fit_summary.total, "stages": stages, "steps": fit_summary.steps,
        "seconds": fit_summary.seconds, "losses": ", ".join(fit_summary.losses), "auc": float(auc), "student": student,
        "expected": expected, "backbone": backbone,
    }  # fmt: skip


def prepared(options: argparse.Namespace) -> tuple[Budget, Loaded, Path]:
    """Return the demo's budget and cohort, and the root of kept fits."""
    name = "quick" if options.quick else options.config
    out, config = options.out / f"budgets-{name}", load_config(DemoConfig, name, "demo")
    assets = build_assets(config, options.seed, out, default_workers())
    (out / "cohort").mkdir(exist_ok=True, parents=True)
    for table in ("exams", "pairs", "splits"):
        write_table(getattr(assets.population, table), out / "cohort" / f"{table}.csv")
    prior = config.prior
    budget = Budget(
        fit=config.student, stages=(prior.pretrain, prior.finetune), samples=prior.samples, sampler=prior.sampler,
        steps=prior.steps,
    )  # fmt: skip
    where = TrainStudentConfig(
        method="", label=LABEL, budget=budget, teacher_fit=config.teacher, out="", seed=options.seed,
        cxr_cache=str(out / "caches" / "cxr"), ct_cache=str(out / "caches" / "ct"),
        **{t: str(out / "cohort" / f"{t}.csv") for t in ("exams", "pairs", "splits")},
    )  # fmt: skip
    return budget, load(where, needs_teacher=True), artifacts_root(out)


def main() -> int:
    """Print the table and return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--config", default="trained_encoders", help="of configs/demo")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--seeds", type=int, default=MIN_SEEDS, help="fits of every method")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="only these rows (default: all that read embeddings)"
    )
    parser.add_argument("--quick", action="store_true", help="the demo's toy size")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = list(options.methods or [name for name, info in methods().items() if "embedding" in info.inputs])
    for name in names:
        choose("method", name, methods())
    budget, loaded, root = prepared(options)
    rows = []
    for name in progress(names, "methods"):
        fits = []
        for seed in range(options.seeds):
            made = artifact(
                "budgets", loaded.inputs, {"method": name, "budget": budget, "seed": seed}, CODE_TAG,
                lambda work, name=name, seed=seed: write_json(  # type: ignore[misc]
                    work / "cost.json", one(name, budget, loaded, seed)
                ),
                root,
            )  # fmt: skip
            fits.append(read_json(made.path / "cost.json"))
        first, aucs = fits[0], [f["auc"] for f in fits]
        rows.append(
            {
                "method": name, "role": methods()[name].role, "trained": first["trained"], "total": first["total"],
                "stages": first["stages"], "steps": round(np.mean([f["steps"] for f in fits])),
                "seconds": np.mean([f["seconds"] for f in fits]), "seeds": len(fits), "auc": np.mean(aucs),
                "sd": np.std(aucs, ddof=1) if len(aucs) > 1 else np.nan, "losses": first["losses"],
                "student": first["student"], "expected": first["expected"], "backbone": first["backbone"],
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    shown = table.drop(columns=["student", "expected", "backbone"])
    print(shown.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    own = table[table["student"]]
    bars = {
        f"every student takes {budget.fit.steps} steps a stage (cxr-only-long: twice)": bool(
            (own["steps"] == own["expected"]).all()
        ),
        "every student has one backbone": own["backbone"].nunique() == 1,
        f"at least {MIN_SEEDS} seeds": options.seeds >= MIN_SEEDS,
    }
    for bar, met in bars.items():
        print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    if options.json:
        records = json.loads(table.to_json(orient="records"))
        options.json.write_text(json.dumps({"bars": bars, "rows": records}, indent=2) + "\n")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
