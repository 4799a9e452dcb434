"""``embedprior cache trace``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HELP = "what a run was made from: artifacts, caches, and the sha256 of every source file"


def main(argv: Sequence[str]) -> int:
    """Print the chain; returns 3 when source files were given and differ from those of the run.

    Raises:
        BadInput: no run there.
    """
    p = argparse.ArgumentParser(
        prog="embedprior cache trace", description=HELP + ".", allow_abbrev=False,
        epilog="exit codes: 0 done, 3 with --cohort: a source file is gone or has changed since.",
    )  # fmt: skip
    p.add_argument("run", type=Path, help="folder of a run (with run.json), such as the one a report lies in")
    p.add_argument("--cohort", type=Path, metavar="FILE", help="exam table: hash its files again and compare")
    options = p.parse_args(argv)
    from embedprior.cache.provenance import changed_sources, trace
    from embedprior.errors import DONE, NEEDS_ATTENTION
    from embedprior.tables import EXAM_REQUIRED, check_exams, read_table

    print("\n".join(trace(options.run)))
    if options.cohort is None:
        return DONE
    exams = check_exams(read_table(options.cohort, EXAM_REQUIRED), str(options.cohort))
    same, other = changed_sources(options.run, exams, options.cohort.parent)
    for line in other[:20]:
        print(line)
    print(f"{same} source files are what they were, {len(other)} are not")
    return NEEDS_ATTENTION if other else DONE
