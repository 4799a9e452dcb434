"""``embedprior cache ls``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

HELP = "caches and artifacts under a folder, their size, and how many runs use them"


def main(argv: Sequence[str]) -> int:
    """Print the list; returns the exit code.

    Raises:
        BadInput: no such folder.
    """
    home = os.environ.get("EMBEDPRIOR_HOME")
    default = Path(home) / "artifacts" if home else Path("runs")
    p = argparse.ArgumentParser(
        prog="embedprior cache ls", description=HELP + ".", allow_abbrev=False,
        epilog="Nothing is deleted. Runs are found under the folder, and by the notes that runs elsewhere left there.",
    )  # fmt: skip
    p.add_argument("folder", type=Path, nargs="?", default=default, help=f"default: {default}")
    p.add_argument("--unused", action="store_true", help="only what no run uses any more")
    options = p.parse_args(argv)
    from embedprior.cache.provenance import listing

    items = [item for item in listing(options.folder) if not (options.unused and item.users)]
    rows = [("kind", "used by", "MB", "what", "where")]
    for item in items:
        users = f"{len(item.users)} run{'s' if len(item.users) != 1 else ''}" if item.users else "nothing"
        where = item.path.relative_to(options.folder).as_posix()
        rows.append((item.kind, users, f"{item.size / 1e6:.1f}", item.detail, where))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if items else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    total = sum(item.size for item in items) / 1e6
    print(f"{len(items)} items, {total:.1f} MB" + (" that no run under this folder uses" if options.unused else ""))
    return 0
