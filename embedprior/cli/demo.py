"""``embedprior demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HELP = "virtual patients, end to end, to a report"


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    from embedprior.cli.options import parse
    from embedprior.demo.config import DemoConfig

    settings, common = parse(
        DemoConfig, "demo", argv, "embedprior demo", HELP, "default",
        out=(Path, Path("runs/demo"), "folder of the results"),
        seed=(int, 2026, "of everything random"),
        workers=(int, 0, "processes that draw the virtual patients; 0 = one a core"),
    )  # fmt: skip
    from embedprior.demo.pipeline import run_demo
    from embedprior.demo.population import default_workers

    return run_demo(settings, common["seed"], common["out"], common["workers"] or default_workers())
