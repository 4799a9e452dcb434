"""Command lines of commands that have a configuration: YAML first, then what the user types over it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from embedprior.config import Config, describe, load_config, read_overrides
from embedprior.errors import BadInput

C = TypeVar("C", bound=Config)
DRY_RUN = "say what would be done, and stop"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}. Next: {self.prog} --help")


def parse(
    model: type[C], folder: str, argv: Sequence[str], prog: str, description: str, default: str,
    flags: dict[str, str] | None = None, **common: Any,
) -> tuple[C, dict[str, Any]]:  # fmt: skip
    """Return the settings of ``--config NAME`` with the command line's own settings in place, and the common options.

    Args:
        model: the settings; every field is an option (``--cohort.train 300``).
        folder: of ``configs/``.
        argv: the words after the command.
        prog: the command, for ``--help``.
        description: one line, for ``--help``.
        default: configuration taken when the user names none.
        flags: options without a value: name → help. Beside the common options, False or True.
        common: options beside the settings: name → (type, default, help).

    Raises:
        BadInput: no such configuration, an unknown option, or a bad value.
        SystemExit: ``--help`` was asked for and printed (0).
    """
    first = _Parser(
        prog=prog, description=f"{description}.", allow_abbrev=False, add_help=False,
        usage=f"{prog} [--config NAME|FILE] [OPTIONS] [--SETTING VALUE ...]",
    )  # fmt: skip
    first.add_argument("-h", "--help", action="store_true", help="show this text")
    first.add_argument("--config", default=default, metavar="NAME", help=f"of configs/{folder}, or a YAML file "
                       f"(default: {default})")  # fmt: skip
    for name, (kind, value, text) in common.items():
        shown = "" if value is None else f" (default: {value})"
        first.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=text + shown,
                           metavar=name.upper())  # fmt: skip
    for name, text in (flags or {}).items():
        first.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    known, rest = first.parse_known_args(list(argv))
    if known.help:
        print(first.format_help())
        print(f"every setting of {known.config}.yaml, dotted; a list as [1, 2] or as several words:")
        print(describe(model, load_config(model, known.config, folder)))
        raise SystemExit(0)
    settings = load_config(model, known.config, folder, read_overrides(rest, model, prog))
    return settings, {name: getattr(known, name) for name in (*common, *(flags or {}))}
