"""A transformer over an exam's tokens: DINOv2's blocks without its patch embedding, as the PE paper reads slices.

Oquab et al., "DINOv2", TMLR 2024: pre-norm blocks with layer scale (Touvron et al. 2021) and a class token. Positions
are a learned table that is stretched over each exam's own number of slices, so that foot and head keep their places in
short and long scans; padding is masked. The table starts from sines and cosines (Vaswani et al. 2017), not from the
small random numbers of DINOv2, from which some hundred labelled CTs do not teach which slices are neighbours.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 32
POSITIONS = 64
"""Learned positions from one end of a scan to the other."""
LAYER_SCALE = 0.1


class Block(nn.Module):
    """Attention and perceptron, each normalised before and scaled after, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), LAYER_SCALE)) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "exams tokens width"], real: Bool[Tensor, "exams tokens"]
    ) -> Float[Tensor, "exams tokens width"]:
        """Return the block's output; nothing attends to a token that is not real."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        mask = rearrange(real, "n t -> n 1 1 t")
        attended = rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "n h t d -> n t (h d)")
        x = x + self.scale1 * self.proj(attended)
        found: Tensor = x + self.scale2 * self.mlp(self.norm2(x))
        return found


class SliceTransformer(nn.Module):
    """Tokens (exams, tokens, inputs) → (exams, 1 + tokens, width): the class token first.

    Args:
        inputs: length of a token.
        width: of the transformer.
        layers: blocks.

    Example:
        >>> model = SliceTransformer(5, 16, 2)
        >>> model(torch.zeros(3, 7, 5), torch.tensor([7, 2, 4])).shape
        torch.Size([3, 8, 16])
    """

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(sinusoids(torch.arange(POSITIONS), width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self, tokens: Float[Tensor, "exams longest inputs"], lengths: Int[Tensor, " exams"]
    ) -> Float[Tensor, "exams outputs width"]:
        """Return the outputs; those past an exam's length are of no use."""
        count, longest = tokens.shape[:2]
        place = torch.arange(longest, device=tokens.device)
        real = place < rearrange(lengths.to(tokens.device), "n -> n 1")
        clean = tokens.masked_fill(~rearrange(real, "n t -> n t 1"), 0.0)  # padding may hold anything, infinities too
        x = self.embed(clean) + self._positions(lengths.to(tokens.device), longest)
        first = repeat(self.class_token, "width -> n 1 width", n=count)
        x = torch.cat([first, x], dim=1)
        seen = torch.cat([torch.ones_like(real[:, :1]), real], dim=1)
        for block in self.blocks:
            x = block(x, seen)
        found: Tensor = self.norm(x)
        return found

    def _positions(self, lengths: Int[Tensor, " exams"], longest: int) -> Float[Tensor, "exams longest width"]:
        """Stretch the table over each exam's length, linearly; a single token takes the middle."""
        place = torch.arange(longest, device=lengths.device, dtype=self.positions.dtype)
        last = rearrange(lengths - 1, "n -> n 1").clamp(min=1)
        share = torch.where(rearrange(lengths, "n -> n 1") > 1, place / last, torch.full_like(place, 0.5))
        at = share.clamp(0, 1) * (POSITIONS - 1)
        low = at.floor().long().clamp(max=POSITIONS - 2)
        part = rearrange(at - low, "n t -> n t 1")
        return self.positions[low] * (1 - part) + self.positions[low + 1] * part


def sinusoids(places: Tensor, width: int) -> Float[Tensor, "places width"]:
    """Return sines, then cosines, of places or times (Vaswani et al. 2017, "Attention is all you need", section 3.5).

    Args:
        places: one number each.
        width: how many numbers a place gets; of an odd one the last is 0.

    Example:
        >>> sinusoids(torch.tensor([0, 1]), 4)
        tensor([[0.0000, 0.0000, 1.0000, 1.0000],
                [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=places.device) * (-math.log(10_000.0) / half))
    angle = places[:, None] * frequency
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width - 2 * half))
