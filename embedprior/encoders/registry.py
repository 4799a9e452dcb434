"""Encoders by name. An entry is an import string, resolved only when the encoder is used."""

from __future__ import annotations

import fnmatch
import importlib.util
import inspect
from pathlib import Path
from typing import Any, cast

from embedprior.encoders.base import Encoder, EncoderCard
from embedprior.errors import BadInput, choose, nearest
from embedprior.registry import Registry, resolve
from embedprior.weights import find_weights

_HERE, TRAINED = "embedprior.encoders", "trained"
ENCODERS = {
    "biomedclip": f"{_HERE}.pictures:BiomedClip",
    "chest-ct-resnet152": f"{_HERE}.volumes:ChestResNet152",
    "dinov2-vitb14": f"{_HERE}.dinov2:DinoV2Base",
    "dinov2-vitb14-reg": f"{_HERE}.dinov2:DinoV2BaseReg",
    "dinov2-vitg14": f"{_HERE}.dinov2:DinoV2Giant",
    "dinov2-vitg14-reg": f"{_HERE}.dinov2:DinoV2GiantReg",
    "dinov2-vitl14": f"{_HERE}.dinov2:DinoV2Large",
    "dinov2-vitl14-reg": f"{_HERE}.dinov2:DinoV2LargeReg",
    "dinov2-vits14": f"{_HERE}.dinov2:DinoV2Small",
    "dinov2-vits14-reg": f"{_HERE}.dinov2:DinoV2SmallReg",
    "efficientnet-lite0": f"{_HERE}.pictures:EfficientNetLite0",
    "merlin": f"{_HERE}.volumes:Merlin",
    "penet": f"{_HERE}.volumes:PenetEncoder",
    "pixels-128": f"{_HERE}.pixels:Pixels128",
    "radimagenet-resnet50": f"{_HERE}.pictures:RadImageNet",
    "radiograph-cnn": f"{_HERE}.small_cnn:RadiographEncoder",
    "slice-cnn": f"{_HERE}.small_cnn:SliceEncoder",
    "vit-b16": f"{_HERE}.pictures:VitB16",
}
LOADERS = {
    "hf": f"{_HERE}.loaders:HuggingFaceEncoder",
    "hf-text": f"{_HERE}.text:HuggingFaceText",
    "open_clip": f"{_HERE}.loaders:OpenClipEncoder",
    "open_clip-text": f"{_HERE}.text:OpenClipText",
    "timm": f"{_HERE}.loaders:TimmEncoder",
    "torchhub": f"{_HERE}.loaders:TorchHubEncoder",
    TRAINED: f"{_HERE}.trained:trained_encoder",
    "txrv": f"{_HERE}.loaders:TorchXrayEncoder",
}
"""``LOADER:NAME``: any network of another library, by its name there; ``trained:FOLDER``: one that was trained here."""
SETTINGS = "encoder.json"
"""Of a trained encoder, in its folder."""
REGISTRY = Registry("encoder", "embedprior.encoders", ENCODERS)


def list_encoders(pattern: str = "*") -> list[str]:
    """Return the names of the encoders, sorted: those shipped and those of installed packages.

    Args:
        pattern: a name, or one with wildcards (``*``, ``?``), as in ``timm.list_models``.

    Raises:
        BadInput: no encoder has such a name; the nearest match is named. Or a name is registered twice.

    Example:
        >>> import embedprior
        >>> "efficientnet-lite0" in embedprior.list_encoders()
        True
        >>> embedprior.list_encoders("pixels*")
        ['pixels-128']
    """
    names = sorted(REGISTRY.names())
    found = fnmatch.filter(names, pattern)
    if not found:
        raise BadInput(f"no encoder is named '{pattern}'. Allowed: {', '.join(names)}.{nearest(pattern, names)}")
    return found


def create_encoder(name: str, **options: Any) -> Encoder:
    """Return a frozen encoder with its preprocessing: ``read`` decodes an exam, ``embed`` embeds a batch of them.

    Args:
        name: one of ``list_encoders()``; ``LOADER:NAME`` for any network of timm, open_clip, torchxrayvision, a
            ``torch.hub`` repository or a folder of the Hugging Face hub (``"timm:vit_small_patch16_224"``); or the
            folder of an encoder that was trained here (``embedprior train encoder``).
        options: what the encoder takes, such as ``weights`` (a local path), ``geometry`` or ``device``.

    Raises:
        BadInput: unknown name, an option it does not take, missing weights or a missing extra.

    Example:
        >>> import embedprior
        >>> encoder = embedprior.create_encoder("pixels-128", geometry="crop")
        >>> encoder.spec.dim, encoder.spec.modality
        (16384, 'image')
        >>> import numpy as np
        >>> encoder.embed(np.zeros((2, 128, 128), np.uint8)).shape
        (2, 16384)
    """
    if (name not in REGISTRY.names() and (Path(name) / SETTINGS).is_file()) or Path(name).name == SETTINGS:
        name = f"{TRAINED}:{Path(name).parent if Path(name).name == SETTINGS else name}"
    made = _implementation(name)
    if ":" in name:
        options["model"] = name.partition(":")[2]
    takes = inspect.signature(made).parameters
    for option in options:
        if option not in takes:
            allowed = ", ".join(sorted(takes)) or "(none)"
            raise BadInput(f"encoder '{name}' has no option '{option}'. Allowed: {allowed}.{nearest(option, takes)}")
    for option, parameter in takes.items():
        if parameter.default is parameter.empty and option not in options:
            raise BadInput(f"encoder '{name}' needs '{option}'. Next: --{option} PATH (from Python: {option}=...)")
    return cast(Encoder, made(**options))


def encoder_card(name: str) -> EncoderCard | None:
    """Return what an encoder says of itself without its weights, or None when it says nothing.

    Raises:
        BadInput: unknown name.
    """
    card = getattr(_implementation(name), "card", None)
    return card if isinstance(card, EncoderCard) else None


def weights_status(name: str) -> str:
    """Return whether an encoder's weights are here: ``none needed``, ``here (FILE or package)`` or ``not here``.

    Raises:
        BadInput: unknown name.
    """
    card = encoder_card(name)
    if card is None:
        return "unknown"
    if card.weights == "none needed":
        return card.weights
    if card.module and importlib.util.find_spec(card.module) is not None:
        return f"here ({card.weights})"
    try:
        return f"here ({find_weights(name, None, card.command).name})"
    except BadInput:
        return "not here"


def _implementation(name: str) -> Any:
    loader, colon, _ = name.partition(":")
    return resolve(choose("loader", loader, LOADERS)) if colon else REGISTRY.load(name)
