"""One file, one picture or one CT scan under two patient ids: found by checksum, by comparing pictures, and by cosine
of embeddings; the patients are joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num, UInt8
from PIL import Image

from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_image

HASH_SIDE = 16
THUMBNAIL_SIDE = 64
MAX_DISTANCE = 16
MIN_CORRELATION = 0.97
COMPARED_SIDE, CELL_SIDE, ALIGNED_SIDE = 128, 32, 64
CROPS = tuple(product((0.0, 0.05), repeat=4))
"""Shares cut off at the left, the top, the right and the bottom."""
MAX_CROP = 0.12
CANDIDATE_CORRELATION, ALIGNED_CORRELATION = 0.95, 0.93
"""On 467 real radiographs: copies cut by 5 % correlate by .995 and more with one of the crops, by .997 when aligned; of
107,530 pairs of different patients none but four, which are the same pictures, exceeds .86 when aligned."""
MIN_COSINE = 0.95
"""Of embeddings with their mean subtracted. EfficientNet-Lite0 on the same radiographs: the four pictures under two ids
.988 and more, all other pairs of different patients .774 at most; a copy 10 % brighter or darker .98, but one cut or
compressed again about .7: those only pictures show."""
ALWAYS_COSINE, DEVIATIONS, MIN_EXAMS = 0.9999, 6.0, 30
"""Embeddings this near are copies. Others are if they lie nearer than another patient's exam does by chance: by so many
standard deviations of the logarithm of the distance to the nearest one, where so many exams show it. A network of 64
outputs on 1,280 virtual patients, none of them twice: 19,967 pairs above .95, the nearest 3.2 deviations away."""
VALLEY_COSINE, VALLEY_SHARE = 0.875, 0.1
"""Of exams above ``MIN_COSINE``, at most this share lies between the two where copies are apart from others."""
NORMAL_75, NORMAL_95 = 0.6745, 1.6449
"""Quantiles of the standard normal distribution."""
MIN_DIM, MAX_PAIR_SHARE, MAX_EXAMS = 32, 0.001, 50_000
COLUMNS = ["exam_a", "exam_b", "patient_a", "patient_b", "how", "hash_distance", "correlation", "same_patient"]
"""Of a table of duplicates; ``how``: same file, same picture, inverted picture, cropped picture or same embedding."""


@dataclass(frozen=True)
class Fingerprint:
    """What two pictures are compared by.

    Attributes:
        bits: difference hash: is each of 16×16 cells darker than its right neighbour.
        inverse_bits: that of the picture with black and white exchanged.
        thumbnail: 64×64 grey values, mean 0 and length 1.
        picture: 128×128 grey values over the picture's own range, for copies that were cropped.
    """

    bits: Bool[np.ndarray, " 256"]
    inverse_bits: Bool[np.ndarray, " 256"]
    thumbnail: Float[np.ndarray, " 4096"]
    picture: UInt8[np.ndarray, "128 128"]


def fingerprint(grey: Float[np.ndarray, "height width"]) -> Fingerprint:
    """Return the fingerprint of a picture; size, compression and brightness change it little."""
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    cells = np.asarray(picture.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))
    small = np.asarray(picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX), dtype=float)
    kept = np.asarray(picture.resize((COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BOX))
    low, high = float(kept.min()), float(kept.max())
    scaled = np.rint(255 * (kept - low) / max(high - low, 1e-12)).astype(np.uint8)
    darker, brighter = cells[:, 1:] > cells[:, :-1], cells[:, 1:] < cells[:, :-1]
    return Fingerprint(darker.ravel(), brighter.ravel(), _unit(small).ravel(), scaled)


def fingerprints(exams: pd.DataFrame, root: Path) -> dict[str, Fingerprint]:
    """Return the fingerprint of every exam that can be read as a picture, by ``exam_id``."""
    found = {}
    for row in exams.itertuples():
        try:
            found[str(row.exam_id)] = fingerprint(read_image(root, str(row.path)))
        except (UnreadableExam, OSError):
            continue
    return found


def same_files(exams: pd.DataFrame, sources: Mapping[str, str]) -> pd.DataFrame:
    """Return pairs of exams that are one file by its checksum, whatever their modality.

    Reports are left out: those of many patients say the same.

    Args:
        exams: with ``exam_id, patient_id``.
        sources: sha256 of each exam's file. A checksum of one repeated digit stands for none.

    Returns:
        A table with ``COLUMNS``; of n exams of one file n − 1 pairs, each with the first.

    Example:
        >>> exams = pd.DataFrame({"exam_id": ["a", "b"], "patient_id": ["1", "2"]})
        >>> same_files(exams, {"a": "9f86", "b": "9f86"})[["patient_a", "patient_b", "how"]].values.tolist()
        [['1', '2', 'same file']]
    """
    patient = dict(zip(exams["exam_id"], exams["patient_id"], strict=True))
    of_file: dict[str, list[str]] = defaultdict(list)
    reports = set(exams.loc[exams["modality"] == "REPORT", "exam_id"]) if "modality" in exams else set()
    for exam_id in [one for one in patient if one not in reports]:
        source = sources.get(exam_id, "")
        if len(set(source)) > 1:
            of_file[source].append(exam_id)
    found = [(first, other) for first, *rest in of_file.values() for other in rest]
    return _table(patient, [(a, b, "same file", 0, 1.0) for a, b in found])


def near_duplicates(exams: pd.DataFrame, prints: Mapping[str, Fingerprint]) -> pd.DataFrame:
    """Return pairs of pictures of one modality that are the same picture.

    Same means a difference hash within 16 of 256 bits and a thumbnail correlation of at least 0.97, or both with black
    and white exchanged. Of different patients also: the finer structures of one and of a part of the other (up to 12 %
    cut off at each side) correlate by at least 0.93 when aligned.

    Returns:
        A table with ``COLUMNS``.
    """
    found: list[tuple[str, str, str, int, float]] = []
    patient = dict(zip(exams["exam_id"], exams["patient_id"], strict=True))
    for _, part in exams[exams["exam_id"].isin(prints)].groupby("modality"):
        ids = list(part["exam_id"])
        packed = np.packbits(np.stack([prints[i].bits for i in ids]), axis=1)
        inverse = np.packbits(np.stack([prints[i].inverse_bits for i in ids]), axis=1)
        whole: set[tuple[str, str]] = set()
        ways = (("same picture", packed, 1), ("inverted picture", inverse, -1))
        for a, (how, others, sign) in product(range(len(ids) - 1), ways):
            distance = np.bitwise_count(others[a + 1 :] ^ packed[a]).sum(axis=1)
            for b in (a + 1 + np.flatnonzero(distance <= MAX_DISTANCE)).tolist():
                correlation = sign * float(prints[ids[a]].thumbnail @ prints[ids[b]].thumbnail)
                if correlation >= MIN_CORRELATION:
                    found.append((ids[a], ids[b], how, int(distance[b - a - 1]), correlation))
                    whole.add((ids[a], ids[b]))
        for a, b, crop in _crop_candidates([prints[i].picture for i in ids]):
            first, second = ids[min(a, b)], ids[max(a, b)]
            if patient[first] == patient[second] or (first, second) in whole:
                continue
            correlation = aligned_correlation(prints[ids[a]].picture, prints[ids[b]].picture, crop)
            if correlation >= ALIGNED_CORRELATION:
                distance = int(np.bitwise_count(packed[a] ^ packed[b]).sum())
                found.append((first, second, "cropped picture", distance, correlation))
    return _table(patient, found)


def _crop_candidates(pictures: Sequence[UInt8[np.ndarray, "128 128"]]) -> Iterator[tuple[int, int, tuple[float, ...]]]:
    """Pairs (whole, part of, which part) that look alike coarsely; each pair once, the better way round."""
    whole = np.stack([_unit(_cells(p, (0.0,) * 4, CELL_SIDE)).ravel() for p in pictures]).astype(np.float32)
    best: dict[tuple[int, int], tuple[float, int, int, tuple[float, ...]]] = {}
    for b, picture in enumerate(pictures):
        parts = np.stack([_unit(_cells(picture, crop, CELL_SIDE)).ravel() for crop in CROPS[1:]]).astype(np.float32)
        alike = whole @ parts.T
        for a in np.flatnonzero(alike.max(axis=1) >= CANDIDATE_CORRELATION).tolist():
            if a != b:
                place = int(alike[a].argmax())
                one = (float(alike[a, place]), a, b, CROPS[1:][place])
                key = (min(a, b), max(a, b))
                best[key] = max(best.get(key, one), one)
    yield from (one[1:] for one in best.values())


def aligned_correlation(
    whole: UInt8[np.ndarray, "128 128"], other: UInt8[np.ndarray, "128 128"], crop: Sequence[float]
) -> float:
    """Return how well the finer structures of one picture fit a part of another, when that part is chosen best.

    Args:
        whole: a picture, squeezed into a square.
        other: another, likewise; a part of it is compared.
        crop: shares cut off it at the left, top, right and bottom to begin with; at most 12 % each in the end.
    """
    from scipy.optimize import minimize

    target = _structures(_cells(whole, (0.0,) * 4, ALIGNED_SIDE))

    def unlike(cut: Float[np.ndarray, " 4"]) -> float:
        return -float((target * _structures(_cells(other, cut, ALIGNED_SIDE))).sum())

    start = np.array(crop, dtype=float)
    found = minimize(unlike, start, method="Powell", bounds=[(0.0, MAX_CROP)] * 4, options={"maxfev": 120})
    return -min(float(found.fun), unlike(start))


def _cells(picture: UInt8[np.ndarray, "128 128"], crop: Iterable[float], side: int) -> Float[np.ndarray, "side side"]:
    # a search may step below its bound of 0 by a rounding
    left, top, right, bottom = (max(0.0, float(share)) * COMPARED_SIDE for share in crop)
    box = (left, top, COMPARED_SIDE - right, COMPARED_SIDE - bottom)
    small = Image.fromarray(picture.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(small, dtype=float)


def _structures(cells: Float[np.ndarray, "side side"]) -> Float[np.ndarray, "side side"]:
    from scipy.ndimage import gaussian_filter

    return _unit(gaussian_filter(cells, 0.7) - gaussian_filter(cells, 4.0))


def _unit(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-12))


@dataclass(frozen=True)
class NearEmbeddings:
    """Exams of different patients whose embeddings are nearly identical.

    Attributes:
        pairs: with ``COLUMNS``.
        cosine: from which on two embeddings count as copies; NaN where none were compared.
        reason: why the embeddings were not compared; empty where they were.
    """

    pairs: pd.DataFrame
    cosine: float
    reason: str = ""

    def sentence(self, what: str) -> str:
        """Return whether ``what`` was compared, and by which rule."""
        if self.reason:
            return f"Not compared: {what}: {self.reason}."
        rule = f"a copy from {np.floor(1e4 * self.cosine) / 1e4:g} on"
        if self.cosine > MIN_COSINE:
            rule += ", for this encoder puts different patients near one another: only pictures show altered copies"
        return f"Compared: {what} ({rule})."


def near_embeddings(exams: pd.DataFrame, ids: Sequence[str], matrix: Num[np.ndarray, "exams dim"]) -> NearEmbeddings:
    """Return pairs of exams of different patients whose embeddings are nearly identical.

    Compared is the cosine after the mean of all was subtracted; see ``copy_cosine`` for how near a copy must be. An
    encoder that hardly tells exams apart (one pair of a thousand would count) joins nobody.

    Args:
        exams: with ``exam_id, patient_id``; others of ``ids`` are left out.
        ids, matrix: exams, and an embedding of each.
    """
    patient = dict(zip(exams["exam_id"], exams["patient_id"], strict=True))
    rows = [row for row, exam_id in enumerate(ids) if exam_id in patient]
    names = [ids[row] for row in rows]
    refused = ""
    if matrix.shape[1] < MIN_DIM:
        refused = f"{matrix.shape[1]} numbers are too few to tell two exams apart"
    elif len(rows) > MAX_EXAMS:
        refused = f"{len(rows)} exams are more than the {MAX_EXAMS} that are compared"
    if refused:
        return NearEmbeddings(_table(patient, []), float("nan"), refused)
    values = np.asarray(matrix[rows], dtype=np.float32)
    values = values - values.mean(axis=0)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    owner = np.unique([patient[name] for name in names], return_inverse=True)[1]
    blocks = range(0, len(values), 1024)
    nearest = [_others_cosine(values, owner, first).max(axis=1, initial=-1.0) for first in blocks]
    least = copy_cosine(np.concatenate([*nearest, np.empty(0)]))
    found = []
    for first in blocks:
        cosine = _others_cosine(values, owner, first)
        for a, b in zip(*np.nonzero(cosine >= least), strict=True):
            if first + a < b:
                found.append((names[first + a], names[b], "same embedding", -1, float(cosine[a, b])))
    if len(found) > max(len(names) / 2, MAX_PAIR_SHARE * len(names) ** 2 / 2):
        reason = f"{len(found)} pairs would count: this encoder hardly tells exams apart"
        return NearEmbeddings(_table(patient, []), float("nan"), reason)
    return NearEmbeddings(_table(patient, found), least)


def _others_cosine(
    values: Float[np.ndarray, "exams dim"], owner: Int[np.ndarray, " exams"], first: int
) -> Float[np.ndarray, "block exams"]:
    """Return the cosines of up to 1,024 exams, from ``first`` on, with all others; -1 within a patient."""
    cosine: Float[np.ndarray, "block exams"] = values[first : first + 1024] @ values.T
    cosine[owner[first : first + 1024, None] == owner] = -1.0
    return cosine


def copy_cosine(nearest: Float[np.ndarray, " exams"]) -> float:
    """Return from which cosine on two embeddings are copies of one picture, not exams of patients who look alike.

    ``MIN_COSINE``, where few exams have their nearest one just below it: then those above are apart, however many they
    are. Otherwise the logarithm of the distance 1 - cosine to the nearest exam of another patient is taken as normal,
    with the mean and standard deviation that its quantiles .75 and .95 give: copies lie at the lower end.

    Args:
        nearest: of each exam, the cosine with the nearest exam of another patient.

    Returns:
        A cosine between ``MIN_COSINE`` and ``ALWAYS_COSINE``.

    Example:
        >>> copy_cosine(np.full(100, 0.4))  # an encoder that tells patients apart
        0.95
        >>> copy_cosine(np.linspace(0.9, 0.99, 100)) > 0.98  # one that does not
        True
    """
    if len(nearest) < MIN_EXAMS:
        return MIN_COSINE
    copies, next_to_them = nearest >= MIN_COSINE, (nearest < MIN_COSINE) & (nearest >= VALLEY_COSINE)
    if next_to_them.sum() <= VALLEY_SHARE * copies.sum():
        return MIN_COSINE
    distance = np.log(np.maximum(1 - nearest, 1e-9))
    at, far = np.quantile(distance, [0.75, 0.95])
    deviation = (far - at) / (NORMAL_95 - NORMAL_75)
    limit = 1 - np.exp(at - (NORMAL_75 + DEVIATIONS) * deviation)
    return float(np.clip(limit, MIN_COSINE, ALWAYS_COSINE))


def _table(patient: Mapping[str, str], found: Sequence[tuple[str, str, str, int, float]]) -> pd.DataFrame:
    rows = [
        (a, b, patient[a], patient[b], how, distance, correlation, patient[a] == patient[b])
        for a, b, how, distance, correlation in found
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def first_of_each(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return every pair of exams once, as the first of the tables that has it found it."""
    filled = [table for table in tables if len(table)]
    if not filled:
        return pd.DataFrame(columns=COLUMNS)
    whole = pd.concat(filled, ignore_index=True)
    pair = pd.Series(["\0".join(sorted((a, b))) for a, b in zip(whole["exam_a"], whole["exam_b"], strict=True)])
    return whole[~pair.duplicated()].reset_index(drop=True)


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
