"""DINOv2, with and without registers, from Meta's published backbone checkpoints.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; Darcet et al., "Vision
Transformers Need Registers", ICLR 2024. The network is timm's; names and position embeddings are brought from the
published form to timm's, so that the numbers are those of the authors' own code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from embedprior.encoders.base import EncoderCard
from embedprior.encoders.frozen import Network, seeded_build
from embedprior.encoders.pictures import IMAGENET, PictureEncoder, random_weights, vit_network
from embedprior.errors import require_extra
from embedprior.runs import hash_file
from embedprior.weights import find_weights, load_strictly, read_tensors, without_prefix

PATCH = 14
OFFSET = 0.1
"""Added to the number of patches when the position embedding is resized, in the networks without registers."""
URL = "https://dl.fbaipublicfiles.com/dinov2"


class DinoV2(PictureEncoder):
    """Base of the sizes; options as ``PictureEncoder``.

    ``weights`` is a published backbone checkpoint (``dinov2_vits14_pretrain.pth`` and the like); the prefixes of a
    training (``module.``, ``teacher.backbone.``) are taken off.
    """

    size: str
    dim: int
    registers = 0

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network with its weights."""
        reg = "_reg4" if self.registers else ""
        architecture = f"vit_{self.size}_patch14{reg}_dinov2"
        timm = require_extra("timm", "timm")
        model: Any = seeded_build(lambda: timm.create_model(architecture, pretrained=False, img_size=self.side))
        if random_init:
            digest, source = random_weights()
        else:
            command = self.card.command
            file = find_weights(self.name, weights, command)
            tensors = without_prefix(read_tensors(file, f"Next: {command}"), ("module.", "teacher.", "backbone."))
            load_strictly(model, to_timm(tensors, self.side // PATCH), file.name, f"DINOv2 {self.size}{reg}")
            digest, source = hash_file(file), f"local:{file.name}"
        return vit_network(model, self.dim, IMAGENET, source, digest, "Apache-2.0", "LVD-142M (web pictures)")


def to_timm(tensors: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Return the published tensors under timm's names, with the position embedding resized to ``patches``².

    With registers timm adds the class token's position to the class token, and keeps the patches' alone.
    """
    found = {re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name)): value
             for name, value in tensors.items() if name != "mask_token"}  # fmt: skip
    if "pos_embed" not in found:
        return found
    registers = "register_tokens" in found
    first, grid = found["pos_embed"][:, :1], resized(found["pos_embed"][:, 1:], patches, registers)
    if registers and "cls_token" in found:
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"], found["pos_embed"] = found["cls_token"] + first, grid
    else:
        found["pos_embed"] = torch.cat([first, grid], dim=1)
    return found


def resized(grid: Tensor, patches: int, registers: bool) -> Tensor:
    """Return position embeddings (1, n², dim) for another number of patches, bicubic as in the authors' code.

    With registers antialiased to the size; without, by a scale factor that is a little larger (``OFFSET``).
    """
    side = round(grid.shape[1] ** 0.5)
    if side == patches:
        return grid
    picture = rearrange(grid.float(), "one (rows columns) dim -> one dim rows columns", rows=side)
    if registers:
        picture = interpolate(picture, size=(patches, patches), mode="bicubic", antialias=True)
    else:
        factor = (patches + OFFSET) / side
        picture = interpolate(picture, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    return rearrange(picture, "one dim rows columns -> one (rows columns) dim").to(grid.dtype)


def _card(dim: int, letter: str, registers: bool = False) -> EncoderCard:
    stem, reg = f"dinov2_vit{letter}14", "_reg4" if registers else ""
    command = f"wget {URL}/{stem}/{stem}{reg}_pretrain.pth"
    return EncoderCard("image", dim, "256 patches", f"{stem}{reg}_pretrain.pth (--weights)", "Apache-2.0", command)


class DinoV2Small(DinoV2):
    """ViT-S/14."""

    name, card, size, dim = "dinov2-vits14", _card(384, "s"), "small", 384


class DinoV2Base(DinoV2):
    """ViT-B/14."""

    name, card, size, dim = "dinov2-vitb14", _card(768, "b"), "base", 768


class DinoV2Large(DinoV2):
    """ViT-L/14."""

    name, card, size, dim = "dinov2-vitl14", _card(1024, "l"), "large", 1024


class DinoV2Giant(DinoV2):
    """ViT-g/14."""

    name, card, size, dim = "dinov2-vitg14", _card(1536, "g"), "giant", 1536


class DinoV2SmallReg(DinoV2Small):
    """ViT-S/14 with four registers."""

    name, card, registers = "dinov2-vits14-reg", _card(384, "s", True), 4


class DinoV2BaseReg(DinoV2Base):
    """ViT-B/14 with four registers."""

    name, card, registers = "dinov2-vitb14-reg", _card(768, "b", True), 4


class DinoV2LargeReg(DinoV2Large):
    """ViT-L/14 with four registers."""

    name, card, registers = "dinov2-vitl14-reg", _card(1024, "l", True), 4


class DinoV2GiantReg(DinoV2Giant):
    """ViT-g/14 with four registers."""

    name, card, registers = "dinov2-vitg14-reg", _card(1536, "g", True), 4
