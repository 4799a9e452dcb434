"""``embedprior demo``: virtual patients, end to end, to a report."""

from __future__ import annotations

from pathlib import Path

from click import option

from embedprior.cli.options import PATH, AtLeast
from embedprior.cli.settings import settings_command
from embedprior.demo.config import DemoConfig


@settings_command(DemoConfig, "demo", "default")
@option("--out", type=PATH, default=Path("runs/demo"), metavar="DIR", help="folder of the results")
@option("--seed", type=int, default=2026, help="of everything random")
@option("--workers", type=AtLeast(0), default=0, metavar="N", help="processes that draw the virtual "
        "patients; 0: one for each core")  # fmt: skip
def demo(config: DemoConfig, out: Path, seed: int, workers: int) -> int:
    """Run the demo; return the exit code."""
    from embedprior.demo.assets import default_workers
    from embedprior.demo.pipeline import run_demo

    return run_demo(config, seed, out, workers or default_workers())
