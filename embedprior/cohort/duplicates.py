"""The same picture under two patient ids, and one CT scan met twice: found by perceptual hash, patients joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from PIL import Image

from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_image

HASH_SIDE = 16
THUMBNAIL_SIDE = 64
MAX_DISTANCE = 16
MIN_CORRELATION = 0.97


@dataclass(frozen=True)
class Fingerprint:
    """What two pictures are compared by.

    Attributes:
        bits: difference hash: is each of 16×16 cells darker than its right neighbour.
        thumbnail: 64×64 grey values, mean 0 and length 1.
    """

    bits: Bool[np.ndarray, " 256"]
    thumbnail: Float[np.ndarray, " 4096"]


def fingerprint(grey: Float[np.ndarray, "height width"]) -> Fingerprint:
    """Return the fingerprint of a picture; size, compression and brightness change it little, cropping does."""
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    cells = np.asarray(picture.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))
    small = np.asarray(picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX), dtype=float).ravel()
    centred = small - small.mean()
    return Fingerprint((cells[:, 1:] > cells[:, :-1]).ravel(), centred / max(float(np.linalg.norm(centred)), 1e-12))


def fingerprints(exams: pd.DataFrame, root: Path) -> dict[str, Fingerprint]:
    """Return the fingerprint of every exam that can be read as a picture, by ``exam_id``."""
    found = {}
    for row in exams.itertuples():
        try:
            found[str(row.exam_id)] = fingerprint(read_image(root, str(row.path)))
        except (UnreadableExam, OSError):
            continue
    return found


def near_duplicates(exams: pd.DataFrame, prints: Mapping[str, Fingerprint]) -> pd.DataFrame:
    """Return pairs of pictures of one modality that are the same picture.

    Same means a difference hash within 16 of 256 bits and a thumbnail correlation of at least 0.97.

    Returns:
        ``exam_a, exam_b, patient_a, patient_b, hash_distance, correlation, same_patient``.
    """
    columns = ["exam_a", "exam_b", "patient_a", "patient_b", "hash_distance", "correlation", "same_patient"]
    found = []
    for _, part in exams[exams["exam_id"].isin(prints)].groupby("modality"):
        ids, patients = list(part["exam_id"]), list(part["patient_id"])
        packed = np.packbits(np.stack([prints[i].bits for i in ids]), axis=1)
        for a in range(len(ids) - 1):
            distance = np.bitwise_count(packed[a + 1 :] ^ packed[a]).sum(axis=1)
            for b in a + 1 + np.flatnonzero(distance <= MAX_DISTANCE):
                correlation = float(prints[ids[a]].thumbnail @ prints[ids[b]].thumbnail)
                if correlation >= MIN_CORRELATION:
                    same = patients[a] == patients[b]
                    found.append(
                        [ids[a], ids[b], patients[a], patients[b], int(distance[b - a - 1]), correlation, same]
                    )
    return pd.DataFrame(found, columns=columns)


def join_groups(exams: pd.DataFrame, duplicates: pd.DataFrame) -> pd.DataFrame:
    """Return the exams with ``group_id`` joined wherever two patients share a picture.

    A joined group bears the smallest of its former group ids, so the result does not depend on row order.
    """
    group = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
    across = duplicates[~duplicates["same_patient"].astype(bool)]
    edges = [(group[a], group[b]) for a, b in zip(across["patient_a"], across["patient_b"], strict=True)]
    joined = union_find(sorted(set(group.values())), edges)
    return exams.assign(group_id=exams["group_id"].map(joined))


def union_find(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the smallest name of each one's connected component."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in edges:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {name: root(name) for name in names}


MOST_BITS, LEAST_CORRELATION = 6, 0.993
"""DRRs share pose and geometry, so chests of two patients are more alike than two radiographs: virtual patients reach
0.988 at 8 bits, the real CTs 0.934, and one scan in two resolutions 0.997 at 4 bits or fewer."""


def same_scans(exams: pd.DataFrame, prints: Mapping[str, Fingerprint]) -> pd.DataFrame:
    """Return the pairs of DRRs of different patients that show one scan (columns: see ``near_duplicates``).

    Args:
        exams: with ``exam_id, patient_id, modality``; one straight image of each CT.
        prints: of the images, by ``exam_id``.
    """
    found = near_duplicates(exams, prints)
    alike = (found["hash_distance"] <= MOST_BITS) & (found["correlation"] >= LEAST_CORRELATION)
    return found[alike & ~found["same_patient"].astype(bool)].reset_index(drop=True)
