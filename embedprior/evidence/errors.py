"""The one exception of the statistics package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvidenceError(ValueError):
    """Predictions that cannot be evaluated as they are: the message names the rows and the way out."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``allowed``, or an empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
