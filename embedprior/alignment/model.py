"""The trained alignment: a projection for each side, unit vectors out of it, and caches of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Num
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from embedprior.alignment.config import MODALITIES, SIDES, AlignmentConfig, PixelShape, Side
from embedprior.cache import CacheWriter, EmbeddingCache
from embedprior.config import parse_config
from embedprior.encoders.base import EncoderSpec
from embedprior.encoders.config import CnnConfig
from embedprior.encoders.small_cnn import SmallCnn, shift_pictures
from embedprior.errors import BadInput
from embedprior.nn.network import Standardised
from embedprior.nn.sequence import SequenceModel, Tokens, pad
from embedprior.nn.training import contiguous, seeded, tensor
from embedprior.runs import hash_file, hash_of, progress, write_tensors
from embedprior.runs.integrity import read_sealed, write_sealed

if TYPE_CHECKING:
    from embedprior.encoders.frozen import Network

DEFAULT_DIM = 512
MAX_SCALE = 100.0
FORMAT, TRANSFORM_VERSION, BATCH = 1, 1, 1024
DESCRIPTION, WEIGHTS = "alignment.json", "alignment.safetensors"

Kind = Literal["tokens", "pixels"]
Inputs = Num[np.ndarray, "exams inputs"] | Sequence[Tokens]
"""What a side's cache holds: one embedding (or the pixels, as bytes) an exam, or the tokens of each."""


class Projection(Standardised):
    """Standardise → dropout → linear without bias; with ``hidden``, a layer of that width and GELU before it.

    Mean and spread of the training exams are part of the weights, so a constant offset between two encoders costs
    nothing. The published projection has no standardisation.
    """

    def __init__(self, inputs: int, outputs: int, config: AlignmentConfig) -> None:
        super().__init__(inputs)
        first: list[nn.Module] = [nn.Dropout(config.dropout)] if config.dropout else []
        if config.hidden:
            first += [nn.Linear(inputs, config.hidden), nn.GELU()]
        self.layers = nn.Sequential(*first, nn.Linear(config.hidden or inputs, outputs, bias=False))

    def forward(self, inputs: Float[Tensor, "exams inputs"]) -> Float[Tensor, "exams outputs"]:
        """Return the projected embeddings, not yet of length 1."""
        out: Tensor = self.layers(self.standardise(inputs))
        return out


class PixelEncoder(nn.Module):
    """Square pictures, row by row (uint8) → the common space; ``encoders.small_cnn`` from random weights."""

    def __init__(self, pixels: int, outputs: int, shape: PixelShape) -> None:
        super().__init__()
        self.side, self.shift = math.isqrt(pixels), shape.shift
        self.network = SmallCnn(
            CnnConfig(channels=shape.channels, grid=shape.grid, dropout=shape.dropout, dim=outputs, slices="mean")
        )
        self.network.head = nn.Linear(1, 1).requires_grad_(False)  # of labels, which there are none of here

    def forward(self, rows: Tensor) -> Float[Tensor, "exams outputs"]:
        """Return the features, not yet of length 1."""
        pictures = rows.reshape(len(rows), self.side, self.side).float() / 127.5 - 1.0
        return self.network.features(shift_pictures(pictures, self.shift) if self.training else pictures)


class PretrainedPixels(nn.Module):
    """Square pictures, row by row (uint8) → the common space: a pretrained encoder of the registry that is trained on.

    Pictures are scaled as its weights ask for; a linear map without bias follows, as published for X2CT-CLIP.

    Args:
        pixels: of a picture, a square number.
        outputs: length of the common space.
        shape: with ``encoder``.

    Raises:
        BadInput: no such encoder, or one that reads no radiograph by one network.
    """

    def __init__(self, pixels: int, outputs: int, shape: PixelShape) -> None:
        super().__init__()
        self.side, self.shape = math.isqrt(pixels), shape
        network = pretrained_network(shape, random_init=True)
        self.module = network.module.requires_grad_(True)
        self._features: Callable[[Tensor], Tensor] = lambda pictures: network.features(pictures)
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))
        self.head = nn.Sequential(nn.Dropout(shape.dropout), nn.Linear(network.dim, outputs, bias=False))

    def load_pretrained(self) -> None:
        """Take over the encoder's weights.

        Raises:
            BadInput: they are not there.
        """
        self.module.load_state_dict(pretrained_network(self.shape).module.state_dict())

    def train(self, mode: bool = True) -> PretrainedPixels:
        """Set training or evaluation mode; frozen batch normalisation stays in the latter."""
        super().train(mode)
        if self.shape.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, rows: Tensor) -> Float[Tensor, "exams outputs"]:
        """Return the projected features, not yet of length 1."""
        grey = rows.reshape(len(rows), self.side, self.side).float() / 255.0
        pictures = (shift_pictures(grey, self.shape.shift) if self.training else grey)[:, None]
        if self.shape.side is not None:
            size = (self.shape.side, self.shape.side)
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        out: Tensor = self.head(self._features((pictures.expand(-1, mean.shape[1], -1, -1) - mean) / std))
        return out


