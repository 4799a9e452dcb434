"""Fill a cache: what is missing, nothing twice, one bad exam never stops the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cache.reader import CURRENT, MANIFEST, EmbeddingCache, open_cache
from embedprior.cache.shards import write_shard
from embedprior.encoders.base import Encoder, encoder_key, key8
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.runs import progress, write_json, write_text

SHARD_BATCHES = 16


def build_cache(
    exams: pd.DataFrame, root: Path, encoder: Encoder, out: Path, batch_size: int = 64, desc: str | None = None
) -> tuple[EmbeddingCache, list[dict[str, str]]]:
    """Embed every exam that the cache lacks, or whose source file changed.

    Args:
        exams: exam table.
        root: folder the exams' paths are relative to.
        encoder: a frozen encoder.
        out: folder of caches; the cache is ``out/<encoder>@<key8>`` and ``out/current`` names it.
        batch_size: exams per forward pass; a shard holds 16 batches.
        desc: text of the progress bar.

    Returns:
        The cache, and one record (``exam_id``, ``stage``, ``reason``) for every exam that could not be read.
    """
    key = encoder_key(encoder.spec)
    folder = out / f"{encoder.spec.name}@{key8(key)}"
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, {"key": key, "spec": encoder.spec})
    cache = open_cache(folder, expect=key)
    done = dict(zip(cache.ids, cache.sources, strict=True))
    hashes: dict[str, str] = {}
    failures: list[dict[str, str]] = []
    for row in exams.itertuples():
        try:
            hashes[str(row.exam_id)] = source_hash(root, str(row.path))
        except OSError as error:
            failures.append(_failure(str(row.exam_id), str(error.strerror)))
    changed = {exam_id for exam_id, source in hashes.items() if done.get(exam_id, source) != source}
    if changed:
        _drop_shards_with(cache, changed)
        done = dict.fromkeys(open_cache(folder).ids, "")
    todo = exams[exams["exam_id"].isin([i for i in hashes if i not in done])]
    _embed(todo, root, encoder, folder, key8(key), hashes, failures, batch_size, desc or encoder.spec.name)
    write_text(out / CURRENT, folder.name + "\n")
    cache = open_cache(folder)
    index = pd.DataFrame({"exam_id": cache.ids, "row": range(len(cache.ids)), "sha256": cache.sources})
    write_text(folder / "index.csv", index.to_csv(index=False))
    return cache, failures


def _embed(
    todo: pd.DataFrame, root: Path, encoder: Encoder, folder: Path, short_key: str, hashes: dict[str, str],
    failures: list[dict[str, str]], batch_size: int, desc: str,
) -> None:  # fmt: skip
    ids: list[str] = []
    rows: list[np.ndarray] = []
    number = _next_number(folder)
    for chunk in progress(_chunks(todo, batch_size), desc, total=-(-len(todo) // batch_size)):
        pixels, kept = [], []
        for exam in chunk.itertuples():
            try:
                pixels.append(encoder.read(root, str(exam.path)))
                kept.append(str(exam.exam_id))
            except UnreadableExam as error:
                failures.append(_failure(str(exam.exam_id), str(error)))
        if kept:
            ids += kept
            rows.append(encoder.embed(np.stack(pixels)))
        if len(rows) == SHARD_BATCHES:
            _flush(folder, number, short_key, ids, rows, hashes)
            number, ids, rows = number + 1, [], []
    if rows:
        _flush(folder, number, short_key, ids, rows, hashes)


def _flush(
    folder: Path, number: int, short_key: str, ids: list[str], rows: list[np.ndarray], hashes: dict[str, str]
) -> None:
    shard = folder / f"shard-{number:05d}.safetensors"
    write_shard(shard, short_key, ids, [hashes[i] for i in ids], np.concatenate(rows))


def _chunks(frame: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    for start in range(0, len(frame), size):
        yield frame.iloc[start : start + size]


def _next_number(folder: Path) -> int:
    taken = [int(p.stem.removeprefix("shard-")) for p in folder.glob("shard-*.safetensors")]
    return max(taken, default=-1) + 1


def _drop_shards_with(cache: EmbeddingCache, changed: set[str]) -> None:
    for path, header in cache.shards:
        if changed & set(header.exam_ids):
            path.unlink()


def _failure(exam_id: str, reason: str) -> dict[str, str]:
    return {"exam_id": exam_id, "stage": "embed", "reason": reason}
