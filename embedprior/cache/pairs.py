"""Pairs of embeddings for a ``DataLoader``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from embedprior.cache.reader import EmbeddingCache
from embedprior.tables import PAIR_REQUIRED, require_columns


class Pair(TypedDict):
    """One pair: its id, and the embeddings of radiograph (or DRR) and CT."""

    pair_id: str
    cxr: Shaped[Tensor, " cxr_dim"]
    ct: Shaped[Tensor, " ct_dim"]


class PairDataset(Dataset[Pair]):
    """The pairs of a pair table, read from two caches.

    Embeddings are copied to memory once (``in_memory``), or read by memory map for each batch. Give it to a
    ``DataLoader``; a batch is read in one go. With token caches an element has tokens × dim instead of dim numbers.

    Raises:
        BadInput: a pair's exam has no embedding (it is named), or a column is missing.
    """

    def __init__(self, pairs: pd.DataFrame, cxr: EmbeddingCache, ct: EmbeddingCache, in_memory: bool = True) -> None:
        require_columns(pairs, PAIR_REQUIRED, "pair table")
        self.pair_ids = [str(i) for i in pairs["pair_id"]]
        self._sides = [
            _Side(cache, list(pairs[column]), in_memory) for cache, column in ((cxr, "cxr_exam_id"), (ct, "ct_exam_id"))
        ]

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __getitem__(self, index: int) -> Pair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Return several pairs, read together."""
        cxr, ct = (side.read(indices) for side in self._sides)
        return [
            {"pair_id": self.pair_ids[index], "cxr": left, "ct": right}
            for index, left, right in zip(indices, cxr, ct, strict=True)
        ]


class _Side:
    def __init__(self, cache: EmbeddingCache, exam_ids: list[str], in_memory: bool) -> None:
        self._cache, self._rows = cache, cache.rows([str(i) for i in exam_ids])
        self._tensor = None
        if in_memory and not cache.has_tokens:
            self._tensor = torch.from_numpy(cache.read(self._rows))

    def read(self, indices: Sequence[int]) -> Sequence[Tensor]:
        if self._tensor is not None:
            return list(self._tensor[torch.as_tensor(indices)])
        rows = self._rows[np.asarray(indices)]
        if self._cache.has_tokens:
            return [torch.from_numpy(self._cache.tokens(row).copy()) for row in rows.tolist()]
        return list(torch.from_numpy(self._cache.read(rows)))
