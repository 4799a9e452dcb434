from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from embedprior.encoders.base import EncoderSpec
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_image


class MeanEncoder:
    """Means of the four quadrants: an encoder whose answer is known. Its tokens are the means of each row."""

    def __init__(self, **changes: Any) -> None:
        base = {
            "name": "means", "modality": "image", "dim": 4, "source": "test", "weights_sha256": "none",
            "licence": "none", "profile": {"transform_version": 1, "side": 8}, "pooling": "quadrants", "token_dim": 2,
        }  # fmt: skip
        self.spec = EncoderSpec(**(base | changes))
        self.seen = 0
        self.batches: list[tuple[int, ...]] = []

    def read(self, root: Path, path: str) -> np.ndarray:
        picture = read_image(root, path)
        if picture.max() == 0 and picture.shape[0] == 6:
            raise UnreadableExam("black")
        return picture

    def embed(self, batch: np.ndarray) -> np.ndarray:
        self.seen += len(batch)
        self.batches.append(batch.shape)
        return np.stack([quadrants(picture) for picture in batch])

    def tokens(self, batch: np.ndarray) -> list[np.ndarray]:
        self.seen += len(batch)
        return [rows(picture) for picture in batch]


def quadrants(picture: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for half in np.split(picture, 2) for part in np.split(half, 2, axis=1)], np.float32)


def rows(picture: np.ndarray) -> np.ndarray:
    return np.stack([half.mean(1) for half in np.split(picture, 2, axis=1)], axis=1).astype(np.float32)


def make_exams(root: Path, count: int, seed: int = 5, sides: tuple[int, ...] = (8,)) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        side = sides[i % len(sides)]
        Image.fromarray(rng.integers(1, 256, (side, side), dtype=np.uint8)).save(root / f"{i}.png")
    return pd.DataFrame(
        {
            "exam_id": [f"e{i}" for i in range(count)], "patient_id": [f"p{i}" for i in range(count)],
            "modality": "CXR", "path": [f"{i}.png" for i in range(count)],
        }
    )  # fmt: skip


def expected(root: Path, numbers: list[int]) -> np.ndarray:
    pictures = [np.asarray(Image.open(root / f"{i}.png")) / np.float32(255) for i in numbers]
    return np.stack([quadrants(picture) for picture in pictures])


def tree(folder: Path) -> dict[str, str]:
    """Every file under a folder with the sha256 of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
