"""Encoders by name. An entry is an import string, resolved only when the encoder is used."""

from __future__ import annotations

import inspect
from typing import Any, cast

from embedprior.encoders.base import Encoder, EncoderCard
from embedprior.errors import BadInput, nearest
from embedprior.registry import Registry

ENCODERS = {
    "efficientnet-lite0": "embedprior.encoders.timm_lite:EfficientNetLite0",
    "pixels-128": "embedprior.encoders.pixels:Pixels128",
    "radiograph-cnn": "embedprior.encoders.small_cnn:RadiographEncoder",
    "slice-cnn": "embedprior.encoders.small_cnn:SliceEncoder",
    "vit-b16": "embedprior.encoders.vit:VitB16",
}
REGISTRY = Registry("encoder", "embedprior.encoders", ENCODERS)


def encoder_names() -> list[str]:
    """Return the name of every encoder, sorted: those shipped, and those of installed packages.

    Raises:
        BadInput: a name is registered twice.
    """
    return sorted(REGISTRY.names())


def create_encoder(name: str, **options: Any) -> Encoder:
    """Return a frozen encoder.

    Args:
        name: one of ``encoder_names()``.
        options: what the encoder takes, such as ``weights`` (a local path).

    Raises:
        BadInput: unknown name, an option it does not take, missing weights or a missing extra.
    """
    made = REGISTRY.load(name)
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
    card = getattr(REGISTRY.load(name), "card", None)
    return card if isinstance(card, EncoderCard) else None
