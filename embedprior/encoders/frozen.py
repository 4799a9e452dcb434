"""A frozen network behind a reader: the encoder that most entries of the registry are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.encoders.base import Encoder, EncoderSpec
from embedprior.encoders.config import Precision
from embedprior.encoders.readers import KeptVolumes, Reader
from embedprior.errors import BadInput, EmbedpriorError, nearest

RANDOM_INIT_SEED = 0
PARTS_AT_ONCE = {"cpu": 16, "cuda": 64}
"""Slices or windows, of one exam or of several, that go through a network together."""
VOLUMES_AT_ONCE = {"cpu": 1, "cuda": 4}
REDUCED = {"bf16": torch.bfloat16, "bf16-autocast": torch.bfloat16, "fp16-autocast": torch.float16}
Arrays = np.ndarray[Any, Any] | Sequence[np.ndarray[Any, Any]]
"""Exams of one shape, stacked; or of a volume's parts, as many as each exam has."""


@dataclass(frozen=True)
class Network:
    """A network with the facts that its weights come with.

    Attributes:
        module: its parameters.
        features: (n, channels, rows, columns) or (n, channels, slices, rows, columns) → (n, dim).
        dim: length of one embedding.
        mean, std: of each channel, subtracted from and divided into [0, 1] values.
        source: where the weights come from.
        weights_sha256: of the weight file, or ``random-init-SEED``.
        licence: of the weights.
        pooling: how the network makes one vector.
        pretraining: data that the weights have seen, where it is known.
        tokens: likewise → (n, tokens, dim), where it has any.
        channels: of the input.
        configuration: hash of the file or the code that the network is built from, where its name is not enough.
    """

    module: nn.Module
    features: Callable[[Tensor], Tensor]
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    weights_sha256: str
    licence: str
    pooling: str
    pretraining: str = ""
    tokens: Callable[[Tensor], Tensor] | None = None
    channels: int = 3
    configuration: str = ""


