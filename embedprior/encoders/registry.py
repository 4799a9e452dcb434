"""Encoders by name. An entry is an import string, resolved only when the encoder is used."""

from __future__ import annotations

import importlib
from typing import Any, cast

from embedprior.encoders.base import Encoder
from embedprior.errors import choose

ENCODERS = {
    "efficientnet-lite0": "embedprior.encoders.timm_lite:EfficientNetLite0",
    "slice-cnn": "embedprior.encoders.small_cnn:SliceEncoder",
    "radiograph-cnn": "embedprior.encoders.small_cnn:RadiographEncoder",
}


def create_encoder(name: str, **options: Any) -> Encoder:
    """Return a frozen encoder.

    Args:
        name: one of ``ENCODERS``.
        options: what the encoder takes, such as ``weights`` (a local path).

    Raises:
        BadInput: unknown name, missing weights or a missing extra.
    """
    module, _, attribute = choose("encoder", name, ENCODERS).partition(":")
    return cast(Encoder, getattr(importlib.import_module(module), attribute)(**options))
