"""Small convolutional encoders, trained on the training fold and then frozen (phase A of the PE paper).

One network serves both, trained on labelled pictures: slices of a CT with the slice's own label (as public CT sets
give it), or whole radiographs. A CT's embedding pools the features of its slices; a radiograph is a stack of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from embedprior.config import parse_config
from embedprior.encoders.base import EncoderCard, EncoderSpec
from embedprior.encoders.config import CnnConfig
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam, read_array
from embedprior.imaging.radiographs import read_image
from embedprior.nn.training import ValidationHistory, contiguous, minimise, seeded, tensor
from embedprior.runs import canonical, hash_file, write_tensors
from embedprior.runs.integrity import read_sealed, write_sealed

WEIGHTS, SETTINGS = "encoder.safetensors", "encoder.json"
FORMAT = 2
"""2: the settings list the checksum of the weights, and their own."""


class SmallCnn(nn.Module):
    """Strided convolutions → average over a grid ‖ maximum over the picture → features → logit."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width = 1
        for channels in config.channels:
            layers.append(nn.Conv2d(width, channels, 3, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            width = channels
        self.convolutions = nn.Sequential(*layers)
        self.average = nn.AdaptiveAvgPool2d(config.grid)
        self.project = nn.Linear(width * (config.grid**2 + 1), config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, 1)

    def features(self, pictures: Float[Tensor, "pictures height width"]) -> Float[Tensor, "pictures dim"]:
        """Return the features of each picture."""
        maps = self.convolutions(pictures[:, None])
        pooled = torch.cat([self.average(maps).flatten(1), maps.amax((2, 3))], dim=1)
        out: Tensor = self.project(self.dropout(pooled))
        return out

    def embed(self, stacks: Float[Tensor, "exams slices height width"]) -> Float[Tensor, "exams dim"]:
        """Return one embedding an exam: the features pooled over its slices."""
        exams, slices = stacks.shape[:2]
        each = self.features(stacks.flatten(0, 1)).unflatten(0, (exams, slices))
        if self.config.slices == "mean":
            return torch.mean(each, 1)
        return torch.cat([each.mean(1), each.amax(1)], dim=1)

    def forward(self, pictures: Float[Tensor, "pictures height width"]) -> Float[Tensor, " pictures"]:
        """Return one logit a picture (training only)."""
        out: Tensor = self.head(self.dropout(torch.relu(self.features(pictures))))[:, 0]
        return out


def normalise(pictures: UInt8[np.ndarray, ...]) -> Float[Tensor, ...]:
    """Return pixels as float in about [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).float().div_(127.5).sub_(1.0)


def train_small_cnn(
    pictures: UInt8[np.ndarray, "pictures height width"],
    labels: Float[np.ndarray, " pictures"],
    val_pictures: UInt8[np.ndarray, "others height width"],
    val_labels: Float[np.ndarray, " others"],
    config: CnnConfig,
    seed: int,
    desc: str,
) -> tuple[SmallCnn, ValidationHistory]:
    """Train on labelled pictures; return the network of the best validation epoch, and one record an epoch.

    Args:
        pictures: that are learned from.
        labels: 1 or 0.
        val_pictures: that choose the epoch.
        val_labels: their labels.
        config: network and budget.
        seed: of weights, batches, shifts and dropout.
        desc: text of the progress bar.
    """
    targets, batches_per_epoch = tensor(labels), -(-len(pictures) // config.batch_size)
    steps = config.epochs * batches_per_epoch
    with seeded(seed, "small cnn", desc):
        network = SmallCnn(config)
        batches = _shuffled_batches(len(pictures), config.batch_size)

        def loss(step: int) -> Tensor:
            rows = next(batches)
            batch = shift_pictures(normalise(pictures[rows.numpy()]), config.shift)
            return nn.functional.binary_cross_entropy_with_logits(network(batch), targets[rows])

        history = minimise(
            network, loss, steps, lr=config.lr,
            weight_decay=config.weight_decay,
            validate=lambda: _validation_loss(network, val_pictures, val_labels, config.batch_size),
            validate_every=batches_per_epoch,
            schedule=lambda optimiser: torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps),
            progress_bar=desc,
        )  # fmt: skip
    return network.requires_grad_(False), [{"epoch": i, **record} for i, record in enumerate(history)]


def _shuffled_batches(count: int, size: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count).split(size)


def save_small_cnn(
    network: SmallCnn, config: CnnConfig, profile: dict[str, Any], folder: Path | str,
    patients_seen: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Write weights (safetensors), settings, preprocessing profile and the patients it was trained on (JSON).

    Args:
        network: trained.
        config: its settings.
        profile: of preprocessing, see ``ct_profile`` and ``radiograph_profile``.
        folder: is there.
        patients_seen: whose exams trained the network or chose it; None = not recorded.
    """
    weights = contiguous(network.state_dict())
    seen = None if patients_seen is None else sorted(set(patients_seen))
    record = {"format": FORMAT, "config": canonical(config), "profile": profile, "patients_seen": seen}
    write_sealed(Path(folder), SETTINGS, record, lambda work: write_tensors(work / WEIGHTS, weights))


class _SmallCnnEncoder:
    modality = ""
    name = ""

    def __init__(self, weights: Path) -> None:
        if not (weights / WEIGHTS).is_file():
            raise BadInput(f"no trained encoder at {weights}. Next: embedprior demo, which trains one.")
        settings = read_sealed(weights, SETTINGS, "encoder", FORMAT, "copy or train the encoder again")
        config = parse_config(CnnConfig, settings["config"], str(weights / SETTINGS))
        self.profile: dict[str, Any] = settings["profile"]
        self.network = SmallCnn(config)
        self.network.load_state_dict(load_file(weights / WEIGHTS))
        self.network.eval().requires_grad_(False)
        self.spec = EncoderSpec(
            name=self.name,
            modality=self.modality,
            dim=config.embedding_dim,
            source=f"local:{weights.name}",
            weights_sha256=hash_file(weights / WEIGHTS),
            licence="Apache-2.0",
            profile=self.profile,
            pooling=f"{config.slices} over slices",
            token_dim=config.dim if self.modality == "CT" else None,
            patients_seen=settings.get("patients_seen"),
        )

    def embed(self, batch: UInt8[np.ndarray, "exams slices height width"]) -> Float[np.ndarray, "exams dim"]:
        """Return one embedding an exam."""
        with torch.inference_mode():
            return self.network.embed(normalise(batch)).numpy()


class SliceEncoder(_SmallCnnEncoder):
    """CT volume → embedding: window, slabs of maximum intensity, small network, mean over slabs."""

    modality = "CT"
    name = "slice-cnn"
    card = EncoderCard("CT", "by its weights", "slabs", "a folder of your own training", "Apache-2.0")

    def read(self, root: Path | str, path: str) -> UInt8[np.ndarray, "slices height width"]:
        """Return the windowed slabs of a volume in HU.

        Raises:
            UnreadableExam: no such row, or not a volume in HU.
        """
        volume = read_array(root, path)
        if volume.ndim != 3:
            raise UnreadableExam(f"{path}: expected a volume, got shape {volume.shape}")
        low, high = self.profile["window"]
        return ct_slabs(volume, (low, high), self.profile["slab"])

    def tokens(self, batch: UInt8[np.ndarray, "exams slices height width"]) -> list[Float[np.ndarray, "slices dim"]]:
        """Return the features of each slab."""
        with torch.inference_mode():
            each = self.network.features(normalise(batch).flatten(0, 1))
            return list(each.unflatten(0, batch.shape[:2]).numpy())


class RadiographEncoder(_SmallCnnEncoder):
    """Radiograph or DRR → embedding."""

    modality = "CXR"
    name = "radiograph-cnn"
    card = EncoderCard("CXR", "by its weights", "", "a folder of your own training", "Apache-2.0")

    def read(self, root: Path | str, path: str) -> UInt8[np.ndarray, "one height width"]:
        """Return the picture as a stack of one, standardised to its own 1st and 99th percentile.

        Raises:
            UnreadableExam: damaged, or of another size than the encoder was trained on.
        """
        picture = read_image(root, path)
        if list(picture.shape) != list(self.profile["size"]):
            raise UnreadableExam(f"{path}: size {picture.shape}, the encoder takes {self.profile['size']}")
        return radiograph_picture(picture)


def ct_profile(window: tuple[float, float], slab: int) -> dict[str, Any]:
    """Return the preprocessing profile of a CT encoder."""
    return {"transform_version": 1, "window": list(window), "slab": slab}


def radiograph_profile(size: tuple[int, int]) -> dict[str, Any]:
    """Return the preprocessing profile of a radiograph encoder."""
    return {"transform_version": 2, "size": list(size), "range": "percentiles 1 and 99 of the picture"}


def ct_slabs(
    volume: np.ndarray[Any, Any], window: tuple[float, float], slab: int
) -> UInt8[np.ndarray, "slabs height width"]:
    """Return HU windowed to 0…255, with the maximum taken over ``slab`` neighbouring slices.

    A remainder at the bottom of the volume that fills no slab is left out.
    """
    low, high = window
    scaled = (np.clip(volume, low, high) - low) * (255.0 / (high - low))
    count = len(volume) // slab
    return np.asarray(scaled[: count * slab].reshape(count, slab, *volume.shape[1:]).max(1).round(), dtype=np.uint8)


def radiograph_picture(picture: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "one height width"]:
    """Return a picture stretched between its 1st and 99th percentile, as 0…255."""
    low, high = np.percentile(picture, (1, 99))
    scaled = np.clip((picture - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray((255 * scaled).round(), dtype=np.uint8)[None]


def shift_pictures(pictures: Tensor, largest: int) -> Tensor:
    """Return a batch (..., rows, columns) rolled by one random number of rows and of columns, at most ``largest``."""
    if largest == 0:
        return pictures
    rows, columns = (int(v) for v in torch.randint(-largest, largest + 1, (2,)))
    return torch.roll(pictures, (rows, columns), dims=(-2, -1))


def _validation_loss(
    network: SmallCnn, pictures: UInt8[np.ndarray, "pictures height width"], labels: Float[np.ndarray, " pictures"],
    batch_size: int,
) -> float:  # fmt: skip
    logits = torch.cat([network(normalise(pictures[i : i + batch_size])) for i in range(0, len(pictures), batch_size)])
    return float(nn.functional.binary_cross_entropy_with_logits(logits, tensor(labels)))
