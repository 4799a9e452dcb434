"""The command behind ``accelerate launch train_prior.py``: caches and tables in, a trained prior out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedprior.config import describe, load_config, read_overrides
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.prior.config import TrainPriorConfig

USAGE = """usage: train_prior.py --config NAME|FILE [--SETTING VALUE ...]      (or: embedprior train prior ...)

Trains the diffusion prior from embedding caches. NAME is a file in configs/prior/. A stopped training in the
same --out goes on where it stopped. Any setting of the file can be given here, dotted: --prior.training.steps 500

settings:
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code (0 done, 1 failed, 2 bad input and nothing written)."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + describe(TrainPriorConfig))
        return 0
    try:
        _train(*_arguments(argv))
    except EmbedpriorError as error:
        _report(error)
        return error.exit_code
    return 0


def _arguments(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    try:
        known, rest = first.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise BadInput(f"{error.argument_name} needs a value.") from error
    if known.config is None:
        raise BadInput("--config is missing. Allowed: a name in configs/prior/ or a YAML file.")
    return known.config, read_overrides(rest, TrainPriorConfig, "train_prior.py")


def _train(name: str, overrides: dict[str, Any]) -> None:
    config = load_config(TrainPriorConfig, name, "prior", overrides)
    from embedprior.runs.distributed import launched

    launched(command="train prior --config ...")
    from embedprior.prior.data import read_pairs

    train, val, inputs = read_pairs(config)
    from embedprior.prior.trainer import train_prior
    from embedprior.runs import canonical, hash_of, versions, write_json
    from embedprior.teachers.teacher import load_head

    teacher = None
    if config.teacher is not None:
        teacher = load_head(config.teacher)
        inputs["teacher"] = hash_of({k: v.tolist() for k, v in teacher.network.state_dict().items()})
    out = Path(config.out)
    start = None if config.init_from is None else Path(config.init_from)
    prior = train_prior(train, val, config.prior, out, start, teacher, trackers=config.trackers)
    if _rank() != 0:
        return
    write_json(
        out / "run.json",
        {
            "command": "train_prior.py",
            "config": canonical(config),
            "inputs": inputs,
            "pairs": {"train": len(train), "val": len(val)},
            "parameters": prior.network.parameter_parts(),
            "caveats": prior.caveats(),
            "versions": versions(),
        },
    )
    parts = ", ".join(f"{name} {count:,}" for name, count in prior.network.parameter_parts().items())
    print(f"{out}: a prior of {prior.network.parameter_count():,} parameters ({parts}), from {len(train)} pairs")
    for caveat in prior.caveats():
        print(f"mind: {caveat}")


def _report(error: EmbedpriorError) -> None:
    """Print one line, once: every process finds the same fault in the same input."""
    if _rank() != 0 and error.exit_code == 2:
        return
    note = ""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and error.exit_code != 1:
        note = f" (exit code {error.exit_code}; accelerate launch makes 1 of it and prints a traceback of its own)"
    print(f"error: {error}{note}", file=sys.stderr)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
