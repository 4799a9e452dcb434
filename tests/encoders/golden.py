"""Fixed inputs and fixed weights for golden vectors: formulas, so that nothing has to be stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from embedprior.encoders.base import Encoder
from embedprior.encoders.config import CnnConfig
from embedprior.encoders.frozen import FrozenEncoder
from embedprior.encoders.registry import create_encoder
from embedprior.encoders.small_cnn import SmallCnn, ct_profile, radiograph_profile, save_small_cnn

SIDE = 40


def picture(height: int = 300, width: int = 420) -> np.ndarray:
    """A picture that is not symmetric, has edges and is not square; values in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width] / 300.0
    grey = 0.5 + 0.3 * np.sin(9 * x + 4 * y * y) + 0.2 * (((x - 0.5) ** 2 + (y - 0.6) ** 2) < 0.06)
    return np.clip(grey, 0, 1).astype(np.float32)


def volume() -> np.ndarray:
    """A volume in HU of seven slices."""
    z, y, x = np.mgrid[0:7, 0:SIDE, 0:SIDE].astype(np.float32)
    return (600 * np.sin(0.3 * x + 0.7 * z) * np.cos(0.11 * y * z) - 300).astype(np.int16)


def write_inputs(folder: Path) -> dict[str, str]:
    """Write the inputs; return the path of each modality's."""
    Image.fromarray((255 * picture()).round().astype(np.uint8)).save(folder / "image.png")
    small = (255 * picture(SIDE, SIDE)).round().astype(np.uint8)
    Image.fromarray(small).save(folder / "small.png")
    np.save(folder / "volumes.npy", volume()[None])
    return {"image": "image.png", "CXR": "small.png", "CT": "volumes.npy#0"}


def fill_with_sines(network: torch.nn.Module, size: float) -> None:
    """Set every number of a network: what a library draws at random differs between its versions."""
    state = network.state_dict()
    for n, (name, value) in enumerate(sorted(state.items())):
        if value.dtype == torch.float32:
            wave = torch.sin(torch.arange(value.numel(), dtype=torch.float32) * 1.7 + n).reshape(value.shape)
            spread = "running_var" in name or ("norm" in name and name.endswith("weight"))
            state[name] = 1 + 0.1 * wave if spread else size * wave
    network.load_state_dict(state)


def trained(folder: Path, profile: dict[str, Any]) -> Path:
    """Write a small network whose weights are sines."""
    folder.mkdir()
    config = CnnConfig(channels=(4, 8), dim=6, slices="mean and max")
    network = SmallCnn(config).eval()
    fill_with_sines(network, 0.5)
    save_small_cnn(network, config, profile, folder, patients_seen=["p2", "p1", "p2"])
    return folder


def make_encoder(name: str, folder: Path) -> Encoder:
    """Return an encoder whose weights are the same everywhere."""
    if name == "slice-cnn":
        return create_encoder(name, weights=trained(folder / "weights", ct_profile((-1000.0, 400.0), 2)))
    if name == "radiograph-cnn":
        return create_encoder(name, weights=trained(folder / "weights", radiograph_profile((SIDE, SIDE))))
    if name == "vit-b16":
        encoder = create_encoder(name, random_init=True)
        assert isinstance(encoder, FrozenEncoder)
        fill_with_sines(encoder.backbone.module, 0.05)
        return encoder
    return create_encoder(name)


def digest(array: np.ndarray) -> list[float]:
    """Return eight values spread over an array, its mean and its standard deviation."""
    flat = array.reshape(-1).astype(np.float64)
    at = (np.linspace(0.03, 0.97, 8) * (flat.size - 1)).round().astype(int)
    return [*flat[at].tolist(), float(flat.mean()), float(flat.std())]
