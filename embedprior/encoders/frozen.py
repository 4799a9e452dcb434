"""A frozen network behind a reader: the encoder that most entries of the registry are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.encoders.base import EncoderSpec
from embedprior.encoders.readers import Reader
from embedprior.errors import BadInput, nearest

Precision = Literal["fp32", "bf16"]
RANDOM_INIT_SEED = 0
PARTS_AT_ONCE = 16
"""Slices or windows that go through a network together; more gain little, and a volume has hundreds."""


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
        self._network, self._reader, self._normalised = network, reader, normalised
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = torch.device(device)
        network.module.to(self._device, self._dtype).eval().requires_grad_(False)
        facts = {"mean": list(network.mean), "std": list(network.std)}
        pictures = not reader.parts and "reader" not in reader.record()
        has_tokens = reader.parts or network.tokens is not None
        self.spec = EncoderSpec(
            name=name.replace(":", "-").replace("/", "-"),
            modality="image" if pictures else "CT",
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

    def read(self, root: Path | str, path: str) -> np.ndarray[Any, Any]:
        """Return one exam as the reader gives it.

        Raises:
            UnreadableExam: damaged, or an exam of another kind.
        """
        return self._reader.read(root, path)

    def embed(self, batch: np.ndarray[Any, Any]) -> Float[np.ndarray, "batch dim"]:
        """Return one embedding an exam of a batch of what ``read`` returns."""
        if self._reader.parts:
            return np.stack([one.mean(0, dtype=np.float64) for one in self._each_part(batch)]).astype(np.float32)
        return self._run(self._network.features, batch)

    def tokens(self, batch: np.ndarray[Any, Any]) -> list[Float[np.ndarray, "tokens dim"]]:
        """Return one token a slice or window, or the network's own tokens of a picture.

        Raises:
            BadInput: it has none (``spec.token_dim`` is None).
        """
        if self._reader.parts:
            return self._each_part(batch)
        if self._network.tokens is None:
            raise BadInput(f"encoder '{self.spec.name}' gives no tokens. Next: leave out --tokens")
        return list(self._run(self._network.tokens, batch))

    def _each_part(self, batch: np.ndarray[Any, Any]) -> list[Float[np.ndarray, "parts dim"]]:
        found = []
        for exam in batch:
            pieces = [exam[i : i + PARTS_AT_ONCE] for i in range(0, len(exam), PARTS_AT_ONCE)]
            found.append(np.concatenate([self._run(self._network.features, piece) for piece in pieces]))
        return found

    def _run(self, call: Callable[[Tensor], Tensor], batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            values = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32)).to(self._device)
            if values.ndim == 3:
                values = rearrange(values, "n rows columns -> n 1 rows columns")
            if values.shape[1] != self._network.channels:
                if values.shape[1] != 1:
                    raise BadInput(f"encoder '{self.spec.name}' takes {self._network.channels} channels, the profile "
                                   f"gives {values.shape[1]}. Next: a profile of one HU window, or of "
                                   f"{self._network.channels}")  # fmt: skip
                values = values.expand(-1, self._network.channels, *values.shape[2:])
            if not self._normalised:
                shape = (-1, *[1] * (values.ndim - 2))
                mean, std = (
                    torch.tensor(v, device=self._device).view(shape) for v in (self._network.mean, self._network.std)
                )
                values = (values - mean) / std
            return call(values.to(self._dtype)).float().cpu().contiguous().numpy()