def pretrained_network(shape: PixelShape, random_init: bool = False) -> Network:
    """Return the network of the encoder that a shape names, with its weights or, to read others in, without.

    Raises:
        BadInput: see ``encoders.registry.create_encoder``; or it is no network that reads a radiograph.
    """
    from embedprior.encoders.frozen import FrozenEncoder
    from embedprior.encoders.registry import create_encoder

    assert shape.encoder is not None
    options = {k: v for k, v in shape.options.items() if k != "weights"} if random_init else shape.options
    encoder = create_encoder(shape.encoder, **{**options, **({"random_init": True} if random_init else {})})
    if not isinstance(encoder, FrozenEncoder) or encoder.reader.parts or encoder.spec.modality == "CT":
        raise BadInput(
            f"pixels.encoder '{shape.encoder}' is no network that reads a radiograph. Next: embedprior encoders; such "
            "as efficientnet-lite0 or timm:resnet18"
        )
    return encoder.backbone


def start_of(shape: PixelShape) -> dict[str, str]:
    """Return where the weights of a pretrained encoder come from: ``encoder, source, weights_sha256, licence``."""
    network = pretrained_network(shape)
    return {
        "encoder": str(shape.encoder), "source": network.source, "weights_sha256": network.weights_sha256,
        "licence": network.licence,
    }  # fmt: skip


class AlignmentNetwork(nn.Module):
    """The projections of the trained sides, and the temperature; other sides are used as they are.

    Args:
        widths: side → length of its embeddings (or tokens).
        kinds: sides whose caches hold something else than embeddings → ``tokens`` or ``pixels``.
        config: of the alignment.

    Raises:
        BadInput: sides that are not trained of another length than the space, tokens or pixels of another side than
            the radiograph's, or pictures that are no squares.
    """

    def __init__(self, widths: Mapping[Side, int], kinds: Mapping[Side, Kind], config: AlignmentConfig) -> None:
        super().__init__()
        self.config, self.widths, self.kinds = config, dict(widths), dict(kinds)
        self.dim = _common_dim(widths, config)
        refused = [side for side in kinds if side != "cxr"]
        if refused:
            raise BadInput(
                f"the cache of side '{refused[0]}' holds {kinds[refused[0]]}. Allowed there: one embedding an exam."
            )
        if kinds.get("cxr") == "pixels" and math.isqrt(widths["cxr"]) ** 2 != widths["cxr"]:
            raise BadInput(f"the radiographs' cache holds {widths['cxr']} bytes an exam: no square picture.")
        if config.pixels.encoder is not None and kinds.get("cxr") != "pixels":
            raise BadInput(
                f"pixels.encoder '{config.pixels.encoder}' reads radiographs, and the radiographs' cache holds "
                f"{kinds.get('cxr', 'embeddings')}. Next: embedprior embed --encoder pixels-128, and name that cache"
            )
        self.sides = nn.ModuleDict()
        for side in (s for s in SIDES if s in config.train_sides and s in widths):
            kind = kinds.get(side)
            if kind == "pixels":
                read_by = PixelEncoder if config.pixels.encoder is None else PretrainedPixels
                self.sides[side] = read_by(widths[side], self.dim, config.pixels)
            elif kind == "tokens":
                self.sides[side] = SequenceModel(widths[side], config.tokens.model_copy(update={"dim": self.dim}))
            else:
                self.sides[side] = Projection(widths[side], self.dim, config)
        start = torch.tensor(float(np.log(1 / config.temperature)))
        self.log_scale = nn.Parameter(start, requires_grad=config.learn_temperature)

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.log_scale.exp().clamp(max=MAX_SCALE) if self.config.learn_temperature else self.log_scale.exp()

    def forward(self, side: Side, inputs: Tensor, lengths: Tensor | None = None) -> Float[Tensor, "exams dim"]:
        """Return unit vectors of a side's embeddings, or of its padded tokens with their ``lengths``."""
        if side not in self.sides:
            return F.normalize(inputs, dim=-1)
        model = self.sides[side]
        return F.normalize(model(inputs) if lengths is None else model(inputs, lengths), dim=-1)


