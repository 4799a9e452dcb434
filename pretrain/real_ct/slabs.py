"""A CT as a stack of axial slabs through the lungs, and a frozen 2D network over them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from embedprior.encoders.base import Encoder, EncoderSpec
from embedprior.encoders.pictures import EfficientNetLite0, transform
from embedprior.imaging.files import UnreadableExam, read_array, split_path
from embedprior.imaging.lungs import find_lungs, lung_box
from embedprior.imaging.preprocess import WINDOWS
from embedprior.imaging.readers import read_volume
from embedprior.imaging.volume import Volume, canonical

COUNT, SIDE, WINDOW = 24, 160, "lung"
TRANSFORM_VERSION = 1


def slabs_of(volume: Volume) -> UInt8[np.ndarray, "24 160 160"]:
    """Return 24 slabs from the lungs' base to their apex, each the mean of its slices in the lung window.

    Raises:
        UnreadableExam: no lungs were found.
    """
    upright = canonical(volume)
    lungs = find_lungs(upright)
    box = lung_box(upright, lungs=lungs)
    if box is None:
        raise UnreadableExam(f"no lungs found ({lungs.ml:.0f} ml)")
    cut = upright.crop(box)
    low, high = WINDOWS[WINDOW]
    edges = np.linspace(0, cut.shape[0], COUNT + 1)
    slabs = []
    for near, far in pairwise(edges):
        first = min(int(near), cut.shape[0] - 1)
        slices = cut.hu[first : max(first + 1, int(np.ceil(far)))].astype(np.float32)
        grey = np.clip((slices.mean(axis=0) - low) / (high - low), 0, 1)
        slabs.append(_square(grey, cut.spacing_mm))
    return np.stack(slabs)


def _square(grey: Float[np.ndarray, "height width"], spacing: tuple[float, float, float]) -> UInt8[np.ndarray, "s s"]:
    high, wide = grey.shape[0] * spacing[1], grey.shape[1] * spacing[0]
    scale = SIDE / max(high, wide)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (SIDE - picture.shape[0]) // 2, (SIDE - picture.shape[1]) // 2
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = np.round(picture * 255)
    return canvas


class SlabEncoder:
    """A CT file, or a row of an array of slabs, to the mean and the maximum of its slabs' features (2560 values)."""

    def __init__(self, network: Encoder | None = None) -> None:
        self._network = EfficientNetLite0() if network is None else network
        inner = self._network.spec
        self.spec = EncoderSpec(
            name="slabs-" + inner.name,
            modality="CT",
            dim=2 * inner.dim,
            source=inner.source,
            weights_sha256=inner.weights_sha256,
            licence=inner.licence,
            profile={
                "transform_version": TRANSFORM_VERSION, "slabs": COUNT, "side": SIDE, "window": WINDOW,
                "inner": inner.profile,
            },
            pooling="mean and maximum of the slabs",
        )  # fmt: skip

    def read(self, root: Path, path: str) -> UInt8[np.ndarray, "24 160 160"]:
        """Return the slabs of one CT.

        Raises:
            UnreadableExam: damaged, without lungs, or slabs of another shape.
        """
        if split_path(path)[1] is None:
            return slabs_of(read_volume(root / path)[0])
        slabs = read_array(root, path)
        if slabs.shape != (COUNT, SIDE, SIDE) or slabs.dtype != np.uint8:
            raise UnreadableExam(f"{Path(path).name}: expected {COUNT} slabs of {SIDE} x {SIDE}, got {slabs.shape}")
        return slabs

    def embed(self, batch: np.ndarray[Any, Any]) -> Float[np.ndarray, "batch 2560"]:
        """Return the pooled features of a batch of slabs."""
        rows = []
        for slabs in batch:
            pictures = np.stack([transform(slab.astype(np.float32) / 255, "letterbox") for slab in slabs])
            features = np.concatenate([self._network.embed(pictures[i : i + 8]) for i in range(0, len(pictures), 8)])
            rows.append(np.concatenate([features.mean(axis=0), features.max(axis=0)]))
        return np.stack(rows).astype(np.float32)
