"""``embedprior cache verify``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HELP = "read every byte of a cache and name what is damaged, missing or foreign"


def main(argv: Sequence[str]) -> int:
    """Check one cache; returns 0 when it is whole, 3 when something was found.

    Raises:
        BadInput: no cache there.
    """
    p = argparse.ArgumentParser(
        prog="embedprior cache verify", description=HELP + ".", allow_abbrev=False,
        epilog="exit codes: 0 whole, 3 something was found. Running the same embed command again mends just that.",
    )  # fmt: skip
    p.add_argument("cache", type=Path, help="<encoder>@<key>/, or the folder above it")
    options = p.parse_args(argv)
    from embedprior.cache.format import read_pointer, shard_files
    from embedprior.cache.verify import inspect
    from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

    pointed = read_pointer(options.cache)
    folder = pointed[0] if pointed is not None else options.cache
    if "@" not in folder.resolve().name:
        raise BadInput(f"no embedding cache at {options.cache}. Next: embedprior cache ls {options.cache}")
    found = inspect(folder)
    for one in found:
        print(f"{one.kind:<9} {one.file}: {one.reason}")
    print(f"{folder.name}: shards read: {len(shard_files(folder))}, problems: {len(found)}")
    if found:
        print("Next: run the same embed command again; it computes what is damaged or missing, and moves foreign files "
              "to quarantine/")  # fmt: skip
    return NEEDS_ATTENTION if found else DONE
