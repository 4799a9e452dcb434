"""The symmetric InfoNCE loss among three kinds of embeddings, its false negatives left out, over several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from embedprior.alignment.config import AlignmentConfig, Side
from embedprior.nn.losses import info_nce

TERMS: dict[str, tuple[Side, Side]] = {"alpha": ("ct", "report"), "beta": ("cxr", "report"), "gamma": ("cxr", "ct")}
"""Weight of a term → the two sides it compares."""


def objective(
    sides: dict[Side, Tensor], scale: Tensor | float, groups: Int[Tensor, " cases"], has_report: Bool[Tensor, " cases"],
    config: AlignmentConfig,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Return L = α · L(C, R) + β · L(X, R) + γ · L(X, C) and its terms by name (unweighted).

    Args:
        sides: unit vectors (cases, dim) by side; ``report`` may be left out when no term reads it. Rows of cases
            without a report are not read.
        scale: 1 / temperature.
        groups: of each case.
        has_report: cases with a report.
        config: the weights.
    """
    terms: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=sides["cxr"].dtype, device=sides["cxr"].device)
    for name, (first, second) in TERMS.items():
        weight = getattr(config, name)
        if weight:
            present = has_report if "report" in (first, second) else None
            terms[f"{first}-{second}"] = info_nce(sides[first], sides[second], groups, scale, present)
            total = total + weight * terms[f"{first}-{second}"]
    return total, terms


class _Gather(torch.autograd.Function):
    """Rows of every process, in the order of their ranks; the gradients of all processes flow back to each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        start = dist.get_rank() * ctx.count
        return whole[start : start + ctx.count]


def gathered(rows: Float[Tensor, "own dim"]) -> Float[Tensor, "all dim"]:
    """Return the rows of all processes (each brings as many); in one process, the rows themselves.

    Every process then computes the loss of the whole batch, and the backward pass sums the gradients over processes: a
    parameter's gradient *averaged* over P processes (``average_gradients``) is that of one process with all rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    out: Tensor = _Gather.apply(rows)
    return out


def average_gradients(parameters: list[Tensor]) -> None:
    """Let every parameter's gradient be averaged over the processes as soon as it is complete; no-op in one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return

    def average(parameter: Tensor) -> None:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(average)
