"""``embedprior study``: freeze a study, and run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click import option

from embedprior.cli.options import COUNT, DRY_RUN, PATH, Function
from embedprior.cli.settings import settings_command
from embedprior.errors import DONE, NEEDS_ATTENTION
from embedprior.study.config import StudyConfig

if TYPE_CHECKING:
    from embedprior.study.runner import Study


def _common(function: Function) -> Function:
    """Add the options that both commands have."""
    options: list[Callable[[Function], Function]] = [
        click.option("--data", type=PATH, required=True, metavar="DIR", help="folder of the cohort"),
        click.option("--out", type=PATH, default=Path("runs/study"), metavar="DIR", help="folder of the results"),
        click.option("--splits", type=PATH, metavar="FILE", help="your own split table, instead of the generated one"),
        click.option("--workers", type=COUNT, default=1, metavar="N", help="processes that fit"),
    ]
    for add in reversed(options):
        function = add(function)
    return function


@settings_command(StudyConfig, "study", "covid_pilot", renamed={"--measure": "--time-fits"})
@_common
@option("--time-fits", is_flag=True, help="run one fit of each method now, to know what the study costs; the fits "
        "are kept")  # fmt: skip
def plan(config: StudyConfig, data: Path, out: Path, splits: Path | None, workers: int, time_fits: bool) -> int:
    """Write ``plan.json`` and the split table, print the plan; return the exit code.

    Raises:
        BadInput: see ``study.prepare.read_study_data`` and ``study.plan.freeze``.
    """
    study = _read(config, data, splits)
    from embedprior.study.plan import PLAN, freeze, make_plan
    from embedprior.study.plan_text import plan_text

    frozen = make_plan(config, study, out)
    from embedprior.runs import claimed
    from embedprior.runs.integrity import note_results

    with claimed(out):
        first = not (out / PLAN).is_file()
        freeze(frozen, study, out)
        if first:
            note_results(out, (PLAN, *(f"cohort/{name}.csv" for name in ("splits", "flow", "duplicates"))))
        if time_fits:
            from embedprior.study.run import measure_jobs

            for line in measure_jobs(study, out):
                print(line, file=sys.stderr)
            frozen = make_plan(config, study, out)
    print(plan_text(frozen, workers))
    from embedprior.study.leakage import shared_text

    shared = shared_text(study.data[0].duplicates, config.duplicates == "join")
    print("\n".join(["", *study.data[0].compared, *([shared] if shared else [])]))
    print(f"written: {out / 'plan.json'}, {out / 'cohort' / 'splits.csv'}", file=sys.stderr)
    return DONE


@settings_command(StudyConfig, "study", "covid_pilot")
@_common
@option("--dry-run", is_flag=True, help=DRY_RUN)
def run(config: StudyConfig, data: Path, out: Path, splits: Path | None, workers: int, dry_run: bool) -> int:
    """Run one study, or what is left of it; return the exit code.

    Everything that can be refused is refused before the output folder is made.

    Raises:
        BadInput: see ``study.prepare.read_study_data`` and ``study.plan.freeze``.
    """
    study = _read(config, data, splits)
    from embedprior.study.plan import make_plan
    from embedprior.study.plan_text import plan_text
    from embedprior.study.run import needed_exams

    frozen = make_plan(config, study, out)
    if dry_run:
        for data_of in {id(d.cohort): d for d in study.data}.values():
            if data_of.encoder is not None:
                needed = needed_exams(config, data_of)
                size = sum((data_of.cohort.root / str(path)).stat().st_size for path in needed["path"])
                print(f"{len(needed)} images to embed with {config.encoder.name} ({size / 1e6:.1f} MB)")
        print(plan_text(frozen, workers))
        return DONE
    from embedprior.api import run_planned_study

    found = run_planned_study(config, study, frozen, out, workers)
    if found is None:  # another process of the launcher leaves the record
        return DONE
    print(found.summary())
    print(f"report: {found.report}", file=sys.stderr)
    return NEEDS_ATTENTION if len(found.failures) else DONE


def _read(config: StudyConfig, data: Path, splits: Path | None) -> Study:
    """Return the study: cohort read, splits made, nothing written."""
    from embedprior.study.run import read_study

    print(f"reading the cohort in {data}", file=sys.stderr)
    return read_study(config, data, splits)
