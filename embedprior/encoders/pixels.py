"""The pixels of a radiograph as an encoder, so that pixel methods read a cache like everyone else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from embedprior.encoders.base import EncoderCard, EncoderSpec
from embedprior.encoders.readers import PICTURE_VERSION, check_geometry, read_picture
from embedprior.imaging.radiographs import Geometry, to_square

SIDE = 128


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
                "transform_version": PICTURE_VERSION,
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
        square = to_square(read_picture(Path(root), path), SIDE, self._geometry, Image.Resampling.BILINEAR)
        return np.asarray((255 * square).round(), dtype=np.uint8)

    def embed(self, batch: np.ndarray[Any, Any]) -> UInt8[np.ndarray, "batch 16384"]:
        """Return each picture as one row."""
        return batch.reshape(len(batch), -1)
