"""Seeds, progress and threads of long work."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
QUIET = "EMBEDPRIOR_QUIET"


def seed_for(seed: int, *names: str | int) -> int:
    """Return the seed of one named random stream: the same names give the same stream, others are independent."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def progress(items: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` with a progress bar on standard error (a line every so often when it is not a terminal).

    ``$EMBEDPRIOR_QUIET`` leaves it out; worker processes set it, so that their bars do not write over each other.
    """
    from tqdm import tqdm

    interval, quiet = 0.1 if sys.stderr.isatty() else 15.0, bool(os.environ.get(QUIET))
    yield from tqdm(
        items, desc=desc, total=total, mininterval=interval, maxinterval=2 * interval, leave=True, disable=quiet
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Fit on one thread: these networks are so small that threads cost more than they save, and far more on a
    busy machine; and sums in one order give the same scores on every number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
