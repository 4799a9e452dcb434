"""``embedprior cache export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HELP = "a cache as one .npy with a CSV of its exams, or as parquet"


def main(argv: Sequence[str]) -> int:
    """Export one cache; returns the exit code.

    Raises:
        BadInput: no cache there, an unknown ending, or pyarrow is missing.
    """
    p = argparse.ArgumentParser(prog="embedprior cache export", description=HELP + ".", allow_abbrev=False)
    p.add_argument("cache", type=Path, help="<encoder>@<key>/, or the folder above it")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="FILE.npy or FILE.parquet")
    options = p.parse_args(argv)
    from embedprior.cache.exchange import export_npy, export_parquet
    from embedprior.cache.reader import open_cache
    from embedprior.errors import BadInput
    from embedprior.runs import make_folder

    if options.out.suffix not in (".npy", ".parquet"):
        raise BadInput(f"--out {options.out}. Allowed endings: .npy, .parquet.")
    cache = open_cache(options.cache)
    make_folder(options.out.parent)
    if options.out.suffix == ".npy":
        table = export_npy(cache, options.out)
        print(f"{len(cache.ids)} exams: {options.out} and {table}")
    else:
        export_parquet(cache, options.out)
        print(f"{len(cache.ids)} exams: {options.out}")
    return 0
