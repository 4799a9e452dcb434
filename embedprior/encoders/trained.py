"""Encoders that were trained here on labels and then frozen (phase A of the PE paper), read back from their folder.

Two kinds: a network whose every weight was trained, and a sequence model over the slice tokens of a network that stays
as it was. ``teachers.encoder`` trains both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from embedprior.config import Config
from embedprior.encoders.base import Encoder, EncoderSpec, TokenEncoder, differing_field
from embedprior.encoders.config import Precision
from embedprior.encoders.frozen import Arrays, FrozenEncoder, keep_volumes
from embedprior.encoders.registry import SETTINGS, create_encoder
from embedprior.errors import BadInput
from embedprior.nn.config import SequenceShape
from embedprior.nn.sequence import SequenceModel, embed
from embedprior.runs import read_json
from embedprior.runs.integrity import read_sealed, write_sealed
from embedprior.weights import load_strictly, read_tensors, without_prefix

WEIGHTS = "encoder.safetensors"
BODY, HEAD = "body.", "head."
FORMAT = 1
NEXT = "Next: embedprior train encoder"


class TrainedRecord(Config):
    """What ``encoder.json`` says of a trained encoder.

    Attributes:
        format: of the folder.
        kind: see ``TrainEncoderConfig``.
        encoder: registry name of the network it was trained from.
        options: of that network.
        base: provenance of that network as it was before training.
        label: what it was trained on.
        sequence: shape of the sequence model, for kind ``sequence``.
        patients: part (``train``, ``val``) → patients whose exams trained the weights, or chose them.
        weights_sha256: of ``encoder.safetensors``.
        fingerprint: data and settings of the training, by name.
    """

    format: int = FORMAT
    kind: Literal["network", "sequence"]
    encoder: str
    options: dict[str, Any] = Field(default_factory=dict)
    base: EncoderSpec
    label: str
    sequence: SequenceShape | None = None
    patients: dict[str, tuple[str, ...]]
    weights_sha256: str
    fingerprint: dict[str, str]

    def spec(self, base: EncoderSpec, folder: Path) -> EncoderSpec:
        """Return the provenance of the trained encoder.

        Args:
            base: of the network it is built on, as it is now.
            folder: it lies in.
        """
        seen = {patient for ids in self.patients.values() for patient in ids} | set(base.patients_seen or ())
        own: dict[str, Any] = {
            "name": re.sub(r"[^\w.-]+", "-", f"{base.name}-{self.label}"),
            "source": f"embedprior train encoder ({folder.name}), from {self.base.name}",
            "weights_sha256": self.weights_sha256,
            "patients_seen": tuple(sorted(seen)),
        }
        if self.sequence is not None:
            tokens = {"encoder": base.name, "weights_sha256": base.weights_sha256}
            own |= {
                "dim": self.sequence.dim, "token_dim": None, "profile": base.profile | {"tokens": tokens},
                "pooling": f"{self.sequence.cell}, {self.sequence.pool}",
            }  # fmt: skip
        return base.model_copy(update=own)


class SequenceEncoder:
    """CT volume → slice tokens of a frozen network → one embedding by a trained sequence model.

    Args:
        base: gives the tokens.
        model: the sequence model.
        spec: provenance of the whole.
    """

    def __init__(self, base: Encoder, model: SequenceModel, spec: EncoderSpec) -> None:
        self._base, self._model, self.spec = base, model.eval().requires_grad_(False), spec
        self.ragged = bool(getattr(base, "ragged", False))

    def read(self, root: Path | str, path: str) -> np.ndarray[Any, Any]:
        """Return one exam as the base encoder reads it.

        Raises:
            UnreadableExam: damaged, or an exam of another kind.
        """
        return self._base.read(root, path)

    def keep_volumes(self, folder: Path | str) -> None:
        """Keep every preprocessed volume in a folder; see ``FrozenEncoder.keep_volumes``.

        Raises:
            BadInput: the base encoder can't.
        """
        keep_volumes(self._base, folder)

    def embed(self, batch: Arrays) -> Float[np.ndarray, "batch dim"]:
        """Return one embedding an exam of a batch of what ``read`` returns."""
        assert isinstance(self._base, TokenEncoder)
        return embed(self._model, self._base.tokens(batch))  # type: ignore[arg-type]


def read_trained(folder: Path | str) -> TrainedRecord:
    """Return what a folder says of the encoder in it; every byte of its files is checked.

    Raises:
        BadInput: no trained encoder there, one of another kind or format, or damaged.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise BadInput(f"{folder} holds no trained encoder ({SETTINGS} is missing). {NEXT}")
    if "kind" not in read_json(folder / SETTINGS):
        raise BadInput(
            f"{folder} holds the weights of a small encoder. Next: --encoder slice-cnn or radiograph-cnn, --weights DIR"
        )
    found = read_sealed(folder, SETTINGS, "encoder", FORMAT, "embedprior train encoder again")
    return TrainedRecord.model_validate({name: found[name] for name in TrainedRecord.model_fields if name in found})


