"""Open a cache: ids and one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embedprior.cache.shards import ShardHeader, intact, map_rows, read_header
from embedprior.encoders.base import key8
from embedprior.errors import BadInput
from embedprior.runs import read_json

MANIFEST = "manifest.json"
CURRENT = "current"


@dataclass(frozen=True)
class EmbeddingCache:
    """A cache on disk.

    Attributes:
        path: its folder.
        key: everything the embeddings depend on (see ``encoders.encoder_key``).
        ids: exam ids, in the order of the matrix.
        sources: sha256 of each exam's source file.
    """

    path: Path
    key: dict[str, Any]
    ids: list[str]
    sources: list[str]
    shards: list[tuple[Path, ShardHeader]]

    @cached_property
    def matrix(self) -> Float[np.ndarray, "exams dim"]:
        """All embeddings in memory, float32, one row an exam."""
        if not self.shards:
            return np.empty((0, int(self.key["dim"])), np.float32)
        return np.concatenate([np.asarray(map_rows(*shard)) for shard in self.shards])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {exam_id: row for row, exam_id in enumerate(self.ids)}

    def take(self, exam_ids: Sequence[str]) -> Float[np.ndarray, "exams dim"]:
        """Return the rows of these exams, in this order.

        Raises:
            BadInput: an exam has no embedding.
        """
        missing = [i for i in exam_ids if i not in self._rows]
        if missing:
            raise BadInput(f"{self.path.name}: {len(missing)} exams have no embedding: {', '.join(missing[:5])}.")
        return self.matrix[[self._rows[i] for i in exam_ids]]

    def verify(self) -> list[str]:
        """Return the names of the shards whose data no longer has its checksum."""
        return [path.name for path, header in self.shards if not intact(path, header)]


def open_cache(path: Path | str, expect: dict[str, Any] | None = None) -> EmbeddingCache:
    """Open a cache folder, or a folder whose ``current`` file names one.

    Args:
        path: ``<encoder>@<key8>/``, or the folder it lies in.
        expect: the key it must have.

    Raises:
        BadInput: no cache there, a damaged shard, or a key that differs (the field is named).
    """
    folder = Path(path)
    pointer = folder / CURRENT
    if pointer.is_file():
        folder = folder / pointer.read_text().strip()
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"no embedding cache at {path}.")
    key: dict[str, Any] = read_json(folder / MANIFEST)["key"]
    if expect is not None:
        refuse_other_key(folder, key, expect)
    shards = []
    ids: list[str] = []
    sources: list[str] = []
    for shard in sorted(folder.glob("shard-*.safetensors")):
        header = read_header(shard)
        if header.key != key8(key):
            raise BadInput(f"{shard} belongs to another cache (key {header.key}, not {key8(key)}).")
        shards.append((shard, header))
        ids += header.exam_ids
        sources += header.sources
    if len(set(ids)) != len(ids):
        raise BadInput(f"{folder} holds an exam twice. Next: delete its shards and embed again.")
    return EmbeddingCache(folder, key, ids, sources, shards)


def refuse_other_key(folder: Path, have: dict[str, Any], want: dict[str, Any]) -> None:
    """Compare two keys field by field.

    Raises:
        BadInput: the first field that differs, with both values.
    """
    for field in sorted({*have, *want}):
        if have.get(field) != want.get(field):
            raise BadInput(
                f"{folder.name} was made with another {field}: {have.get(field)!r:.80}, not {want.get(field)!r:.80}. "
                "Embeddings of different origin are never mixed; give another folder."
            )
