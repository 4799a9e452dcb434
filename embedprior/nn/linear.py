"""A linear layer whose float32 products use AVX-512 on every maker's processors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_WEIGHTS = 2**16
"""Smaller layers take longer to hand over than they save."""


class Linear(nn.Linear):
    """``nn.Linear``, by oneDNN where that pays: large float32 layers on a CPU with AVX-512.

    PyTorch multiplies float32 matrices with MKL, which keeps to AVX2 on processors that are not Intel's: half the
    speed. oneDNN, which PyTorch brings along, does not. The results differ by rounding; parameters and names are those
    of ``nn.Linear``. Other devices, types, autocast and small layers go the usual way.

    Example:
        >>> layer = Linear(512, 1024)
        >>> layer(torch.zeros(2, 3, 512)).shape
        torch.Size([2, 3, 1024])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (…, outputs) for (…, inputs)."""
        if not self._by_onednn(input):
            return super().forward(input)
        rows = input.reshape(-1, self.in_features).to_mkldnn()
        out: Tensor = F.linear(rows, self.weight, self.bias).to_dense()
        return out.view(*input.shape[:-1], self.out_features)

    def _by_onednn(self, input: Tensor) -> bool:
        single = input.dtype == self.weight.dtype == torch.float32
        on_cpu = input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return single and on_cpu and self.weight.numel() >= MIN_WEIGHTS and input.numel() > 0 and wide_vectors()


def wide_vectors() -> bool:
    """Return whether oneDNN is there, and a processor with AVX-512."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
