"""``embedprior study run``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HELP = "compare methods on the same held-out cases of a cohort (--dry-run: say what would be done, and stop)"


def main(argv: Sequence[str]) -> int:
    """Run one study; returns the exit code.

    Everything that can be refused is refused before the output folder is made.

    Raises:
        BadInput: see ``study.prepare.prepare``.
    """
    from embedprior.cli.options import parse
    from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput
    from embedprior.study.config import StudyConfig

    words = [w for w in argv if w != "--dry-run"]
    config, common = parse(
        StudyConfig, "study", words, "embedprior study run", HELP, "covid_pilot",
        data=(Path, None, "folder of the cohort"),
        out=(Path, Path("runs/study"), "folder of the results"),
        splits=(Path, None, "your own split table, instead of the generated one"),
    )  # fmt: skip
    if common["data"] is None:
        raise BadInput("no cohort given. Next: embedprior study run --config NAME --data FOLDER")
    from embedprior.study.prepare import prepare
    from embedprior.study.run import image_encoder, plan, run_study

    print(f"reading the cohort in {common['data']}", file=sys.stderr)
    prepared = prepare(config, common["data"], common["splits"])
    if len(words) < len(argv):
        print(plan(config, prepared))
        return DONE
    encoder = image_encoder(config)
    from embedprior.cli.study_story import tell, write_story, write_tables
    from embedprior.runs import Run

    inputs = prepared.input_hashes() | {"encoder weights": encoder.spec.weights_sha256}
    run = Run(common["out"], "study run", config, config.seed, inputs)
    result = run_study(config, prepared, encoder, common["out"], run.stage)
    write_tables(common["out"], prepared, result)
    summary = write_story(common["out"], result, tell(config, prepared, result), run)
    print(summary)
    print(f"report: {common['out'] / 'report.html'}", file=sys.stderr)
    return NEEDS_ATTENTION if result.failures or result.unfitted else DONE
