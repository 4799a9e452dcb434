"""``embedprior encoders``: what can embed an exam."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

HELP = "the frozen encoders: what they read, what they give, their weights and licences"


def main(argv: Sequence[str]) -> int:
    """Print the registry; returns the exit code."""
    argparse.ArgumentParser(
        prog="embedprior encoders", description=HELP + ".", allow_abbrev=False,
        epilog="Installed packages add encoders by the entry point 'embedprior.encoders'.",
    ).parse_args(argv)  # fmt: skip
    from embedprior.encoders.registry import encoder_card, encoders

    rows = [("name", "reads", "dim", "tokens", "weights", "licence")]
    for name in encoders():
        card = encoder_card(name)
        if card is None:
            rows.append((name, "?", "?", "?", "?", "?"))
        else:
            rows.append((name, card.modality, str(card.dim), card.tokens or "none", card.weights, card.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
