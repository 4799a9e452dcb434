"""A prior on disk: ``prior.safetensors`` and ``prior.json``. No pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.prior.config import PriorConfig
from embedprior.prior.model import DESCRIPTION, WEIGHTS, Prior, new_network
from embedprior.prior.regression import Regression
from embedprior.prior.scaling import Standardiser
from embedprior.prior.variance import VarianceTable
from embedprior.runs import read_json, write_json

FORMAT = 1


def write_prior(prior: Prior, folder: Path) -> None:
    """Write the weights, then ``prior.json``, which marks completion."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, NDArray[np.generic]] = {
        f"network.{name}": value.detach().float().cpu().numpy() for name, value in prior.network.state_dict().items()
    }
    for name, scaler in {"target": prior.target_scaler, **prior.condition_scalers}.items():
        tensors |= {f"scaler.{name}.mean": scaler.mean, f"scaler.{name}.scale": scaler.scale}
    for name, fitted in prior.regressions.items():
        tensors |= {f"regression.{name}.weights": fitted.weights, f"regression.{name}.offset": fitted.offset}
    description = {
        "format": FORMAT,
        "config": prior.config,
        "condition_dim": prior.network.condition_dim,
        "condition_tokens": len(prior.network.slots),
        "target_dim": prior.network.target_dim,
        "sources": sorted(prior.condition_scalers),
        "regressions": sorted(prior.regressions),
        "encoders": list(prior.encoders),
        "parameters": prior.network.parameter_count(),
        "caveats": prior.caveats(),
        "variance": None,
    }
    if prior.variance is not None:
        table = prior.variance
        tensors |= {"variance.nodes": table.nodes, "variance.error": table.error, "variance.spread": table.spread}
        description["variance"] = {
            "guidance": table.guidance,
            "weights": "ema",
            "schedule": prior.config.process.schedule,
            "measured_on": "validation",
        }
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / WEIGHTS)
    write_json(folder / DESCRIPTION, description)


def read_prior(folder: Path, device: str | torch.device) -> Prior:
    """Return the prior saved in ``folder``; see ``Prior.load``."""
    if not (folder / DESCRIPTION).is_file():
        raise BadInput(f"{folder} holds no trained prior ({DESCRIPTION} is missing). Next: train_prior.py")
    description = read_json(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise BadInput(f"{folder}: prior format {description.get('format')}. Allowed: {FORMAT}.")
    config = parse_config(PriorConfig, description["config"], str(folder / DESCRIPTION))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder / WEIGHTS} can't be read: {error}") from error
    network = new_network(
        config, description["condition_dim"], description["target_dim"], description["condition_tokens"]
    )
    prefix = "network."
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise BadInput(f"{folder / WEIGHTS} does not fit its {DESCRIPTION}: {str(error)[:300]}") from error

    def scaler(name: str) -> Standardiser:
        return Standardiser(tensors[f"scaler.{name}.mean"], tensors[f"scaler.{name}.scale"])

    def regression(name: str) -> Regression:
        return Regression(tensors[f"regression.{name}.weights"], tensors[f"regression.{name}.offset"])

    table = description["variance"]
    return Prior(
        config=config,
        network=network.eval().to(device),
        target_scaler=scaler("target"),
        condition_scalers={name: scaler(name) for name in description["sources"]},
        variance=None
        if table is None
        else VarianceTable(
            tensors["variance.nodes"], tensors["variance.error"], tensors["variance.spread"], table["guidance"]
        ),
        encoders=(description["encoders"][0], description["encoders"][1]),
        regressions={name: regression(name) for name in description.get("regressions", ())},
    )
