"""Bring a grey picture to a square of fixed side."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from PIL import Image

from embedprior.errors import BadInput, nearest
from embedprior.imaging.files import UnreadableExam, read_image

Geometry = Literal["letterbox", "crop"]
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


def to_square(
    grey: Float[np.ndarray, "height width"], side: int, geometry: Geometry, resampling: Image.Resampling
) -> Float[np.ndarray, "side side"]:
    """Resize with antialiasing and bring to ``side`` × ``side``; values stay in [0, 1].

    Args:
        grey: values in [0, 1].
        side: in pixels.
        geometry: ``"letterbox"`` keeps the whole picture and pads the short side with 0; ``"crop"`` scales the short
            side to ``side`` and keeps the centre.
        resampling: filter of the resize.
    """
    height, width = grey.shape
    fitted = max(height, width) if geometry == "letterbox" else min(height, width)
    size = (max(1, round(width * side / fitted)), max(1, round(height * side / fitted)))
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    # bicubic overshoots at edges; 8-bit pipelines clip it, so networks trained on those never saw it
    small = np.clip(np.asarray(picture.resize(size, resampling)), 0.0, 1.0)
    if geometry == "letterbox":
        canvas = np.zeros((side, side), np.float32)
        top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        return canvas
    top, left = (small.shape[0] - side) // 2, (small.shape[1] - side) // 2
    return np.asarray(small[top : top + side, left : left + side], dtype=np.float32)
