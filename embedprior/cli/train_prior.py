"""``embedprior train prior``: the same command as ``train_prior.py``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Train a diffusion prior; return the exit code. See ``embedprior.prior.main``."""
    from embedprior.prior.main import main as train

    return train(argv)
