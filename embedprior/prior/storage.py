"""The files of a trained prior: ``prior.safetensors`` and ``prior.json``, which marks completion. No pickle.

``prior.json`` holds the sha256 of the weights, so that what is loaded is what was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from embedprior.errors import BadInput
from embedprior.runs import write_tensors
from embedprior.runs.integrity import read_sealed, write_sealed

WEIGHTS, DESCRIPTION = "prior.safetensors", "prior.json"
FORMAT = 4
"""2: the weights' hash stands in the description; the null branch's names changed. 3: whitening, ``edm``. 4: the
description has a checksum of its own."""

Tensors = dict[str, NDArray[np.generic]]


def write_files(folder: Path, tensors: Mapping[str, NDArray[np.generic]], description: Mapping[str, Any]) -> None:
    """Write the weights, then the description with their checksum and its own."""
    write_sealed(
        folder, DESCRIPTION, {**description, "format": FORMAT}, lambda work: write_tensors(work / WEIGHTS, tensors)
    )


def read_files(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors by name, and the description.

    Raises:
        BadInput: no prior there, another format, or weights that can't be read, that are not those the description was
            written with, or that hold a number that is not finite.
    """
    if not (folder / DESCRIPTION).is_file():
        raise BadInput(f"{folder} holds no trained prior ({DESCRIPTION} is missing). Next: train_prior.py")
    description = read_sealed(folder, DESCRIPTION, "prior", FORMAT, "copy or train the prior again")
    weights = folder / WEIGHTS
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{weights} can't be read: {error}. Next: copy or train the prior again") from error
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadInput(f"{weights}: '{name}' holds a number that is not finite. Next: train the prior again")
    return tensors, description


def require(tensors: Mapping[str, NDArray[np.generic]], names: list[str], folder: Path) -> None:
    """Refuse weights that lack one of ``names``.

    Raises:
        BadInput: naming what is missing.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise BadInput(
            f"{folder / WEIGHTS} lacks {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''} "
            f"({len(missing)} of {len(names)} tensors). Next: copy or train the prior again"
        )
