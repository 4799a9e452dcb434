"""The decoder: tokens [z_CXR …, t, z_CT(t), query], causal; what comes out at the query is the prediction.

Same token order, multi-query attention, gated feed-forward and size as DALL-E 2's prior (Ramesh et al. 2022,
section 2.2) in the form the PE paper ships, without its 77 constant text tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedprior.prior.config import NetworkSize

# Real token, then noised target, then query: the tokens that follow the condition.
SUFFIX = 3


@dataclass(frozen=True)
class Prefix:
    """The condition, encoded once: causal attention makes it independent of the timestep and the noised target.

    Attributes:
        keys_values: per block, (B, C, 2 · head_dim).
        visible: (B, C) bool, which condition tokens are real; None when all are.
    """

    keys_values: list[Tensor]
    visible: Tensor | None

    def repeat(self, times: int) -> Prefix:
        """Return the prefix with every row repeated ``times`` in place (row 0, 0, …, 1, 1, …)."""
        visible = None if self.visible is None else self.visible.repeat_interleave(times, dim=0)
        return Prefix([kv.repeat_interleave(times, dim=0) for kv in self.keys_values], visible)

    def rows(self, start: int, stop: int) -> Prefix:
        """Return rows ``start`` to ``stop``."""
        visible = None if self.visible is None else self.visible[start:stop]
        return Prefix([kv[start:stop] for kv in self.keys_values], visible)


class Attention(nn.Module):
    """Multi-query attention: many query heads, one shared key/value head (Shazeer 2019)."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.heads, self.head_dim = size.heads, size.head_dim
        self.norm = nn.LayerNorm(size.dim, bias=False)
        self.query = nn.Linear(size.dim, size.heads * size.head_dim, bias=False)
        self.key_value = nn.Linear(size.dim, 2 * size.head_dim, bias=False)
        self.out = nn.Linear(size.heads * size.head_dim, size.dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor, past: Tensor | None, last_only: bool) -> tuple[Tensor, Tensor]:
        """Return the update of (B, n or 1, dim) and this call's keys and values (B, n, 2 · head_dim)."""
        hidden = self.norm(x)
        keys_values = self.key_value(hidden)
        seen = keys_values if past is None else torch.cat([past, keys_values], dim=1)
        key, value = seen.chunk(2, dim=-1)
        queries = self.query(hidden[:, -1:] if last_only else hidden)
        queries = queries.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        shared = (-1, self.heads, -1, -1)
        mixed = F.scaled_dot_product_attention(
            queries,
            key[:, None].expand(shared),
            value[:, None].expand(shared),
            attn_mask=mask[..., -1:, :] if last_only else mask,
        )
        return self.out(mixed.transpose(1, 2).flatten(-2)), keys_values


class FeedForward(nn.Module):
    """SwiGLU with a norm on the inner width (Shazeer 2020; Shleifer et al. 2021)."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.dim, bias=False)
        self.enter = nn.Linear(size.dim, 2 * size.inner, bias=False)
        self.inner_norm = nn.LayerNorm(size.inner, bias=False)
        self.leave = nn.Linear(size.inner, size.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of (B, n, dim)."""
        value, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        update: Tensor = self.leave(self.inner_norm(value * F.silu(gate)))
        return update


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.attention = Attention(size)
        self.feed_forward = FeedForward(size)

    def forward(self, x: Tensor, mask: Tensor, past: Tensor | None, last_only: bool) -> tuple[Tensor, Tensor]:
        """Return the stream (B, n or 1, dim) and the keys and values of this call."""
        update, keys_values = self.attention(x, mask, past, last_only)
        x = (x[:, -1:] if last_only else x) + update
        return x + self.feed_forward(x), keys_values