def write_trained(
    folder: Path, record: Mapping[str, Any], body: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> None:
    """Write the weights, then ``encoder.json``, which marks completion and holds the checksums of both.

    Args:
        folder: made when it is not there.
        record: fields of ``TrainedRecord``; the hash of the weights is added.
        body: tensors of the network or the sequence model.
        head: tensors of the classifier that it was trained with; an encoder does without it.
    """
    tensors = {f"{BODY}{n}": v for n, v in body.items()} | {f"{HEAD}{n}": v for n, v in head.items()}
    stored = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    made = TrainedRecord.model_validate({**record, "weights_sha256": hashlib.sha256(stored).hexdigest()})
    write_sealed(folder, SETTINGS, made.model_dump(mode="json"), lambda work: (work / WEIGHTS).write_bytes(stored))


def trained_encoder(
    model: str, weights: Path | str | None = None, precision: Precision | None = None, device: str | None = None
) -> Encoder:
    """Return the encoder in a folder that ``embedprior train encoder`` wrote.

    Args:
        model: the folder.
        weights: of the network under a sequence model, where they have moved; they must be the same file.
        precision, device: see ``FrozenEncoder``; None = as in training, on the CPU.

    Raises:
        BadInput: no such folder, a damaged one, or a network that reads exams in another way than in training.
    """
    folder = Path(model)
    record = read_trained(folder)
    options = {"precision": precision, "device": device, "weights": weights}
    base = base_encoder(record.encoder, record.options, record.kind == "network", options)
    differing = differing_field(base.spec.profile, record.base.profile)
    if differing is None and record.kind == "sequence" and base.spec.weights_sha256 != record.base.weights_sha256:
        differing = "weights_sha256", base.spec.weights_sha256, record.base.weights_sha256
    if differing is not None:
        field, now, then = differing
        raise BadInput(
            f"{folder}: '{record.encoder}' is not what this encoder was trained on: {field} is {now!r}, was {then!r}. "
            "Next: the same weights and version, or train it again"
        )
    stored = read_tensors(folder / WEIGHTS, f"{NEXT} again")
    body = without_prefix({n: v for n, v in stored.items() if n.startswith(BODY)}, (BODY,))
    spec = record.spec(base.spec, folder)
    if record.sequence is not None:
        sequence = SequenceModel(int(record.base.token_dim or 0), record.sequence)
        load_strictly(sequence, body, WEIGHTS, "the sequence model")
        return SequenceEncoder(base, sequence, spec)
    assert isinstance(base, FrozenEncoder)
    load_strictly(base.backbone.module, body, WEIGHTS, record.encoder)
    base.spec = spec
    return base


def base_encoder(
    name: str, options: Mapping[str, Any], random_init: bool, more: Mapping[str, Any] | None = None
) -> Encoder:
    """Return the network that an encoder is trained from.

    Args:
        name: of the registry.
        options: of the encoder.
        random_init: its weights are about to be replaced: none are looked for.
        more: further options; those that are None are left out.

    Raises:
        BadInput: see ``create_encoder``.
    """
    given = dict(options) | {key: value for key, value in (more or {}).items() if value is not None}
    if random_init:
        given = {key: value for key, value in given.items() if key != "weights"} | {"random_init": True}
    return create_encoder(name, **given)
