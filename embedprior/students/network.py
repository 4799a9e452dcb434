"""The student network: one backbone per kind of input, shared by every method, and a readout to one logit.

Methods differ in what they transfer, so they must not differ in network: ``FitConfig.hidden`` is the one capacity
setting of all three backbones.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.nn.network import Standardised
from embedprior.nn.training import seeded
from embedprior.students.base import CannotFit, Cases
from embedprior.students.config import InputKind
from embedprior.students.pilot_networks import FusionNetwork, MapNetwork, MapOutput, TrunkNetwork, new_map_network

CHUNK = 512
"""Cases scored at once."""


class EmbeddingBackbone(Standardised):
    """Standardise → dropout → linear → GELU, on (cases, dim)."""

    def __init__(self, dim: int, config: FitConfig) -> None:
        super().__init__(dim)
        self.layers = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(dim, config.hidden), nn.GELU())

    def forward(self, inputs: Float[Tensor, "cases dim"]) -> Float[Tensor, "cases hidden"]:
        """Return features."""
        return cast(Tensor, self.layers(self.standardise(inputs)))


class TokenBackbone(EmbeddingBackbone):
    """The same on every token of (cases, tokens, dim), averaged over the real ones (padding is NaN)."""

    def fit_scale(self, inputs: Tensor) -> None:
        """Take mean and spread over the real tokens of the training cases."""
        super().fit_scale(inputs[_real(inputs)])

    def forward(self, inputs: Float[Tensor, "cases tokens dim"]) -> Float[Tensor, "cases hidden"]:
        """Return features."""
        real = rearrange(_real(inputs), "cases tokens -> cases tokens 1")
        each = super().forward(torch.where(real, inputs, self.mean))
        return (each * real).sum(1) / real.sum(1).clamp(min=1)


class PixelBackbone(Standardised):
    """Four 3×3 convolutions of stride 2 (hidden/8, /4, /2, /1 channels; group norm, GELU), then the mean over place."""

    def __init__(self, config: FitConfig) -> None:
        super().__init__()
        widths = [1, *(max(config.hidden // part, 4) for part in (8, 4, 2)), config.hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def maps(self, inputs: Float[Tensor, "cases height width"]) -> Float[Tensor, "cases channels rows columns"]:
        """Return the maps of the last layer."""
        pictures = rearrange(self.standardise(inputs.float()), "cases height width -> cases 1 height width")
        return cast(Tensor, self.layers(pictures))

    def fit_scale(self, inputs: Tensor) -> None:
        """Take mean and spread over all pixels of the training cases."""
        super().fit_scale(inputs.float().flatten())

    def forward(self, inputs: Float[Tensor, "cases height width"]) -> Float[Tensor, "cases hidden"]:
        """Return features."""
        return reduce(self.maps(inputs), "cases channels height width -> cases channels", "mean")


class LinearReadout(nn.Sequential):
    """Dropout → linear: features to logit."""

    def __init__(self, config: FitConfig) -> None:
        super().__init__(nn.Dropout(config.dropout), nn.Linear(config.hidden, 1))


class ProbeReadout(nn.Module):
    """Features → latent (linear without bias, unit length) → logit; X2CT-CLIP's student and its linear probe."""

    def __init__(self, config: FitConfig, latent: int) -> None:
        super().__init__()
        self.project = nn.Linear(config.hidden, latent, bias=False)
        self.probe = nn.Linear(latent, 1)

    def latent(self, features: Float[Tensor, "cases hidden"]) -> Float[Tensor, "cases latent"]:
        """Return unit-length latents."""
        return nn.functional.normalize(self.project(features), dim=1)

    def forward(self, features: Float[Tensor, "cases hidden"]) -> Float[Tensor, "cases 1"]:
        """Return the probe's logit."""
        return cast(Tensor, self.probe(self.latent(features)))


