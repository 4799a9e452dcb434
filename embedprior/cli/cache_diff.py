"""``embedprior cache diff``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HELP = "how two caches differ: key, exams, numbers"


def main(argv: Sequence[str]) -> int:
    """Compare two caches; returns 0 when they are the same, 3 when they differ.

    Raises:
        BadInput: no cache there, or a damaged one.
    """
    p = argparse.ArgumentParser(
        prog="embedprior cache diff", description=HELP + ".", allow_abbrev=False,
        epilog="exit codes: 0 the same, 3 they differ.",
    )  # fmt: skip
    p.add_argument("left", type=Path)
    p.add_argument("right", type=Path)
    options = p.parse_args(argv)
    from embedprior.cache.reader import open_cache
    from embedprior.cache.verify import diff
    from embedprior.errors import DONE, NEEDS_ATTENTION

    left, right = open_cache(options.left), open_cache(options.right)
    found = diff(left, right)
    if found.field is not None:
        name, ours, theirs = found.field
        print(f"key: {name} is {ours!r:.60} on the left, {theirs!r:.60} on the right")
    for what, exams in (
        ("exams only on the left", found.only_left),
        ("exams only on the right", found.only_right),
        ("exams made from another file", found.other_source),
        ("exams with other numbers", found.other_rows),
    ):
        if exams:
            print(f"{what}: {len(exams)} ({', '.join(exams[:5])}{', …' if len(exams) > 5 else ''})")
    if found.largest:
        print(f"largest difference of a number: {found.largest:.3g}")
    print("the same" if found.same else "they differ", f"({len(left.ids)} and {len(right.ids)} exams)")
    return DONE if found.same else NEEDS_ATTENTION
