"""What an encoder is, and the key its cache is named by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from embedprior.config import Config
from embedprior.errors import BadInput
from embedprior.runs import hash_of

CACHE_FORMAT = 2

Dtype = Literal["float32", "float16", "bfloat16", "uint8"]


class EncoderSpec(Config):
    """Provenance of an encoder.

    Attributes:
        name: registry name.
        modality: what it reads: ``"CXR"`` (radiographs and DRRs), ``"CT"`` (volumes), ``"image"`` (any 2D picture, key
            slices included) or ``"REPORT"`` (text files).
        dim: length of the embedding.
        source: where the weights come from.
        weights_sha256: hash of the weights themselves, or ``"none"``.
        licence: licence of the weights.
        profile: every preprocessing number, and the ``transform_version`` of the code that applies it.
        dtype: of the stored embedding.
        pooling: how tokens become one vector.
        precision: of the arithmetic, a name of ``encoders.config.Precision``.
        token_dim: length of one token; None when the encoder gives no tokens.
        patients_seen: every patient whose exams trained the weights or chose them; None = trained elsewhere.
        pretraining: public data sets that trained the weights, where it is known: do not test on them.
    """

    name: str
    modality: str
    dim: int
    source: str
    weights_sha256: str
    licence: str
    profile: dict[str, Any]
    dtype: Dtype = "float32"
    pooling: str
    precision: str = "fp32"
    token_dim: int | None = None
    patients_seen: tuple[str, ...] | None = None
    pretraining: str = ""


@dataclass(frozen=True)
class EncoderCard:
    """What ``embedprior encoders`` says of an encoder without loading its weights.

    Attributes:
        modality: see ``EncoderSpec``.
        dim: length of the embedding, or words when it depends on the weights.
        tokens: what its tokens are; empty when it gives none.
        weights: where the weights come from.
        licence: licence of the weights.
        command: that gets the weights; empty where none are needed, or they are the user's own.
        module: of a package that brings them; empty for files.
    """

    modality: str
    dim: int | str
    tokens: str
    weights: str
    licence: str
    command: str = ""
    module: str = ""


class Encoder(Protocol):
    """A frozen network with its preprocessing.

    One whose exams are arrays of unlike length (slices of a CT) may say ``ragged = True``: its ``embed`` and ``tokens``
    then also take a list of arrays, so that several short exams fill a batch of the network.
    """

    @property
    def spec(self) -> EncoderSpec:
        """Its provenance."""

    def read(self, root: Path | str, path: str) -> np.ndarray[Any, Any]:
        """Decode and preprocess one exam. Runs in worker processes: it must not touch the network's weights.

        Raises:
            UnreadableExam: the file is damaged or not what it should be.
        """

    def embed(self, batch: np.ndarray[Any, Any]) -> Float[np.ndarray, "batch dim"]:
        """Embed a batch of what ``read`` returns, all of one shape."""


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder that also gives what it pools: slice or patch tokens."""

    def tokens(self, batch: np.ndarray[Any, Any]) -> list[Float[np.ndarray, "tokens token_dim"]]:
        """Return the tokens of each exam of a batch of what ``read`` returns."""


def encoder_key(spec: EncoderSpec, tokens: bool = False) -> dict[str, Any]:
    """Return everything an embedding depends on; two caches may be mixed only when these are equal.

    Args:
        spec: of the encoder.
        tokens: the key of its token cache instead.
    """
    return {
        "encoder": spec.name,
        "weights_sha256": spec.weights_sha256,
        "profile": spec.profile,
        "precision": spec.precision,
        "dtype": spec.dtype,
        "output": "tokens" if tokens else "embedding",
        "pooling": "none" if tokens else spec.pooling,
        "dim": spec.token_dim if tokens else spec.dim,
        "format": CACHE_FORMAT,
    }


def refuse_seen_patients(what: str, seen: Iterable[str] | None, patients: Iterable[str], part: str) -> None:
    """Check that no patient of a part trained an encoder or chose its weights.

    Args:
        what: the encoder, for the message.
        seen: patients whom its training saw; None = trained elsewhere.
        patients: of the part.
        part: its name.

    Raises:
        BadInput: some did; they are counted and the first is named.
    """
    both = sorted(set(seen or ()) & set(patients))
    if both:
        raise BadInput(
            f"{what} was trained on {len(both)} patients of part '{part}' (such as '{both[0]}'). Next: train it on the "
            "training part of this split (embedprior train encoder)"
        )


def key8(key: dict[str, Any]) -> str:
    """Return the short hash in a cache folder's name."""
    return hash_of(key)[:8]


def differing_field(have: Mapping[str, Any], want: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first field in which two keys differ (``"profile.side"``), with both values; None when equal.

    Fields of a preprocessing profile come first: when the profile differs, so may what follows from it.
    """
    for name in sorted({*have, *want}, key=lambda n: (n != "profile", n)):
        left, right = have.get(name), want.get(name)
        if left == right:
            continue
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            inner = differing_field(left, right)
            if inner is not None:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        return name, left, right
    return None
