"""``embedprior study run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

HELP = "compare methods on the same held-out cases of a cohort"


def main(argv: Sequence[str]) -> int:
    """Run one study, or what is left of it; returns the exit code.

    Everything that can be refused is refused before the output folder is made.

    Raises:
        BadInput: see ``study.prepare.prepare`` and ``study.plan.freeze``.
    """
    from embedprior.cli.options import DRY_RUN
    from embedprior.cli.study_plan import load
    from embedprior.errors import DONE, NEEDS_ATTENTION

    config, common, study = load(argv, "embedprior study run", HELP, {"dry_run": DRY_RUN})
    from embedprior.study.plan import freeze, make_plan, plan_text
    from embedprior.study.run import needed_exams, run_study

    out: Path = common["out"]
    plan = make_plan(config, study, out)
    if common["dry_run"]:
        for prepared in {id(p): p for p in study.prepared}.values():
            if prepared.encoder is not None:
                needed = needed_exams(config, prepared)
                size = sum((prepared.cohort.root / str(path)).stat().st_size for path in needed["path"])
                print(f"{len(needed)} images to embed with {config.encoder.name} ({size / 1e6:.1f} MB)")
        print(plan_text(plan, common["workers"]))
        return DONE
    from embedprior.runs import Run

    leads = os.environ.get("RANK", "0") == "0"
    if leads:
        freeze(plan, study, out)
    inputs = {**plan["inputs"], "plan": plan["hash"]}
    run = Run(out, "study run", config, config.seed, inputs) if leads else None
    result = run_study(study, out, run.stage if run else _nothing, common["workers"])
    if run is None:
        return DONE
    from embedprior.report.study_report import tell, write_story, write_tables

    write_tables(out, result)
    summary = write_story(out, result, tell(config, result), run)
    print(summary)
    print(f"report: {out / 'report.html'}", file=sys.stderr)
    return NEEDS_ATTENTION if result.failures or result.unfitted or result.unscored else DONE


def _nothing(name: str, **fields: object) -> None:
    """Other processes of a launcher leave the record to the first."""
