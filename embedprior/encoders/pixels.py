"""What encoders of radiographs share, and the pixels themselves, so that pixel methods read a cache as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from embedprior.encoders.base import EncoderCard, EncoderSpec
from embedprior.errors import BadInput, nearest
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import Geometry, read_image, to_square

GREY = "ITU-R 601 luminance, repeated over three channels"


def check_geometry(geometry: str) -> None:
    """Check the name of a geometry.

    Raises:
        BadInput: it is not one.
    """
    allowed = get_args(Geometry)
    if geometry not in allowed:
        raise BadInput(f"unknown geometry '{geometry}'. Allowed: {', '.join(allowed)}.{nearest(geometry, allowed)}")


def read_picture(root: Path | str, path: str) -> Float[np.ndarray, "height width"]:
    """Return one 2D picture as grey values in [0, 1].

    Raises:
        UnreadableExam: not an image, damaged, not 2D, or of one uniform grey.
    """
    root = Path(root)
    grey = read_image(root, path)
    name = Path(path).name
    if grey.ndim != 2:
        raise UnreadableExam(f"{name}: expected one 2D picture, got shape {grey.shape}")
    if grey.min() == grey.max():
        raise UnreadableExam(f"{name}: every pixel has the same value")
    return grey


SIDE = 128
TRANSFORM_VERSION = 1


class Pixels128:
    """Radiograph, DRR or key slice → its 128 × 128 grey values, row by row (``reshape(-1, 128, 128)``).

    Args:
        geometry: see ``RadiographProfile``.

    Raises:
        BadInput: unknown geometry.
    """

    card = EncoderCard("image", SIDE * SIDE, "", "none needed", "none needed")

    def __init__(self, geometry: Geometry = "letterbox") -> None:
        check_geometry(geometry)
        self._geometry: Geometry = geometry
        self.spec = EncoderSpec(
            name="pixels-128",
            modality="image",
            dim=SIDE * SIDE,
            source="the picture",
            weights_sha256="none",
            licence="none needed",
            profile={
                "transform_version": TRANSFORM_VERSION,
                "geometry": geometry,
                "side": SIDE,
                "interpolation": "bilinear, antialiased",
                "pad": 0,
                "grey": "ITU-R 601 luminance, [0, 1] to 0…255",
            },
            dtype="uint8",
            pooling="none",
        )

    def read(self, root: Path | str, path: str) -> UInt8[np.ndarray, "128 128"]:
        """Return the picture at 128 × 128.

        Raises:
            UnreadableExam: not an image, damaged, not 2D, or of one uniform grey.
        """
        square = to_square(read_picture(root, path), SIDE, self._geometry, Image.Resampling.BILINEAR)
        return np.asarray((255 * square).round(), dtype=np.uint8)

    def embed(self, batch: np.ndarray[Any, Any]) -> UInt8[np.ndarray, "batch 16384"]:
        """Return each picture as one row."""
        return batch.reshape(len(batch), -1)
