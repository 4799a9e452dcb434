"""Encoders, methods, DRR renderers and cohort sources by name: those shipped, and those of installed packages.

A registry holds a name and an import string, nothing else. Names are listed without importing what stands behind them;
an implementation is imported when it is asked for, and what is to be known about it is read from it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from embedprior.errors import BadInput, nearest

PACKAGE = "embedprior"


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        name: what users type.
        target: import string, ``"package.module:attribute"``.
        package: the installed package that registers it.
    """

    name: str
    target: str
    package: str = PACKAGE


class Registry:
    """Names of one kind of thing, from the package itself and from entry points of other installed packages.

    Example:
        >>> tools = Registry("tool", "embedprior.tools", {"sqrt": "math:sqrt"})
        >>> tools.names()
        ['sqrt']
        >>> tools.load("sqrt")(9.0)
        3.0
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str]) -> None:
        """Describe the registry; nothing is imported.

        Args:
            kind: what the names stand for, for messages (``"encoder"``).
            group: entry-point group that other packages register under (``"embedprior.encoders"``).
            own: import strings of this package, by name.
        """
        self.kind, self.group, self._own = kind, group, own

    def entries(self) -> dict[str, Entry]:
        """Return every entry by name: the package's own in their order, then those of other packages.

        Raises:
            BadInput: a name is registered twice; both packages are named.
        """
        found = {name: Entry(name, target) for name, target in self._own.items()}
        for entry in _installed(self.group, tuple(sys.path)):
            if entry.name in found:
                first = found[entry.name]
                raise BadInput(
                    f"{self.kind} '{entry.name}' is registered twice: by {first.package} ({first.target}) and by "
                    f"{entry.package} ({entry.target}). Next: pip uninstall {entry.package}, or rename its entry point "
                    f"of {self.group}"
                )
            found[entry.name] = entry
        return found

    def names(self) -> list[str]:
        """Return every name.

        Raises:
            BadInput: a name is registered twice.
        """
        return list(self.entries())

    def entry(self, name: str) -> Entry:
        """Return the entry of a name.

        Raises:
            BadInput: unknown name (the nearest one is given), or a name registered twice.
        """
        entries = self.entries()
        if name not in entries:
            allowed = ", ".join(sorted(entries))
            raise BadInput(f"unknown {self.kind} '{name}'. Allowed: {allowed}.{nearest(name, entries)}")
        return entries[name]

    def load(self, name: str) -> Any:
        """Import what stands behind a name.

        Raises:
            BadInput: unknown name, or another package's implementation that can't be imported.
        """
        entry = self.entry(name)
        try:
            return resolve(entry.target)
        except Exception as error:
            if entry.package == PACKAGE:
                raise
            raise BadInput(
                f"{self.kind} '{name}' of package {entry.package} can't be imported from {entry.target} "
                f"({type(error).__name__}: {error}). Next: repair that package, or pip uninstall {entry.package}"
            ) from error


def resolve(target: str) -> Any:
    """Import what an import string names.

    Example:
        >>> resolve("math:sqrt")(9.0)
        3.0
    """
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[Entry, ...]:
    """Return the entry points of a group; ``path`` is what ``sys.path`` is, so that a change of it is noticed."""
    from importlib import metadata

    points = sorted(metadata.entry_points(group=group), key=lambda point: point.name)
    return tuple(Entry(p.name, p.value, p.dist.name if p.dist is not None else "(unnamed)") for p in points)
