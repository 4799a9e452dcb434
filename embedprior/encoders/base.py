"""What an encoder is, and the key its cache is named by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from embedprior.config import Config
from embedprior.runs import hash_of

CACHE_FORMAT = 1


class EncoderSpec(Config):
    """Provenance of an encoder.

    Attributes:
        name: registry name.
        modality: what it reads: ``"CXR"`` (radiographs and DRRs), ``"CT"`` (volumes) or ``"image"`` (any 2D
            picture, key slices included).
        dim: length of the embedding.
        source: where the weights come from.
        weights_sha256: hash of the weights themselves, or ``"none"``.
        licence: licence of the weights.
        profile: every preprocessing number, and the ``transform_version`` of the code that applies it.
        dtype: of the stored embedding.
        pooling: how tokens become one vector.
    """

    name: str
    modality: str
    dim: int
    source: str
    weights_sha256: str
    licence: str
    profile: dict[str, Any]
    dtype: str = "float32"
    pooling: str


class Encoder(Protocol):
    """A frozen network with its preprocessing."""

    @property
    def spec(self) -> EncoderSpec:
        """Its provenance."""

    def read(self, root: Path, path: str) -> np.ndarray[Any, Any]:
        """Decode and preprocess one exam into an array of a fixed shape.

        Raises:
            UnreadableExam: the file is damaged or not what it should be.
        """

    def embed(self, batch: np.ndarray[Any, Any]) -> Float[np.ndarray, "batch dim"]:
        """Embed a batch of what ``read`` returns."""


def encoder_key(spec: EncoderSpec) -> dict[str, Any]:
    """Return everything an embedding depends on; two caches may be mixed only when these are equal."""
    return {
        "encoder": spec.name,
        "weights_sha256": spec.weights_sha256,
        "profile": spec.profile,
        "dtype": spec.dtype,
        "pooling": spec.pooling,
        "dim": spec.dim,
        "format": CACHE_FORMAT,
    }


def key8(key: dict[str, Any]) -> str:
    """Return the short hash in a cache folder's name."""
    return hash_of(key)[:8]