class PriorNetwork(nn.Module):
    """Predicts x0, the noise or v of a CT embedding from a radiograph embedding, in standardised units.

    Args:
        size: widths and depth.
        condition_dim, target_dim: embedding sizes; they may differ.
        condition_tokens: the most condition tokens a case can have.
        timesteps: N, so that the time features span the same range for any N.
        null_target: whether a learned token may stand in for the noised target (the null branch as released).
    """

    def __init__(
        self,
        size: NetworkSize,
        condition_dim: int,
        target_dim: int,
        condition_tokens: int = 1,
        timesteps: int = 1000,
        null_target: bool = False,
    ) -> None:
        super().__init__()
        dim = size.dim
        self.condition_dim, self.target_dim, self.timesteps = condition_dim, target_dim, timesteps
        self.condition_in = nn.Linear(condition_dim, dim)
        self.target_in = nn.Linear(target_dim, dim)
        self.time_in = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.slots = nn.Parameter(torch.randn(condition_tokens, dim) * 0.02)
        self.null_condition = nn.Parameter(torch.randn(dim))
        self.null_target = nn.Parameter(torch.randn(dim)) if null_target else None
        self.query = nn.Parameter(torch.randn(dim))
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.out = nn.Linear(dim, target_dim, bias=False)
        # Starting at the training mean (0 in standardised units) saves the first few hundred steps.
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Tensor,
        n: Tensor,
        condition: Tensor,
        visible: Tensor | None = None,
        drop_condition: Tensor | None = None,
        drop_target: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, D) in one pass.

        Args:
            x: (B, D) noised target.
            n: (B,) timestep, 1..N; or (1,), the same for all.
            condition: (B, C, Dc).
            visible: (B, C) bool, which condition tokens are real; None when all are.
            drop_condition, drop_target: (B,) bool, replace the token(s) by the learned null.
        """
        tokens = self._condition_tokens(condition, drop_condition)
        count = tokens.shape[1]
        tokens = torch.cat([tokens, self._suffix_tokens(x, n, drop_target)], dim=1)
        stream, _ = self._run(tokens, _mask(count, visible, tokens), None, to_query=True)
        return self._read(stream)

    def encode(
        self, condition: Tensor, visible: Tensor | None = None, drop_condition: Tensor | None = None
    ) -> Prefix:
        """Return the keys and values of the condition tokens (B, C, Dc), to be reused at every step."""
        tokens = self._condition_tokens(condition, drop_condition)
        mask = _mask(tokens.shape[1], visible, tokens)[..., :-SUFFIX, :-SUFFIX]
        _, keys_values = self._run(tokens, mask, None, to_query=False)
        return Prefix(keys_values, visible)

    def step(self, prefix: Prefix, x: Tensor, n: Tensor, drop_target: Tensor | None = None) -> Tensor:
        """Return the same prediction (B, D) as ``forward``, from an encoded condition."""
        tokens = self._suffix_tokens(x, n, drop_target)
        count = prefix.keys_values[0].shape[1]
        mask = _mask(count, prefix.visible, tokens)[..., -SUFFIX:, :]
        stream, _ = self._run(tokens, mask, prefix.keys_values, to_query=True)
        return self._read(stream)

    def parameter_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _run(
        self, stream: Tensor, mask: Tensor, past: list[Tensor] | None, to_query: bool
    ) -> tuple[Tensor, list[Tensor]]:
        keys_values = []
        for index, block in enumerate(self.blocks):
            # Only the query is read, so the last block computes no other row.
            last = to_query and index == len(self.blocks) - 1
            stream, made = block(stream, mask, None if past is None else past[index], last)
            keys_values.append(made)
        return stream, keys_values

    def _read(self, stream: Tensor) -> Tensor:
        prediction: Tensor = self.out(self.norm(stream[:, -1]))
        return prediction

    def _condition_tokens(self, condition: Tensor, drop: Tensor | None) -> Tensor:
        tokens: Tensor = self.condition_in(condition)
        if drop is not None:
            tokens = torch.where(drop[:, None, None], self.null_condition.to(tokens.dtype), tokens)
        return tokens + self.slots[: tokens.shape[1]]

    def _suffix_tokens(self, x: Tensor, n: Tensor, drop: Tensor | None) -> Tensor:
        noised = self.target_in(x)
        if drop is not None and self.null_target is not None:
            noised = torch.where(drop[:, None], self.null_target.to(noised.dtype), noised)
        time = self.time_in(time_features(n, noised.shape[-1], self.timesteps).to(noised.dtype)).expand_as(noised)
        return torch.stack([time, noised, self.query.to(noised.dtype).expand_as(noised)], dim=1)


def time_features(n: Tensor, dim: int, timesteps: int) -> Tensor:
    """Return (B, dim) sines and cosines of the timestep (Vaswani et al. 2017), rescaled to a 1000-step clock."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=n.device) * (-math.log(10_000.0) / half))
    angle = n[:, None] * (1000.0 / timesteps) * frequency
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, dim - 2 * half))


def _mask(count: int, visible: Tensor | None, like: Tensor) -> Tensor:
    """Return the causal mask (n, n), or (B, 1, n, n) when some condition tokens are padding; True = may look."""
    length = count + SUFFIX
    causal = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    if visible is None:
        return causal
    seen = F.pad(visible, (0, SUFFIX), value=True)[:, None, None, :]
    # A padding token may look at itself: a row that sees nothing would be NaN.
    itself = torch.eye(length, dtype=torch.bool, device=like.device)
    return (causal & seen) | itself
