"""``embedprior verify``: is what lies on disk what was written."""

from __future__ import annotations

from pathlib import Path

from click import argument

from embedprior.cli.options import PATH, command
from embedprior.errors import DONE, NEEDS_ATTENTION


@command(epilog="Exit code 3: something was found. A study, run again, makes damaged artifacts anew; embed, run "
         "again, computes damaged embeddings.")  # fmt: skip
@argument("folder", type=PATH, help="of a run, cache, artifact, prior, student or bundle, or one that holds some")
def verify(folder: Path) -> int:
    """Check everything under a folder; return 0 when it is whole, 3 when something was found.

    Raises:
        BadInput: no such folder, or nothing there that carries checksums.
    """
    from embedprior.cache.audit import verify_folder

    count = damaged = 0
    for one in verify_folder(folder):
        count += 1
        damaged += bool(one.problems)
        for problem in one.problems:
            print(f"{one.kind} {one.path}: {problem}")
    print(f"{count} folders with checksums read, {damaged} with problems")
    return NEEDS_ATTENTION if damaged else DONE
