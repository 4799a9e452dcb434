"""Weight files from elsewhere, read without executing anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedprior.errors import BadInput

if TYPE_CHECKING:
    import torch


def read_tensors(file: Path | str, after: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote, by name, on the CPU.

    Args:
        file: what to read. Its suffix tells the two formats apart.
        after: how the message goes on: what to give instead.

    Raises:
        BadInput: damaged, no weight file, more than tensors in it, or a pickle that would run code.
    """
    file = Path(file)
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        given = torch.load(file, map_location="cpu", weights_only=True)
    # torch, pickle, zipfile and safetensors each raise their own kinds for a damaged file
    except Exception as error:
        raise BadInput(f"{file.name} can't be read as weights ({type(error).__name__}). {after}") from None
    if not isinstance(given, Mapping) or not all(isinstance(value, torch.Tensor) for value in given.values()):
        raise BadInput(f"{file.name} holds no table of tensors. {after}")
    return {str(name): value for name, value in given.items()}
