"""Command lines generated from configuration models: YAML first, then what the user types over it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, TypeVar

from embedprior.config import Config, load_config

C = TypeVar("C", bound=Config)


def parse(
    model: type[C], folder: str, argv: Sequence[str], prog: str, description: str, default: str, **common: Any
) -> tuple[C, dict[str, Any]]:
    """Return the settings of ``--config NAME`` with the command line's own settings in place, and the common options.

    Args:
        model: the settings; every field is an option (``--cohort.train 300``).
        folder: of ``configs/``.
        argv: the words after the command.
        prog: the command, for ``--help``.
        description: one line, for ``--help``.
        default: configuration taken when the user names none.
        common: options beside the settings: name → (type, default, help).

    Raises:
        BadInput: no such configuration, or a bad value in it.
        SystemExit: ``--help`` (0), or an unknown or bad option (2).
    """
    import argparse

    import tyro

    first = argparse.ArgumentParser(prog=prog, description=description, add_help=False, allow_abbrev=False)
    first.add_argument("--config", default=default, metavar="NAME", help=f"of configs/{folder}, or a YAML file")
    for name, (kind, value, text) in common.items():
        first.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"{text} (default: {value})")
    if any(word in ("-h", "--help") for word in argv):
        print(first.format_help())
        print("every setting of the configuration is an option too:\n")
    known, rest = first.parse_known_args(list(argv))
    settings = load_config(model, known.config, folder)
    with redirect_stdout(sys.stderr) if not any(w in ("-h", "--help") for w in argv) else redirect_stdout(sys.stdout):
        resolved = tyro.cli(
            model, default=settings, args=rest, prog=prog, config=(tyro.conf.HelptextFromCommentsOff,)
        )
    return resolved, {name: getattr(known, name) for name in common}