def new_network(train: Mapping[Side, Inputs], config: AlignmentConfig) -> AlignmentNetwork:
    """Return an untrained network whose scales are those of the training exams.

    Raises:
        BadInput: see ``AlignmentNetwork``.
    """
    kinds = {side: kind for side, rows in train.items() if (kind := kind_of(rows)) is not None}
    widths: dict[Side, int] = {side: int(rows[0].shape[-1]) for side, rows in train.items()}
    with seeded(config.seed, "initial weights", "alignment"):
        network = AlignmentNetwork(widths, kinds, config)
    for side, model in network.sides.items():
        if isinstance(model, PretrainedPixels):
            model.load_pretrained()
        rows = next(rows for name, rows in train.items() if name == side)
        if isinstance(model, SequenceModel):
            model.fit_scale_of_exams(list(rows))
        elif isinstance(model, Projection):
            model.fit_scale(tensor(np.asarray(rows)))
    return network


def kind_of(rows: Inputs) -> Kind | None:
    """Return ``pixels`` for bytes, ``tokens`` for several rows an exam, None for one embedding an exam."""
    if not isinstance(rows, np.ndarray):
        return "tokens"
    return "pixels" if rows.dtype == np.uint8 else None


def inputs_of(rows: Inputs, chosen: Sequence[int] | np.ndarray, longest: int) -> tuple[Tensor, Tensor | None]:
    """Return some exams' embeddings or pixels, or their padded tokens and lengths."""
    if kind_of(rows) == "pixels":
        return torch.from_numpy(np.asarray(rows)[np.asarray(chosen)]), None
    if isinstance(rows, np.ndarray):
        return tensor(rows[np.asarray(chosen)]), None
    return pad([rows[int(i)] for i in chosen], longest)


