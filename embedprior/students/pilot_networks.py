"""The pilot study's small networks (arXiv 2603.29167): encoders of 3×3 blocks, and the modules DPE, MHRA and DFPN.

Written from the operators' description. Their parameters add up to the published numbers, to the last one. A pretrained
encoder of the registry may stand in place of either network, as a trunk that gives the same outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from embedprior.errors import BadInput
from embedprior.students.config import TrunkKind

if TYPE_CHECKING:
    from embedprior.encoders.frozen import Network

Dpe = Literal["none", "published", "rescaled"]
STUDENT_WIDTHS, TEACHER_WIDTHS = (32, 64, 128), (32, 64, 128, 256)
PYRAMID_WIDTH, HEADS = 128, 4
_STUDENT: dict[str, Any] = {"widths": STUDENT_WIDTHS}
_TEACHER: dict[str, Any] = {"widths": TEACHER_WIDTHS}
MAP_NETWORKS: dict[str, dict[str, Any]] = {
    "pilot": _STUDENT,
    "pilot-dfpn": _STUDENT | {"dfpn": True},
    "pilot-teacher": _TEACHER,
    "pilot-teacher-dpe": _TEACHER | {"dpe": "published"},
    "pilot-teacher-dpe-rescaled": _TEACHER | {"dpe": "rescaled"},
    "pilot-teacher-mhra": _TEACHER | {"mhra": True},
    "pilot-teacher-full": _TEACHER | {"dpe": "published", "mhra": True},
    "pilot-teacher-full-rescaled": _TEACHER | {"dpe": "rescaled", "mhra": True},
}
"""Networks by name: the encoder's widths and the modules it has."""


@dataclass(frozen=True)
class MapOutput:
    """What a network of feature maps gives.

    Attributes:
        features: what the head reads.
        logits: z₁ − z₀ of the two outputs; its sigmoid is the softmax's second number, at any temperature.
        maps: of the encoder's deepest level, before DFPN; after DPE and MHRA where the network has them.
    """

    features: Float[Tensor, "cases width"]
    logits: Float[Tensor, " cases"]
    maps: Float[Tensor, "cases channels height width"]


class Encoder(nn.Module):
    """Conv 3×3 → batch norm → ReLU → max pool 2, once for every width; grey is tripled, 0 to 255 becomes 0 to 1.

    Args:
        widths: channels of each level.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        pairs = zip((3, *widths[:-1]), widths, strict=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in pairs
        )

    def forward(self, pictures: Float[Tensor, "cases height width"]) -> list[Tensor]:
        """Return the maps of every level, the shallowest first."""
        maps = [repeat(pictures.float() / 255.0, "cases height width -> cases 3 height width")]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]


class PositionWeighting(nn.Module):
    """DPE: the map times w, the softmax of a 1×1 convolution over all places.

    Args:
        channels: of the map.
        rescaled: multiply by the number of places, too. As published w adds up to 1, so that the map shrinks by their
            number (64 for 8 × 8): the head's logits are then next to its bias.

    Example:
        >>> maps = torch.ones(1, 4, 8, 8)
        >>> [round(float(PositionWeighting(4, rescaled)(maps).mean()), 4) for rescaled in (False, True)]
        [0.0156, 1.0]
    """

    def __init__(self, channels: int, rescaled: bool) -> None:
        super().__init__()
        self.score, self.rescaled = nn.Conv2d(channels, 1, 1), rescaled

    def forward(self, maps: Float[Tensor, "cases channels height width"]) -> Tensor:
        """Return the weighed maps."""
        places = maps.shape[2] * maps.shape[3]
        weight = self.score(maps).flatten(1).softmax(dim=1).reshape(len(maps), 1, *maps.shape[2:])
        weighed: Tensor = maps * weight * (places if self.rescaled else 1)
        return weighed


class GatedAttention(nn.Module):
    """MHRA: T + g ⊙ MHA(N), N = LayerNorm(T), g = σ(W N), over the places of a map as tokens T; 4 heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.gate = nn.Linear(channels, channels)

    def forward(self, maps: Float[Tensor, "cases channels height width"]) -> Tensor:
        """Return the maps with what every place gathers from the others."""
        tokens = rearrange(maps, "cases channels height width -> cases (height width) channels")
        normed = self.norm(tokens)
        gathered = self.attention(normed, normed, normed, need_weights=False)[0]
        out: Tensor = tokens + gathered * self.gate(normed).sigmoid()
        return rearrange(out, "cases (height width) channels -> cases channels height width", height=maps.shape[2])