@dataclass(frozen=True)
class Golden:
    """What a network with known weights makes of a fixed input: eight numbers, spread over the embedding.

    Attributes:
        shape: of the input, the sines of 0, 0.37, 0.74 ...
        weights_sha256: of the weight file they were measured with; other weights have no golden numbers.
        numbers: of the embedding, every (length / 8)-th.
    """

    shape: tuple[int, ...]
    weights_sha256: str
    numbers: tuple[float, ...]

    def check(self, module: nn.Module, weights_sha256: str, name: str) -> None:
        """Compute the numbers again, right after the weights were loaded.

        Raises:
            EmbedpriorError: they are others: the network is not the one that the weights were made for.
        """
        if weights_sha256 != self.weights_sha256:
            return
        wave = torch.sin(0.37 * torch.arange(math.prod(self.shape), dtype=torch.float64)).float()
        with torch.inference_mode():
            found = module.eval()(wave.reshape(self.shape)).flatten()
        found = found[:: len(found) // len(self.numbers)][: len(self.numbers)]
        expected = torch.tensor(self.numbers)
        if not torch.allclose(found, expected, rtol=2e-3, atol=2e-3):
            raise EmbedpriorError(
                f"encoder '{name}' with its published weights gives {found.numpy().round(4).tolist()} for a fixed "
                f"input, not {list(self.numbers)}: its network has changed. Next: the versions of torch and timm that "
                "its caches were made with (embedprior doctor)"
            )


def seeded_build(build: Callable[[], Any]) -> Any:
    """Build a network whose random weights are the same everywhere; the caller's random stream stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_INIT_SEED)
        return build()


class FrozenEncoder:
    """A frozen network × a reader.

    A radiograph or whole volume gives one embedding; a volume read in parts (slices, windows) gives one token a part,
    and their mean as embedding.

    Args:
        name: registry name.
        network: see ``Network``.
        reader: what an exam becomes.
        precision: ``"bf16"`` computes with bfloat16 weights.
        device: of the network.
        profile: of the key; None = the reader's record with the network's mean and deviation.
        normalised: what is read is already the network's input.

    Raises:
        BadInput: unknown precision.
    """

    def __init__(
        self, name: str, network: Network, reader: Reader, precision: Precision = "fp32", device: str = "cpu",
        profile: dict[str, Any] | None = None, normalised: bool = False,
    ) -> None:  # fmt: skip
        allowed = get_args(Precision)
        if precision not in allowed:
            raise BadInput(
                f"unknown precision '{precision}'. Allowed: {', '.join(allowed)}.{nearest(precision, allowed)}"
            )
        self.backbone, self.reader, self._normalised = network, reader, normalised
        self._device, self._precision = torch.device(device), precision
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        network.module.to(self._device, self._dtype).eval().requires_grad_(False)
        facts: dict[str, Any] = {"mean": list(network.mean), "std": list(network.std)}
        if network.configuration:
            facts["configuration"] = network.configuration
        pictures = not reader.parts and "reader" not in reader.record()
        modality = getattr(reader, "modality", "image" if pictures else "CT")
        sizes = PARTS_AT_ONCE if reader.parts else VOLUMES_AT_ONCE
        self._at_once = None if modality != "CT" else sizes.get(self._device.type, sizes["cuda"])
        has_tokens = reader.parts or network.tokens is not None
        self.spec = EncoderSpec(
            name=name.replace(":", "-").replace("/", "-"),
            modality=modality,
            dim=network.dim,
            source=network.source,
            weights_sha256=network.weights_sha256,
            licence=network.licence,
            profile=reader.record() | facts if profile is None else profile,
            pooling=f"{network.pooling}, mean over parts" if reader.parts else network.pooling,
            precision=precision,
            token_dim=network.dim if has_tokens else None,
            pretraining=network.pretraining,
        )

    @property
    def ragged(self) -> bool:
        """Whether exams are read in parts, so that exams of unlike length may share a batch, as a list."""
        return self.reader.parts

    def read(self, root: Path | str, path: str) -> np.ndarray[Any, Any]:
        """Return one exam as the reader gives it.

        Raises:
            UnreadableExam: damaged, or an exam of another kind.
        """
        return self.reader.read(root, path)

    def keep_volumes(self, folder: Path | str) -> None:
        """Keep every preprocessed volume in a folder, and read from it what is there (see ``readers.KeptVolumes``).

        Raises:
            BadInput: it reads radiographs.
        """
        if not hasattr(self.reader, "kept"):
            raise BadInput(
                f"encoder '{self.spec.name}' keeps no preprocessed volumes: it reads radiographs. Next: leave out "
                "--keep-volumes"
            )
        self.reader.kept = KeptVolumes(folder)

    def embed(self, batch: Arrays) -> Float[np.ndarray, "batch dim"]:
        """Return one embedding an exam of a batch of what ``read`` returns."""
        if self.reader.parts:
            return np.stack([one.mean(0, dtype=np.float64) for one in self._each_part(batch)]).astype(np.float32)
        return self._run(self.backbone.features, batch)

    def tokens(self, batch: Arrays) -> list[Float[np.ndarray, "tokens dim"]]:
        """Return one token a slice or window, or the network's own tokens of a picture.

        Raises:
            BadInput: it has none (``spec.token_dim`` is None).
        """
        if self.reader.parts:
            return self._each_part(batch)
        if self.backbone.tokens is None:
            raise BadInput(f"encoder '{self.spec.name}' gives no tokens. Next: leave out --tokens")
        return list(self._run(self.backbone.tokens, batch))

    def prepare(self, batch: np.ndarray[Any, Any]) -> Tensor:
        """Return the network's input, on its device: channels repeated where one is read, scaled.

        Raises:
            BadInput: the reader gives another number of channels than the network takes.
        """
        values = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))
        if self._device.type == "cuda":
            values = values.pin_memory()
        values = values.to(self._device, non_blocking=True)
        if values.ndim == 3:
            values = rearrange(values, "n rows columns -> n 1 rows columns")
        if values.shape[1] != self.backbone.channels:
            if values.shape[1] != 1:
                raise BadInput(f"encoder '{self.spec.name}' takes {self.backbone.channels} channels, the profile "
                               f"gives {values.shape[1]}. Next: a profile of one HU window, or of "
                               f"{self.backbone.channels}")  # fmt: skip
            values = values.expand(-1, self.backbone.channels, *values.shape[2:])
        if not self._normalised:
            shape = (-1, *[1] * (values.ndim - 2))
            mean, std = (
                torch.tensor(v, device=self._device).view(shape) for v in (self.backbone.mean, self.backbone.std)
            )
            values = (values - mean) / std
        return values.to(self._dtype)

    def _each_part(self, batch: Arrays) -> list[Float[np.ndarray, "parts dim"]]:
        """Return each exam's parts through the network; a batch of the network is filled from exam after exam."""
        found = self._run(self.backbone.features, (part for exam in batch for part in exam))
        return np.split(found, np.cumsum([len(exam) for exam in batch])[:-1])

    def _run(
        self, call: Callable[[Tensor], Tensor], inputs: Iterable[np.ndarray[Any, Any]]
    ) -> np.ndarray[Any, Any]:  # fmt: skip
        # One copy back at the end: until then the next batch is stacked while a GPU computes.
        found = []
        with torch.inference_mode(), self.autocast():
            for some in _in_batches(inputs, self._at_once):
                found.append(call(self.prepare(some)).float())
            return torch.cat(found).cpu().contiguous().numpy()

    def autocast(self) -> torch.autocast:
        """Return the context that the network computes in."""
        return autocast(self._device, self._precision if "autocast" in self._precision else "fp32")


def keep_volumes(encoder: Encoder, folder: Path | str) -> None:
    """Let an encoder keep its preprocessed volumes in a folder.

    Raises:
        BadInput: it can't, or reads radiographs.
    """
    keep = getattr(encoder, "keep_volumes", None)
    if keep is None:
        raise BadInput(f"encoder '{encoder.spec.name}' keeps no preprocessed volumes. Next: leave out --keep-volumes")
    keep(folder)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return torch's autocast to a name of ``REDUCED``; to any other, one that does nothing."""
    dtype = REDUCED.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _in_batches(inputs: Iterable[np.ndarray[Any, Any]], size: int | None) -> Iterator[np.ndarray[Any, Any]]:
    if size is None:
        yield inputs if isinstance(inputs, np.ndarray) else np.stack(list(inputs))
        return
    running = iter(inputs)
    while some := list(islice(running, size)):
        yield np.stack(some)
