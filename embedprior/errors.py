"""The one exception family, and the words it is put in.

A message says what was given, what is allowed, the nearest match, and the next command.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class EmbedpriorError(Exception):
    """Anything embedprior refuses or fails to do. ``exit_code`` is what the command line returns."""

    exit_code = 1


class BadInput(EmbedpriorError):
    """The input can't be used; nothing was written. Exit code 2."""

    exit_code = 2


DONE, NEEDS_ATTENTION = 0, 3


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest allowed name, or an empty string."""
    match = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def choose(what: str, given: str, allowed: Mapping[str, T]) -> T:
    """Look ``given`` up in ``allowed``.

    Raises:
        BadInput: it is not there; the message lists what is, and the nearest match.
    """
    if given not in allowed:
        raise BadInput(f"unknown {what} '{given}'. Allowed: {', '.join(sorted(allowed))}.{nearest(given, allowed)}")
    return allowed[given]


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        BadInput: it is not installed; the message gives the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BadInput(f"'{module}' is not installed. Next: pip install 'embedprior[{extra}]'") from error
