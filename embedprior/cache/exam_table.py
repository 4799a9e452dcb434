"""An exam table that is read from its file a piece at a time: a million exams take no room in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cache.present import Array64, hash_ids
from embedprior.errors import BadInput
from embedprior.tables import EXAM_REQUIRED, check_exams, read_pieces

PIECE = 8192


class ExamTable:
    """The exams of a CSV that are of some modalities: checked once as a whole, then yielded piece after piece.

    Attributes:
        count: exams that are yielded.
        left_out: exams of other modalities.
    """

    def __init__(self, path: Path, modalities: Collection[str], limit: int | None = None) -> None:
        """Read the table through, and check it.

        Args:
            path: the CSV; see ``docs/formats.md``.
            modalities: exams of others are left out.
            limit: the first ones only; None = all.

        Raises:
            BadInput: it can't be read, something in it is wrong (see ``tables.check_exams``), or no exam is left.
        """
        self._path, self._modalities = path, modalities
        ids: list[Array64] = []
        there: set[str] = set()
        first_line, chosen = 2, 0
        for piece in read_pieces(path, EXAM_REQUIRED, PIECE):
            exams = check_exams(piece, str(path), first_line)
            first_line += len(exams)
            ids.append(hash_ids(exams["exam_id"]))
            there |= {str(name) for name in exams["modality"].unique()}
            chosen += int(exams["modality"].isin(modalities).sum())
        self._refuse_twice(ids)
        if not chosen:
            have = ", ".join(sorted(there)) or "no line"
            raise BadInput(f"{path}: no exam of modality {' or '.join(modalities)}; the table has {have}.")
        self.left_out = first_line - 2 - chosen
        self.count = chosen if limit is None else min(limit, chosen)

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Yield ``exam_id`` and ``path``, a piece at a time.

        Raises:
            BadInput: the file has become shorter since it was checked.
        """
        left = self.count
        for piece in read_pieces(self._path, EXAM_REQUIRED, PIECE):
            if not left:
                return
            kept = piece.loc[piece["modality"].isin(self._modalities), ["exam_id", "path"]].head(left)
            left -= len(kept)
            yield kept
        if left:
            raise BadInput(f"{self._path} was changed while it was read. Next: run the same command again.")

    def _refuse_twice(self, ids: list[Array64]) -> None:
        hashes = np.concatenate(ids) if ids else np.empty(0, np.uint64)
        hashes.sort()
        suspects = hashes[1:][hashes[1:] == hashes[:-1]]
        if not len(suspects):
            return
        seen: set[str] = set()
        twice: list[str] = []
        line = 2
        for piece in read_pieces(self._path, EXAM_REQUIRED, PIECE):
            for n in np.flatnonzero(np.isin(hash_ids(piece["exam_id"]), suspects)).tolist():
                exam_id = str(piece["exam_id"].iloc[n])
                if exam_id in seen:
                    twice.append(f"{line + n} ('{exam_id}')")
                seen.add(exam_id)
            line += len(piece)
        if twice:
            more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
            raise BadInput(f"{self._path}: repeated 'exam_id' in line {', '.join(twice[:5])}{more}.")
