"""An encoder: mean and deviation of the grey values in 8 × 8 cells of a radiograph."""

import numpy as np
from PIL import Image

from embedprior.encoders.base import EncoderCard, EncoderSpec
from embedprior.encoders.readers import read_picture
from embedprior.imaging.radiographs import to_square


class CellMeans:
    """128 numbers of a radiograph, without any weights."""

    card = EncoderCard("image", 128, "", "none needed", "none needed")

    def __init__(self):
        self.spec = EncoderSpec(
            name="cell-means", modality="image", dim=128, source="none", weights_sha256="none", licence="none needed",
            profile={"transform_version": 1, "side": 64, "geometry": "letterbox"}, pooling="mean and deviation",
        )  # fmt: skip

    def read(self, root, path):
        """Return one radiograph at 64 × 64, grey in [0, 1]."""
        return to_square(read_picture(root, path), 64, "letterbox", Image.Resampling.BILINEAR)

    def embed(self, batch):
        """Return (radiographs, 128)."""
        cells = batch.reshape(len(batch), 8, 8, 8, 8).swapaxes(2, 3).reshape(len(batch), 64, 64)
        return np.concatenate([cells.mean(-1), cells.std(-1)], axis=1).astype(np.float32)