class DisentangledReadout(nn.Module):
    """DisCoM-KD's split: invariant z_inv = ReLU(BN(linear)); specific, in halves: informative z_inf | irrelevant z_irr.

    The logit reads [z_inv, z_inf]. The released code has an encoder of its own for either; here both are linear maps
    of the shared backbone, so that this row has the capacity of the others.
    """

    def __init__(self, config: FitConfig, latent: int) -> None:
        super().__init__()
        self.invariant = nn.Sequential(nn.Linear(config.hidden, latent), nn.BatchNorm1d(latent), nn.ReLU())
        self.specific = nn.Linear(config.hidden, 2 * latent)
        self.task = nn.Linear(2 * latent, 1)

    def parts(self, features: Float[Tensor, "cases hidden"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return (z_inv, z_inf, z_irr), each (cases, latent)."""
        informative, irrelevant = self.specific(features).chunk(2, dim=1)
        return self.invariant(features), informative, irrelevant

    def forward(self, features: Float[Tensor, "cases hidden"]) -> Float[Tensor, "cases 1"]:
        """Return the logit."""
        invariant, informative, _ = self.parts(features)
        return cast(Tensor, self.task(torch.cat([invariant, informative], dim=1)))


READOUTS = ("linear", "probe", "disentangled")


class StudentNetwork(nn.Module):
    """Backbone and readout.

    Args:
        kind: of input.
        dim: of an embedding or token; 0 for pixels.
        config: capacity and dropout.
        readout: one of ``READOUTS``.
        latent: width of the readout's latents, where it has any.
        student: ``shared``, or one that reads pixels (``pilot_networks``) and has a head of its own in place of the
            linear readout. ``config.hidden`` is then its width.

    Attributes:
        channels: of the deepest maps, where it reads pixels.
    """

    def __init__(
        self, kind: InputKind, dim: int, config: FitConfig, readout: str = "linear", latent: int = 0,
        student: str = "shared",
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings: dict[str, Any] = {"kind": kind, "dim": dim, "readout": readout, "latent": latent}
        self.backbone: EmbeddingBackbone | PixelBackbone | MapNetwork | FusionNetwork | TrunkNetwork
        if student != "shared":
            self.settings["student"] = student
            if kind != "pixels":
                raise BadInput(f"student '{student}' reads pixels, not an {kind}. Next: inputs: pixels")
            self.backbone = new_map_network(student)
            config = config.model_copy(update={"hidden": self.backbone.width})
            if readout != "linear":
                self.backbone.head = nn.Identity()
        elif kind == "pixels":
            self.backbone = PixelBackbone(config)
        else:
            self.backbone = (TokenBackbone if kind == "tokens" else EmbeddingBackbone)(dim, config)
        self.config, self.channels = config, getattr(self.backbone, "channels", config.hidden)
        self.readout: nn.Module
        if readout == "probe":
            self.readout = ProbeReadout(config, latent)
        elif readout == "disentangled":
            self.readout = DisentangledReadout(config, latent)
        elif student != "shared":
            self.readout = nn.Identity()  # the network's own head gives the logit
        else:
            self.readout = LinearReadout(config)

    def forward(self, inputs: Tensor) -> tuple[Float[Tensor, "cases hidden"], Float[Tensor, " cases"]]:
        """Return features and logits."""
        return self.outputs(inputs)[:2]

    def outputs(self, inputs: Tensor) -> tuple[Float[Tensor, "cases hidden"], Float[Tensor, " cases"], Tensor | None]:
        """Return features, logits and, of pixels, the deepest maps (cases, channels, rows, columns)."""
        maps: Tensor | None = None
        if isinstance(self.backbone, MapNetwork | FusionNetwork | TrunkNetwork):
            found: MapOutput = self.backbone(inputs)
            features, logits, maps = found.features, found.logits, found.maps
            if isinstance(self.readout, nn.Identity):
                return features, logits, maps
        elif isinstance(self.backbone, PixelBackbone):
            maps = self.backbone.maps(inputs)
            features = reduce(maps, "cases channels height width -> cases channels", "mean")
        else:
            features = self.backbone(inputs)
        return features, self.readout(features)[:, 0], maps

    def rescale(self, intercept: float, slope: float) -> None:
        """Make the logit ``intercept + slope · logit``, by the last layer's weights."""
        place: nn.Module = self.backbone if isinstance(self.readout, nn.Identity) else self.readout
        last = [layer for layer in place.modules() if isinstance(layer, nn.Linear)][-1]
        with torch.no_grad():
            # of two outputs, the logit is the second less the first
            shares = torch.ones(1) if last.out_features == 1 else torch.tensor([-0.5, 0.5])
            last.weight.mul_(slope)
            last.bias.mul_(slope).add_(intercept * shares)

    def logits(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return one logit a case, without dropout."""
        self.eval()
        inputs = student_inputs(cases, self.settings["kind"])
        with torch.no_grad():
            return np.concatenate([np.empty(0), *(self(part)[1].numpy() for part in inputs.split(CHUNK))])


def new_student(
    cases: Cases, kind: InputKind, config: FitConfig, seed: int, readout: str = "linear", latent: int = 0,
    student: str = "shared",
) -> StudentNetwork:  # fmt: skip
    """Return an untrained network for inputs of this kind; its backbone starts alike whatever the method.

    Raises:
        CannotFit: the cases have no such input.
        BadInput: a pretrained trunk's weights are not there.
    """
    inputs = student_inputs(cases, kind)
    with seeded(seed, "initial weights"):
        made = StudentNetwork(kind, 0 if kind == "pixels" else inputs.shape[-1], config, readout, latent, student)
    if isinstance(made.backbone, TrunkNetwork):
        made.backbone.load_pretrained()
    return made


def student_inputs(cases: Cases, kind: InputKind) -> Tensor:
    """Return what a student of this kind reads, one row a case (float32; pixels stay uint8).

    Raises:
        CannotFit: the cases have no tokens, or no pixels.
        BadInput: unknown kind.
    """
    if kind not in ("embedding", "tokens", "pixels"):
        raise BadInput(f"unknown input '{kind}'. Allowed: embedding, tokens, pixels.")
    array = {"embedding": cases.cxr, "tokens": cases.tokens, "pixels": cases.pixels}[kind]
    if array is None:
        cache = "a token cache" if kind == "tokens" else "a pixels-128 cache"
        raise CannotFit(f"a student of {kind} needs {kind} of the radiographs. Next: give {cache} of these exams")
    whole = torch.from_numpy(np.ascontiguousarray(array))
    return whole if kind == "pixels" else whole.float()


def _real(tokens: Float[Tensor, "cases tokens dim"]) -> Bool[Tensor, "cases tokens"]:
    return ~tokens.isnan().any(dim=-1)