class Pyramid(nn.Module):
    """DFPN: from the deepest level up, P_i = ReLU(BN(conv3×3(lateral_i + upsampled P_{i+1}))); the mean of all P_i.

    Args:
        widths: channels of the levels, the shallowest first.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, PYRAMID_WIDTH, 1) for width in widths)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(PYRAMID_WIDTH, PYRAMID_WIDTH, 3, padding=1), nn.BatchNorm2d(PYRAMID_WIDTH), nn.ReLU()
            )
            for _ in widths
        )

    def forward(self, levels: list[Tensor]) -> Float[Tensor, "cases width"]:
        """Return one vector a case: mean over levels of the mean over places."""
        above: Tensor | None = None
        pooled = []
        for maps, lateral, smooth in reversed(list(zip(levels, self.lateral, self.smooth, strict=True))):
            mixed = lateral(maps)
            if above is not None:
                mixed = mixed + F.interpolate(above, size=mixed.shape[2:], mode="nearest")
            above = cast(Tensor, smooth(mixed))
            pooled.append(_pool(above))
        return torch.stack(pooled).mean(dim=0)


class MapNetwork(nn.Module):
    """An encoder with its modules, and a linear head of two outputs.

    Args:
        widths: of the encoder: ``STUDENT_WIDTHS`` or ``TEACHER_WIDTHS``.
        dpe: weigh the places of the deepest map, as published or rescaled.
        mhra: let its places attend to each other.
        dfpn: let the head read a pyramid of all levels.

    Example:
        >>> network = MapNetwork(TEACHER_WIDTHS, dpe="published", mhra=True)
        >>> sum(parameter.numel() for parameter in network.parameters())
        719619
        >>> network(torch.zeros(2, 128, 128)).maps.shape
        torch.Size([2, 256, 8, 8])
    """

    def __init__(self, widths: tuple[int, ...], dpe: Dpe = "none", mhra: bool = False, dfpn: bool = False) -> None:
        super().__init__()
        self.encoder, deepest = Encoder(widths), widths[-1]
        self.channels = deepest
        self.dpe = None if dpe == "none" else PositionWeighting(deepest, dpe == "rescaled")
        self.mhra = GatedAttention(deepest) if mhra else None
        self.dfpn = Pyramid(widths) if dfpn else None
        self.width = PYRAMID_WIDTH if dfpn else deepest
        self.head: nn.Module = nn.Linear(self.width, 2)

    def fit_scale(self, inputs: Tensor) -> None:
        """Leave the grey values as they are: 0 to 255 becomes 0 to 1, whatever the training cases hold."""

    def forward(self, pictures: Float[Tensor, "cases height width"]) -> MapOutput:
        """Return features, logits and the deepest maps."""
        levels = self.encoder(pictures)
        maps = levels[-1]
        maps = maps if self.dpe is None else self.dpe(maps)
        maps = maps if self.mhra is None else self.mhra(maps)
        features = _pool(maps) if self.dfpn is None else self.dfpn([*levels[:-1], maps])
        logits = two_class_logit(self.head(features)) if isinstance(self.head, nn.Linear) else features[:, 0]
        return MapOutput(features, logits, maps)


class FusionNetwork(nn.Module):
    """Late fusion: one student encoder a modality, their pooled maps side by side, 256 → 128 → 2. It needs the CT.

    A picture is the radiograph above the CT slice, each square.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cxr, self.ct = Encoder(STUDENT_WIDTHS), Encoder(STUDENT_WIDTHS)
        self.width = self.channels = STUDENT_WIDTHS[-1]
        self.mix = nn.Sequential(nn.Linear(2 * self.width, self.width), nn.ReLU(), nn.Dropout(0.2))
        self.head: nn.Module = nn.Linear(self.width, 2)

    def fit_scale(self, inputs: Tensor) -> None:
        """Leave the grey values as they are."""

    def forward(self, pictures: Float[Tensor, "cases height width"]) -> MapOutput:
        """Return features, logits and the radiograph's deepest maps.

        Raises:
            BadInput: a picture is not two squares, one above the other.
        """
        side = pictures.shape[2]
        if pictures.shape[1] != 2 * side:
            raise BadInput(
                f"pictures of {pictures.shape[1]} × {side}. Allowed: {2 * side} × {side}, the radiograph above its CT."
            )
        maps = self.cxr(pictures[:, :side])[-1]
        features = self.mix(torch.cat([_pool(maps), _pool(self.ct(pictures[:, side:])[-1])], dim=1))
        return MapOutput(features, two_class_logit(self.head(features)), maps)