@dataclass(frozen=True)
class Alignment:
    """Frozen projections into the common space.

    Attributes:
        network: of the sides.
        caches: side → hash of the key of the cache it was trained on.
        patients: part (``train``, ``val``) → ids of the patients it has seen.
        start: of a pretrained encoder that was trained on: ``source, weights_sha256, licence``.

    Example:
        >>> config = AlignmentConfig(beta=0.0, dim=4, train_sides=("cxr", "ct"))
        >>> rows = {"cxr": np.eye(3, 5, dtype=np.float32), "ct": np.eye(3, 6, dtype=np.float32)}
        >>> alignment = Alignment(new_network(rows, config), {}, {})
        >>> alignment.embed("cxr", rows["cxr"]).shape
        (3, 4)
    """

    network: AlignmentNetwork
    caches: Mapping[str, str]
    patients: Mapping[str, list[str]]
    start: Mapping[str, str] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Length of the common space."""
        return self.network.dim

    @torch.no_grad()
    def embed(self, side: Side, rows: Inputs) -> Float[np.ndarray, "exams dim"]:
        """Return unit vectors (float32) of a side's embeddings or tokens.

        Raises:
            BadInput: the alignment has no such side, or the embeddings are of another length.
        """
        if side not in self.network.widths:
            have = ", ".join(self.network.widths)
            raise BadInput(f"this alignment has no side '{side}'. Allowed: {have}.")
        width = self.network.widths[side]
        wrong = next((np.shape(r) for r in rows if np.shape(r)[-1] != width), None)
        if wrong is not None:
            raise BadInput(f"embeddings of shape {wrong} for side '{side}'. Allowed: {width} numbers, as in training.")
        self.network.eval()
        longest, parts = self.network.config.tokens.max_tokens, [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(rows), BATCH):
            values, lengths = inputs_of(rows, range(start, min(start + BATCH, len(rows))), longest)
            parts.append(self.network(side, values, lengths).numpy())
        return np.concatenate(parts)

    def save(self, folder: Path | str) -> None:
        """Write weights (safetensors), then ``alignment.json`` with the checksums, which marks completion."""
        description = {
            "format": FORMAT, "config": self.network.config.model_dump(mode="json"), "widths": self.network.widths,
            "kinds": self.network.kinds, "dim": self.dim, "caches": dict(self.caches),
            "patients": {part: sorted(ids) for part, ids in self.patients.items()}, "start": dict(self.start),
        }  # fmt: skip
        state = contiguous(self.network.state_dict())
        write_sealed(Path(folder), DESCRIPTION, description, lambda out: write_tensors(out / WEIGHTS, state))

    @classmethod
    def load(cls, folder: Path | str) -> Alignment:
        """Return the alignment saved in ``folder``; reads safetensors and JSON only, executes nothing.

        Raises:
            BadInput: no alignment there, a damaged one, or one of another format.
        """
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise BadInput(f"{folder} holds no alignment ({DESCRIPTION} is missing). Next: embedprior train alignment")
        record = read_sealed(folder, DESCRIPTION, "alignment", FORMAT, "copy or train the alignment again")
        config = parse_config(AlignmentConfig, record["config"], str(folder / DESCRIPTION))
        network = AlignmentNetwork(record["widths"], record["kinds"], config)
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"the alignment in {folder} is damaged: {str(error)[:200]}. Next: train it again") from error
        network.eval().requires_grad_(False)
        return cls(network, record["caches"], record["patients"], record.get("start", {}))


def spec_of(alignment: Alignment, folder: Path, side: Side, cache: EmbeddingCache) -> EncoderSpec:
    """Return the provenance of a cache's aligned embeddings."""
    seen = {patient for ids in alignment.patients.values() for patient in ids}
    return EncoderSpec(
        name=f"aligned-{side}",
        modality=MODALITIES[side][0],
        dim=alignment.dim,
        source="embedprior train alignment",
        weights_sha256=hash_file(folder / WEIGHTS),
        licence="; ".join(
            ["that of the embeddings it was trained on", *filter(None, [alignment.start.get("licence")])]
        ),
        profile={"transform_version": TRANSFORM_VERSION, "side": side, "embeddings": hash_of(cache.key)},
        pooling="none",
        patients_seen=tuple(sorted(seen | (cache.patients_seen or frozenset()))),
    )


def write_aligned(folder: Path | str, side: Side, cache: EmbeddingCache, out: Path | str) -> EmbeddingCache:
    """Write every exam of a cache into the common space; what ``out`` holds already is kept.

    Args:
        folder: of a saved alignment.
        side: what the cache's exams are.
        cache: of the encoder that this side was trained on; any cohort.
        out: folder of caches.

    Raises:
        BadInput: no alignment, no such side, or a cache of another encoder than in training.
    """
    folder = Path(folder)
    alignment = Alignment.load(folder)
    if side not in alignment.caches:
        raise BadInput(f"this alignment has no side '{side}'. Allowed: {', '.join(alignment.caches)}.")
    if alignment.caches[side] != hash_of(cache.key):
        raise BadInput(
            f"{cache.path.name} is not of the encoder that side '{side}' was trained on (another cache key). "
            "Embeddings of different origin are never mixed. Next: embed these exams with that encoder"
        )
    with CacheWriter(Path(out), spec_of(alignment, folder, side, cache)) as writer:
        sources = dict(zip(cache.ids, cache.sources, strict=True))
        todo = [exam for exam in cache.ids if not writer.has(exam, sources[exam])]
        chunks = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
        for chunk in progress(chunks, f"aligned-{side}", total=len(chunks)):
            rows = [np.asarray(cache.tokens(exam)) for exam in chunk] if cache.has_tokens else cache.take(chunk)
            writer.append(chunk, [sources[exam] for exam in chunk], alignment.embed(side, rows))
        return writer.close()


def _common_dim(widths: Mapping[Side, int], config: AlignmentConfig) -> int:
    fixed = {side: width for side, width in widths.items() if side not in config.train_sides}
    dim = config.dim or next(iter(fixed.values()), DEFAULT_DIM)
    odd = {side: width for side, width in fixed.items() if width != dim}
    if odd:
        side, width = next(iter(odd.items()))
        raise BadInput(
            f"side '{side}' is used as it is, with {width} numbers; the space has {dim}. Sides that are not trained "
            "must come from one model. Next: train it too: "
            f'--alignment.train-sides "[{", ".join([*config.train_sides, side])}]"'
        )
    return dim
