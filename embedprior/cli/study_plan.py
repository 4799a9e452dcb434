"""``embedprior study plan``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedprior.study.config import StudyConfig
    from embedprior.study.runner import Study

HELP = "freeze a study before it is run: every fit, its cost, the difference each hypothesis could show"


def main(argv: Sequence[str]) -> int:
    """Write ``plan.json`` and the split table, print the plan; returns the exit code.

    Raises:
        BadInput: see ``study.prepare.prepare`` and ``study.plan.freeze``.
    """
    from embedprior.errors import DONE

    measured = {"measure": "run one fit of each method now, to know the cost; it is kept"}
    config, common, study = load(argv, "embedprior study plan", HELP, measured)
    from embedprior.study.plan import freeze, make_plan, plan_text

    out: Path = common["out"]
    plan = make_plan(config, study, out)
    freeze(plan, study, out)
    if common["measure"]:
        from embedprior.study.run import measure_units

        for line in measure_units(study, out):
            print(line, file=sys.stderr)
        plan = make_plan(config, study, out)
    print(plan_text(plan, common["workers"]))
    print(f"written: {out / 'plan.json'}, {out / 'cohort' / 'splits.csv'}", file=sys.stderr)
    return DONE


def load(argv: Sequence[str], prog: str, text: str, flags: dict[str, str]) -> tuple[StudyConfig, dict[str, Any], Study]:
    """Return the configuration, the common options and the study: cohort read, splits made, nothing written.

    Raises:
        BadInput: no cohort, or what ``study.run.prepare_study`` refuses.
    """
    from embedprior.cli.options import parse
    from embedprior.errors import BadInput
    from embedprior.study.config import StudyConfig

    config, common = parse(
        StudyConfig, "study", argv, prog, text, "covid_pilot", flags,
        data=(Path, None, "folder of the cohort"),
        out=(Path, Path("runs/study"), "folder of the results"),
        splits=(Path, None, "your own split table, instead of the generated one"),
        workers=(int, 1, "processes that fit"),
    )  # fmt: skip
    if common["data"] is None:
        raise BadInput(f"no cohort given. Next: {prog} --config NAME --data FOLDER")
    if common["workers"] < 1:
        raise BadInput(f"--workers counts processes and starts at 1; got {common['workers']}.")
    from embedprior.study.run import prepare_study

    print(f"reading the cohort in {common['data']}", file=sys.stderr)
    return config, common, prepare_study(config, common["data"], common["splits"])