class TrunkNetwork(nn.Module):
    """A pretrained convolutional encoder of timm with a linear head of two outputs; all of it learns.

    Args:
        name: of the encoder in the registry.

    Attributes:
        width, channels: of its features and maps.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        network = _encoder(name, random_init=True)
        self.module: Any = network.module.requires_grad_(True)
        self.width = self.channels = network.dim
        self.register_buffer("mean", torch.tensor(network.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(network.std).reshape(1, 3, 1, 1))
        self.head: nn.Module = nn.Linear(self.width, 2)

    def load_pretrained(self) -> None:
        """Take over the encoder's published weights.

        Raises:
            BadInput: they are not there.
        """
        self.module.load_state_dict(_encoder(self.name).module.state_dict())

    def fit_scale(self, inputs: Tensor) -> None:
        """Leave the grey values as they are: the encoder's own mean and deviation scale them."""

    def forward(self, pictures: Float[Tensor, "cases height width"]) -> MapOutput:
        """Return features, logits and the maps of the last level."""
        grey = repeat(pictures.float() / 255.0, "cases height width -> cases 3 height width")
        maps = self.module.forward_features((grey - self.get_buffer("mean")) / self.get_buffer("std"))
        features = _pool(maps)
        logits = two_class_logit(self.head(features)) if isinstance(self.head, nn.Linear) else features[:, 0]
        return MapOutput(features, logits, maps)


def _encoder(name: str, **options: bool) -> Network:
    from embedprior.encoders.frozen import FrozenEncoder
    from embedprior.encoders.registry import create_encoder

    encoder = create_encoder(name, **options)
    assert isinstance(encoder, FrozenEncoder)
    return encoder.backbone


def new_map_network(name: str) -> MapNetwork | FusionNetwork | TrunkNetwork:
    """Return an untrained network by its name: of ``MAP_NETWORKS``, ``pilot-fusion``, or a trunk's.

    Example:
        >>> new_map_network("pilot-dfpn").width
        128
    """
    if name in get_args(TrunkKind):
        return TrunkNetwork(name)
    return FusionNetwork() if name == "pilot-fusion" else MapNetwork(**MAP_NETWORKS[name])


def two_class_logit(outputs: Float[Tensor, "cases 2"]) -> Float[Tensor, " cases"]:
    """Return z₁ − z₀: cross-entropy and softened KL of two outputs are those of this logit."""
    return outputs[:, 1] - outputs[:, 0]


def _pool(maps: Float[Tensor, "cases channels height width"]) -> Float[Tensor, "cases channels"]:
    return reduce(maps, "cases channels height width -> cases channels", "mean")
