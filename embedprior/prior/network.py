"""The decoder: tokens [z_CXR …, t, z_CT(t), query], causal; what comes out at the query is the prediction.

Same token order, multi-query attention, gated feed-forward and size as DALL-E 2's prior (Ramesh et al. 2022,
section 2.2) in the form the PE paper ships, without its 77 constant text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from embedprior.nn.linear import Linear
from embedprior.nn.transformer import sinusoids
from embedprior.prior.config import NetworkSize

# Timestep, noised target, query: the tokens that follow the condition.
SUFFIX = 3


@dataclass(frozen=True)
class Prefix:
    """The tokens before the noised target, encoded once: causal attention makes them independent of what follows.

    That is the condition, for all timesteps, or the condition and the timestep, for all samples of a case.

    Attributes:
        keys_values: per block, (B, C, 2 · head_dim).
        visible: (B, C) bool, which tokens are real; None when all are.
    """

    keys_values: list[Tensor]
    visible: Tensor | None

    def repeat(self, samples: int) -> Prefix:
        """Return the prefix with every row ``samples`` times in its place (row 0, 0, …, 1, 1, …)."""
        visible = self.visible
        if visible is not None:
            visible = repeat(visible, "cases n -> (cases samples) n", samples=samples)
        pattern = "cases n d -> (cases samples) n d"
        return Prefix([repeat(kv, pattern, samples=samples) for kv in self.keys_values], visible)

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
        self.query = Linear(size.dim, size.heads * size.head_dim, bias=False)
        self.key_value = Linear(size.dim, 2 * size.head_dim, bias=False)
        self.out = Linear(size.heads * size.head_dim, size.dim, bias=False)

    def keys_values(self, x: Tensor) -> Tensor:
        """Return keys and values (B, n, 2 · head_dim) of a stream, when nothing else of it is needed."""
        made: Tensor = self.key_value(self.norm(x))
        return made

    def forward(self, x: Tensor, mask: Tensor, past: Tensor | None, last_only: bool) -> tuple[Tensor, Tensor]:
        """Return the update of (B, n or 1, dim) and this call's keys and values (B, n, 2 · head_dim).

        ``mask``: (n · heads, seen) or (B, 1, n · heads, seen); see ``PriorNetwork._mask``.
        """
        hidden = self.norm(x)
        keys_values = self.key_value(hidden)
        seen = keys_values if past is None else torch.cat([past, keys_values], dim=1)
        key, value = seen.chunk(2, dim=-1)
        # The heads share keys and values, so they can stand in line with the tokens: (B, 1, n · heads, head_dim). For
        # a handful of tokens that is twice as quick as one small attention per head, and nothing is copied.
        queries = self.query(hidden[:, -1:] if last_only else hidden)
        mixed = F.scaled_dot_product_attention(
            rearrange(queries, "batch n (heads d) -> batch 1 (n heads) d", heads=self.heads),
            rearrange(key, "batch seen d -> batch 1 seen d"),
            rearrange(value, "batch seen d -> batch 1 seen d"),
            attn_mask=mask[..., -self.heads :, :] if last_only else mask,
        )
        mixed = rearrange(mixed, "batch 1 (n heads) d -> batch n (heads d)", heads=self.heads)
        return self.out(mixed), keys_values


class FeedForward(nn.Module):
    """SwiGLU with a norm on the inner width (Shazeer 2020; Shleifer et al. 2021)."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.dim, bias=False)
        self.enter = Linear(size.dim, 2 * size.inner, bias=False)
        self.inner_norm = nn.LayerNorm(size.inner, bias=False)
        self.leave = Linear(size.inner, size.dim, bias=False)

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

    Example:
        >>> network = PriorNetwork(NetworkSize(dim=16, depth=2, heads=2, head_dim=8, inner=32), 6, 8)
        >>> network(torch.randn(4, 8), torch.tensor([1, 10, 100, 1000]), torch.randn(4, 1, 6)).shape
        torch.Size([4, 8])
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
        dim, self._heads = size.dim, size.heads
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
        mask = self._mask(0, count + SUFFIX, visible, tokens)
        stream, _ = self._run(torch.cat([tokens, self._suffix_tokens(x, n, drop_target)], dim=1), mask, [])
        return self._read(stream)

    def encode(self, condition: Tensor, visible: Tensor | None = None, drop_condition: Tensor | None = None) -> Prefix:
        """Return the encoded condition tokens (B, C, Dc), to be reused at every step."""
        tokens = self._condition_tokens(condition, drop_condition)
        return self._extend(Prefix([], None), tokens, visible)

    def at_time(self, prefix: Prefix, n: Tensor) -> Prefix:
        """Return the encoded condition followed by timestep ``n``, (B,) or (1,), to be shared by a case's samples."""
        time = self._time_token(n, prefix.keys_values[0]).expand(len(prefix.keys_values[0]), -1)
        return self._extend(prefix, time[:, None], None)

    def step(self, prefix: Prefix, x: Tensor, n: Tensor | None, drop_target: Tensor | None = None) -> Tensor:
        """Return the same prediction (B, D) as ``forward``, from an encoded condition.

        Args:
            prefix: of ``encode``, or of ``at_time``.
            x: (B, D) noised target.
            n: (B,) or (1,) timestep; None when the prefix holds it already.
            drop_target: as in ``forward``.
        """
        tokens = self._suffix_tokens(x, n, drop_target)
        count = prefix.keys_values[0].shape[1]
        mask = self._mask(count, tokens.shape[1], prefix.visible, tokens)
        stream, _ = self._run(tokens, mask, prefix.keys_values)
        return self._read(stream)

    def parameter_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameter_parts(self) -> dict[str, int]:
        """Return the number of trainable parameters by part; they add up to ``parameter_count``."""
        parts: dict[str, list[nn.Module]] = {
            "condition": [self.condition_in],
            "target": [self.target_in],
            "time": [self.time_in],
            "blocks": [self.blocks],
            "output": [self.norm, self.out],
        }
        counts = {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts.items()}
        return counts | {"learned tokens": self.parameter_count() - sum(counts.values())}

    def _run(self, stream: Tensor, mask: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the query's stream (B, 1, dim) and every block's keys and values."""
        keys_values = []
        for index, block in enumerate(self.blocks):
            # Only the query is read, so the last block computes no other row.
            last = index == len(self.blocks) - 1
            stream, made = block(stream, mask, past[index] if past else None, last)
            keys_values.append(made)
        return stream, keys_values

    def _extend(self, prefix: Prefix, stream: Tensor, visible: Tensor | None) -> Prefix:
        """Return the prefix with more tokens (B, n, dim) behind it, of which ``visible`` (B, n) are real."""
        count, more = prefix.keys_values[0].shape[1] if prefix.keys_values else 0, stream.shape[1]
        if prefix.visible is not None and visible is None:
            visible = torch.ones(stream.shape[:2], dtype=torch.bool, device=stream.device)
        if prefix.visible is not None and visible is not None:
            visible = torch.cat([prefix.visible, visible], dim=1)
        mask = self._mask(count, more, visible, stream)
        keys_values = []
        for index, block in enumerate(self.blocks):
            past = prefix.keys_values[index] if prefix.keys_values else None
            if index < len(self.blocks) - 1:
                stream, made = block(stream, mask, past, False)
            else:
                assert isinstance(block, Block)
                made = block.attention.keys_values(stream)
            keys_values.append(made if past is None else torch.cat([past, made], dim=1))
        return Prefix(keys_values, visible)

    def _mask(self, past: int, more: int, visible: Tensor | None, like: Tensor) -> Tensor:
        """Return what the last ``more`` of the tokens attend to (True), a row per token and head.

        (more · heads, past + more), or (B, 1, more · heads, past + more) when some tokens are padding. ``visible``:
        (B, tokens), shorter where the tokens at the end are all real; None when every token is.
        """
        length = past + more
        mask = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
        if visible is not None:
            seen = F.pad(visible, (0, length - visible.shape[1]), value=True)[:, None, None, :]
            # A padding token attends to itself: a row that sees nothing would be NaN.
            mask = (mask & seen) | torch.eye(length, dtype=torch.bool, device=like.device)
        return repeat(mask[..., past:, :], "... more seen -> ... (more heads) seen", heads=self._heads)

    def _read(self, stream: Tensor) -> Tensor:
        prediction: Tensor = self.out(self.norm(stream[:, -1]))
        return prediction

    def _condition_tokens(self, condition: Tensor, drop: Tensor | None) -> Tensor:
        tokens: Tensor = self.condition_in(condition)
        if drop is not None:
            tokens = torch.where(drop[:, None, None], self.null_condition.to(tokens.dtype), tokens)
        return tokens + self.slots[: tokens.shape[1]]

    def _suffix_tokens(self, x: Tensor, n: Tensor | None, drop: Tensor | None) -> Tensor:
        noised = self.target_in(x)
        if drop is not None and self.null_target is not None:
            noised = torch.where(drop[:, None], self.null_target.to(noised.dtype), noised)
        tokens = [noised, self.query.to(noised.dtype).expand_as(noised)]
        if n is not None:
            tokens.insert(0, self._time_token(n, noised).expand_as(noised))
        return torch.stack(tokens, dim=1)

    def _time_token(self, n: Tensor, like: Tensor) -> Tensor:
        token: Tensor = self.time_in(time_features(n, len(self.query), self.timesteps).to(like.dtype))
        return token


def time_features(n: Tensor, dim: int, timesteps: int) -> Tensor:
    """Return (B, dim) sines and cosines of the timestep (Vaswani et al. 2017), rescaled to a 1000-step clock."""
    return sinusoids(n * (1000.0 / timesteps), dim)
