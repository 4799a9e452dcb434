"""The command behind ``accelerate launch train_prior.py``: caches and tables in, a trained prior out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from embedprior.config import load_config
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.prior.config import TrainPriorConfig

USAGE = """usage: train_prior.py --config NAME|FILE [--SETTING VALUE ...]

Trains the diffusion prior from embedding caches. NAME is a file in configs/prior/. A stopped training in the
same --out goes on where it stopped. Any setting of the file can be given here, dotted: --prior.training.steps 500

settings:
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code (0 done, 1 failed, 2 bad input and nothing written)."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "\n".join(f"  --{name:<40} {default}" for name, default in settings_of(TrainPriorConfig)))
        return 0
    try:
        _train(*_arguments(argv))
    except EmbedpriorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting as (dotted name, default in words)."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, "required" if field.is_required() else f"default {field.default}"


def _arguments(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    overrides: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            raise BadInput(f"'{word}' was not expected. Allowed: --config NAME|FILE and --SETTING VALUE.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise BadInput(f"--{name} needs a value.")
            value = following
        overrides[name] = value if name == "config" else yaml.safe_load(value)
    if "config" not in overrides:
        raise BadInput("--config is missing. Allowed: a name in configs/prior/ or a YAML file.")
    return overrides.pop("config"), overrides


def _train(name: str, overrides: dict[str, Any]) -> None:
    config = load_config(TrainPriorConfig, name, "prior", overrides)
    from embedprior.prior.pairs import read_pairs

    train, val, inputs = read_pairs(config)
    from embedprior.prior.training import train_prior
    from embedprior.runs import canonical, versions, write_json

    out = Path(config.out)
    prior = train_prior(train, val, config.prior, out, None if config.init_from is None else Path(config.init_from))
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_rank() != 0:
        return
    write_json(
        out / "run.json",
        {
            "command": "train_prior.py",
            "config": canonical(config),
            "inputs": inputs,
            "pairs": {"train": len(train), "val": len(val)},
            "parameters": prior.network.parameter_count(),
            "versions": versions(),
        },
    )
    print(f"{out}: a prior of {prior.network.parameter_count() / 1e6:.2f} M parameters, from {len(train)} pairs")
