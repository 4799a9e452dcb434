"""What the encoders of pictures share: reading one, and the name of the way it becomes a square."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Float

from embedprior.errors import BadInput, nearest
from embedprior.imaging.files import UnreadableExam, read_image
from embedprior.imaging.radiographs import Geometry

GREY = "ITU-R 601 luminance, repeated over three channels"


def check_geometry(geometry: str) -> None:
    """Check the name of a geometry.

    Raises:
        BadInput: it is not one.
    """
    allowed = get_args(Geometry)
    if geometry not in allowed:
        raise BadInput(f"unknown geometry '{geometry}'. Allowed: {', '.join(allowed)}.{nearest(geometry, allowed)}")


def read_picture(root: Path, path: str) -> Float[np.ndarray, "height width"]:
    """Return one 2D picture as grey values in [0, 1].

    Raises:
        UnreadableExam: not an image, damaged, not 2D, or of one uniform grey.
    """
    grey = read_image(root, path)
    name = Path(path).name
    if grey.ndim != 2:
        raise UnreadableExam(f"{name}: expected one 2D picture, got shape {grey.shape}")
    if grey.min() == grey.max():
        raise UnreadableExam(f"{name}: every pixel has the same value")
    return grey
