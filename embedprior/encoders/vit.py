"""ViT-B/16 of timm with the user's own weights: radiograph or CT key slice → class token, or patch tokens.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; mean and deviation of ImageNet, as DINO and its
successors take them (Caron et al., ICCV 2021).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from embedprior.encoders.base import EncoderCard, EncoderSpec
from embedprior.encoders.pixels import GREY, check_geometry, read_picture
from embedprior.errors import BadInput, require_extra
from embedprior.imaging.radiographs import Geometry, to_square
from embedprior.runs import hash_file
from embedprior.weights import read_tensors

NAME, ARCHITECTURE = "vit-b16", "vit_base_patch16_224"
SIDE, DIM = 224, 768
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM_VERSION = 1
RANDOM_INIT_SEED = 0

Precision = Literal["fp32", "bf16"]


class VitB16:
    """Frozen ViT-B/16 at 224 px: 768 numbers, or 196 patch tokens.

    Args:
        weights: local ``.safetensors`` or ``.pth`` with the tensors of timm's ``vit_base_patch16_224`` (the
            classification head may be there and is left out).
        random_init: random weights instead, stamped into the cache key. For tests and benchmarks only.
        geometry: see ``RadiographProfile``.
        precision: ``"bf16"`` computes with bfloat16 weights; about three times as fast on a CPU with AMX or a GPU.
        device: of the network, ``"cpu"`` or ``"cuda"``.

    Raises:
        BadInput: no weights, weights that do not fit, no timm, or an unknown geometry or precision.
    """

    card = EncoderCard("image", DIM, "196 patches", "your own file (--weights)", "that of your weights")

    def __init__(
        self, weights: Path | str | None = None, random_init: bool = False, geometry: Geometry = "letterbox",
        precision: Precision = "fp32", device: str = "cpu",
    ) -> None:  # fmt: skip
        check_geometry(geometry)
        if precision not in ("fp32", "bf16"):
            raise BadInput(f"unknown precision '{precision}'. Allowed: fp32, bf16.")
        self._geometry: Geometry = geometry
        timm = require_extra("timm", "timm")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_INIT_SEED)
            model = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
        if random_init:
            digest, source = f"random-init-{RANDOM_INIT_SEED}", "random initialisation"
        else:
            file = _weights_file(weights)
            model.load_state_dict(_trunk(file, model.state_dict()), strict=True)
            digest, source = hash_file(file), f"local:{file.name}"
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = torch.device(device)
        self._model = model.to(self._device, self._dtype).eval().requires_grad_(False)
        self.spec = EncoderSpec(
            name=NAME,
            modality="image",
            dim=DIM,
            source=source,
            weights_sha256=digest,
            licence="that of the weights",
            profile={
                "transform_version": TRANSFORM_VERSION,
                "geometry": geometry,
                "side": SIDE,
                "interpolation": "bicubic, antialiased",
                "mean": list(MEAN),
                "std": list(STD),
                "pad": 0.0,
                "grey": GREY,
            },
            pooling="class token",
            precision=precision,
            token_dim=DIM,
        )

    def read(self, root: Path | str, path: str) -> Float[np.ndarray, "224 224"]:
        """Return one picture at 224 × 224, grey in [0, 1].

        Raises:
            UnreadableExam: not an image, damaged, not 2D, or of one uniform grey.
        """
        return to_square(read_picture(root, path), SIDE, self._geometry, Image.Resampling.BICUBIC)

    def embed(self, batch: np.ndarray[Any, Any]) -> Float[np.ndarray, "batch 768"]:
        """Return the class tokens of a batch of what ``read`` returns."""
        return self._features(batch)[:, 0].contiguous().numpy()

    def tokens(self, batch: np.ndarray[Any, Any]) -> list[Float[np.ndarray, "patches 768"]]:
        """Return the patch tokens, row by row of the 14 × 14 grid, without the class token."""
        return list(self._features(batch)[:, 1:].contiguous().numpy())

    def _features(self, batch: np.ndarray[Any, Any]) -> torch.Tensor:
        with torch.inference_mode():
            grey = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32)).to(self._device)
            mean, std = (torch.tensor(v, device=self._device)[:, None, None] for v in (MEAN, STD))
            features: torch.Tensor = self._model.forward_features(((grey[:, None] - mean) / std).to(self._dtype))
            return features.float().cpu()


def _weights_file(weights: Path | str | None) -> Path:
    if weights is None:
        raise BadInput(f"encoder '{NAME}' needs weights. Next: --weights FILE (.safetensors or .pth of timm's "
                       f"{ARCHITECTURE}), or --random-init for a trial of the plumbing.")  # fmt: skip
    file = Path(weights)
    if not file.is_file():
        raise BadInput(f"no weights at {file}. Next: --weights FILE")
    return file


def _trunk(file: Path, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read a weight file, without executing anything in it; its classification head is left out."""
    given = read_tensors(file, f"Next: --weights FILE, a state_dict of {ARCHITECTURE}")
    tensors = {name: value for name, value in given.items() if not name.startswith("head.")}
    wrong = sorted({*tensors} ^ {*wanted}) or [k for k, v in tensors.items() if v.shape != wanted[k].shape]
    if wrong:
        raise BadInput(f"{file.name} does not fit {ARCHITECTURE}: {len(wrong)} tensors are missing, unknown or of "
                       f"another shape, the first: {wrong[0]}.")  # fmt: skip
    return tensors
