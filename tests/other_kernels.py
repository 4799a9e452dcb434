"""A pytest plugin that lets matrix products round as on a processor whose kernels depend on the number of rows.

    python -m pytest -p tests.other_kernels

On some processors a linear layer takes another kernel for another number of rows, and the last digits of a row change
with the rows beside it; on others they never do. Whatever is promised to the last digit must hold on both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rounding_by_rows(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the layer with its output scaled by 1 + k eps, where k in -3 … 3 depends on the number of rows."""

    def call(inputs: Tensor, *more: Any, **options: Any) -> Tensor:
        out = layer(inputs, *more, **options)
        rows = out.shape[0] * (out.shape[1] if out.dim() == 3 else 1) if out.dim() > 1 else 1
        return out * (1 + (rows * 2654435761 % 7 - 3) * torch.finfo(out.dtype).eps)

    return call


def pytest_configure() -> None:
    """Put the layers in; importing this module alone, as a collector of doctests does, changes nothing."""
    torch.nn.functional.linear = rounding_by_rows(torch.nn.functional.linear)
    torch.nn.functional.conv2d = rounding_by_rows(torch.nn.functional.conv2d)
